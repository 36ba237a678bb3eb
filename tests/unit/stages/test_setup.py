"""What the stages share: bounds, counts, the outlook, what is logged when, and closing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets as hub
import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from accelerate.utils import DistributedType

from truing.data.batch import Encoder
from truing.data.formats import DataError, Dataset, load
from truing.data.layout import Tokens
from truing.data.schema import Demonstration
from truing.lineage import Parent
from truing.models.model import Policy, load_policy
from truing.run import Run
from truing.settings import SftConfig
from truing.stages import outlook, setup, sft
from truing.stages.driving import fit
from truing.stages.sft import Imitation

Write = Callable[..., str]
Settings = Callable[..., Any]
ROWS = [Tokens((i,), (i + 1, i + 2)) for i in range(4)]


@pytest.fixture
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


def test_no_sequence_is_longer_than_the_context(policy: Policy, settings: Settings) -> None:
    for asked, bound in ((None, 160), (50, 50), (1024, 160)):
        config = settings(SftConfig, "m", "d", max_length=asked, truncation_mode="drop")
        encoder = setup.encoder(config, policy)
        assert (encoder.max_length, encoder.truncation_mode) == (bound, "drop")


def test_counts_are_kept_apart(policy: Policy) -> None:
    encoder = Encoder(policy.tokenizer, max_length=3)
    encoder.encode("p", "long")
    with setup.apart(encoder, "evaluation"):
        encoder.encode("p", "long")
        encoder.encode("p", "long")
    encoder.encode("p", "long")
    assert encoder.counts == {"responses truncated": 2, "evaluation: responses truncated": 2}


def test_where_evaluation_rows_come_from(jsonl: Write, settings: Settings) -> None:
    train = jsonl("train", [{"prompt": "a", "completion": "b"}])
    rows, held_out = setup.datasets(settings(SftConfig, "m", train), Demonstration)
    assert (len(rows), held_out) == (1, None)
    other = jsonl("other", [{"prompt": "a", "completion": "b"}] * 2)
    named = settings(SftConfig, "m", train, eval_dataset_name=other)
    held_out = setup.datasets(named, Demonstration)[1]
    assert held_out is not None
    assert len(held_out) == 2
    idle = settings(SftConfig, "m", train, eval_steps=5)
    with pytest.raises(ValueError, match=r"eval_steps has no effect.*has no split 'test'"):
        setup.datasets(idle, Demonstration)
    used = settings(SftConfig, "m", train, eval_steps=5, eval_dataset_name=other)
    assert setup.datasets(used, Demonstration)[1] is not None


ROW = {"prompt": "a", "completion": "b"}
SPLITS = {"train": [ROW] * 2, "test": [ROW] * 3, "dev": [ROW] * 4}


def in_files(folder: Path, names: Sequence[str]) -> str:
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(SPLITS[name]), encoding="utf-8")
    return str(folder)


def in_shards(folder: Path, names: Sequence[str]) -> str:
    (folder / "data").mkdir()
    for name in names:
        for number, rows in enumerate((SPLITS[name][:1], SPLITS[name][1:])):
            shard = folder / "data" / f"{name}-0000{number}-of-00002.json"
            shard.write_text(json.dumps(rows), encoding="utf-8")
    return str(folder)


def on_disk(folder: Path, names: Sequence[str]) -> str:
    splits: Any = {name: hub.Dataset.from_list(SPLITS[name]) for name in names}
    hub.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


@pytest.fixture(
    params=[in_files, in_shards, on_disk, "owner/rows:english"],
    ids=["files", "shards", "saved", "hub"],
)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """A function: names of splits -> a source that holds them, in each place that is read."""

    def on_the_hub(*names: str) -> str:
        def fake(path: str, part: str | None, *, split: str) -> list[dict[str, str]]:
            if split not in names:
                raise ValueError(f"Unknown split {split!r}. Should be one of {sorted(names)}.")
            return SPLITS[split]

        monkeypatch.setattr(hub, "load_dataset", fake)
        monkeypatch.setattr(hub, "get_dataset_split_names", lambda path, part: list(names))
        return request.param

    if isinstance(request.param, str):
        return on_the_hub
    return lambda *names: request.param(tmp_path, names)


def test_a_split_beside_the_training_rows_is_evaluated_on(
    place: Callable[..., str], settings: Settings
) -> None:
    source = place("train", "test", "dev")
    for asked, count in (({}, 3), ({"dataset_test_split": "dev"}, 4)):
        config = settings(SftConfig, "m", source, **asked)
        rows, held_out = setup.datasets(config, Demonstration)
        assert held_out is not None
        assert (len(rows), len(held_out)) == (2, count)
    # What is trained on is not held out, unless one says so.
    config = settings(SftConfig, "m", source, dataset_train_split="test")
    assert setup.datasets(config, Demonstration)[1] is None


def test_a_split_that_is_not_there(place: Callable[..., str], settings: Settings) -> None:
    source = place("train", "dev")
    assert setup.datasets(settings(SftConfig, "m", source), Demonstration)[1] is None
    config = settings(SftConfig, "m", source, dataset_test_split="valid")
    with pytest.raises(DataError, match=r"\['dev', 'train'\]"):
        setup.datasets(config, Demonstration)


def test_what_is_read_whole_has_no_test_split(
    tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    hub.Dataset.from_list([ROW]).save_to_disk(str(tmp_path / "one"))
    for source in (jsonl("test", [ROW]), str(tmp_path / "one")):
        assert setup.datasets(settings(SftConfig, "m", source), Demonstration)[1] is None
        config = settings(SftConfig, "m", source, dataset_test_split="dev")
        with pytest.raises(DataError, match=r"is 'dev', but .* has no splits.*eval_dataset_name"):
            setup.datasets(config, Demonstration)


def test_what_was_noticed_is_said(
    policy: Policy, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Demonstration("p", "c")
    data = Dataset((record,) * 5, "rows.jsonl", {"empty answer: kept [x]": (1, 4)})
    encoder = Encoder(policy.tokenizer)
    encoder.counts["responses truncated"] = 3
    config = settings(SftConfig, "m", "d")
    outlook.announce(config, policy, [4, 4], [2, 2], encoder, data, None)
    shown = capsys.readouterr().out
    assert "empty answer: kept [x]: 2" in shown
    assert "responses truncated: 3" in shown
    assert "2 rows, 1 steps of about 24 tokens" in shown
    with pytest.raises(ValueError, match=r"no row of rows.jsonl can be used .*truncated: 3"):
        outlook.announce(config, policy, [], [], encoder, data, None)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"distributed_type": DistributedType.FSDP}, "set up for FSDP.*without sharding"),
        ({"distributed_type": DistributedType.DEEPSPEED}, "set up for DEEPSPEED"),
        ({"mixed_precision": "bf16"}, "mixed precision bf16.*by dtype"),
        ({"log_with": []}, r"report_to names wandb, which is not installed.*truing\[track\]"),
    ],
)
def test_what_accelerate_would_do_otherwise_is_refused(
    settings: Settings,
    tiny: Path,
    jsonl: Write,
    monkeypatch: pytest.MonkeyPatch,
    found: dict[str, Any],
    said: str,
) -> None:
    usual = {"distributed_type": DistributedType.NO, "mixed_precision": "no", "log_with": ["wandb"]}
    made = SimpleNamespace(**usual | found)
    monkeypatch.setattr(setup, "Accelerator", lambda **_: made)
    rows = jsonl("rows", [{"prompt": "a", "completion": "b"}])
    config = settings(SftConfig, tiny, rows, report_to="wandb")
    with pytest.raises(ValueError, match=said):
        sft.run(config)
    assert not Path(config.output_dir).exists()


def test_logs_are_means_over_their_window(
    policy: Policy, settings: Settings, tmp_path: Path
) -> None:
    config = settings(
        SftConfig, "m", "d", logging_steps=2, max_steps=5, per_device_train_batch_size=1,
        eval_steps=2, log_completions_steps=3, lr_scheduler_type="linear",
    )  # fmt: skip
    looks: list[int] = []

    def look() -> dict[str, float]:
        looks.append(policy.version)
        return {"look": float(len(looks))}

    run = Run.create(tmp_path / "r", stage="sft", config=config, seed=0)
    with run:
        last = fit(
            run, Accelerator(cpu=True), policy, ROWS, Imitation(config), config,
            held_out=ROWS[:2], look=look,
        )  # fmt: skip
    lines = run.metrics()
    logged = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in logged] == [2, 4, 5]
    # Rates 1, 0.8, 0.6, 0.4, 0.2 times 0.01: of each window the last, no mean.
    assert [line["learning_rate"] for line in logged] == pytest.approx([0.008, 0.004, 0.002])
    assert [line["epoch"] for line in logged] == [0.5, 1.0, 1.25]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 5]
    assert looks == [0, 3, 5]
    read = {"tokens/forwarded", "tokens/filling", "tokens/prefix_saved"}
    assert last.keys() == {"loss", "grad_norm", "learning_rate", "epoch", "eval_loss"} | read
    assert last["eval_loss"] == [line["eval_loss"] for line in lines if "eval_loss" in line][-1]


def test_looks_are_at_the_same_prompts_with_the_same_draws(
    policy: Policy, settings: Settings, tmp_path: Path
) -> None:
    config = settings(
        SftConfig, "m", "d", num_completions_to_print=3, log_completions_steps=1, max_length=20
    )
    run = Run.create(tmp_path / "r", stage="sft", config=config, seed=0)
    prompts = ["the cat", "", "x" * 30, "never seen: only three are looked at"]
    look = setup.looker(run, policy, Encoder(policy.tokenizer), prompts, config)
    figures = look()
    policy.version = 7
    assert look() == figures
    # An empty prompt has nothing to go on from, and the long one is longer than max_length.
    first, second = run.samples()
    assert (first["step"], second["step"]) == (0, 7)
    assert first["prompt"] == "the cat"
    assert first["completion"] == second["completion"]
    assert figures["completions/clipped_ratio"] == (first["finish_reason"] == "length")
    assert 1 <= figures["completions/mean_length"] <= setup.LOOK


def test_a_run_opens_with_its_parents_and_closes_whatever_happens(
    tiny: Path, jsonl: Write, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load(jsonl("rows", [{"prompt": "a", "completion": "b"}]), Demonstration)
    config = settings(SftConfig, tiny, rows.name, report_to="tensorboard", run_name="mine")
    finished: list[str] = []
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda self: finished.append(self.name))
    extra = Parent("reference", "x/y", None, "x/y")

    def use() -> None:
        with setup.opened(config, "sft", rows, None, {"rows": 1}, [extra]) as (run, accelerator):
            assert accelerator.device.type == "cpu"
            run.log(1, {"loss": 2.0})
            raise KeyError("inside")

    with pytest.raises(KeyError):
        use()
    info = json.loads((Path(config.output_dir) / "run.json").read_text())
    assert (info["status"], info["error"]) == ("failed", "KeyError: 'inside'")
    assert [p["role"] for p in info["parents"]] == ["policy", "dataset", "reference"]
    assert info["parents"][1]["sha256"] == rows.sha256
    assert finished == ["tensorboard"]
    assert list((Path(config.output_dir) / "trackers" / "mine").glob("events*"))


def test_the_template_in_use_goes_with_the_model(
    policy: Policy, settings: Settings, tmp_path: Path
) -> None:
    config = settings(SftConfig, "m", "d")
    for template, wanted in (("auto", None), ("plain", "capitalize")):
        run = Run.create(tmp_path / template, stage="sft", config=config, seed=0)
        encoder = Encoder(policy.tokenizer, template=template)
        policy.version = 4
        setup.close(run, Accelerator(cpu=True), policy, encoder, {"loss": 1.0}, {"note": 2})
        saved = load_policy(run.path).tokenizer.chat_template
        assert (saved is None) if wanted is None else (wanted in saved)
        assert run.info["status"] == "finished"
        assert run.info["summary"].items() >= {"loss": 1.0, "note": 2, "weight_version": 4}.items()
        assert run.info["summary"]["peak_mb"] > 100
