"""One comparison: three processes by turns on the same rows, and what they took.

The sides are the product, TRL as installed ("plain"), and on a CPU TRL with the settings of the
machine that the product makes for itself ("tuned"). A round is a timed segment of each, in an order
that turns; a ratio is taken within a round, so what the machine does meanwhile falls on all.
"""

import math
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import work
from benchmarks.side import Died, Side
from truing.models.precision import medium_is_accurate
from truing.models.products import product, tiles

ROOT = Path(__file__).resolve().parents[1]
PPO_PEER = ROOT / ".bench" / "trl-1.12.0" / "bin" / "python"
SIDES = ("truing", "tuned", "plain")


def machine(threads: int, cpu: bool) -> str:
    """The kind of processor, as the system tells it."""
    if not cpu:
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    wide = "with" if "avx512f" in flags else "without"
    kind = names[0] if names else platform.processor() or platform.machine()
    return f"{kind} ({wide} AVX512), {threads} threads"


def peak_flops(threads: int, cpu: bool, half: bool, seconds: float = 1.0) -> float:
    """Operations a second of the best matrix multiply that this machine was seen to do: of 16 bits
    if ``half``, else of float32 by every way that keeps its accuracy."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    shape = (2048, 512, 1536) if cpu else (8192, 8192, 8192)
    kind = {"dtype": torch.bfloat16 if half else torch.float32, "device": "cpu" if cpu else "cuda"}
    a, b = torch.randn(shape[:2], **kind), torch.randn(shape[1:], **kind)
    digits = 3 if cpu and not half and tiles() else 0
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for precision in ("highest", "medium") if medium_is_accurate() else ("highest",):
            torch.set_float32_matmul_precision(precision)
            start = time.perf_counter()
            a @ b
            if not cpu:
                torch.cuda.synchronize()
            best = max(best, 2 * math.prod(shape) / (time.perf_counter() - start))
        if digits:
            start = time.perf_counter()
            product(a, b.T, digits)
            best = max(best, 2 * math.prod(shape) / (time.perf_counter() - start))
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(before)
    return best


def commit() -> str:
    """The commit that is measured, "+" behind it where files differ from it: but for those that
    measuring writes."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)

    named = git("rev-parse", "--short", "HEAD").stdout.strip()
    same = git("diff", "--quiet", "HEAD", "--", ".", ":(exclude)docs").returncode == 0
    return (named + ("" if same else "+")) if named else "unknown"


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def gradient_difference(one: Path, other: Path) -> float:
    """Norm of the difference of two gradients, in units of the second's."""
    mine, theirs = (torch.load(path) for path in (one, other))
    if mine.keys() != theirs.keys():
        raise ValueError(f"gradients of other weights: {sorted(mine.keys() ^ theirs.keys())[:4]}")
    apart = sum(float((mine[n].double() - theirs[n].double()).square().sum()) for n in mine)
    size = sum(float(g.double().square().sum()) for g in theirs.values())
    return (apart / size) ** 0.5


