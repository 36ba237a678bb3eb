"""The table: every algorithm at every level, each with its target and its broken variants."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

from torch import Tensor

from truing.conformance import games, hybrids, online, transformer
from truing.conformance.direct import DIRECT, Direct, minimised
from truing.conformance.online import RIGHT, Knobs
from truing.conformance.rows import EXACT, FIXED, LEVELS, SAMPLED, UNIT, ZERO, Check
from truing.conformance.scores import SCORES, distance
from truing.conformance.spaces import Space, cycle, fixed, forest, tree
from truing.conformance.unit import UNITS, Function, Unit


def unit_check(name: str, function: Function, unit: Unit) -> Check:
    """A function against its formula."""
    return Check(
        name,
        "unit",
        "the formula and its derivative; another order and half a batch change nothing",
        UNIT,
        partial(unit.distance, function),
        {what: partial(unit.distance, turn(function)) for what, turn in unit.turns.items()},
    )


def direct_checks(name: str, of: Direct) -> Iterator[Check]:
    """A direct loss on all pairs of the spaces that can tell its broken variants apart."""
    for make in of.spaces:
        space = make()
        target = cache(partial(of.target, space))

        def end(of: Direct, space: Space = space, target: Callable[[], Tensor] = target) -> float:
            return space.divergence(minimised(of, space), target())

        wrong = of.broken(of)
        if space.prompts > 1:
            wrong = wrong | {"reference of another prompt": of._replace(crossed=True)}
        yield Check(
            f"{name}, {space.name}",
            "population",
            of.about,
            FIXED,
            partial(end, of),
            {what: partial(end, variant) for what, variant in wrong.items()},
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


def _turned(base: Knobs, *without: str) -> dict[str, Knobs]:
    """The broken variants, with the functions of ``base``."""
    own = {"estimate": base.estimate, "compare": base.compare, "surrogate": base.surrogate}
    return {name: k._replace(**own) for name, k in online.BROKEN.items() if name not in without}


def at_optimum(name: str, kind: str, space: Space, base: Knobs = RIGHT) -> Check:
    """No advantage at pi*, whatever is sampled."""
    # A group's advantages know no gamma; where all lengths are equal, they know no place either.
    blind = ["gamma 0.9"] if kind == "rloo" else []
    if kind == "rloo" and space.mask_ST.all():
        blind.append("score one token early")
    measure = partial(online.zero_advantage, space, kind)
    return Check(
        f"{name}, {space.name}",
        "at the optimum",
        "no sample has an advantage",
        ZERO,
        partial(measure, base),
        {what: partial(measure, knobs) for what, knobs in _turned(base, *blind).items()},
    )


def sampled(name: str, kind: str, space: Space, base: Knobs = RIGHT, *, quick: bool) -> Check:
    """From the reference to pi*, learnt from samples."""
    steps = {("ppo", True): 150, ("ppo", False): 300, ("rloo", True): 200}.get((kind, quick), 600)
    wrong = _turned(base)
    kept = ("beta doubled",) if quick else ("beta doubled", "reference of other rows")
    measure = partial(online.learnt, space, kind, steps=steps)
    return Check(
        f"{name}, {space.name}",
        f"sampled, {steps} steps",
        "pi_ref exp(r / beta) / Z",
        SAMPLED,
        partial(measure, base),
        {what: partial(measure, wrong[what]) for what in kept},
    )


def weighted(name: str, made: games.Weighted, wrong: Mapping[str, float]) -> Check:
    """The advantages at the optimum of a sum of two rewards, with other weights in the sum."""
    space = made.space
    table = space.table_of(space.optimum_S)

    def most(weight: float) -> float:
        other = made.at(weight)
        return float(online.group_advantages(other, table, space.together(4)).abs().max())

    return Check(
        f"{name}, {space.name}",
        "at the optimum",
        f"no sample has an advantage, the second reward's weight being {made.weight:.4f}",
        ZERO,
        partial(most, made.weight),
        {what: partial(most, weight) for what, weight in wrong.items()},
    )


def certificates() -> Iterator[Check]:
    """What each environment's optimum alone can show."""
    space = cycle()
    wins = space.beats_SS
    nash = games.nash(wins)
    yield Check(
        "Nash, cycle",
        "certificate",
        "a mixture that no response beats in more than half of all comparisons",
        EXACT,
        partial(games.exploitability, wins, nash),
        {
            "all alike": lambda: games.exploitability(wins, nash * 0 + 1 / 3),
            "the reference": lambda: games.exploitability(wins, space.ref_S.exp()),
        },
    )
    yield Check(
        "regularised Nash, cycle",
        "certificate",
        "pi = pi_ref exp(P(y beats pi) / beta) / Z",
        EXACT,
        lambda: games.residual(space, games.regularised_nash(space)),
        {
            "the reference": lambda: games.residual(space, space.ref_S),
            "Nash without the reference": lambda: games.residual(space, nash.log()),
        },
    )
    made = games.groups()
    yield Check(
        "max-min, groups",
        "certificate",
        "both groups gain the same, so neither can gain more without the other's loss",
        EXACT,
        lambda: float(made.means(made.weight).diff()),
        {
            "equal weights": lambda: float(made.means(0.5).diff()),
            "the first group alone": lambda: float(made.means(0.0).diff()),
        },
    )
    priced = games.costs()
    yield Check(
        "lambda*, costs",
        "certificate",
        f"the mean cost is {priced.LIMIT}, and a weight above 0 holds it there",
        EXACT,
        lambda: float(priced.means(priced.weight)[1]) - priced.LIMIT,
        {
            "no cost": lambda: float(priced.means(0.0)[1]) - priced.LIMIT,
            "lambda doubled": lambda: float(priced.means(2 * priced.weight)[1]) - priced.LIMIT,
        },
    )


def online_checks(*, quick: bool) -> Iterator[Check]:
    """PPO and RLOO: no advantage at the optimum, and the way there."""
    yield from (at_optimum(k, k, make()) for k in ("ppo", "rloo") for make in (tree, fixed, forest))
    made, priced = games.groups(), games.costs()
    yield weighted("rloo", made, {"equal weights": 0.5, "groups exchanged": 1 - made.weight})
    most = priced.weight
    yield weighted("rloo", priced, {"no cost": 0.0, "cost for its sign": -most, "twice": 2 * most})
    for kind in ("ppo", "rloo"):
        for make in (tree,) if quick else (tree, forest):
            yield sampled(kind, kind, make(), quick=quick)


def checks(*, quick: bool) -> Iterator[Check]:
    """Everything of ours, level after level."""
    rows = [unit_check(name, function, unit) for name, (function, unit) in UNITS.items()]
    rows += [*certificates(), *score_checks()]
    rows += [check for name, of in DIRECT.items() for check in direct_checks(name, of)]
    rows += [*online_checks(quick=quick), *hybrids.checks(quick=quick)]
    rows += transformer.checks(quick=quick)
    order = [number for number, _ in LEVELS.values()]
    yield from sorted(rows, key=lambda check: order.index(check.number))
