"""The table: algorithm, level, target, how far it ends from it, and how far broken variants do.

A check passes where the right thing lies within its bar of the target, and every broken variant
outside of it: a test that nothing can fail proves nothing.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor

from truing.conformance import best_of_n, group_rows, online, unpaired
from truing.conformance.direct import DIRECT, Direct, minimised, ranked_rows
from truing.conformance.scores import SCORES, distance
from truing.conformance.spaces import Space, tree

# Bars by level: what is exact but for rounding, what a solver reaches, what sampling reaches.
ZERO, FIXED, SAMPLED = 1e-5, 1e-6, 1e-3


class Check(NamedTuple):
    """One line of the table. ``measure`` gives the distance from the target; ``broken``, the
    distances of what is put together wrongly."""

    algorithm: str
    level: str
    target: str
    bar: float
    measure: Callable[[], float]
    broken: dict[str, Callable[[], float]]


class Row(NamedTuple):
    """What a check found; ``nearest``: the broken variant that came closest."""

    check: Check
    distance: float
    nearest: str
    nearest_distance: float

    @property
    def passed(self) -> bool:
        return self.distance <= self.check.bar < self.nearest_distance


def found(check: Check) -> Row:
    """Measure a check and all its broken variants. What is no number is infinitely far."""
    far = {name: _number(measure()) for name, measure in check.broken.items()}
    nearest = min(far, key=far.__getitem__)
    return Row(check, _number(check.measure()), nearest, far[nearest])


def _number(distance: float) -> float:
    """Rounding may take a distance of 0 below it."""
    return abs(distance) if distance == distance else float("inf")


def direct_checks(name: str, of: Direct) -> Iterator[Check]:
    """A direct loss on all pairs of the spaces that can tell its broken variants apart."""
    for space in (make() for make in of.spaces):
        target = of.target(space)

        def end(of: Direct, space: Space = space, target: Tensor = target) -> float:
            return space.divergence(minimised(of, space), target)

        yield Check(
            f"{name}, {space.name}",
            "population",
            of.about,
            FIXED,
            partial(end, of),
            {wrong: partial(end, variant) for wrong, variant in of.broken(of).items()},
        )


def score_checks() -> Iterator[Check]:
    """Reward losses on all judgements of five responses."""
    for name, (loss, wrong, constant) in SCORES.items():
        yield Check(
            name,
            "population",
            "the true scores" + ("" if constant else ", up to a constant"),
            FIXED,
            partial(distance, loss, constant=constant),
            {what: partial(distance, other, constant=constant) for what, other in wrong.items()},
        )


def online_checks(*, quick: bool) -> Iterator[Check]:
    """PPO and RLOO: no advantage at the optimum, and the way there."""
    space = tree()
    for kind in ("ppo", "rloo"):
        wrong = dict(online.BROKEN)
        if kind == "rloo":
            del wrong["gamma 0.9"]  # a group's advantages know no gamma
        yield Check(
            f"{kind}, {space.name}",
            "at the optimum",
            "no sample has an advantage",
            ZERO,
            lambda kind=kind: online.zero_advantage(space, kind),
            {
                name: lambda kind=kind, k=k: online.zero_advantage(space, kind, k)
                for name, k in wrong.items()
            },
        )
    for kind, steps in (("ppo", 150), ("rloo", 200)) if quick else (("ppo", 300), ("rloo", 600)):
        wrong = {"beta doubled": online.BROKEN["beta doubled"]}
        if not quick:
            wrong["reference of other rows"] = online.BROKEN["reference of other rows"]
        yield Check(
            f"{kind}, {space.name}",
            f"sampled, {steps} steps",
            "pi_ref exp(r / beta) / Z",
            SAMPLED,
            lambda kind=kind, steps=steps: online.learnt(space, kind, steps=steps),
            {
                name: lambda kind=kind, k=k, steps=steps: online.learnt(space, kind, k, steps)
                for name, k in wrong.items()
            },
        )


def checks(*, quick: bool) -> Iterator[Check]:
    """Everything of ours."""
    yield from score_checks()
    for name, of in DIRECT.items():
        yield from direct_checks(name, of)
    yield from (Check(*row) for row in (*ranked_rows(), *unpaired.rows(), *best_of_n.rows()))
    yield from online_checks(quick=quick)
    yield from (Check(*row) for row in group_rows.rows(quick=quick))
