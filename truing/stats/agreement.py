"""How far annotators agree, and what their judgements together say of an item and of two systems.

Shapes: ``_N`` one number or name per judgement, ``_P`` per pair of judgements of one item, ``_I``
per item. A judgement of two responses is ``value``: 0 for a tie, below 0 if the first response (as
stored, not as shown) is better, above 0 if the second is, and further from 0 the clearer it is;
both bad is a tie here. Where only the side counts, hand in ``np.sign(value)``. Ratings are values
as they are. ``prompt_N`` names the prompt of a judgement: items of one prompt are not independent,
so intervals are taken over prompts. Without it every item is a prompt of its own.

Every function raises ValueError for arrays that are empty, of unequal length or not finite.
"""

import math
from typing import Literal, NamedTuple

import evalica
import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import ArrayLike, NDArray

from truing.stats.bounds import clopper_pearson
from truing.stats.ratings import Interval, WinRate, rate, win_rate

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Distance = Literal["nominal", "ordinal", "interval"]


class Alpha(NamedTuple):
    """Krippendorff's alpha over ``n`` items with two judgements or more; ``left_out`` had one.

    ``reason`` is empty, or says why there is no alpha; the numbers are NaN then.
    """

    value: float
    low: float
    high: float
    n: int
    left_out: int
    reason: str


class PairOfPeople(NamedTuple):
    """Two annotators over the items that both judged."""

    first: str | int
    second: str | int
    percent: Interval
    alpha: Alpha


class SoftLabel(NamedTuple):
    """``first``: the share of ``n`` judgements for the first response, a tie counting a half."""

    item: str | int
    first: float
    n: int


class Disagreement(NamedTuple):
    """``distance``: how far two judgements of the item lie apart, in the mean over its pairs."""

    item: str | int
    distance: float
    n: int


