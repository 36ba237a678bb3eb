"""A changed byte is found wherever it is: in a run, its parents, or the rows behind them."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing.cli import main
from truing.config import check
from truing.data.formats import load
from truing.data.schema import Demonstration
from truing.lineage import CHECKPOINTS
from truing.run import Run
from truing.settings import DpoConfig, RewardConfig, SftConfig
from truing.settings_online import PpoConfig
from truing.stages import online, preference, reward, setup, sft
from truing.verify import chain

PAIRS = [{"prompt": f"p{i}", "chosen": "on the inn", "rejected": "a bell"} for i in range(6)]
ROWS = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """SFT on rows, a reward model and PPO on top of it: a chain of three runs."""
    out = tmp_path_factory.mktemp("chain")
    for name, rows in (("rows", ROWS), ("pairs", PAIRS)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny, out / "raw")
    start = {"use_cpu": True, "report_to": "none", "max_steps": 2, "logging_steps": 1}

    def config(kind: Any, name: str, model: str, data: str, **more: Any) -> Any:
        places = {
            "output_dir": str(out / name),
            "model_name_or_path": str(out / model),
            "dataset_name": str(out / f"{data}.jsonl"),
        }
        return check(kind, start | places | more)

    sft.run(config(SftConfig, "sft", "raw", "rows", eval_dataset_name=str(out / "rows.jsonl")))
    reward.run(config(RewardConfig, "reward", "sft", "pairs"))
    more: dict[str, Any] = {"reward": str(out / "reward"), "response_length": 4}
    more |= {"per_device_train_batch_size": 4, "ptx_coef": 0.1}
    more |= {"ptx_dataset_name": str(out / "rows.jsonl")}
    online.run(config(PpoConfig, "ppo", "sft/model", "pairs", **more))
    preference.run(config(DpoConfig, "dpo", "sft", "pairs"))
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Callable[[], None]:
    """A function that puts back what a test has changed in the chain."""
    shutil.copytree(made, tmp_path / "kept")

    def restore() -> None:
        shutil.rmtree(made)
        shutil.copytree(tmp_path / "kept", made)

    return restore


@pytest.mark.parametrize("name", ["sft", "reward", "ppo", "dpo"])
def test_a_chain_is_as_it_was(made: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["verify", str(made / name)]) == 0
    told = capsys.readouterr().out
    assert "CHANGED" not in told
    assert "unknown" not in told
    assert f"dataset {made / 'rows.jsonl'}: as it was" in told.replace("\n", "")
    if name == "ppo":
        for part in (f"sft run {made / 'sft'}", f"reward run {made / 'reward'}"):
            assert part in told.replace("\n", "")
        assert "pretraining dataset" in told


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("rows.jsonl", {"dataset", "evaluation dataset", "reference responses", "pretraining"}),
        ("pairs.jsonl", {"dataset"}),
        ("raw/model.safetensors", {"policy"}),
        ("sft/config.yaml", {"config.yaml"}),
        ("sft/metrics.jsonl", {"metrics.jsonl"}),
        ("sft/model/model.safetensors", {"model", "policy"}),
        ("reward/model/config.json", {"model", "reward"}),
        ("reward/run.json", {"reward run"}),
        ("ppo/state.json", {"model"}),
    ],
)
def test_a_changed_byte_is_found(
    made: Path, copy: Callable[[], None], capsys: pytest.CaptureFixture[str], file: str,
    found: set[str],
) -> None:  # fmt: skip
    place = made / file
    content = place.read_bytes()
    at = content.index(b"0.1") if file.endswith("run.json") else content.rindex(b"n")
    place.write_bytes(content[:at] + b"9" + content[at + 1 :])
    bad = [f.what for f in chain(made / "ppo") if f.good is False]
    assert main(["verify", str(made / "ppo")]) == 1
    assert "not what they were" in capsys.readouterr().err
    copy()
    assert bad
    for what in bad:
        assert any(what.startswith(word) for word in found), what
    for word in found:
        assert any(what.startswith(word) for what in bad), word


def test_what_is_gone_is_said(made: Path, copy: Callable[[], None]) -> None:
    (made / "pairs.jsonl").unlink()
    shutil.rmtree(made / "raw")
    bad = {f.what: f.why for f in chain(made / "ppo") if f.good is False}
    copy()
    assert bad == {
        f"dataset {made / 'pairs.jsonl'}": "it is not there",
        f"policy {made / 'raw'}": "it is not there",
    }


def test_rows_are_compared_by_content_not_by_format(made: Path, copy: Callable[[], None]) -> None:
    """Spaces in the file and other columns are no change of what was trained on."""
    rows = load(str(made / "rows.jsonl"), Demonstration)
    lines = [json.dumps(row, separators=(" , ", " : ")) + "\n\n" for row in ROWS]
    (made / "rows.jsonl").write_text("".join(lines))
    assert load(str(made / "rows.jsonl"), Demonstration).sha256 == rows.sha256
    good = [f.good for f in chain(made / "sft")]
    copy()
    assert False not in good


def test_an_unfinished_run_and_its_checkpoints(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = check(
        SftConfig,
        {
            "output_dir": str(tmp_path / "run"),
            "model_name_or_path": str(made / "raw"),
            "dataset_name": str(made / "rows.jsonl"),
            "use_cpu": True,
            "report_to": "none",
            "max_steps": 4,
            "save_steps": 1,
        },
    )
    child = os.fork()
    if child == 0:
        setup.export = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        sft.run(config)
        os._exit(1)
    os.waitpid(child, 0)
    assert Run.open(tmp_path / "run").info["status"] == "running"
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "checkpoint step-00000003: as it was" in capsys.readouterr().out
    file = tmp_path / "run" / CHECKPOINTS / "step-00000003" / "state.json"
    file.write_text(file.read_text() + " ")
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "checkpoint step-00000003: CHANGED" in capsys.readouterr().out


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
