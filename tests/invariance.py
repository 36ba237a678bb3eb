"""One optimiser step of every stage, in float64, laid out in any way: what comes of it must not
change. A new stage is one row of `CASES`; an online one comes with its row of `tests.online.KINDS`.

The stages' own code runs: `Learner`, objectives, models, estimates. Only where it says float32 does
it get float64 here, so that what is left of a difference is a mistake and no rounding.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.conftest import tiny_folder
from tests.online import FREE, KINDS, cast_of
from truing.config import check
from truing.data.batch import Layout, Tokens, padded
from truing.keys import generator
from truing.models.heads import load_reward_model, of_kind
from truing.models.loading import Loading
from truing.models.model import load_policy, logp, sequence_logps
from truing.settings import DpoConfig, KtoConfig, OptimTopic, SftConfig
from truing.stages import online, preference, scoring
from truing.stages.estimate import Estimator
from truing.stages.learner import Batch, Learner, Measured, Part
from truing.stages.online import Pretraining, Reinforcement
from truing.stages.preference import Order, Orders, Pair, Preference
from truing.stages.process import Process, Solution
from truing.stages.rollout import Episode
from truing.stages.scoring import Ranked
from truing.stages.sft import Imitation
from truing.stages.unpaired import Thumb, Unpaired

EOS, PAD, COUNT = 268, 269, 8
MIXED = [int(i) for i in generator(0, "order").permutation(COUNT)]
NAMED: dict[str, Any] = {
    "model_name_or_path": "m",
    "dataset_name": "d",
    "output_dir": "o",
    "use_cpu": True,
}
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


# --- the stages -----------------------------------------------------------------------------------


def home(folder: Path, name: str = "llama", **changed: Any) -> Path:
    """A folder of all that the stages read; ``changed``: what the model's config says instead."""
    tiny_folder(folder / "model", name, dtype=torch.float64)
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    for rows, key in (("prompts", "prompt"), ("texts", "text")):
        lines = [json.dumps({key: "the cat in " + "!" * i}) for i in range(COUNT)]
        (folder / f"{rows}.jsonl").write_text("\n".join(lines))
    return folder


def drawn(count: int, seed: int = 0) -> list[Tokens]:
    """Rows of unequal lengths, some of one token, that end in EOS or are cut; with EOS in some
    prompts, too."""
    random = generator(seed, "rows")

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in random.integers(1, 267, size=random.integers(low, high)))

    rows = [Tokens(ids(1, 6), (*ids(0, 12), EOS)) for _ in range(count)]
    rows[0], rows[1] = Tokens((7, EOS, 9), ids(3, 6)), Tokens((5,), (EOS,))
    return rows


def answers(count: int, *, each: int) -> list[tuple[Tokens, ...]]:
    """Several responses to each prompt."""
    columns = [drawn(count, seed) for seed in range(each)]
    return [
        tuple(Tokens(row[0].prompt, (*one.response, i)) for i, one in enumerate(row))
        for row in zip(*columns, strict=True)
    ]


class Case(NamedTuple):
    """A stage: what learns (from its home), and what it learns from in an optimiser step."""

    model: Callable[[Path], Any]
    parts: Callable[[Any, Path], list[Part]]


def case(
    load: Callable[..., Any], objective: Callable[[Any], Any], rows: Callable[..., Any]
) -> Case:
    """A stage of one objective. ``objective``: of the model. ``rows``: of the model as well."""
    return Case(
        lambda folder: load(folder / "model", Loading(dtype="auto")),
        lambda model, _: [(objective(model), rows(model))],
    )


def imitation(**options: Any) -> Case:
    config = SftConfig(**NAMED | options)
    return case(load_policy, lambda _: Imitation(config), lambda _: drawn(COUNT))


def rankings(_: Any) -> list[Ranked]:
    """Rankings of two to four with ties, margins and ratings, so that any loss can read them."""
    random, found = generator(0, "rankings"), list[Ranked]()
    for i, responses in enumerate(answers(COUNT, each=4)):
        k = 2 + i % 3
        ratings = tuple(float(x) for x in random.normal(size=k))
        ranks = tuple(sorted(ratings, reverse=True).index(y) for y in ratings)
        ties = () if k == 2 else ((0, 1),)
        pairs = [p for p in scoring.ranked_pairs(ranks) if tuple(sorted(p)) not in ties]
        told: dict[str, Any] = {"ties": ties, "ranks": ranks, "ratings": ratings}
        told["harmful"] = tuple(y < 0 for y in ratings)
        told |= {"probability": 0.75} if k == 2 else {"margin": 0.5}
        found.append(Ranked(responses[:k], tuple(pairs), **told))
    return found


def rewarding(loss: str) -> Case:
    objective = scoring.RECIPES[loss].objective
    return case(load_reward_model, lambda model: objective(0.1, model.place), rankings)


