"""One side of a comparison: a process that takes optimiser steps when it is told to.

`Side` is what the runner holds; inside the process a `Gate` stands between the steps. A line asks
for a step and is answered by one, in JSON, with what it took.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks import work

# As C's malloc.h has them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
SPIN = "GOMP_SPINCOUNT"  # see truing/__init__.py


class Died(RuntimeError):
    """A side ended before it was asked to."""


class Side:
    """A process of ``module`` by ``python``. Raises `Died`, with the end of what it printed."""

    def __init__(
        self, name: str, python: str, module: str, spec: dict[str, Any], folder: Path
    ) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        threads = str(spec["threads"])
        told = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        # The product sets it for itself; a peer has it where it is tuned.
        inherited = {k: v for k, v in os.environ.items() if k != SPIN}
        told |= {SPIN: os.environ[SPIN]} if "openmp" in spec["settings"] else {}
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-m", module, json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**inherited, **told, **quiet},
            )

    def step(self) -> dict[str, Any]:
        """Have it take a step; what that took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            end = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise Died(f"{self.name} ended with {code}:\n{end}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        # What a dead process did not read is of no use to it.
        with suppress(BrokenPipeError), self.process:
            pass


class Gate:
    """Lets a step through when it is asked for. Of the first one it keeps loss and gradient."""

    def __init__(self, folder: Path, name: str, *, cpu: bool = True) -> None:
        self.cpu = cpu
        # Answers go where stdout went; whatever else is printed goes to the log.
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.gradients = folder / f"{name}.pt"
        self.told: dict[str, Any] = {}
        self.losses: list[float] = []
        self.start = 0.0
        self.before = 0

    def watch(self, model: nn.Module, rename: Callable[[str], str] = str) -> None:
        """Keep loss and gradient of the first optimiser step of ``model``."""
        original, taken = Accelerator.backward, []

        def backward(accelerator: Accelerator, loss: Tensor, **more: Any) -> None:
            if not taken:
                self.losses.append(float(loss.detach()))
            original(accelerator, loss, **more)

        def keep(*_: object) -> None:
            if not taken:
                taken.append(True)
                named = model.named_parameters()
                found = {rename(n): p.grad for n, p in named if p.grad is not None}
                torch.save(found, self.gradients)

        Accelerator.backward = backward
        register_optimizer_step_pre_hook(keep)

    def wait(self) -> None:
        """Until a step is asked for; ends the process where none ever will be."""
        if not sys.stdin.readline():
            os._exit(0)
        self.before, self.start = work.seen["tokens"], time.perf_counter()

    def step(self, **told: Any) -> None:
        """A step is done: says what it took, and waits again."""
        if not self.cpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.start
        found = {"seconds": seconds, "peak_mb": peak_mb(self.cpu), "loss": sum(self.losses)}
        found |= {"tokens": work.seen["tokens"] - self.before} | self.told | told
        self.told = {}
        self.answers.write(json.dumps(found) + "\n")
        self.answers.flush()
        self.losses = []
        forget_peak(self.cpu)
        self.wait()


def peak_mb(cpu: bool) -> float:
    """The most memory that was held since that was last forgotten, in MB: by this process, or on
    the GPU."""
    if not cpu:
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def forget_peak(cpu: bool) -> None:
    if not cpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def settle(settings: Iterable[str]) -> None:
    """The machine settings that a tuned side has."""
    if "malloc" in settings:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(MMAP_THRESHOLD, 1 << 30)
        library.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
    if "matmul" in settings:
        torch.set_float32_matmul_precision("medium")


def begun(argument: str) -> tuple[dict[str, Any], Gate]:
    """What a side's process was told as its argument, and its gate; its settings are made."""
    spec = json.loads(argument)
    torch.set_num_threads(spec["threads"])
    settle(spec["settings"])
    return spec, Gate(Path(spec["folder"]), spec["name"], cpu=spec["cpu"])
