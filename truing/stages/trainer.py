"""The one training loop, a generator of metrics; accelerate underneath.

A stage brings an `Objective`: how rows become a micro-batch, what that micro-batch adds to each
global denominator, and its loss. The loop owns order, accumulation, ranks, optimiser and
schedule, and never learns which algorithm it runs. The caller owns the generator: it logs,
evaluates, samples, and may close it to stop early.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from truing.data.batch import Layout, Tokens
from truing.keys import generator
from truing.models import precision
from truing.models.actor import ActorCritic
from truing.models.memory import release
from truing.models.model import Model, evaluating
from truing.settings import OptimTopic

# Optimiser steps between two returns of freed memory to the system.
TRIM = 10

Row = TypeVar("Row", contravariant=True)
# How an objective's responses become a layout: `Model.place`, for one.
Place = Callable[[Sequence[Tokens]], Layout]
# A metric on its way: its sum and the count it is a mean over. Ranks and steps just add up.
Sums = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: its layout and whatever else the objective needs, by name."""

    layout: Layout
    extra: Mapping[str, Tensor]

    def to(self, device: torch.device) -> "Batch":
        extra = {name: value.to(device) for name, value in self.extra.items()}
        return Batch(self.layout.to(device), extra)


class Objective(Protocol[Row]):
    """What a stage optimises."""

    def length(self, row: Row) -> int:
        """Tokens of a row; rows of like length share a micro-batch."""
        ...

    def collate(self, rows: Sequence[Row]) -> Batch: ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """What this micro-batch adds to each denominator (scored tokens, pairs, ...)."""
        ...

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        """This micro-batch's share of the loss, its sums divided by the *global* ``totals``."""
        ...


@dataclass
class Step:
    """One step: its number from 1, the epoch reached, its metrics, and counters such as episodes,
    of which the last is wanted where metrics are averaged."""

    step: int
    epoch: float
    metrics: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)


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


