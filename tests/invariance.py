"""One optimiser step of every stage, in float64, laid out in any way: what comes of it must not
change. What each learns from is in `tests.cases`.

The stages' own code runs: `Learner`, objectives, models, estimates. Only where it says float32 does
it get float64 here, so that what is left of a difference is a mistake and no rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.cases import CASES, COUNT
from truing.data.layout import Layout
from truing.settings import OptimTopic
from truing.stages.learner import Batch, Learner, Measured

# A change of AdamW's first step is at most the rate times that of the gradient over epsilon, so
# that neither may be small or large here.
OPTIM: dict[str, Any] = {"learning_rate": 1e-3, "adam_epsilon": 1e-6}

# --- float64 throughout ---------------------------------------------------------------------------


class Norm(nn.Module):
    """A root-mean-square norm that does not pass through float32, as transformers' own do."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, True) + self.epsilon)


def exact(model: nn.Module) -> None:
    """Put such norms into a model."""
    for module in list(model.modules()):
        children: list[tuple[str, Any]] = list(module.named_children())
        for name, child in children:
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, Norm(child.weight, child.variance_epsilon))


@contextmanager
def double() -> Iterator[None]:
    """New tensors are float64, and ``.float()`` gives float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    try:
        yield
    finally:
        del Tensor.float  # it is inherited: what was put in front of it goes
        torch.set_default_dtype(before)


# --- an optimiser step ----------------------------------------------------------------------------


class Outcome(NamedTuple):
    """Of a step: its figures, the gradient before it was shortened, and the weights after."""

    figures: dict[str, float]
    grads: dict[str, Tensor]
    weights: dict[str, Tensor]

    def differs(self, other: "Outcome", tolerance: float) -> list[str]:
        """What is not the same, by the largest difference relative to 1 or to the largest number,
        if that is larger."""
        found = [
            f"{n}: {a} {other.figures.get(n)}"
            for n, a in self.figures.items()
            if not abs(a - other.figures.get(n, float("nan"))) <= tolerance * max(1, abs(a))
            # They tell how the rows were laid out.
            and not n.startswith("tokens/")
        ]
        for name in ("grads", "weights"):
            ours, theirs = getattr(self, name), getattr(other, name)
            assert ours.keys() == theirs.keys()
            for n, one in ours.items():
                gap = float((one - theirs[n]).abs().max())
                if not gap <= tolerance * max(1.0, float(one.abs().max())):
                    found.append(f"{name} of {n}: {gap:.1e}")
        return found


Layouts = Callable[[Layout], Layout]


class Wrapped:
    """An objective whose micro-batches are laid out anew, or are told other totals."""

    def __init__(self, inner: Any, layouts: Layouts | None = None, *, own: bool = False) -> None:
        self.inner, self.layouts, self.own = inner, layouts, own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def collate(self, rows: Sequence[Any]) -> Batch:
        batch = self.inner.collate(rows)
        return replace(batch, layout=self.layouts(batch.layout)) if self.layouts else batch

    def loss(self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]) -> Any:
        if self.own:  # the mistake that a mean of means is
            own = self.inner.counts(batch)
            if isinstance(self.inner, Measured):
                with torch.no_grad():
                    own |= self.inner.measured(model, batch)
            totals = {n: torch.tensor(float(x)) for n, x in own.items()}
        return self.inner.loss(model, batch, totals)


class Stage:
    """A case with its learner and its rows, to take one and the same step again and again."""

    def __init__(self, name: str, folder: Path, *, stock: bool = False) -> None:
        """``stock``: the norms stay as transformers has them."""
        accelerator, chosen = Accelerator(cpu=True), CASES[name]
        self.model = chosen.model(folder)
        if not stock:
            exact(self.model)
        self.parts = chosen.parts(self.model, folder)
        self.learner = Learner(accelerator, self.model, OptimTopic(**OPTIM), steps=4, seed=0)
        self.start = [weight.detach().clone() for weight in self.model.parameters()]

    def step(
        self,
        *,
        size: int,
        order: Sequence[int] = range(COUNT),
        layouts: Layouts | None = None,
        own: bool = False,
        tokens_per_batch: int | None = None,
        mistake: Callable[[Any], Any] | None = None,
    ) -> Outcome:
        """One step in micro-batches of ``size``, with the rows in this ``order``.

        ``mistake``: what is made of the accelerator for this step.
        """
        learner, accelerator = self.learner, self.learner.accelerator
        with torch.no_grad():
            for weight, start in zip(self.model.parameters(), self.start, strict=True):
                weight.copy_(start)
        learner.optimizer.state.clear()
        learner.config = OptimTopic(
            per_device_train_batch_size=size, tokens_per_batch=tokens_per_batch, **OPTIM
        )
        learner.accelerator = mistake(accelerator) if mistake else accelerator
        grads: dict[str, Tensor] = {}

        def spied(*given: Any) -> Any:
            grads.update((n, p.grad.clone()) for n, p in learner._trained() if p.grad is not None)
            return Learner._bounded(learner, *given)

        learner._bounded = spied
        parts: list[Any] = [
            (Wrapped(objective, layouts, own=own), [rows[i] for i in order])
            for objective, rows in self.parts
        ]
        figures = learner.learn(*parts)
        learner.accelerator = accelerator
        after = {n: p.detach().clone() for n, p in learner._trained()}
        return Outcome(figures, grads, after)


# --- other layouts --------------------------------------------------------------------------------


def moved(layout: Layout, *, left: bool, more: int, fill: Sequence[int]) -> Layout:
    """The same rows with ``more`` columns of filling, on the right or in front; ``fill``: the ids
    that stand there, in turn."""
    rows, columns = layout.ids_RC.shape
    used_R = (layout.documents_RC >= 0).sum(-1)
    width = columns + more
    shift_R = width - used_R if left else torch.zeros_like(used_R)
    cells = torch.zeros(4, rows, width, dtype=torch.long)
    cells[0] = torch.tensor(fill).repeat(rows * width)[: rows * width].view(rows, width)
    cells[2] = -1
    own = (layout.ids_RC, layout.positions_RC, layout.documents_RC, layout.segments_RC)
    for r in range(rows):
        n, s = int(used_R[r]), int(shift_R[r])
        for place, grid in zip(cells, own, strict=True):
            place[r, s : s + n] = grid[r, :n]
        if layout.kind == "padded" and not left:
            cells[1, r] = torch.arange(width)
    last_B2 = layout.last_B2.clone()
    last_B2[:, 1] += shift_R[last_B2[:, 0]]
    ids, positions, documents, segments = cells
    return replace(
        layout,
        ids_RC=ids,
        positions_RC=positions,
        documents_RC=documents,
        segments_RC=segments,
        column_BT=layout.column_BT + shift_R[layout.row_BT],
        last_B2=last_B2,
        # In front each filled cell is a document of its own, at position 0, as in packed rows.
        kind="packed" if layout.kind == "padded" and left else layout.kind,
    )
