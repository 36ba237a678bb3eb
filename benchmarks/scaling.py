"""What an optimiser step costs against the size of its work, and the exponent of that.

Batch, pairs and candidates of a prompt (K) should cost in proportion, and K less than that, for the
prompt is read once for several; a longer response costs more than in proportion as far as attention
counts, which at these lengths is little.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from accelerate import Accelerator

from benchmarks import work
from truing.data.batch import Tokens
from truing.models.model import load_policy
from truing.settings import DpoConfig, SftConfig
from truing.stages.learner import Learner
from truing.stages.preference import RECIPES, Order, Orders, Pair, Preference
from truing.stages.sft import Imitation

SIZES: dict[str, Sequence[int]] = {
    "batch": (4, 8, 16, 32),
    "length": (64, 128, 256, 512),
    "K": (2, 4, 8, 16),
    "pairs": (2, 4, 8, 16),
}
# The exponents between which a cost is taken to be in proportion.
LINEAR = (0.8, 1.2)
SHAPE = work.SHAPES["tiny"]


def tokens(prompt: int, response: int, number: int) -> Tokens:
    """A made-up sequence; those of the same ``number`` have the same prompt."""
    draw = np.random.default_rng(number).integers(work.WORDS, SHAPE.vocabulary, prompt)
    answer = np.random.default_rng().integers(work.WORDS, SHAPE.vocabulary, response)
    return Tokens(tuple(map(int, draw)), tuple(map(int, answer)))


def pair(number: int) -> Pair:
    return Pair(tokens(128, 96, number), tokens(128, 96, number))


def order(k: int, number: int) -> Order:
    answers = tuple(tokens(128, 96, number) for _ in range(k))
    return Order(answers, tuple(range(k)), ((0, 1),), (0.0,) * k)


ROWS: dict[str, Callable[[int], list[Any]]] = {
    "batch": lambda n: [tokens(128, 96, i) for i in range(n)],
    "length": lambda n: [tokens(16, n, i) for i in range(8)],
    "K": lambda n: [order(n, i) for i in range(2)],
    "pairs": lambda n: [pair(i) for i in range(n)],
}


def seconds(kind: str, size: int, folder: Path, repeats: int = 3) -> float:
    """Processor seconds of a step of this size: the median, after one that is not counted."""
    settings: dict[str, Any] = {
        "model_name_or_path": str(folder),
        "dataset_name": "none",
        "output_dir": "none",
        "per_device_train_batch_size": 4,
    }
    policy = load_policy(folder)
    config: Any = SftConfig(**settings)
    objective: Any = Imitation(config)
    if kind in ("K", "pairs"):
        loss = "plackett_luce" if kind == "K" else "sigmoid"
        config = DpoConfig(**settings, loss_type=loss)
        made = Orders if kind == "K" else Preference
        objective = made(RECIPES[loss], config.loss_options, policy.place)
    learner = Learner(Accelerator(cpu=True), policy, config, steps=1 + repeats, seed=0)
    rows, found = ROWS[kind](size), list[float]()
    for _ in range(1 + repeats):
        start = time.process_time()
        learner.learn((objective, rows))
        found.append(time.process_time() - start)
    return median(found[1:])


def exponent(costs: Mapping[int, float]) -> float:
    """The slope of a line through the logarithms of size and cost."""
    slope, _ = np.polyfit(np.log(list(costs)), np.log(list(costs.values())), 1)
    return float(slope)


def measured(sizes: Mapping[str, Sequence[int]] = SIZES) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        work.prepare(Path(name), SHAPE, work.WORKLOADS["sft"], 1)
        for kind, each in sizes.items():
            costs = {size: seconds(kind, size, Path(name) / "model") for size in each}
            found[kind] = {"seconds": costs, "exponent": exponent(costs)}
    return found


def main() -> int:
    found = measured()
    print(json.dumps(found, indent=1))
    for kind, told in found.items():
        low, high = LINEAR
        word = "in proportion" if low <= told["exponent"] <= high else "not in proportion"
        print(f"{kind}: exponent {told['exponent']:.2f}, {word}")
    return 0
