"""A run that is killed and started again does what it would have done: to the last bit."""

import json
import math
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from truing import lineage
from truing.config import check
from truing.run import Run
from truing.settings import DpoConfig, KtoConfig, RewardConfig, SftConfig
from truing.settings_group import GrpoConfig, ReinforceConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import driving, keeping, online, preference, reward, setup, sft, unpaired

PAIRS = [
    {
        "prompt": f"p{i} {'the ' * (i % 3)}",
        "chosen": "on the inn",
        "rejected": "a bell" * (1 + i % 2),
    }
    for i in range(12)
]
ROWS = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]
ONLINE: dict[str, Any] = {
    "reward": "tests.judges:vowels",
    "response_length": 6,
    "temperature": 1.0,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    **{"kl_target": 1.0, "kl_horizon": 50.0},
    "use_score_scaling": True,
    "per_device_train_batch_size": 8,
    "max_steps": 6,
    "logging_steps": 2,
}
DAPO: dict[str, Any] = {"loss_type": "dapo", "num_generations": 4, "reward": "tests.judges:half"}
DAPO |= {"kl_coef": 0.05, "mask_truncated_completions": True}
PTX = {"ptx_coef": 0.5, "target_kl": 0.5}
Stage = tuple[type[Any], Callable[[Any], Run | None], list[dict[str, str]], dict[str, Any]]
STAGES: dict[str, Stage] = {
    "sft": (SftConfig, sft.run, ROWS, {}),
    "reward": (RewardConfig, reward.run, PAIRS, {"reward_reference": "rows"}),
    "dpo": (DpoConfig, preference.run, PAIRS, {}),
    "kto": (KtoConfig, unpaired.run, PAIRS, {}),
    "ppo": (PpoConfig, online.run, PAIRS, ONLINE | PTX | {"share_backbone": True}),
    "rloo": (RlooConfig, online.run, PAIRS, ONLINE | {"num_generations": 4}),
    "reinforce": (ReinforceConfig, online.run, PAIRS, ONLINE | {"kl_loss_coef": 0.1}),
    "grpo": (GrpoConfig, online.run, PAIRS, ONLINE | DAPO),  # draws prompts until enough differ
}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": {"use_peft": True, "lora_r": 2, "lora_dropout": 0.1},
    "bfloat16": {"dtype": "bfloat16"},
    "LoRA, bfloat16": {"use_peft": True, "lora_r": 2, "dtype": "bfloat16"},
}
# What of a metric's line is not the run's own doing.
CLOCKS = ("time", "eps")


@pytest.fixture
def order(
    tiny: Path, jsonl: Callable[..., str], tmp_path: Path
) -> Callable[[str, str, str], tuple[Callable[[Any], Any], Any]]:
    """A function: stage, way and folder -> the stage's function and its config."""
    files = {"rows": jsonl("rows", ROWS), "pairs": jsonl("pairs", PAIRS)}

    def make(stage: str, way: str, folder: str, **more: Any) -> tuple[Callable[[Any], Any], Any]:
        kind, run, rows, own = STAGES[stage]
        start: dict[str, Any] = {
            "output_dir": str(tmp_path / folder),
            "model_name_or_path": str(tiny),
            "dataset_name": files["rows" if rows is ROWS else "pairs"],
            "use_cpu": True,
            "report_to": "none",
            "learning_rate": 1e-2,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "logging_steps": 5,
            "log_completions_steps": 4,
            "save_steps": 1,
        }
        if "reward_reference" in own:
            own = own | {"reward_reference": files["rows"]}
        if "ptx_coef" in own:
            own = own | {"ptx_dataset_name": files["rows"]}
        return run, check(kind, start | own | WAYS[way] | more)

    return make


