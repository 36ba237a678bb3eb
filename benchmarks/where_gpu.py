"""Where the time of a step on a GPU goes: its kernels by what they compute, and when it has none.

A process takes some steps of a workload, as beside TRL, by the clock alone; then one more under
torch's profiler, which slows the host down but not the kernels. Of what samples, its phases too.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours
from benchmarks.page import where_on_gpu
from benchmarks.runner import commit, machine
from benchmarks.where import ADAMW, Clock, taken

WORKLOADS = ("sft", "dpo", "grpo", "ppo")
# Kernels by their names, the first that fits.
KINDS = {
    "attention": r"flash|_attend",
    "products": r"gem[mv]|nvjet|cutlass|splitK",
    "norms, gates, rotations": r"^_(norm|gate|turn)",
    "log-probs": r"^_(read|slope)\b",
    ADAMW: r"multi_tensor|[Aa]dam|NormTwo|LpNorm",
    "other kernels": "",
}
# What of a trace keeps the GPU busy.
WORK = ("kernel", "gpu_memcpy", "gpu_memset")
# Steps that load kernels, and steps of which the time is told.
WARM, TOLD = 3, 4


def spent(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds that each kind of kernel took, from a trace of torch's profiler."""
    found = dict.fromkeys(KINDS, 0.0)
    for event in events:
        if event.get("cat") in WORK:
            kind = next(k for k, name in KINDS.items() if re.search(name, event["name"]))
            found[kind] += event["dur"] / 1e6
    return found


class Watch(Clock):
    """Lets steps through and, behind the last, tells what one of them was and ends the process."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu = False
        self.phases = defaultdict[str, float](float)
        self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        self.seconds = 0.0

    def step(self, *, phases: Mapping[str, float] | None = None, **_: Any) -> None:
        torch.cuda.synchronize()
        self.taken += 1
        if WARM < self.taken <= WARM + TOLD:
            for name, seconds in (phases or {}).items():
                self.phases[name] += seconds / TOLD
        if self.taken == WARM:
            self.start = time.perf_counter()
        if self.taken == WARM + TOLD:
            self.seconds = (time.perf_counter() - self.start) / TOLD
            self.profiler.start()
        if self.taken > WARM + TOLD:
            self.profiler.stop()
            self.tell()

    def tell(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            self.profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        # What ran out of memory and tried again would be slow without any kernel to show for it.
        again = torch.cuda.memory_stats()["num_alloc_retries"]
        told = {"seconds": self.seconds, "spent": spent(events), "phases": self.phases}
        print(json.dumps({**told, "retries": again}))
        sys.stdout.flush()
        os._exit(0)


def inside(spec: dict[str, Any]) -> None:
    watch = Watch()
    ours.begun = lambda _: (spec, watch)  # pyright: ignore
    ours.main()


def measured(name: str, shape: str, threads: int) -> dict[str, Any]:
    """Seconds of a step, the shares of its kinds of kernels and, where it samples, of its phases;
    and how often memory had to be asked for again."""
    more = {"precision": "bf16", "cpu": False}
    found = taken("benchmarks.where_gpu", name, shape, threads, WARM + TOLD + 1, **more)
    seconds, phases = found["seconds"], found["phases"]
    return {
        "seconds": seconds,
        "shares": {kind: each / seconds for kind, each in found["spent"].items()},
        "phases": {phase: each / seconds for phase, each in phases.items()},
        "retries": found["retries"],
    }


def main(shape: str, threads: int) -> int:
    place = where_on_gpu(shape)
    record: dict[str, Any] = {"shape": shape, "machine": machine(threads, cpu=False), "steps": {}}
    record |= {"date": str(date.today()), "commit": commit()}
    for name in WORKLOADS:
        record["steps"][name] = measured(name, shape, threads)
        print(name, json.dumps(record["steps"][name]), flush=True)
        place.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    inside(json.loads(sys.argv[1]))