class Comparison:
    """Three sides at one workload, in a folder that goes with them."""

    def __init__(
        self, name: str, shape: str, *, pairs: int, threads: int, precision: str, cpu: bool = True
    ) -> None:
        self.name, self.shape, self.pairs, self.threads = name, shape, pairs, threads
        self.precision, self.cpu = precision, cpu
        told = {"workload": name, "shape": shape, "cpu": cpu}
        self.workload, self.size = work.sized(told), work.SHAPES[shape]
        self.named = SIDES if cpu else ("truing", "plain")
        # Before those that count: one to compare, and a segment to warm up.
        self.uncounted = 1 + self.workload.steps
        self.steps = self.uncounted + pairs * self.workload.steps
        self.folder = Path(tempfile.mkdtemp(prefix=f"truing-bench-{name}-"))
        self.sides: dict[str, Side] = {}

    def __enter__(self) -> "Comparison":
        half = self.precision == "bf16"
        sizes = self.size, self.workload, self.steps
        work.prepare(self.folder, *sizes, cpu=self.cpu, half=half)
        return self

    def __exit__(self, *_: object) -> None:
        for side in self.sides.values():
            side.close()
        shutil.rmtree(self.folder)

    def start(self, name: str) -> Side:
        peer = name != "truing"
        tuned = ["malloc", "openmp"]
        # While decoding, the faster product costs the peer more than it brings. Where it is of
        # fewer bits, it would be another computation.
        if not self.name.startswith("sampling") and medium_is_accurate():
            tuned.append("matmul")
        spec = {
            "name": name,
            "workload": self.name,
            "shape": self.shape,
            "folder": str(self.folder),
            "threads": self.threads,
            "precision": self.precision,
            "cpu": self.cpu,
            "steps": self.steps,
            "settings": tuned if name == "tuned" else [],
        }
        python = str(PPO_PEER) if peer and self.name == "ppo" else sys.executable
        module = "benchmarks.peer" if peer else "benchmarks.ours"
        self.sides[name] = Side(name, python, module, spec, self.folder)
        return self.sides[name]

    def run(self) -> dict[str, Any]:
        """All rounds; the record of the comparison. Raises `Died` where a side does."""
        if self.name == "ppo" and not PPO_PEER.is_file():
            raise Died("TRL 1.12.0 is not there, the last with PPO: run benchmarks/setup.sh")
        if not self.cpu:  # they load at once: a GPU's host has the cores for that
            for name in self.named:
                self.start(name)
        # Else one after the other: a side that loads would slow down one that is timed.
        first = {n: (self.sides.get(n) or self.start(n)).step() for n in self.named}
        self.check(first)
        for name in self.named:
            self.segment(name)
        rounds: list[dict[str, dict[str, Any]]] = []
        for i in range(self.pairs):
            first_one = i % len(self.named)
            turned = self.named[first_one:] + self.named[:first_one]
            rounds.append({n: self.segment(n) for n in turned})
        for done in rounds:
            self.charge(done["truing"], first["truing"])
        return self.record(first, rounds)

    def segment(self, name: str) -> dict[str, Any]:
        """A timed segment of a side: what its steps took together."""
        answers = [self.sides[name].step() for _ in range(self.workload.steps)]
        total = {key: sum(answer[key] for answer in answers) for key in ("seconds", "tokens")}
        return answers[-1] | total | {"peak_mb": max(answer["peak_mb"] for answer in answers)}

    def check(self, first: dict[str, dict[str, Any]]) -> None:
        """That all sides read the same tokens."""
        told = {name: answer["digest"] for name, answer in first.items()}
        if len(set(told.values())) > 1:
            raise ValueError(f"the sides read other tokens than each other: {told}")

    def charge(self, answer: dict[str, Any], first: dict[str, Any]) -> None:
        """Add the reference's pass, which is made before the first step, to the steps."""
        rows = self.workload.batch * self.workload.steps
        answer["seconds"] += rows * first.get("reference_seconds_per_row", 0.0)

    def tokens(self, number: int, answer: dict[str, Any]) -> int:
        """Useful tokens of a round: of the rows read, or of the completions sampled."""
        if self.workload.online:
            return answer["tokens"]
        return self.read(number)

    def read(self, number: int) -> int:
        """Tokens of the rows of a round."""
        rows, each = work.read(self.folder), self.workload.batch // self.workload.group
        start = each * (self.uncounted + number * self.workload.steps)
        return sum(map(work.useful, rows[start : start + each * self.workload.steps]))

    def passed(self, number: int, answer: dict[str, Any]) -> int:
        """Tokens of a round that a model must see: of what is sampled, the prompts too."""
        prompts = self.read(number) * self.workload.group if self.workload.online else 0
        return self.tokens(number, answer) + prompts

    def learning(self, number: int, answer: dict[str, Any]) -> float:
        """Passes over tokens a second, of the part of a round in which the product learns."""
        passed = self.workload.learnt * self.passed(number, answer)
        return passed / answer["phases"]["learn"]

    def record(
        self, first: dict[str, dict[str, Any]], rounds: list[dict[str, dict[str, Any]]]
    ) -> dict[str, Any]:
        speed = {
            name: [self.tokens(i, r[name]) / r[name]["seconds"] for i, r in enumerate(rounds)]
            for name in self.named
        }
        peak = {name: max(r[name]["peak_mb"] for r in rounds) for name in self.named}
        ratio = {
            name: spread([a / b for a, b in zip(speed["truing"], speed[name], strict=True)])
            for name in self.named[1:]
        }
        most = peak_flops(self.threads, self.cpu, self.precision == "bf16")
        each = 2 * self.size.parameters * self.workload.passes
        mfu = {
            name: median(
                each * self.passed(i, r[name]) / r[name]["seconds"] / most
                for i, r in enumerate(rounds)
            )
            for name in self.named
        }
        if self.workload.learnt:
            # Of the product, where learning is timed apart.
            mfu["learning"] = median(
                self.learning(i, r["truing"]) * 2 * self.size.parameters / most
                for i, r in enumerate(rounds)
            )
        sampling = self.name.startswith("sampling")
        loss, gradient = (None, None) if sampling else self.differences(first)
        more = {"equal_tokens": equal_tokens(rounds)} if sampling else {}
        return {
            "workload": self.name,
            "shape": self.shape,
            "precision": self.precision,
            "ratio_tuned": ratio.get("tuned"),
            "ratio_plain": ratio["plain"],
            "memory_plain": peak["truing"] / peak["plain"],
            "mfu": mfu,
            "loss_difference": loss,
            "gradient_difference": gradient,
            "first_loss": {name: answer["loss"] for name, answer in first.items()},
            **more,
            "tokens_per_second": {name: spread(speed[name]) for name in self.named},
            "tokens": {
                n: sum(self.tokens(i, r[n]) for i, r in enumerate(rounds)) for n in self.named
            },
            "seconds": {n: sum(r[n]["seconds"] for r in rounds) for n in self.named},
            "peak_mb": peak,
            "matmul_gflops": most / 1e9,
            "pairs": self.pairs,
            "device": "cpu" if self.cpu else "gpu",
            "machine": machine(self.threads, self.cpu),
            "date": str(date.today()),
            "commit": commit(),
            "versions": {
                "torch": torch.__version__,
                "transformers": version("transformers"),
                "trl": "1.12.0" if self.name == "ppo" else version("trl"),
            },
        }

    def differences(self, first: dict[str, dict[str, Any]]) -> tuple[float, float]:
        """Of the first step, between the product and plain TRL: of its loss, absolute, and of its
        gradient, in units of its norm."""
        loss = abs(first["truing"]["loss"] - first["plain"]["loss"])
        files = [self.folder / f"{name}.pt" for name in ("truing", "plain")]
        return loss, gradient_difference(*files)


def equal_tokens(rounds: Sequence[dict[str, dict[str, Any]]]) -> float:
    """Share of the responses that are the same, token for token, as those of plain TRL's."""
    same = [
        one == other
        for done in rounds
        for one, other in zip(done["truing"]["responses"], done["plain"]["responses"], strict=True)
    ]
    return sum(same) / len(same)


def compare(name: str, shape: str, **more: Any) -> dict[str, Any]:
    with Comparison(name, shape, **more) as comparison:
        return comparison.run()
