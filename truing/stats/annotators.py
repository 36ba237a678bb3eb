"""Each annotator beside the others: agreement, leanings, speed, and with whom to talk first.

Shapes: ``_N`` per judgement; values and names as in `agreement`. The figures of one person are
few, so their intervals are exact (Clopper and Pearson 1934), and flags are held to one false alarm
over the whole panel. A flag is a question to a person, no verdict: another taste, held steadily,
lowers agreement too.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr  # pyright: ignore[reportMissingTypeStubs]

from truing.stats.agreement import pairs
from truing.stats.bounds import clopper_pearson
from truing.stats.ratings import Interval, rate

Array = NDArray[np.float64]
CHECKS = ("side", "agreement", "self-agreement", "gold", "length", "speed")


class SideBias(NamedTuple):
    """How often the response shown first was chosen, among ``n`` clear choices; ``p`` is that of a
    share so far from one half, were the sides all the same (two-sided binomial test)."""

    value: float
    low: float
    high: float
    n: int
    p: float


@dataclass(frozen=True)
class Judgements:
    """Judgements of two responses as arrays of N rows, the order of rows meaning nothing.

    ``value_N``: below 0 the first response (as stored) is better, 0 a tie. ``shown_N``: the index,
    0 or 1, of the response shown first. ``pass_N``: 2 for a re-test. ``both_bad_N``: ties that say
    neither is good. ``length_N2``: lengths of the two responses. ``seconds_N``, ``tokens_N``:
    active time, and how much there was to read. ``gold_N``: the sign of the right value, NaN where
    nobody knows. What is None is not reported.
    Raises ValueError for arrays of unequal length, or numbers that cannot be.
    """

    item_N: ArrayLike
    annotator_N: ArrayLike
    value_N: ArrayLike
    shown_N: ArrayLike
    prompt_N: ArrayLike | None = None
    pass_N: ArrayLike | None = None
    both_bad_N: ArrayLike | None = None
    length_N2: ArrayLike | None = None
    seconds_N: ArrayLike | None = None
    tokens_N: ArrayLike | None = None
    gold_N: ArrayLike | None = None

    def __post_init__(self) -> None:
        n = len(np.asarray(self.value_N))
        for name in self.__dataclass_fields__:
            given = getattr(self, name)
            wanted = (n, 2) if name == "length_N2" else (n,)
            if given is not None and np.asarray(given).shape != wanted:
                told = f"{name} of shape {np.asarray(given).shape} came"
                raise ValueError(f"{told}: {wanted} is needed, one row per judgement")
        if not n or not np.isfinite(np.asarray(self.value_N, np.float64)).all():
            raise ValueError("values must be finite, one at least: leave skips out")
        if not np.isin(self.shown_N, (0, 1)).all():
            raise ValueError("shown_N must be 0 or 1: the index of the response shown first")
        if self.pass_N is not None and not np.isin(self.pass_N, (1, 2)).all():
            raise ValueError("pass_N must be 1, or 2 for a re-test")
        if (self.seconds_N is None) != (self.tokens_N is None):
            raise ValueError("seconds_N and tokens_N make the speed together: give both or neither")


class Figures(NamedTuple):
    """What is counted of one annotator; None where there is nothing to count.

    ``agreement``: with others on the side, over pairs of judgements. ``self_agreement``: re-tests
    that take the same side. ``first_shown``, ``longer``: shares of clear choices. ``ties``,
    ``both_bad``: shares of first passes. ``gold``: share of gold items right. ``pace``: median
    active seconds per token.
    """

    agreement: Interval | None
    self_agreement: Interval | None
    first_shown: SideBias | None
    longer: Interval | None
    ties: Interval | None
    both_bad: Interval | None
    gold: Interval | None
    pace: Interval | None


class Profile(NamedTuple):
    """One annotator: ``n`` judgements, re-tests too; ``flags``, names of CHECKS; and ``trouble``,
    the largest distance from what a figure is held against, in units of its interval: above 1 it is
    a flag."""

    name: str | int
    n: int
    figures: Figures
    flags: tuple[str, ...]
    trouble: float


def exact(events: int, n: int, *, level: float = 0.95) -> Interval:
    """Share with the two-sided Clopper-Pearson interval: at least ``level`` cover, for any n."""
    risk = (1 - level) / 2
    high = clopper_pearson(events, n, delta=risk)
    return Interval(events / n, 1 - clopper_pearson(n - events, n, delta=risk), high, n)


def side_bias(first_chosen_N: ArrayLike, *, level: float = 0.95) -> SideBias:
    """Share of clear choices that fell on what was shown first, with exact interval and test.

    Sides are drawn by a coin, so whatever the responses are, one half is what no leaning gives.
    ``first_chosen_N``: booleans, ties left out. Raises ValueError for none.
    """
    chosen_N = np.asarray(first_chosen_N, np.bool_)
    if not len(chosen_N):
        raise ValueError("no choices came: a share needs one clear choice at least")
    events = int(chosen_N.sum())
    told = exact(events, len(chosen_N), level=level)
    # The law is symmetric at one half, so the other tail is as large.
    tail = float(bdtr(min(events, told.n - events), told.n, 0.5))
    return SideBias(*told, p=min(2 * tail, 1.0))


def median(values_N: ArrayLike, *, level: float = 0.95) -> Interval:
    """Median with the interval of order statistics, which holds for any distribution.

    From the k-th smallest to the k-th largest of n, k the largest number with
    P(Binomial(n, 1/2) < k) <= (1 - level) / 2; where n is too small for any k, from 0 to infinity,
    since the numbers are times. Source: Conover 1999, Practical Nonparametric Statistics, 3.2.
    """
    x_N = np.sort(np.asarray(values_N, np.float64))
    if not (n := len(x_N)):
        raise ValueError("no numbers came: a median needs one at least")
    k = int((np.asarray(bdtr(np.arange(n // 2), n, 0.5)) <= (1 - level) / 2).sum())
    low, high = (x_N[k - 1], x_N[n - k]) if k else (0.0, np.inf)
    return Interval(float(np.median(x_N)), float(low), float(high), n)


def profiles(rows: Judgements, *, level: float = 0.95) -> list[Profile]:
    """Every annotator's figures, those with most trouble first.

    Each figure comes with its interval at ``level``. Flags use intervals at
    1 - (1 - level) / (people * checks), so that of panels of equals at most 1 - level see any flag
    (Bonferroni). A flag is raised where that interval lies wholly on the wrong side of: one half,
    for the side; what all others reach together, for agreement, self-agreement and gold (below) and
    for the longer response (above); half the median pace of the others, for speed (below).
    """
    table = _Table(rows)
    strict = 1 - (1 - level) / (len(table.people) * len(CHECKS))
    found: list[Profile] = []
    for who, name in enumerate(table.people.tolist()):
        shown = table.figures(who, level)
        excess = table.excess(who, strict)
        flags = tuple(check for check in CHECKS if excess.get(check, 0.0) > 1)
        trouble = max(excess.values(), default=0.0)
        found.append(Profile(name, int((table.who_N == who).sum()), shown, flags, trouble))
    # Names break ties, so that the order of rows changes nothing.
    return sorted(found, key=lambda p: (-len(p.flags), -p.trouble))


class _Table:
    """What is counted of each person: events in tries, each try with its owner."""

    def __init__(self, rows: Judgements) -> None:
        self.people, self.who_N = np.unique(np.asarray(rows.annotator_N), return_inverse=True)
        _, item_N = np.unique(np.asarray(rows.item_N), return_inverse=True)
        prompts = item_N if rows.prompt_N is None else np.asarray(rows.prompt_N)
        value_N = np.asarray(rows.value_N, np.float64)
        side_N = np.sign(value_N)
        pass_N = np.ones(len(side_N)) if rows.pass_N is None else np.asarray(rows.pass_N)
        once_N, clear_N = pass_N == 1, side_N != 0
        everything: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {
            "side": (once_N & clear_N, (side_N > 0) == (np.asarray(rows.shown_N) == 1)),
            "ties": (once_N, ~clear_N),
        }
        if rows.both_bad_N is not None:
            bad_N = np.asarray(rows.both_bad_N, np.bool_)
            everything["ties"] = (once_N, ~clear_N & ~bad_N)
            everything["both bad"] = (once_N, bad_N)
        if rows.length_N2 is not None:
            gap_N = np.diff(np.asarray(rows.length_N2, np.float64))[:, 0]
            everything["length"] = (once_N & clear_N & (gap_N != 0), (gap_N > 0) == (side_N > 0))
        if rows.gold_N is not None:
            gold_N = np.asarray(rows.gold_N, np.float64)
            everything["gold"] = (once_N & ~np.isnan(gold_N), np.sign(gold_N) == side_N)
        self.tries = {
            name: (self.who_N[rows_N], event_N[rows_N])
            for name, (rows_N, event_N) in everything.items()
        }
        # A person's own two passes of one item.
        first_P, second_P = pairs(item_N * len(self.people) + self.who_N)
        again_P = pass_N[first_P] != pass_N[second_P]
        first_P, second_P = first_P[again_P], second_P[again_P]
        same_P = side_N[first_P] == side_N[second_P]
        self.tries["self-agreement"] = (self.who_N[first_P], same_P)
        (once,) = np.nonzero(once_N)
        a_P, b_P = (once[at] for at in pairs(item_N[once_N]))
        if (self.who_N[a_P] == self.who_N[b_P]).any():
            raise ValueError("an annotator's second pass of an item must have pass_N 2")
        self.pair_P = np.stack([self.who_N[a_P], self.who_N[b_P]])
        self.equal_P, self.prompt_P = side_N[a_P] == side_N[b_P], prompts[a_P]
        self.pace_N = np.full(len(side_N), np.nan)
        if rows.seconds_N is not None and rows.tokens_N is not None:
            seconds_N, tokens_N = (
                np.asarray(x, np.float64) for x in (rows.seconds_N, rows.tokens_N)
            )
            read_N = tokens_N > 0
            self.pace_N[read_N] = seconds_N[read_N] / tokens_N[read_N]

    def count(self, name: str, who: int, *, others: bool = False) -> tuple[int, int]:
        """Events and tries of one person, or of all others."""
        owner_T, event_T = self.tries.get(name, (np.zeros(0), np.zeros(0)))
        mine_T = (owner_T == who) != others
        return int(event_T[mine_T].sum()), int(mine_T.sum())

    def share(self, name: str, who: int, level: float) -> Interval | None:
        events, n = self.count(name, who)
        return exact(events, n, level=level) if n else None

    def agreement(self, who: int, level: float) -> Interval | None:
        mine_P = (self.pair_P == who).any(0)
        if len(np.unique(self.prompt_P[mine_P])) < 2:
            return None
        return rate(self.equal_P[mine_P], self.prompt_P[mine_P], level=level)

    def pace(self, who: int, level: float) -> Interval | None:
        own_N = self.pace_N[(self.who_N == who) & ~np.isnan(self.pace_N)]
        return median(own_N, level=level) if len(own_N) else None

    def figures(self, who: int, level: float) -> Figures:
        owner_T, event_T = self.tries["side"]
        mine_T = owner_T == who
        side = side_bias(event_T[mine_T], level=level) if mine_T.any() else None
        return Figures(
            agreement=self.agreement(who, level),
            self_agreement=self.share("self-agreement", who, level),
            first_shown=side,
            longer=self.share("length", who, level),
            ties=self.share("ties", who, level),
            both_bad=self.share("both bad", who, level),
            gold=self.share("gold", who, level),
            pace=self.pace(who, level),
        )

    def excess(self, who: int, level: float) -> dict[str, float]:
        """For each check how far beyond its interval, in lengths of it, the reference lies."""
        found: dict[str, float] = {}
        if side := self.share("side", who, level):
            found["side"] = max(_beyond(side, 0.5, below=True), _beyond(side, 0.5, below=False))
        for name in ("self-agreement", "gold", "length"):
            events, n = self.count(name, who, others=True)
            own = self.share(name, who, level)
            if own and n:
                found[name] = _beyond(own, events / n, below=name != "length")
        others_P = ~(self.pair_P == who).any(0)
        if (own := self.agreement(who, level)) and others_P.any():
            found["agreement"] = _beyond(own, float(self.equal_P[others_P].mean()), below=True)
        others_N = self.pace_N[(self.who_N != who) & ~np.isnan(self.pace_N)]
        if (own := self.pace(who, level)) and len(others_N):
            found["speed"] = _beyond(own, float(np.median(others_N)) / 2, below=True)
        return found


def _beyond(own: Interval, reference: float, *, below: bool) -> float:
    """Above 1 if the interval lies wholly below the reference (or above it); 0 on the good side."""
    gap = reference - own.value if below else own.value - reference
    reach = own.high - own.value if below else own.value - own.low
    return gap / reach if gap > 0 and reach > 0 else 0.0