def solving() -> Case:
    """Solutions of one to three steps, that end anywhere."""

    def load(folder: Path, loading: Loading) -> Any:
        told = {"step_separator": "\n", "step_aggregation": "product"}
        return of_kind(load_reward_model(folder, loading), "process", **told)

    def rows(_: Any) -> list[Solution]:
        random, found = generator(0, "solutions"), list[Solution]()
        pairs = answers(COUNT // 2, each=2)
        for i, tokens in enumerate(one for pair in pairs for one in pair):
            size = min(1 + i % 3, len(tokens.response))
            ends = sorted(int(e) for e in random.permutation(len(tokens.response))[:size])
            found.append(Solution(tokens, tuple(ends), tuple(e % 2 == 0 for e in ends)))
        return found

    return case(load, lambda model: Process(model.place), rows)


def near(model: Any, rows: Sequence[Sequence[Tokens]]) -> list[list[float]]:
    """Reference log-probs near the policy's, so that the losses do not lie in their flat parts."""
    flat = sequence_logps(model, [one for row in rows for one in row]).double()
    off = generator(0, "reference").normal(0, 2, size=len(flat))
    return (flat + torch.from_numpy(off)).view(len(rows), -1).tolist()


def comparing(loss: str) -> Case:
    config = check(DpoConfig, NAMED | {"loss_type": loss})
    recipe = preference.RECIPES[loss]

    def rows(model: Any) -> list[Any]:
        if recipe.ranked:
            ranked, each = answers(COUNT, each=3), ((1, 0, 2), (0, 1, 1))
            orders = (each[i % 2] for i in range(COUNT))
            return [
                Order(row, ranks, tuple(scoring.ranked_pairs(ranks)), tuple(logps))
                for row, ranks, logps in zip(ranked, orders, near(model, ranked), strict=True)
            ]
        pairs = answers(COUNT, each=2)
        return [Pair(*row, *logps) for row, logps in zip(pairs, near(model, pairs), strict=True)]

    kind = Orders if recipe.ranked else Preference
    return case(load_policy, lambda model: kind(recipe, config.loss_options, model.place), rows)


def thumbing() -> Case:
    """Thumbs up and down, each with a response to another prompt for its reference point."""
    config = check(KtoConfig, NAMED | {"desirable_weight": 1.5})

    def rows(model: Any) -> list[Thumb]:
        rows = drawn(COUNT)
        others = [
            Tokens(a.prompt, b.response) for a, b in zip(rows, rows[1:] + rows[:1], strict=True)
        ]
        both = list(zip(rows, others, strict=True))
        near_them = zip(both, near(model, both), strict=True)
        return [Thumb(a, i % 3 > 0, b, *x) for i, ((a, b), x) in enumerate(near_them)]

    return case(load_policy, lambda model: Unpaired(config.loss_options, model.place), rows)


def playing(kind: str, **more: Any) -> Case:
    """Online learning from a made-up rollout, by the stage's own cast, estimates and losses."""

    def config(folder: Path) -> Any:
        base, own = (KINDS | FREE)[kind]
        start: dict[str, Any] = {
            "model_name_or_path": str(folder / "model"),
            "dataset_name": str(folder / "prompts.jsonl"),
            "reward": "tests.judges:vowels",
            "response_length": 16,
            "dtype": "auto",
            "entropy_coef": 0.01,
        }
        texts = {"ptx_dataset_name": str(folder / "texts.jsonl")} if "ptx_coef" in more else {}
        return check(base, NAMED | start | texts | own | more)

    def model(folder: Path) -> Any:
        actor = cast_of(config(folder)).actor
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():  # new heads and adapters are 0, and hold back the gradients behind
            for _, weight in sorted(actor.named_parameters()):
                if weight.requires_grad and not weight.any():
                    weight.copy_(torch.randn(weight.shape, generator=random) / 8)
        return actor

    def parts(actor: Any, folder: Path) -> list[Part]:
        done = config(folder)
        recipe, cast = online.RECIPES[done.recipe], cast_of(done)
        lessons, _ = Estimator(done, recipe)(episodes(actor, cast, done))
        reminders = [(Pretraining(done.ptx_coef), cast.ptx)] if cast.ptx else list[Part]()
        return [*reminders, (Reinforcement(done, recipe), lessons)]

    return Case(model, parts)


def episodes(actor: Any, cast: Any, config: Any) -> list[Episode]:
    """Responses that a policy near this one might have sampled, in its groups."""
    random, found = generator(0, "episodes"), list[Episode]()
    with torch.no_grad():
        for i, tokens in enumerate(drawn(COUNT)):
            logp_T = logp(actor.policy, padded([tokens]))[0].double()
            own, ref, value = (
                torch.from_numpy(random.normal(0, 0.3, size=len(logp_T))) for _ in range(3)
            )
            prompt = cast.prompts[i // config.group]._replace(key=i // config.group)
            score, cut = float(random.normal()), tokens.response[-1] != EOS
            found.append(
                Episode(
                    prompt, i % config.group, tokens, "", not cut, (score,),
                    logp_T + own, logp_T + ref, value,
                )
            )  # fmt: skip
    return found


CASES: dict[str, Case] = {
    "sft": imitation(),
    "sft packed": imitation(packing=True),
    "sft whole": imitation(completion_only_loss=False),
    **{f"reward {loss}": rewarding(loss) for loss in scoring.RECIPES},
    "reward process": solving(),
    "kto": thumbing(),
    **{f"dpo {loss}": comparing(loss) for loss in preference.RECIPES},
    **{f"online {kind}": playing(kind) for kind in KINDS | FREE},
    "online ptx": playing("ppo", ptx_coef=0.5),
}

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
        learner.config = OptimTopic(per_device_train_batch_size=size, **OPTIM)
        learner.accelerator = mistake(accelerator) if mistake else accelerator
        grads: dict[str, Tensor] = {}

        def spied(work: Any) -> Any:
            grads.update((n, p.grad.clone()) for n, p in learner._trained() if p.grad is not None)
            return Learner._bounded(learner, work)

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