def forked(work: Callable[[], Any], killed_after: float | None = None) -> int:
    """Run ``work`` in a copy of this process, killed after some seconds if asked; its end."""
    child = os.fork()
    if child == 0:
        code = 1
        # A copy has no OpenMP threads, which transformers' loading threads would ask for.
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        try:
            if killed_after is not None:
                timer = threading.Timer(killed_after, os.kill, (os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def played(make: tuple[Callable[[Any], Any], Any], *, killed_after: float | None = None) -> int:
    """Run a stage in a copy of this process. Its checkpoints stay, for the test to look at."""
    run, config = make

    def work() -> None:
        setup.discard = lambda _: None  # pyright: ignore[reportPrivateImportUsage]
        run(config)

    return forked(work, killed_after)


def left(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for clocks: weights, moments, what else was kept, metrics."""
    last = max((folder / lineage.CHECKPOINTS).iterdir())
    kept = json.loads((last / keeping.PLAIN).read_text())
    kept["tally"].pop("logs")
    for line in (*kept["tally"]["window"], kept["tally"]["last"]):
        drop_clocks(line)
    lines = Run.open(folder).metrics()
    for line in lines:
        drop_clocks(line)
    tensors = load_file(last / keeping.TENSORS) | load_file(folder / "model" / "model.safetensors")
    return {
        "step": last.name,
        "kept": kept,
        "metrics": lines,
        "samples": Run.open(folder).samples(),
        "tensors": {n: t.view(torch.uint8).numpy().tobytes() for n, t in tensors.items() if t.ndim}
        | {n: t.item() for n, t in tensors.items() if not t.ndim},
    }


def drop_clocks(line: dict[str, Any]) -> None:
    for name in [n for n in line if n in CLOCKS or n.startswith("time/")]:
        del line[name]


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo", "grpo"])  # all in `make slow`
def test_killed_and_started_again_it_does_the_same(
    order: Callable[..., Any], tmp_path: Path, stage: str
) -> None:
    check_kills(
        order, tmp_path, stage, "LoRA" if stage in ("dpo", "kto", "rloo") else "all weights", 1
    )


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "way"), list(product(STAGES, WAYS)))
def test_fifty_kills(order: Callable[..., Any], tmp_path: Path, stage: str, way: str) -> None:
    """Twenty runs of three kills each."""
    check_kills(order, tmp_path, stage, way, 3)


def check_kills(
    order: Callable[..., Any], tmp_path: Path, stage: str, way: str, kills: int
) -> None:
    began = time.monotonic()
    assert played(order(stage, way, "whole")) == 0
    whole = time.monotonic() - began
    wanted = left(tmp_path / "whole")
    draw = np.random.default_rng([len(stage), len(way), kills])
    struck = 0
    for _ in range(100):
        # Anywhere: while it loads, trains, saves or writes the model.
        code = played(order(stage, way, "run"), killed_after=whole * draw.uniform(0.1, 0.9))
        struck += code == -signal.SIGKILL
        if code == 0:  # it came to its end: begin another
            assert left(tmp_path / "run") == wanted
            shutil.rmtree(tmp_path / "run")
        elif struck >= kills and list((tmp_path / "run").glob("checkpoints/step-*")):
            break
    assert struck >= kills
    if Run.open(tmp_path / "run").info["status"] != "finished":
        assert played(order(stage, way, "run")) == 0
    assert left(tmp_path / "run") == wanted
    assert Run.open(tmp_path / "run").info["resumed"]


def test_ctrl_c_saves_and_the_same_command_goes_on(
    order: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "discard", lambda _: None)
    run, config = order("sft", "all weights", "whole", save_steps=0)
    run(config)
    wanted = left_without_checkpoints(tmp_path / "whole")
    learn = driving.Tally.add
    run, config = order("sft", "all weights", "run", save_steps=0)

    def interrupted(self: Any, step: Any, **more: Any) -> Any:
        if step.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, step, **more)

    with monkeypatch.context() as patch:
        patch.setattr(driving.Tally, "add", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 7 of 12, which is saved"):
            run(config)
    assert Run.open(tmp_path / "run").info["status"] == "stopped"
    run(config)
    assert left_without_checkpoints(tmp_path / "run") == wanted


def left_without_checkpoints(folder: Path) -> dict[str, Any]:
    lines = Run.open(folder).metrics()
    for line in lines:
        drop_clocks(line)
    return {"metrics": lines, "model": (folder / "model" / "model.safetensors").read_bytes()}


def stopped(order: Callable[..., Any], tmp_path: Path, **more: Any) -> Any:
    """An SFT run of 12 steps that was killed in its model's export, with two checkpoints."""
    run, config = order("sft", "all weights", "run", **more)

    def work() -> None:
        setup.export = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run(config)

    assert forked(work) == -signal.SIGKILL
    return run, config


def test_another_config_is_refused_with_what_differs(
    order: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(order, tmp_path)
    run, config = order("sft", "all weights", "run", weight_decay=0.5, max_grad_norm=2.0)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="began otherwise") as told:
        run(config)
    for line in ("weight_decay: was 0, is 0.5", "max_grad_norm: was 1, is 2", "--force-resume"):
        assert line in str(told.value)
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert after.keys() == before.keys()
    assert {p for p in after if after[p] != before[p]} == set()
    run, config = order(
        "sft", "all weights", "run", weight_decay=0.5, max_grad_norm=2.0, force_resume=True
    )
    run(config)
    assert "going on with another weight_decay: was 0, is 0.5" in capsys.readouterr().out
    (note,) = Run.open(tmp_path / "run").info["resumed"]
    assert sorted(note["changed"]) == ["max_grad_norm: was 1, is 2", "weight_decay: was 0, is 0.5"]


def test_another_dataset_in_the_same_file_is_refused(
    order: Callable[..., Any], tmp_path: Path
) -> None:
    run, config = stopped(order, tmp_path)
    with open(config.dataset_name, "a", encoding="utf-8") as file:
        file.write(json.dumps(ROWS[0] | {"prompt": "another"}) + "\n")
    with pytest.raises(ValueError, match=r"dataset .*: it is not what it was"):
        run(config)


@pytest.mark.parametrize("name", [keeping.TENSORS, keeping.PLAIN, lineage.SUMS])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_used(
    order: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert played(order("sft", "all weights", "whole")) == 0
    run, config = stopped(order, tmp_path)
    folder = tmp_path / "run" / lineage.CHECKPOINTS
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000010", "step-00000011"]
    file = folder / "step-00000011" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "discard", lambda _: None)
        run(config)
    assert "step-00000011 is not as it was written" in capsys.readouterr().out.replace("\n", "")
    shutil.rmtree(folder / "step-00000011.damaged")
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_a_full_disk_leaves_the_checkpoint_before_it(
    order: Callable[..., Any], tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk: both end a write half-way."""
    resource = pytest.importorskip("resource")
    run, config = order("sft", "all weights", "run", save_steps=5)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        save = keeping.Keeper.save

        def tight(self: Any, snapshot: Any) -> None:
            if snapshot.step == 10:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            save(self, snapshot)

        keeping.Keeper.save = tight
        with pytest.raises(OSError, match=r"checkpoint of step 10 could not be written.*step 5 is"):
            run(config)

    assert forked(work) == 0
    folder = tmp_path / "run" / lineage.CHECKPOINTS
    assert [p.name for p in folder.iterdir()] == ["step-00000005"]
    lineage.check(folder / "step-00000005")
    assert Run.open(tmp_path / "run").info["status"] == "failed"
    run(config)
    assert Run.open(tmp_path / "run").info["status"] == "finished"


def test_the_model_of_the_best_step_is_written(order: Callable[..., Any], tmp_path: Path) -> None:
    """At a rate far too high the loss soon gets worse: the best step is not the last."""
    eval_rows = tmp_path / "eval.jsonl"
    eval_rows.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    more: dict[str, Any] = {
        "learning_rate": 3.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_dataset_name": str(eval_rows),
        "eval_steps": 1,
    }
    run, config = order("sft", "all weights", "best", metric_for_best_model="eval_loss", **more)
    done = run(config)
    losses = [m["eval_loss"] for m in done.metrics() if "eval_loss" in m]
    best = min(range(len(losses)), key=losses.__getitem__) + 1
    assert best < len(losses)
    assert (done.info["summary"]["best_step"], done.info["summary"]["best_metric"]) == (
        best,
        min(losses),
    )
    run, config = order("sft", "all weights", "short", **(more | {"max_steps": best}))
    assert (run(config).path / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "best" / "model" / "model.safetensors"
    ).read_bytes()
    run, config = order("sft", "all weights", "none", metric_for_best_model="eval_los", **more)
    with pytest.raises(ValueError, match=r"no metric 'eval_los' was logged; there are .*eval_loss"):
        run(config)


@pytest.mark.parametrize(
    ("name", "up", "values", "best"),
    [
        (
            "eval_loss",
            None,
            [math.nan, 3.0, 2.0, math.nan, 2.0, 2.5],
            [False, True, True] + [False] * 3,
        ),
        ("accuracy", None, [0.5, 0.4, 0.6, math.inf], [True, False, True, False]),
        ("eval_loss", True, [1.0, 2.0, 0.0], [True, True, False]),
    ],
)
def test_which_step_is_the_best(
    order: Callable[..., Any], tmp_path: Path, name: str, up: bool | None, values: list[float],
    best: list[bool],
) -> None:  # fmt: skip
    """A tie is no improvement, and what is no number never the best."""
    _, config = order("sft", "all weights", "x", metric_for_best_model=name, greater_is_better=up)
    keeper = keeping.Keeper(tmp_path, config)
    assert [keeper.improves(i, {name: value}) for i, value in enumerate(values)] == best
    assert not keeper.improves(9, {"another": 0.0})


def test_a_metric_that_was_never_logged_is_told_at_the_first_line(
    order: Callable[..., Any], tmp_path: Path
) -> None:
    def told(name: str, fresh: dict[str, float], **more: Any) -> bool:
        _, config = order("sft", "all weights", "x", metric_for_best_model=name, **more)
        tally = driving.Tally(Run(tmp_path, {}, writes=False), 1)
        tally.last = dict(fresh)
        try:
            driving.check_metric(config, tally, fresh)
        except ValueError:
            return True
        return False

    assert [told("lss", {}), told("lss", {"loss": 1.0}), told("loss", {"loss": 1.0})] == [0, 1, 0]
    assert [told("eval_los", {"loss": 1.0}), told("eval_los", {"eval_loss": 1.0})] == [0, 1]
    # A step that is skipped has fewer metrics than the next one may have.
    assert not told("lss", {"loss": 1.0}, guard_action="skip", guard_grad_norm=1.0)
