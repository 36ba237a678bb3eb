"""Two processes of one group, which share the work they are given.

python -m tests.ranks LOG PORT=WORK...  each WORK a stage's config, STAGE.yaml, or a folder in which
                                        the steps of `tests.invariance` are taken, by a group that
                                        meets at PORT; the second rank speaks to LOG
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.cases import CASES, MIXED
from tests.invariance import Stage, double
from truing.config import from_yaml
from truing.settings import DpoConfig, KtoConfig, RewardConfig, SftConfig, TrainingConfig
from truing.settings_group import GrpoConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import online, preference, reward, sft, unpaired

STAGES: dict[str, tuple[type[TrainingConfig], Any]] = {
    "sft": (SftConfig, sft.run),
    "dpo": (DpoConfig, preference.run),
    "kto": (KtoConfig, unpaired.run),
    "reward": (RewardConfig, reward.run),
    "ppo": (PpoConfig, online.run),
    "rloo": (RlooConfig, online.run),
    "grpo": (GrpoConfig, online.run),
}


class Mistaken:
    """An accelerator that lets the ranks' gradients be averaged, or each count for itself."""

    def __init__(self, inner: Any, mistake: str) -> None:
        self.inner, self.mistake = inner, mistake

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def backward(self, loss: Any) -> None:
        self.inner.backward(loss / 2 if self.mistake == "averaged" else loss)

    def reduce(self, values: Any, **how: Any) -> Any:
        return values if self.mistake == "apart" else self.inner.reduce(values, **how)


# Seven rows: rank 0 has micro-batches of 3 and 1, rank 1 one of 3.
UNEVEN: dict[str, Any] = {"size": 3, "order": MIXED[:7]}
# Of the first case besides: eight micro-batches of one, and what would be wrong.
OTHERS: dict[str, dict[str, Any]] = {
    "4 x 1 each": {"size": 1, "order": MIXED},
    # Ranks with unequal numbers of micro-batches.
    "by tokens": {"size": 4, "order": MIXED, "tokens_per_batch": 18},
    "averaged": {"size": 4, "mistake": partial(Mistaken, mistake="averaged")},
    "apart": {"size": 4, "mistake": partial(Mistaken, mistake="apart")},
}


def take_steps(folder: Path, rank: str) -> None:
    """The steps of all cases into ``rank<N>.pt``."""
    found: dict[str, dict[str, Any]] = {}
    with double():
        for name in CASES:
            stage, ways = Stage(name, folder / "home"), {"uneven": UNEVEN}
            ways |= {} if found else OTHERS
            found[name] = {way: tuple(stage.step(**how)) for way, how in ways.items()}
    torch.save(found, folder / f"rank{rank}.pt")


def started(log: Path, work: Sequence[Path]) -> subprocess.Popen[str]:
    """The first of two processes that do the work; the second is its child."""
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in work]
        ports = [server.getsockname()[1] for server in free]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    jobs = [f"{port}={path}" for port, path in zip(ports, work, strict=True)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ranks", str(log), *jobs],
        env=os.environ | group | threads,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that both can be killed
    )


def killed(process: subprocess.Popen[str]) -> None:
    """End both processes, now."""
    with contextlib.suppress(ProcessLookupError):  # they may have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def in_two_processes(log: Path, work: Sequence[Path]) -> None:
    process = started(log, work)
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        killed(process)
    assert process.returncode == 0, f"{said}\n{log.read_text()}"
    assert " finished" in said
    assert log.read_text() == ""  # only the first process speaks


def main(log: str, *work: str) -> None:
    # Forked where all is loaded and nothing has begun: the second need not load it again.
    child = os.fork()
    rank = "0" if child else "1"
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    if not child:
        with open(log, "w") as own:
            os.dup2(own.fileno(), 1)
            os.dup2(own.fileno(), 2)
    torch.set_num_threads(1)
    for port, _, place in (job.partition("=") for job in work):
        # At one port for all, the second might find the group before this one.
        os.environ["MASTER_PORT"], path = port, Path(place)
        if path.suffix == ".yaml":
            config, run = STAGES[path.stem]
            run(from_yaml(config, path))
        else:
            take_steps(path, rank)
            Accelerator(cpu=True).end_training()
        AcceleratorState._reset_state(True)  # it has left its group
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(*sys.argv[1:])