def make_optimizer(
    model: nn.Module, config: OptimTopic, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW on what is trainable; vectors (norms, biases) are not decayed.

    ``rates``: learning rates of parts of the model, by the start of their parameters' names.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            own = (r for start, r in (rates or {}).items() if name.startswith(start))
            found.setdefault((next(own, config.learning_rate), p.ndim > 1), []).append(p)
    groups = [
        {"params": params, "lr": rate, "weight_decay": config.weight_decay if matrix else 0.0}
        for (rate, matrix), params in found.items()
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


# An objective and its rows of one optimiser step, on all ranks together.
Part = tuple[Objective[Any], Sequence[Any]]


class Learner:
    """What learns: a model, its optimiser and schedule. `learn` takes one optimiser step.

    ``steps``: the length of the schedule, which the caller drives by ``schedule.step()``.
    ``rates``: as `make_optimizer` takes them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Model | ActorCritic,
        config: OptimTopic,
        *,
        steps: int,
        seed: int,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.accelerator, self.model, self.config, self.seed = accelerator, model, config, seed
        optimizer = make_optimizer(model, config, rates)
        warmup = config.warmup_steps or round(config.warmup_ratio * steps)
        self.schedule = get_scheduler(config.lr_scheduler_type, optimizer, warmup, steps)
        if config.gradient_checkpointing:
            for core in model.cores:
                # transformers is renaming it and warns at the old name; older ones know no other.
                enable = getattr(core, "activation_checkpointing_enable", None)
                (enable or core.gradient_checkpointing_enable)()
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.taken = 0

    def learn(self, *parts: Part) -> dict[str, float]:
        """One optimiser step on the sum of the parts' losses; its metrics.

        Raises FloatingPointError at a loss or gradient that is not finite.
        """
        self.taken += 1
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = self.config.per_device_train_batch_size
        work = [
            (objective, micro_batches(rows[rank::world], objective, size))
            for objective, rows in parts
        ]
        # Dropout, where there is any, draws from torch's own generator: key that too.
        key = generator(self.seed, "dropout", self.taken, rank)
        torch.manual_seed(int(key.integers(2**63)))
        sums = _accumulate(self.accelerator, self.wrapped, work, self.taken)
        bound = self.config.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), bound)
        if norm is not None and not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradient's norm is {float(norm)} at step {self.taken}: nothing was updated. "
                "Lower learning_rate, or look for a faulty row"
            )
        rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.version += 1
        if self.taken % TRIM == 0:
            release()
        length = float(norm) if norm is not None else math.nan
        return {**means(sums), "grad_norm": length, "learning_rate": rate}


def train(
    accelerator: Accelerator,
    model: Model,
    rows: Sequence[Any],
    objective: Objective[Any],
    config: OptimTopic,
    *,
    seed: int,
    shuffle: bool = True,
) -> Iterator[Step]:
    """Optimise ``model`` in place; yields after every optimiser step.

    The model's ``version`` counts the steps. Raises ValueError without rows, and
    FloatingPointError at a loss or gradient that is not finite.
    """
    if not rows:
        raise ValueError("there are no rows to train on: the dataset is empty after encoding")
    world = accelerator.num_processes
    steps = total_steps(len(rows), config, world)
    learner = Learner(accelerator, model, config, steps=steps, seed=seed)
    seen = 0
    plan = step_rows(len(rows), config, seed=seed, shuffle=shuffle, world=world)
    for number, chosen in enumerate(plan, start=1):
        metrics = learner.learn((objective, [rows[i] for i in chosen]))
        learner.schedule.step()
        seen += len(chosen)
        yield Step(number, seen / len(rows), metrics)
    accelerator.free_memory()


def _accumulate(
    accelerator: Accelerator,
    wrapped: nn.Module,
    work: Sequence[tuple[Objective[Any], Sequence[Batch]]],
    number: int,
) -> Sums:
    """Forward and backward of one optimiser step's micro-batches; its metrics, over all ranks."""
    queue = [
        (objective, batch, totals)
        for objective, batches in work
        for totals in [global_totals(accelerator, objective, batches)]
        for batch in batches
    ]
    sums: Sums = {}
    for i, (objective, batch, totals) in enumerate(queue, start=1):
        with precision.training(), _synchronised(accelerator, wrapped, i == len(queue)):
            loss, stats = objective.loss(wrapped, batch.to(accelerator.device), totals)
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(
                    f"the loss is {float(loss.detach())} at step {number}, micro-batch {i} of "
                    f"{len(queue)}: nothing was updated. Lower learning_rate, or look for a "
                    "faulty row"
                )
            # DDP averages gradients over ranks; the totals are global already, so undo the
            # average. This is the only place where the world size enters a loss.
            accelerator.backward(loss * accelerator.num_processes)
        add_sums(sums, {"loss": (loss.detach(), torch.zeros_like(loss)), **stats})
    sums["loss"] = (sums["loss"][0], torch.ones_like(sums["loss"][0]) / accelerator.num_processes)
    return gather_sums(accelerator, sums)


def _synchronised(accelerator: Accelerator, wrapped: nn.Module, last: bool) -> Any:
    """Ranks exchange gradients in the last micro-batch of a step only."""
    return torch.enable_grad() if last else accelerator.no_sync(wrapped)


def micro_batches(rows: Sequence[Any], objective: Objective[Any], size: int) -> list[Batch]:
    """One rank's rows of a step in micro-batches; like lengths together, so less is filling."""
    ordered = sorted(rows, key=objective.length, reverse=True)
    return [objective.collate(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def global_totals(
    accelerator: Accelerator, objective: Objective[Any], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Each denominator over all micro-batches and ranks of one optimiser step."""
    totals: dict[str, float] = {}
    for batch in batches:
        for name, value in objective.counts(batch).items():
            totals[name] = totals.get(name, 0.0) + value
    return {
        name: accelerator.reduce(  # pyright: ignore
            torch.tensor(value, device=accelerator.device), reduction="sum"
        )
        for name, value in totals.items()
    }


def add_sums(into: Sums, more: Sums) -> None:
    for name, (total, count) in more.items():
        old = into.get(name)
        into[name] = (total, count) if old is None else (old[0] + total, old[1] + count)


def gather_sums(accelerator: Accelerator, sums: Sums) -> Sums:
    """The sums of all ranks together."""
    if accelerator.num_processes == 1:
        return sums
    flat = torch.stack([torch.stack([t.float(), c.float()]) for t, c in sums.values()])
    flat = accelerator.reduce(flat, reduction="sum")
    return {name: (flat[i, 0], flat[i, 1]) for i, name in enumerate(sums)}  # pyright: ignore


def means(sums: Sums) -> dict[str, float]:
    return {name: float(total) / max(float(count), 1e-12) for name, (total, count) in sums.items()}


def stat(values: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum and count of some values, for a metric that is their (weighted) mean."""
    values = values.detach()
    if weight is None:
        return values.sum(), torch.tensor(float(values.numel()), device=values.device)
    return (values * weight).sum(), weight.sum()


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    rows: Sequence[Any],
    objective: Objective[Any],
    batch_size: int,
) -> dict[str, float]:
    """The objective's loss and metrics on held-out rows, named ``eval_...``.

    Raises ValueError for fewer rows than processes: each needs one.
    """
    if len(rows) < accelerator.num_processes:
        raise ValueError(
            f"{len(rows)} evaluation rows came for {accelerator.num_processes} processes: each "
            "needs one at least; give more rows or start fewer processes"
        )
    mine = list(rows[accelerator.process_index :: accelerator.num_processes])
    batches = micro_batches(mine, objective, batch_size)
    totals = global_totals(accelerator, objective, batches)
    sums: Sums = {}
    for batch in batches:
        with evaluating(model), precision.training():
            loss, stats = objective.loss(model, batch.to(accelerator.device), totals)
        add_sums(sums, {"loss": (loss, torch.zeros_like(loss)), **stats})
    sums["loss"] = (sums["loss"][0], torch.ones_like(sums["loss"][0]) / accelerator.num_processes)
    return {f"eval_{name}": value for name, value in means(gather_sums(accelerator, sums)).items()}
