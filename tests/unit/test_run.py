"""The run folder: complete, never overwritten, readable after a failure."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from truing import console
from truing.lineage import RECORDS, Parent, hash_file, hash_folder
from truing.run import Run
from truing.settings import QuickstartConfig, SftConfig
from truing.writing import write_json

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def make(folder: Path, **more: object) -> Run:
    config = QuickstartConfig(output_dir=str(folder), seed=3)
    return Run.create(folder, stage="sft", config=config, seed=3, **more)


def test_what_a_run_writes_down(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(b"abc")
    run = make(tmp_path / "run", parents=[Parent.of("dataset", data), Parent.of("policy", "x/y")])
    info = json.loads((run.path / "run.json").read_text())
    assert info["stage"] == "sft"
    assert info["status"] == "running"
    assert info["seed"] == 3
    assert info["versions"].keys() >= {"python", "truing", "torch", "transformers"}
    assert info["machine"]["cpus"] >= 1
    plain = {"kind": "", "split": ""}
    assert info["parents"] == [
        {"role": "dataset", "path": str(data), "sha256": ABC, "name": "rows.jsonl", **plain},
        {"role": "policy", "path": "x/y", "sha256": None, "name": "x/y", **plain},
    ]
    assert Run.open(run.path).parents == run.parents
    assert "seed: 3" in (run.path / "config.yaml").read_text()
    assert run.name == "run"


def test_the_revision_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert make(tmp_path / "a").info["git"] is None
    name = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], [*name, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], check=True)
    git = make(tmp_path / "b").info["git"]
    assert len(git["revision"]) == 40
    assert git["dirty"] is True  # the folders of both runs


def test_hashes_see_names_contents_and_boundaries(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        (folder / "sub").mkdir(parents=True)
        (folder / "one").write_bytes(b"abc")
        (folder / "sub" / "two").write_bytes(b"")
    empty = hashlib.sha256(b"").hexdigest()
    lines = f"one\0{ABC}\nsub/two\0{empty}\n"
    assert hash_file(a / "one") == ABC
    assert hash_folder(a) == hash_folder(b) == hashlib.sha256(lines.encode()).hexdigest()
    (b / "one").write_bytes(b"ab")
    (b / "sub" / "two").write_bytes(b"c")
    assert hash_folder(b) != hash_folder(a)
    assert hash_folder(b, leave_out=["one", "sub"]) == empty
    (a / "one").rename(a / "eins")
    assert hash_folder(a) != hashlib.sha256(lines.encode()).hexdigest()


def test_a_parent_run_is_hashed_without_its_records(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run.path / "model.safetensors").write_bytes(b"abc")
    before = Parent.of("policy", run.path)
    run.log(1, {"loss": 1.0})
    run.log_samples(1, [{"completion": "x"}])
    (run.path / "trackers").mkdir()
    (run.path / "trackers" / "events").write_bytes(b"t")
    run.finish({"loss": 1.0})
    assert Parent.of("policy", run.path) == before
    there = {path.name for path in run.path.iterdir()}
    assert there == {*RECORDS, "model.safetensors"} - {"checkpoints", "lock", "diverged.json"}
    (run.path / "model.safetensors").write_bytes(b"abd")
    assert Parent.of("policy", run.path) != before


def test_metrics_and_samples_come_back(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    seen: list[tuple[int, dict[str, float]]] = []
    run.attach(lambda step, metrics: seen.append((step, dict(metrics))))
    run.log(1, {"loss": 0.5, "rewards/margins": -math.inf})
    run.log(2, {"loss": math.nan})
    first, second = run.metrics()
    assert (first["step"], first["loss"], first["rewards/margins"]) == (1, 0.5, None)
    assert second["loss"] is None
    assert first["time"] <= second["time"]
    assert [step for step, _ in seen] == [1, 2]
    text = "two\nlines\u2028and 'ö'"
    run.log_samples(2, [{"prompt": "p", "completion": text}, {"prompt": "q", "completion": ""}])
    assert Run.open(run.path).samples() == [
        {"step": 2, "prompt": "p", "completion": text},
        {"step": 2, "prompt": "q", "completion": ""},
    ]
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    with pytest.raises(ValueError, match="a metric cannot be called 'step'"):
        run.log(3, {"step": 3.0})


def test_a_fresh_run_has_no_metrics(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    assert (run.metrics(), run.samples()) == ([], [])


def test_how_runs_end(tmp_path: Path) -> None:
    with make(tmp_path / "good") as good:
        good.finish({"loss": 0.5, "rows": 3, "nothing": math.nan})
        good.finish({"accuracy": 0.75})
    info = Run.open(good.path).info
    assert info["status"] == "finished"
    assert info["summary"] == {"loss": 0.5, "rows": 3, "nothing": None, "accuracy": 0.75}
    assert info["seconds"] >= 0
    with make(tmp_path / "quiet"):
        pass
    assert Run.open(tmp_path / "quiet").info["status"] == "finished"
    with pytest.raises(ZeroDivisionError), make(tmp_path / "bad"):
        _ = 1 / 0
    info = Run.open(tmp_path / "bad").info
    assert (info["status"], info["error"]) == ("failed", "ZeroDivisionError: division by zero")
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "stopped"):
        raise KeyboardInterrupt
    assert Run.open(tmp_path / "stopped").info["status"] == "stopped"


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    run = make(tmp_path / "run")
    run.finish({"a": numpy.float32(0.5), "b": {"c": [numpy.int64(2), numpy.bool_(True)]}})
    assert Run.open(run.path).info["summary"] == {"a": 0.5, "b": {"c": [2, True]}}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    held = make(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"another process runs in .*--output-dir"):
        make(tmp_path / "empty")
    held.finish({})
    with make(tmp_path / "done"):
        pass
    with pytest.raises(ValueError, match=r"already holds a sft run \(finished\).*--output-dir"):
        make(tmp_path / "done")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="already holds files, and a run never overwrites"):
        make(tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; give the name of a new folder"):
        make(tmp_path / "file")


def test_run_json_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "run")

    def crash(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        run.finish({"loss": 1})
    assert Run.open(run.path).info["status"] == "running"


def test_figures_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new" / "state.json"
    write_json(file, {"coef": 0.05})

    def crash(*_: object) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", crash)
        with pytest.raises(OSError, match="power cut"):
            write_json(file, {"coef": 0.06})
    assert json.loads(file.read_text(encoding="utf-8")) == {"coef": 0.05}
    write_json(file, {"coef": 0.07})
    assert [p.name for p in file.parent.iterdir()] == ["state.json"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder: it has no run\.json"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        Run.open(tmp_path)


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with make(tmp_path / "run") as run:
        run.log(1, {"loss": 1.0})
        run.log_samples(1, [{"completion": "x"}])
        run.finish({"loss": 1.0})
    assert not run.path.exists()
    assert not run.writes


def test_progress_in_a_log_file_is_a_line_per_logging_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SftConfig(
        output_dir=str(tmp_path / "run"), model_name_or_path="m", dataset_name="d", logging_steps=2
    )
    run = Run.create(tmp_path / "run", stage="sft", config=config, seed=0)
    with run.progress(5, "sft") as bar:
        for step in range(5):
            bar.advance({"loss": 1 / (step + 1)})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["sft 2/5", "loss 0.5"],
        ["sft 4/5", "loss 0.25"],
    ]
    run.final_table("Done", {"loss": 0.123456, "tokens": 1234567, "[odd]": None, "ok": True})
    out = capsys.readouterr().out
    for text in ("Done", "0.1235", "1,234,567", "[odd]", "-", "yes", str(run.path)):
        assert text in out


def test_progress_on_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "120", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    with console.progress(3, "dpo") as bar:
        bar.advance({"[loss]": 0.6931})
        bar.advance(steps=2)
    out = capsys.readouterr().out
    for text in ("dpo", "3/3", "[loss] 0.6931"):
        assert text in out


def test_floor_one_needs_no_torch() -> None:
    code = "import sys, truing.run, truing.settings, truing.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
