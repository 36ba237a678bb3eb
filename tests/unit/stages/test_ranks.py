"""Two processes that share the work get the weights and figures of one that does it all."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cases import CASES, COUNT, home
from tests.invariance import Outcome, Stage, double
from tests.ranks import OTHERS, STAGES, UNEVEN, in_two_processes, killed, started
from truing.config import check, to_yaml
from truing.run import Run
from truing.settings_online import OnlineConfig

# One start of two processes serves several tests.
pytestmark = pytest.mark.xdist_group("ranks")
# What online learning needs besides: two minibatches of four responses.
ONLINE = {
    "reward": "tests.judges:vowels",
    "response_length": 5,
    "num_mini_batches": 2,
    "total_episodes": 24,
    "missing_eos_penalty": 0.0,
    "entropy_coef": 0.01,
    "ptx_coef": 0.5,
}
GROUPS = {
    "loss_type": "dapo",
    "num_generations": 2,
    "max_num_gen_batches": 3,
    "kl_loss_coef": 0.1,
    "mask_truncated_completions": True,
}


def rows_of(stage: str, folder: Path, name: str, count: int) -> str:
    """Answers of very unequal lengths, so that a mean of means would differ from the mean."""
    words = ["the", "cat in", "a b c d e", "on"]
    texts = [" " + " ".join(words[(i * j) % 4] for j in range(1, 2 + i % 5)) for i in range(20)]
    rows = [{"prompt": f"p{i}", "completion": texts[i]} for i in range(count)]
    if stage == "kto":
        rows = [row | {"label": i % 3 > 0} for i, row in enumerate(rows)]
    elif stage != "sft":
        rows = [
            {"prompt": f"p{i}", "chosen": texts[i], "rejected": texts[i + 7] + "!"}
            for i in range(count)
        ]
    file = folder / f"{stage}-{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def figures(folder: Path) -> list[dict[str, Any]]:
    aside = ("time", "eps", "tokens/")  # how long it took, how rows were laid out
    return [
        {k: v for k, v in line.items() if not k.startswith(aside)}
        for line in Run.open(folder).metrics()
    ]


def settings(stage: str, model: Path, folder: Path, *, processes: int) -> Any:
    """9 rows, twice, in steps of 8: the last step has 2 rows, one a process."""
    given: dict[str, Any] = {
        "model_name_or_path": str(model),
        "dataset_name": rows_of(stage, folder, "train", 9),
        "eval_dataset_name": rows_of(stage, folder, "test", 3),
        "dtype": "auto",
        "use_cpu": True,
        "report_to": "none",
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4 // processes,
        "output_dir": str(folder / f"{stage}{processes}"),
    }
    if issubclass(STAGES[stage][0], OnlineConfig):
        given |= GROUPS if stage == "grpo" else {}
        given |= ONLINE | {"ptx_dataset_name": given["dataset_name"]}
    return check(STAGES[stage][0], given)


@pytest.fixture(scope="module")
def done(tiny_double: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what two processes did: every stage, and every case's steps."""
    folder = tmp_path_factory.mktemp("ranks")
    home(folder / "home")
    configs: list[Path] = []
    for stage in STAGES:
        configs.append(folder / f"{stage}.yaml")
        configs[-1].write_text(to_yaml(settings(stage, tiny_double, folder, processes=2)))
    in_two_processes(folder / "second.log", [*configs, folder])
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_do_what_one_does(stage: str, done: Path, tiny_double: Path) -> None:
    STAGES[stage][1](settings(stage, tiny_double, done, processes=1))
    one, two = (load_file(done / f"{stage}{n}/model/model.safetensors") for n in (1, 2))
    start = load_file(tiny_double / "model.safetensors")
    # Reference log-probs and scores are kept in float32, so all but sft may differ by that.
    tolerance = 1e-9 if stage == "sft" else 1e-6
    for name, weight in one.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(two[name], weight, atol=tolerance, rtol=0)
    assert any(not torch.equal(one[name], start[name]) for name in start)
    alone, shared_out = figures(done / f"{stage}1"), figures(done / f"{stage}2")
    assert len(alone) == len(shared_out) == 4  # 3 steps, 1 evaluation
    # Equal scores leave an advantage of 0 but for rounding, whose sign says whether it is clipped.
    unsure = {"policy/clipfrac_avg": 0.0} if stage == "rloo" else {}
    for a, b in zip(alone, shared_out, strict=True):
        assert b | unsure == pytest.approx(a | unsure, abs=1e-4)


def test_two_processes_take_the_step_that_one_takes(done: Path) -> None:
    """Figures, gradient and weights of every case, to 1e-9; and what would be noticed."""
    ranks: list[Any] = [torch.load(done / f"rank{rank}.pt") for rank in (0, 1)]
    with double():
        stages = {name: Stage(name, done / "home") for name in CASES}
        for name, stage in stages.items():
            alone = stage.step(**UNEVEN)
            for rank in ranks:
                assert not alone.differs(Outcome(*rank[name]["uneven"]), 1e-9), name
        first = next(iter(CASES))
        alone = stages[first].step(size=COUNT)
        for rank in ranks:
            found = {way: Outcome(*rank[first][way]) for way in OTHERS}
            assert not alone.differs(found.pop("4 x 1 each"), 1e-9)
            assert not alone.differs(found.pop("by tokens"), 1e-9)
            for mistake, other in found.items():
                noticed = alone.differs(other, 1e-3)
                assert any(told.startswith("grads") for told in noticed), mistake


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_two_processes_that_are_killed_go_on_to_the_last_bit(
    stage: str, tiny: Path, tmp_path: Path
) -> None:
    rows = rows_of(stage, tmp_path, "train", 9)
    config, _ = STAGES[stage]
    given: dict[str, Any] = {
        "model_name_or_path": str(tiny), "dataset_name": rows, "use_cpu": True,
        "report_to": "none", "learning_rate": 1e-2, "max_steps": 40, "logging_steps": 1,
        "per_device_train_batch_size": 2, "save_steps": 1,
    }  # fmt: skip
    if stage == "ppo":
        online_own = {k: v for k, v in ONLINE.items() if k not in ("total_episodes", "ptx_coef")}
        given |= online_own | {"kl_target": 1.0, "kl_horizon": 50.0}
    files: dict[str, Path] = {}
    for name in ("whole", "cut"):
        files[name] = tmp_path / name / f"{stage}.yaml"
        files[name].parent.mkdir()
        folder = str(tmp_path / name / "run")
        files[name].write_text(to_yaml(check(config, given | {"output_dir": folder})))
    log = tmp_path / "second.log"
    in_two_processes(log, [files["whole"]])
    both = started(log, [files["cut"]])
    third = tmp_path / "cut" / "run" / "checkpoints" / "step-00000003"
    deadline = time.monotonic() + 120
    while not third.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed(both)
    assert Run.open(tmp_path / "cut" / "run").info["status"] == "running"  # it was not at its end
    in_two_processes(log, [files["cut"]])
    one, two = (
        load_file(tmp_path / name / "run" / "model" / "model.safetensors") for name in files
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert figures(tmp_path / "whole" / "run") == figures(tmp_path / "cut" / "run")
