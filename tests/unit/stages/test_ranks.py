"""Two processes that share the work get the weights and figures of one that does it all."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from truing.config import check, to_yaml
from truing.run import Run
from truing.settings import DpoConfig, KtoConfig, RewardConfig, SftConfig, TrainingConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import online, preference, reward, sft, unpaired

Write = Callable[..., str]
STAGES: dict[str, tuple[type[TrainingConfig], Any]] = {
    "sft": (SftConfig, sft.run),
    "dpo": (DpoConfig, preference.run),
    "kto": (KtoConfig, unpaired.run),
    "reward": (RewardConfig, reward.run),
    "ppo": (PpoConfig, online.run),
    "rloo": (RlooConfig, online.run),
}
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
# What a process of its own does with the configs it is given.
WORKER = """
import sys
from accelerate.state import AcceleratorState
from truing.config import from_yaml
from truing.settings import DpoConfig, KtoConfig, RewardConfig, SftConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import online, preference, reward, sft, unpaired
stages = {"ppo": (PpoConfig, online.run), "rloo": (RlooConfig, online.run),
          "sft": (SftConfig, sft.run), "dpo": (DpoConfig, preference.run),
          "reward": (RewardConfig, reward.run), "kto": (KtoConfig, unpaired.run)}
for path in sys.argv[1:]:
    config, run = stages[path.rsplit("/", 1)[-1].removesuffix(".yaml")]
    run(from_yaml(config, path))
    AcceleratorState._reset_state(True)  # the stage has left the group; the next one joins anew
"""


def started(configs: Sequence[Path]) -> list[subprocess.Popen[str]]:
    """Two processes of one group that do what the configs say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, configs)],
            env=os.environ | group | threads | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]


def in_two_processes(configs: Sequence[Path]) -> None:
    both = started(configs)
    try:
        outputs = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert " finished" in outputs[0]
    assert outputs[1] == ""  # only the first process speaks


def rows_of(stage: str, jsonl: Write, name: str, count: int) -> str:
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
    return jsonl(f"{stage}-{name}", rows)


def figures(folder: Path) -> list[dict[str, Any]]:
    aside = ("time", "eps")  # how long it took
    return [
        {k: v for k, v in line.items() if not k.startswith(aside)}
        for line in Run.open(folder).metrics()
    ]


def test_two_processes_do_what_one_does(tiny_double: Path, tmp_path: Path, jsonl: Write) -> None:
    """9 rows, twice, in steps of 8: the last step has 2 rows, one a process."""
    configs: list[Path] = []
    for stage, (config, run) in STAGES.items():
        shared = {
            "model_name_or_path": str(tiny_double),
            "dataset_name": rows_of(stage, jsonl, "train", 9),
            "eval_dataset_name": rows_of(stage, jsonl, "test", 3),
            "dtype": "auto",
            "use_cpu": True,
            "report_to": "none",
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "gradient_accumulation_steps": 2,
        }
        if stage in ("ppo", "rloo"):
            shared |= ONLINE | {"ptx_dataset_name": shared["dataset_name"]}
        for processes, size in ((1, 4), (2, 2)):
            folder = tmp_path / f"{stage}{processes}"
            settings = shared | {"per_device_train_batch_size": size, "output_dir": str(folder)}
            done = check(config, settings)
            if processes == 1:
                run(done)
            else:
                configs.append(tmp_path / f"{stage}.yaml")
                configs[-1].write_text(to_yaml(done))
    in_two_processes(configs)
    for stage in STAGES:
        one, two = (load_file(tmp_path / f"{stage}{n}/model/model.safetensors") for n in (1, 2))
        start = load_file(tiny_double / "model.safetensors")
        # Reference log-probs and scores are kept in float32, so all but sft may differ by that.
        tolerance = 1e-9 if stage == "sft" else 1e-6
        for name, weight in one.items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(two[name], weight, atol=tolerance, rtol=0)
        assert any(not torch.equal(one[name], start[name]) for name in start)
        alone, shared_out = figures(tmp_path / f"{stage}1"), figures(tmp_path / f"{stage}2")
        assert len(alone) == len(shared_out) == 4  # 3 steps, 1 evaluation
        for a, b in zip(alone, shared_out, strict=True):
            assert b == pytest.approx(a, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_two_processes_that_are_killed_go_on_to_the_last_bit(
    stage: str, tiny: Path, tmp_path: Path, jsonl: Write
) -> None:
    rows = rows_of(stage, jsonl, "train", 9)
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
    in_two_processes([files["whole"]])
    both = started([files["cut"]])
    third = tmp_path / "cut" / "run" / "checkpoints" / "step-00000003"
    deadline = time.monotonic() + 120
    while not third.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in both:
        process.kill()
        process.communicate()
    assert Run.open(tmp_path / "cut" / "run").info["status"] == "running"  # it was not at its end
    in_two_processes([files["cut"]])
    one, two = (
        load_file(tmp_path / name / "run" / "model" / "model.safetensors") for name in files
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert figures(tmp_path / "whole" / "run") == figures(tmp_path / "cut" / "run")
