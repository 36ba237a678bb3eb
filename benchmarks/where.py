"""Where the time of a step goes: the product's own C, by what it computes, AdamW, and the rest.

A process takes some steps of a workload, as beside TRL, with a clock around each call of C. What is
left is torch's own operations and Python.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from benchmarks import ours, work
from benchmarks.page import WHERE
from benchmarks.runner import commit, machine
from truing.generation import kernels
from truing.models import layers_c, precision, products, spans

WORKLOADS = ("sft", "reward", "dpo", "kto", "grpo", "ppo")
KINDS = {
    products: "products",
    spans: "attention",
    layers_c: "norms, gates, rotations",
    kernels: "steps of sampling",
}
ADAMW = "AdamW, gradient's norm"
# Steps that warm up, and steps of which the time is told.
WARM, TOLD = 4, 8


class Clock:
    """Stands where a `Gate` would: lets steps through, and ends the process behind the last."""

    def __init__(self) -> None:
        self.cpu, self.told = True, dict[str, Any]()
        self.spent, self.taken, self.start = defaultdict[str, float](float), 0, 0.0
        self.begun = 0.0

    @contextmanager
    def on(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spent[kind] += time.perf_counter() - start

    def around(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any) -> Any:
            with self.on(kind):
                return function(*arguments)

        return timed

    def listen(self) -> None:
        for module, kind in KINDS.items():
            vars(module)["call"] = self.around(kind, vars(module)["call"])
        precision.total_norm = self.around(ADAMW, precision.total_norm)
        register_optimizer_step_pre_hook(self.before)
        register_optimizer_step_post_hook(self.behind)

    def before(self, *_: Any) -> None:
        self.begun = time.perf_counter()

    def behind(self, *_: Any) -> None:
        self.spent[ADAMW] += time.perf_counter() - self.begun

    def watch(self, *_: Any) -> None:
        """Nothing is compared."""

    def wait(self) -> None:
        self.start = time.perf_counter()

    def step(self, **_: Any) -> None:
        self.taken += 1
        if self.taken == WARM:
            self.spent.clear()
            self.start = time.perf_counter()
        if self.taken == WARM + TOLD:
            whole = time.perf_counter() - self.start
            print(json.dumps({"seconds": whole / TOLD, "spent": self.spent, "whole": whole}))
            sys.stdout.flush()
            os._exit(0)


def inside(spec: dict[str, Any]) -> None:
    torch.set_num_threads(spec["threads"])
    clock = Clock()
    clock.listen()
    ours.begun = lambda _: (spec, clock)  # pyright: ignore
    ours.main()


def taken(
    module: str, name: str, shape: str, threads: int, steps: int, **more: Any
) -> dict[str, Any]:
    """What a process of ``module`` tells of so many steps of a workload."""
    with tempfile.TemporaryDirectory(prefix="truing-where-") as folder:
        spec = {"workload": name, "shape": shape, "folder": folder, "name": "truing"}
        spec |= {"threads": threads, "precision": "fp32", "cpu": True, "steps": steps, **more}
        kind = {"cpu": spec["cpu"], "half": spec["precision"] == "bf16"}
        work.prepare(Path(folder), work.SHAPES[shape], work.sized(spec), steps, **kind)
        told = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        told |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", module, json.dumps(spec)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **told}
        )
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, shape: str, threads: int) -> dict[str, Any]:
    """Seconds of a step, and the shares of it."""
    found = taken("benchmarks.where", name, shape, threads, WARM + TOLD)
    shares = {
        kind: found["spent"].get(kind, 0) / found["whole"] for kind in (*KINDS.values(), ADAMW)
    }
    return {"seconds": found["seconds"], "shares": shares}


def main(shape: str, threads: int) -> int:
    found = {name: measured(name, shape, threads) for name in WORKLOADS}
    for name, told in found.items():
        print(name, f"{told['seconds']:.2f} s", {k: round(v, 3) for k, v in told["shares"].items()})
    record = {"shape": shape, "machine": machine(threads, cpu=True), "date": str(date.today())}
    record |= {"commit": commit(), "steps": found}
    WHERE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    inside(json.loads(sys.argv[1]))
