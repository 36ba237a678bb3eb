"""The one training loop, a generator of metrics: in which order rows come, and how many.

What a step does is the `Learner`'s. The caller owns the generator: it logs, evaluates, samples,
keeps checkpoints, and may close it to stop early.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from accelerate import Accelerator

from truing.keys import generator
from truing.models.model import Model
from truing.settings import OptimTopic
from truing.stages.learner import Learner, Objective


@dataclass
class Step:
    """One step: its number from 1, the epoch reached, its metrics, and counters such as episodes,
    of which the last is wanted where metrics are averaged."""

    step: int
    epoch: float
    metrics: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)


class Loop(Protocol):
    """What `truing.stages.driving` drives: steps of a learner, which can stop and go on."""

    learner: Learner
    total: int

    def steps(self) -> Iterator[Step]:
        """The steps from here on; yields after each."""
        ...

    def state(self) -> dict[str, Any]:
        """What outlives a step besides the learner's state, as JSON can hold it."""
        ...

    def restore(self, step: int, state: Mapping[str, Any]) -> None: ...


class Training:
    """Rows and an objective: ``model`` is optimised in place, one optimiser step after another.

    The model's ``version`` counts the steps. Raises ValueError without rows, and
    FloatingPointError at a loss or gradient that is not finite.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Model,
        rows: Sequence[Any],
        objective: Objective[Any],
        config: OptimTopic,
        *,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        if not rows:
            raise ValueError("there are no rows to train on: the dataset is empty after encoding")
        world = accelerator.num_processes
        self.accelerator, self.rows, self.objective = accelerator, rows, objective
        self.total = total_steps(len(rows), config, world)
        self.learner = Learner(accelerator, model, config, steps=self.total, seed=seed)
        self.plan = step_rows(len(rows), config, seed=seed, shuffle=shuffle, world=world)
        self.done = self.seen = 0

    def steps(self) -> Iterator[Step]:
        for chosen in self.plan:
            metrics = self.learner.learn((self.objective, [self.rows[i] for i in chosen]))
            self.learner.schedule.step()
            self.done += 1
            self.seen += len(chosen)
            yield Step(self.done, self.seen / len(self.rows), metrics)
        self.accelerator.free_memory()

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        for chosen in islice(self.plan, step):
            self.done += 1
            self.seen += len(chosen)


def total_steps(rows: int, config: OptimTopic, world: int) -> int:
    """Optimiser steps that ``num_train_epochs`` or ``max_steps`` come to."""
    if config.max_steps > 0:
        return config.max_steps
    return max(1, math.ceil(_visits(rows, config) / rows_per_step(config, world)))


def _visits(rows: int, config: OptimTopic) -> int:
    """Rows that the epochs ask for. Rounded first: 10 x 1.1 must not become 12."""
    return math.ceil(round(rows * config.num_train_epochs, 6))


def total_rows(rows: int, config: OptimTopic, world: int) -> int:
    """Rows read in all steps. The last step of the last epoch may be smaller than the others, but
    gives every rank a row at least."""
    steps, size = total_steps(rows, config, world), rows_per_step(config, world)
    if config.max_steps > 0:
        return steps * size
    return max(_visits(rows, config), (steps - 1) * size + world)


def rows_per_step(config: OptimTopic, world: int) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * world


def step_rows(
    rows: int, config: OptimTopic, *, seed: int, shuffle: bool, world: int
) -> Iterator[list[int]]:
    """Row numbers of each optimiser step, all ranks together; the order is keyed by the epoch."""
    size, wanted = rows_per_step(config, world), total_rows(rows, config, world)
    order = endless(rows, seed=seed, shuffle=shuffle)
    while wanted:
        take = min(size, wanted)
        yield list(islice(order, take))
        wanted -= take


def endless(rows: int, *, seed: int, shuffle: bool) -> Iterator[int]:
    """Row numbers, epoch after epoch; the order is keyed by the epoch."""
    epoch = 0
    while True:
        order = generator(seed, "shuffle", epoch).permutation(rows) if shuffle else range(rows)
        yield from map(int, order)
        epoch += 1