def alpha(
    value_N: ArrayLike,
    item_N: ArrayLike,
    prompt_N: ArrayLike | None = None,
    *,
    distance: Distance = "interval",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Alpha:
    """Krippendorff's alpha, with an interval over prompts.

    alpha = 1 - D_o / D_e: the observed distance between two judgements of one item over the
    distance expected were judgements dealt out at random. An item with m judgements carries weight
    m, each of its pairs 1/(m - 1); items judged once say nothing and are counted. 1 is full
    agreement, 0 is chance. ``distance``: ``nominal`` (equal or not), ``interval`` (squared
    difference), ``ordinal`` (squared difference of mid-ranks).
    Source: Krippendorff 2018, Content Analysis, chapter 12; the value is evalica's.

    The interval is a percentile bootstrap of whole prompts, with the distance of all data. Where no
    prompt shows any disagreement its lower end is 1 - u d / D_e, u being the Clopper-Pearson bound
    on the share of prompts that would, and d the largest distance. It is rough below twenty
    prompts. Where all judgements are the same there is no alpha: ``reason`` says so.
    Raises ValueError if no two prompts have an item judged twice, or an item has two prompts.
    Differs: KALPHA (and evalica's bootstrap) resamples pairs of judgements as if they were
    independent, which is too narrow; several tools give 1 where all judgements are the same.
    """
    v_N, unit_N, _, prompt_I = _units(value_N, item_N, prompt_N)
    kinds, code_N = np.unique(v_N, return_inverse=True)
    count_IC = np.bincount(unit_N * len(kinds) + code_N, minlength=len(prompt_I) * len(kinds))
    count_IC = count_IC.reshape(len(prompt_I), len(kinds)).astype(np.float64)
    several_I = count_IC.sum(1) > 1
    count_JC, n, left_out = count_IC[several_I], int(several_I.sum()), int((~several_I).sum())
    names, group_J = np.unique(prompt_I[several_I], return_inverse=True)
    if len(names) < 2:
        told = f"{n} items of {len(names)} prompts were judged twice"
        raise ValueError(f"{told}: agreement needs two such prompts at least; raise the overlap")
    delta_CC = _distances(distance, kinds, count_JC.sum(0))
    # Per prompt: its disagreement, and how often each kind came in it.
    apart_J = np.einsum("jc,cd,jd->j", count_JC, delta_CC, count_JC) / (count_JC.sum(1) - 1)
    sums_G = np.zeros((len(names), 1 + len(kinds)))
    np.add.at(sums_G, group_J, np.column_stack([apart_J, count_JC]))
    if not _expected(sums_G.sum(0)[None], delta_CC)[0]:
        reason = f"all judgements say {kinds[count_JC.any(0)][0]:g}: there is nothing to agree on"
        return Alpha(math.nan, math.nan, math.nan, n, left_out, reason)
    keep_N = several_I[unit_N]
    value = evalica.alpha(_frame(v_N[keep_N], unit_N[keep_N]), distance).alpha
    if not sums_G[:, 0].any():
        share = clopper_pearson(0, len(names), delta=(1 - level) / 2)
        low = 1 - share * delta_CC.max() / _expected(sums_G.sum(0)[None], delta_CC)[0]
        return Alpha(float(value), float(low), 1.0, n, left_out, "")
    low, high = _bootstrap(sums_G, delta_CC, level, resamples, seed)
    return Alpha(float(value), low, high, n, left_out, "")


def percent_agreement(
    value_N: ArrayLike,
    item_N: ArrayLike,
    prompt_N: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """Share of pairs of judgements of one item that are equal, with `ratings.rate`'s interval over
    prompts; ``n`` counts the pairs. Two who toss a coin reach 50 %: read it beside `alpha`."""
    v_N, unit_N, _, prompt_I = _units(value_N, item_N, prompt_N)
    first_P, second_P = pairs(unit_N)
    if not len(first_P):
        raise ValueError(f"none of {len(prompt_I)} items was judged twice: raise the overlap")
    equal_P = v_N[first_P] == v_N[second_P]
    return rate(equal_P, prompt_I[unit_N[first_P]], level=level)


def by_pair(
    value_N: ArrayLike,
    item_N: ArrayLike,
    annotator_N: ArrayLike,
    prompt_N: ArrayLike | None = None,
    *,
    distance: Distance = "interval",
    level: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> list[PairOfPeople]:
    """Agreement of each two annotators who share items of at least two prompts, in the order of
    their names. Raises ValueError if somebody judged an item twice: leave second passes out."""
    v_N, unit_N, _, prompt_I = _units(value_N, item_N, prompt_N)
    people, who_N = np.unique(_names("annotator", annotator_N, len(v_N)), return_inverse=True)
    first_P, second_P = pairs(unit_N)
    if (who_N[first_P] == who_N[second_P]).any():
        bad = first_P[who_N[first_P] == who_N[second_P]][0]
        told = f"annotator {people[who_N[bad]]} judged one item twice"
        raise ValueError(f"{told}: second passes belong in self_agreement()")
    both_P = np.sort(np.stack([who_N[first_P], who_N[second_P]]), axis=0)
    codes, sizes = np.unique(code_P := both_P[0] * len(people) + both_P[1], return_counts=True)
    of_P = np.split(np.argsort(code_P, kind="stable"), np.cumsum(sizes)[:-1])
    found: list[PairOfPeople] = []
    for code, mine in zip(codes.tolist(), of_P, strict=True):
        a, b = divmod(code, len(people))
        rows = np.concatenate([first_P[mine], second_P[mine]])
        values, units, prompts = v_N[rows], unit_N[rows], prompt_I[unit_N[rows]]
        if len(np.unique(prompts)) < 2:
            continue
        share = percent_agreement(values, units, prompts, level=level)
        with_chance = alpha(
            values, units, prompts, distance=distance, level=level, resamples=resamples, seed=seed
        )
        found.append(PairOfPeople(people[a].item(), people[b].item(), share, with_chance))
    return found


def pairs(unit_N: ArrayLike) -> tuple[Index, Index]:
    """Row numbers of all pairs of judgements of one item, each pair once."""
    unit = np.asarray(unit_N)
    order_N = np.argsort(unit, kind="stable")
    sorted_N = unit[order_N]
    first: list[Index] = []
    second: list[Index] = []
    for lag in range(1, len(unit)):
        (at,) = np.nonzero(sorted_N[lag:] == sorted_N[:-lag])
        if not len(at):
            break
        first.append(order_N[at])
        second.append(order_N[at + lag])
    empty = np.zeros(0, np.intp)
    return np.concatenate([empty, *first]), np.concatenate([empty, *second])


def soft_labels(value_N: ArrayLike, item_N: ArrayLike) -> list[SoftLabel]:
    """For each item the share of judgements for its first response, ties a half; by item name.

    It is what a loss with soft labels takes (docs/reward.md); a share of 1 from one judgement is a
    weaker word than from five, so ``n`` goes with it.
    """
    v_N, unit_N, items, _ = _units(value_N, item_N, None)
    n_I = np.bincount(unit_N)
    share_I = np.bincount(unit_N, 0.5 - 0.5 * np.sign(v_N)) / n_I
    rows = zip(items.tolist(), share_I.tolist(), n_I.tolist(), strict=True)
    return [SoftLabel(*row) for row in rows]


def to_adjudicate(
    value_N: ArrayLike, item_N: ArrayLike, *, least: float = 0.0
) -> list[Disagreement]:
    """Items whose judgements lie more than ``least`` apart, the furthest first.

    ``distance`` is the mean of |v_i - v_j| over the pairs of one item. Among equals the item with
    more judgements comes first, then the name decides.
    """
    v_N, unit_N, items, _ = _units(value_N, item_N, None)
    first_P, second_P = pairs(unit_N)
    apart_P, unit_P = np.abs(v_N[first_P] - v_N[second_P]), unit_N[first_P]
    several_I = np.bincount(unit_P, minlength=len(items))
    mean_I = np.bincount(unit_P, apart_P, len(items)) / np.maximum(several_I, 1)
    n_I = np.bincount(unit_N)
    order = np.lexsort((np.arange(len(items)), -n_I, -mean_I))
    return [
        Disagreement(items[i].item(), float(mean_I[i]), int(n_I[i]))
        for i in order
        if mean_I[i] > least
    ]


def system_win_rate(
    value_N: ArrayLike,
    first_system_N: ArrayLike,
    second_system_N: ArrayLike,
    prompt_N: ArrayLike,
    *,
    a: str | int,
    b: str | int,
    level: float = 0.95,
) -> WinRate:
    """How often system ``a`` beats ``b`` by blind judgements, a tie counting a half.

    ``first_system_N`` made the first response of a row, ``second_system_N`` the second; rows of
    other systems are left out, and ``n`` counts those that were not. The interval is clustered by
    prompt, so several judgements of one prompt do not count as several prompts (`ratings.rate`).
    Raises ValueError if no row compares the two.
    """
    v_N = _values(value_N)
    first_N = _names("first system", first_system_N, len(v_N))
    second_N = _names("second system", second_system_N, len(v_N))
    prompts_N = _names("prompt", prompt_N, len(v_N))
    ahead_N, behind_N = (first_N == a) & (second_N == b), (first_N == b) & (second_N == a)
    rows_N = ahead_N | behind_N
    if a == b or not rows_N.any():
        raise ValueError(f"none of {len(v_N)} judgements compares {a!r} with {b!r}")
    # Below 0 the first response is better.
    margin = np.where(ahead_N, -v_N, v_N)[rows_N]
    zero = np.zeros(len(margin))
    return win_rate(margin, zero, cluster_N=prompts_N[rows_N], level=level)


def _bootstrap(
    sums_G: Array, delta_CC: Array, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Quantiles of alpha over resampled prompts.

    Prompts that look alike are drawn together: how often each look comes among G prompts drawn with
    replacement is multinomial, which is the same bootstrap with far fewer numbers.
    """
    if not 0 < level < 1 or resamples < 100:
        told = f"level {level} and {resamples} resamples came"
        raise ValueError(f"{told}: the level lies between 0 and 1, and 100 resamples are the least")
    look_LS, times_L = np.unique(sums_G.round(12), axis=0, return_counts=True)
    draw = np.random.Generator(np.random.Philox(seed))
    # About 32 MB at a time.
    step = max(1, 2**22 // len(look_LS))
    found: list[Array] = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_BL = draw.multinomial(len(sums_G), times_L / len(sums_G), size=size)
        sums_BS = drawn_BL @ look_LS
        expected_B = _expected(sums_BS, delta_CC)
        # Where a resample holds one kind of judgement alone there is no alpha.
        some_B = expected_B > 0
        observed_B = sums_BS[some_B, 0] / sums_BS[some_B, 1:].sum(1)
        found.append(1 - observed_B / expected_B[some_B])
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _expected(sums_BS: Array, delta_CC: Array) -> Array:
    """D_e of each row: (disagreement, count of each kind)."""
    count_BC = sums_BS[:, 1:]
    n_B = count_BC.sum(1)
    return np.einsum("bc,cd,bd->b", count_BC, delta_CC, count_BC) / (n_B * (n_B - 1))


def _distances(distance: Distance, kinds_C: Array, count_C: Array) -> Array:
    if distance == "nominal":
        return 1 - np.eye(len(kinds_C))
    if distance not in ("interval", "ordinal"):
        raise ValueError(f"distance {distance!r} came: choose nominal, ordinal or interval")
    at_C = kinds_C if distance == "interval" else np.cumsum(count_C) - count_C / 2
    return np.square(at_C[:, None] - at_C[None, :])


def _frame(v_N: Array, unit_N: Index) -> pd.DataFrame:
    """One column per item; who judged makes no difference to alpha, so a row is no person."""
    _, unit_N = np.unique(unit_N, return_inverse=True)
    order_N = np.argsort(unit_N, kind="stable")
    start_I = np.concatenate([[0], np.cumsum(np.bincount(unit_N))[:-1]])
    slot_N = np.arange(len(unit_N)) - start_I[unit_N[order_N]]
    table = np.full((int(slot_N.max()) + 1, len(start_I)), np.nan)
    table[slot_N, unit_N[order_N]] = v_N[order_N]
    return pd.DataFrame(table)


def _units(
    value_N: ArrayLike, item_N: ArrayLike, prompt_N: ArrayLike | None
) -> tuple[Array, Index, NDArray[np.generic], Index]:
    """Values, the number of each one's item, the items' names, and each item's prompt number."""
    v_N = _values(value_N)
    items, unit_N = np.unique(_names("item", item_N, len(v_N)), return_inverse=True)
    if prompt_N is None:
        return v_N, unit_N, items, np.arange(len(items))
    _, of_N = np.unique(_names("prompt", prompt_N, len(v_N)), return_inverse=True)
    prompt_I = np.zeros(len(items), np.intp)
    prompt_I[unit_N] = of_N
    if (prompt_I[unit_N] != of_N).any():
        bad = items[unit_N[np.argmax(prompt_I[unit_N] != of_N)]]
        raise ValueError(f"item {bad} came with two prompts: an item belongs to one")
    return v_N, unit_N, items, prompt_I


def _values(value_N: ArrayLike) -> Array:
    v_N = np.asarray(value_N, np.float64)
    if v_N.ndim != 1 or not len(v_N) or not np.isfinite(v_N).all():
        bad = int((~np.isfinite(v_N)).sum())
        told = f"values of shape {v_N.shape} came, {bad} of them not finite"
        raise ValueError(f"{told}: one finite number per judgement is needed; leave skips out")
    return v_N


def _names(what: str, names_N: ArrayLike, n: int) -> NDArray[np.generic]:
    names = np.asarray(names_N)
    if names.shape != (n,):
        raise ValueError(f"one {what} per judgement is needed: {n} judgements, shape {names.shape}")
    return names
