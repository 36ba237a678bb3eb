"""One optimiser step: an objective's rows in micro-batches, their gradients, the update.

A stage brings an `Objective`: how rows become a micro-batch, what that micro-batch adds to each
global denominator, and its loss. The learner owns accumulation, ranks, optimiser and schedule, and
never learns which algorithm it runs.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from truing import console
from truing.data.layout import Layout, sent
from truing.keys import generator
from truing.models import precision
from truing.models.actor import ActorCritic
from truing.models.memory import release
from truing.models.model import Model, evaluating
from truing.settings import OptimTopic
from truing.stages.budget import by_tokens, enough_memory
from truing.stages.sums import Sums, add_sums, gather_sums, means, of_layouts
from truing.stages.sums import stat as stat

Row = TypeVar("Row", contravariant=True)
# How an objective's responses become a layout: `Model.place`, for one.
Place = Callable[..., Layout]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: its layout and whatever else the objective needs, by name; and the rows that
    it was made from."""

    layout: Layout
    extra: Mapping[str, Tensor]
    rows: Sequence[Any] = ()

    def to(self, device: torch.device) -> "Batch":
        extra = {name: sent(value, device) for name, value in self.extra.items()}
        return Batch(self.layout.to(device), extra, self.rows)


@runtime_checkable
class Measured(Protocol):
    """An objective whose loss rests on a figure of the whole step that only the model can tell."""

    def measured(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """What this micro-batch adds to each total, besides its counts, by the model as it stands
        before the step. Called without gradients and dropout."""
        ...


@runtime_checkable
class Related(Protocol):
    """An objective whose rows may share what they read."""

    def family(self, row: Any) -> Hashable:
        """Rows of one family stand together in micro-batches: answers to one prompt, for one."""
        ...


class Objective(Protocol[Row]):
    """What a stage optimises. One that is `Measured` too finds what it measured in ``totals``."""

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


class Diverged(FloatingPointError):
    """A number that is not finite, or a guard that says stop: what it was of, and the rows that
    this process was reading."""

    def __init__(self, message: str, terms: Sequence[str], rows: Sequence[Any]) -> None:
        super().__init__(message)
        self.terms, self.rows = list(terms), list(rows)


# An objective and its rows of one optimiser step, on all ranks together; and with one rank's rows
# in micro-batches.
Part = tuple[Objective[Any], Sequence[Any]]
Work = tuple[Objective[Any], Sequence[Batch]]
# A micro-batch that was read: its loss and sums.
Pass = tuple[Batch, Tensor, Sums]


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

        Raises `Diverged` at a loss or gradient that is not finite, with nothing updated.
        """
        self.taken += 1
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size, budget = self.config.per_device_train_batch_size, self.config.tokens_per_batch
        work = [
            (objective, micro_batches(rows[rank::world], objective, size, budget))
            for objective, rows in parts
        ]
        # Dropout, where there is any, draws from torch's own generator: key that too.
        key = generator(self.seed, "dropout", self.taken, rank)
        torch.manual_seed(int(key.integers(2**63)))
        sums, passes = _accumulate(self.accelerator, self.wrapped, work)
        total = precision.total_norm([p.grad for _, p in self._trained() if p.grad is not None])
        # A GPU is awaited once a step, here: its loss and norm are needed before weights change,
        # and while they do so the next step is prepared.
        figures = means({**sums, "grad_norm": (total, torch.ones_like(total))})
        if not math.isfinite(figures["loss"]):
            check_losses(passes, self.taken)
        skip = self._bounded(figures["grad_norm"], work)
        rate = float(self.schedule.get_last_lr()[0])
        if skip:
            self.optimizer.zero_grad()  # without gradients a step changes nothing
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.version += not skip
        release(self.model.device)
        watched = {} if self.config.guard_grad_norm is None else {"guard/skipped": float(skip)}
        return {**figures, "learning_rate": rate, **watched}

    def _bounded(self, norm: float, work: Sequence[Work]) -> bool:
        """Shorten the gradient, whose ``norm`` this is, where it is too long; whether the guard
        says that this step is to be skipped."""
        rows = [row for _, batches in work for b in batches for row in b.rows]
        if not math.isfinite(norm):
            found = {n: p.grad for n, p in self._trained() if p.grad is not None}
            names = [n for n, grad in found.items() if not bool(grad.isfinite().all())]
            raise Diverged(
                f"the gradient's norm is {norm} at step {self.taken}, first in "
                f"{(names or ['the sum'])[0]}: nothing was updated. Lower learning_rate, or look "
                "for a faulty row",
                [f"gradient of {name}" for name in names],
                rows,
            )
        most = self.config.max_grad_norm
        if most and norm > most:
            # By a number, not by a tensor: a GPU takes all gradients together then.
            grads = [p.grad for _, p in self._trained() if p.grad is not None]
            torch._foreach_mul_(grads, most / (norm + 1e-6))  # pyright: ignore
        guard = self.config.guard_grad_norm
        if guard is None or norm <= guard:
            return False
        what = f"the gradient's norm is {norm:.4g} at step {self.taken}, above guard_grad_norm"
        return guarded(self.config, what, ["grad_norm"], rows)

    def tensors(self) -> dict[str, Tensor]:
        """What it has learnt so far: the trained weights and the optimiser's moments of each."""
        found: dict[str, Tensor] = {}
        for name, weight in self._trained():
            found[f"weights/{name}"] = weight
            for kind, moment in self.optimizer.state.get(weight, {}).items():
                found[f"moments/{name}/{kind}"] = moment
        return found

    def state(self) -> dict[str, Any]:
        """The rest of what it needs to go on."""
        return {
            "taken": self.taken,
            "version": self.model.version,
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go back to where `tensors` and `state` came from."""
        self.restore_weights(tensors, state)
        for name, weight in self._trained():
            start = f"moments/{name}/"
            self.optimizer.state[weight] = {
                # The step counter of a fused AdamW lies beside the weight as well.
                key[len(start) :]: value.to(weight.device)
                for key, value in tensors.items()
                if key.startswith(start)
            }
        self.taken = state["taken"]
        self.schedule.load_state_dict(state["schedule"])
        for group, rate in zip(
            self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True
        ):
            group["lr"] = rate

    def _fits(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError where a checkpoint is of another model."""
        ours = {f"weights/{n}": (p.shape, p.dtype) for n, p in self._trained()}
        kept = {n: (t.shape, t.dtype) for n, t in tensors.items() if n.startswith("weights/")}
        if ours != kept:
            odd = sorted(n for n in {*ours, *kept} if ours.get(n) != kept.get(n))
            raise ValueError(
                f"the checkpoint trains other weights than this run ({len(odd)} differ, first "
                f"{odd[0].removeprefix('weights/')}): set the model, dtype and LoRA back to what "
                "they were, or give another --output-dir"
            )

    def restore_weights(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The weights alone, to be written as a model."""
        self._fits(tensors)
        with torch.no_grad():
            for name, weight in self._trained():
                weight.copy_(tensors[f"weights/{name}"])
        self.model.version = state["version"]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]


def guarded(config: OptimTopic, what: str, terms: Sequence[str], rows: Sequence[Any]) -> bool:
    """What ``guard_action`` says to a guard that was passed: whether to skip; or `Diverged`."""
    if config.guard_action == "stop":
        raise Diverged(f"{what}, and guard_action is stop", terms, rows)
    skip = config.guard_action == "skip"
    console.say(f"[yellow]{what}{': skipped' if skip else ''}[/yellow]")
    return skip


def _accumulate(
    accelerator: Accelerator, wrapped: nn.Module, work: Sequence[Work]
) -> tuple[Sums, list[Pass]]:
    """Forward and backward of one optimiser step's micro-batches; its metrics, over all ranks, and
    what there was of each, unread: a GPU goes from one to the next without being awaited."""
    # A pass without gradients is no business of DDP's.
    bare = accelerator.unwrap_model(wrapped)
    queue = [
        (objective, batch, totals)
        for objective, batches in work
        for totals in [global_totals(accelerator, objective, batches, bare)]
        for batch in batches
    ]
    sums, passes = Sums(), list[Pass]()
    for i, (objective, batch, totals) in enumerate(queue, start=1):
        last = i == len(queue)
        with enough_memory(batch), precision.training(), _synchronised(accelerator, wrapped, last):
            loss, stats = objective.loss(wrapped, batch.to(accelerator.device), totals)
            # DDP averages gradients over ranks; the totals are global already, so undo the
            # average. This is the only place where the world size enters a loss.
            accelerator.backward(loss * accelerator.num_processes)
        passes.append((batch, loss.detach(), stats))
        add_sums(sums, {"loss": (loss.detach(), torch.zeros_like(loss)), **stats})
    sums["loss"] = (sums["loss"][0], torch.ones_like(sums["loss"][0]) / accelerator.num_processes)
    layouts = (batch.layout for _, batch, _ in queue)
    sums |= of_layouts(layouts, accelerator.num_processes)
    return gather_sums(accelerator, sums), passes


def check_losses(passes: Sequence[Pass], number: int) -> None:
    """Raise `Diverged` for the first of a step's micro-batches whose loss is not finite."""
    for i, (batch, loss, stats) in enumerate(passes, start=1):
        if not bool(torch.isfinite(loss)):
            terms = [n for n, (total, _) in stats.items() if not bool(total.isfinite())]
            raise Diverged(
                f"the loss is {float(loss)} at step {number}, micro-batch {i} of "
                f"{len(passes)}{' (' + ', '.join(terms) + ')' if terms else ''}: nothing was "
                "updated. Lower learning_rate, or look for a faulty row",
                terms or ["loss"],
                batch.rows,
            )


def _synchronised(accelerator: Accelerator, wrapped: nn.Module, last: bool) -> Any:
    """Ranks exchange gradients in the last micro-batch of a step only."""
    return torch.enable_grad() if last else accelerator.no_sync(wrapped)


def micro_batches(
    rows: Sequence[Any], objective: Objective[Any], size: int, budget: int | None = None
) -> list[Batch]:
    """One rank's rows of a step in micro-batches, of ``size`` rows or of up to ``budget`` tokens;
    like lengths together, so less is filling, and families before that."""
    ordered = sorted(rows, key=objective.length, reverse=True)
    if isinstance(objective, Related):
        families: dict[Hashable, list[Any]] = {}
        for row in ordered:
            families.setdefault(objective.family(row), []).append(row)
        ordered = [row for family in families.values() for row in family]
    parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    if budget is not None:
        parts = by_tokens(ordered, lambda part: objective.collate(part).layout.cells, budget)
    return [replace(objective.collate(part), rows=part) for part in parts]


def global_totals(
    accelerator: Accelerator,
    objective: Objective[Any],
    batches: Sequence[Batch],
    model: nn.Module,
) -> dict[str, Tensor]:
    """Each denominator, and what is measured, over all micro-batches and ranks of one optimiser
    step; on the CPU, for a loss looks at them and would wait for a GPU."""
    totals: dict[str, float] = {}
    for batch in batches:
        found = objective.counts(batch)
        if isinstance(objective, Measured):
            with evaluating(model), precision.training():
                found = found | objective.measured(model, batch.to(accelerator.device))
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + value
    numbers = torch.tensor(list(totals.values()))
    if accelerator.num_processes > 1:
        numbers = accelerator.reduce(numbers.to(accelerator.device), reduction="sum").cpu()  # pyright: ignore
    return dict(zip(totals, numbers, strict=True))


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
    totals = global_totals(accelerator, objective, batches, model)
    sums: Sums = {}
    for batch in batches:
        with evaluating(model), precision.training():
            loss, stats = objective.loss(model, batch.to(accelerator.device), totals)
        add_sums(sums, {"loss": (loss, torch.zeros_like(loss)), **stats})
    sums["loss"] = (sums["loss"][0], torch.ones_like(sums["loss"][0]) / accelerator.num_processes)
    return {f"eval_{name}": value for name, value in means(gather_sums(accelerator, sums)).items()}
