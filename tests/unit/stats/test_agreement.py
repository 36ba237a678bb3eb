"""Agreement: golden values by hand, laws, a loop from the definition, coverage by simulation."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from truing.keys import generator
from truing.stats.agreement import (
    Distance,
    alpha,
    by_pair,
    pairs,
    percent_agreement,
    soft_labels,
    system_win_rate,
    to_adjudicate,
)
from truing.stats.ratings import rate

# Items a to d twice each; e once, so that it is left out.
ITEMS = list("aabbccdde")
SKEWED = [0, 0, 0, 1, 1, 2, 0, 0, 2]


def loop(value: ArrayLike, item: ArrayLike, distance: Distance) -> float:
    """Alpha from its definition, one ordered pair after the other."""
    units: dict[object, list[float]] = {}
    for v, i in zip(np.asarray(value).tolist(), np.asarray(item).tolist(), strict=True):
        units.setdefault(i, []).append(v)
    several = [u for u in units.values() if len(u) > 1]
    pool = [v for u in several for v in u]

    def rank(x: float) -> float:
        return sum(v < x for v in pool) + sum(v == x for v in pool) / 2

    def apart(a: float, b: float) -> float:
        if distance == "nominal":
            return float(a != b)
        return (a - b) ** 2 if distance == "interval" else (rank(a) - rank(b)) ** 2

    seen = sum(sum(apart(a, b) for a, b in permutations(u, 2)) / (len(u) - 1) for u in several)
    chance = sum(apart(a, b) for a, b in permutations(pool, 2)) / (len(pool) - 1)
    return 1 - seen / chance


def test_golden_values() -> None:
    # Eight judgements, five 0, two 1, one 2; the pairs b and c differ: 2 of 4, each both ways.
    # nominal: D_o = 4/8; D_e = 2 (5*2 + 5*1 + 2*1) / 56 = 34/56; 1 - 28/34.
    assert alpha(SKEWED, ITEMS, distance="nominal").value == pytest.approx(6 / 34, abs=1e-12)
    # interval: D_o = 4/8; D_e = 2 (10*1 + 5*4 + 2*1) / 56 = 64/56; 1 - 28/64.
    got = alpha(SKEWED, ITEMS, distance="interval")
    assert got.value == pytest.approx(36 / 64, abs=1e-12)
    assert (got.n, got.left_out, got.reason) == (4, 1, "")
    # ordinal: mid-ranks 2.5, 6 and 7.5; D_o = 2 (12.25 + 2.25) / 8 = 3.625;
    # D_e = 2 (10*12.25 + 5*25 + 2*2.25) / 56 = 9; 1 - 3.625/9.
    assert alpha(SKEWED, ITEMS, distance="ordinal").value == pytest.approx(5.375 / 9, abs=1e-12)
    # Three judgements of one item: 1, 1, -1 differ in four of six ordered pairs, each worth 1/2.
    # D_o = 2/5; three 1 and two -1: D_e = 2*6 / 20; 1 - 2/3.
    got = alpha([1, 1, -1, 1, -1], [0, 0, 0, 1, 1], distance="nominal")
    # And the second item: D_o = (2 + 2)/5.
    assert got.value == pytest.approx(1 - (4 / 5) / (12 / 20), abs=1e-12)
    share = percent_agreement(SKEWED, ITEMS)
    assert (share.value, share.n) == (0.5, 4)
    # Of the pairs of 1, 1, -1 one agrees, of 1, -1 none: 1 of 4.
    assert percent_agreement([1, 1, -1, 1, -1], [0, 0, 0, 1, 1]).value == 0.25


def ratings(seed: int, n: int = 60, kinds: int = 5) -> tuple[NDArray, NDArray]:
    draw = generator(seed, "ratings")
    item_N = draw.integers(n // 2, size=n)
    return np.clip(item_N % kinds + draw.integers(-1, 2, size=n), 0, kinds) - 2, item_N


@pytest.mark.parametrize("distance", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_loop_and_blind_to_order_and_names(distance: Distance, seed: int) -> None:
    v, item = ratings(seed)
    got = alpha(v, item, distance=distance, resamples=100)
    assert got.value == pytest.approx(loop(v, item, distance), abs=1e-12)
    order = generator(seed, "order").permutation(len(v))
    names = np.array([f"item {31 * i % 97}" for i in item])
    assert alpha(v[order], names[order], distance=distance, resamples=100) == pytest.approx(got)
    # Which response is called the first, and where a scale starts, is no matter of agreement.
    assert alpha(v + 3, item, distance=distance, resamples=100) == pytest.approx(got)
    turned = alpha(-v, item, distance=distance, resamples=100)
    assert turned.value == pytest.approx(got.value, abs=1e-12)


def test_alpha_is_fleiss_kappa_but_for_its_small_sample_correction() -> None:
    """Of n judgements in all, as many of each item: 1 - alpha = (1 - kappa) (n - 1) / n."""
    draw = generator(0, "fleiss")
    truth = draw.integers(3, size=50)
    votes = np.where(draw.random((3, 50)) < 0.6, truth, draw.integers(3, size=(3, 50)))
    got = alpha(votes.ravel(), np.tile(np.arange(50), 3), distance="nominal", resamples=100)
    kappa = fleiss_kappa(aggregate_raters(votes.T)[0])
    assert 1 - got.value == pytest.approx((1 - kappa) * 149 / 150, abs=1e-12)


def test_full_agreement_is_one_and_never_sure() -> None:
    v = np.repeat([1.0, -1.0], 20)
    item = np.repeat(np.arange(20), 2)
    got = alpha(v, item)
    # Twenty prompts without disagreement: at most 1 - 0.025^(1/20) = 0.168434 would show one.
    # Its distance is 4, D_e = 2 * 20 * 20 * 4 / (40 * 39): 1 - 0.168434 * 4 / 2.051282.
    assert (got.value, got.high) == (1.0, 1.0)
    assert got.low == pytest.approx(0.671554, abs=1e-6)
    assert alpha(np.tile(v, 20), np.repeat(np.arange(400), 2)).low > 0.97


def test_no_alpha_where_everybody_always_says_the_same() -> None:
    got = alpha([1, 1, 1, 1, 0], [0, 0, 1, 1, 2])
    assert math.isnan(got.value)
    assert got.reason == "all judgements say 1: there is nothing to agree on"
    assert (got.n, got.left_out) == (2, 1)
    assert percent_agreement([1, 1, 1, 1], [0, 0, 1, 1]).value == 1.0


def test_random_labels_agree_by_chance_alone() -> None:
    draw = generator(1, "chance")
    v, item = draw.integers(-2, 3, size=3000), np.repeat(np.arange(1000), 3)
    for distance in ("nominal", "ordinal", "interval"):
        got = alpha(v, item, distance=distance)
        assert got.low < 0 < got.high
        # The standard error is about 1/sqrt(3000) for interval distances.
        assert abs(got.value) < 4 / 3000**0.5
    assert percent_agreement(v, item).value == pytest.approx(0.2, abs=0.02)  # four standard errors


def crowd(draw: np.random.Generator, prompts: int) -> tuple[NDArray, NDArray, NDArray]:
    """Three items of each prompt, two judgements of each: how hard an item is, the prompt says."""
    prompt = np.repeat(np.arange(prompts), 6)
    item = np.repeat(np.arange(3 * prompts), 2)
    clear = draw.integers(2, size=prompts)[prompt]
    truth = np.where(draw.random(3 * prompts)[item] < 0.5, 1, -1)
    return (
        np.where(draw.random(len(prompt)) < np.where(clear, 0.02, 0.5), -truth, truth),
        item,
        prompt,
    )


def test_intervals_cover_over_prompts_and_not_without_them() -> None:
    v, item, prompt = crowd(generator(0, "truth"), 40_000)
    truth = loop_fast(v, item)
    covered = {True: 0, False: 0}
    for repeat in range(120):
        v, item, prompt = crowd(generator(1, "cover", repeat), 40)
        for clustered in covered:
            got = alpha(v, item, prompt if clustered else None, resamples=400)
            covered[clustered] += got.low <= truth <= got.high
    # 95 % nominal, some 92 % with forty prompts by the percentile method; four standard errors of
    # 120 panels are 0.09. Items as if they were independent are too sure.
    assert covered[True] / 120 > 0.85
    assert covered[False] < covered[True]


def loop_fast(v: NDArray, item: NDArray) -> float:
    """Alpha of two judgements per item, by its definition."""
    a, b = v[::2], v[1::2]
    share = np.mean(v > 0)
    return 1 - np.mean(a != b) / (2 * share * (1 - share) * len(v) / (len(v) - 1))


def test_the_bootstrap_is_that_of_whole_prompts() -> None:
    """Drawing how often each look comes gives the law of drawing prompts one by one."""
    v, item, prompt = crowd(generator(2, "boot"), 50)
    got = alpha(v, item, prompt, distance="nominal", resamples=4000)
    draw, found = generator(3, "boot"), []
    rows = [np.flatnonzero(prompt == p) for p in range(50)]
    for _ in range(2000):
        chosen = draw.integers(50, size=50)
        taken = np.concatenate([rows[p] for p in chosen])
        found.append(loop_fast(v[taken], item[taken]))
    # Monte Carlo error of a 2.5 % quantile: about 2.7 sd / sqrt(2000), sd 0.06, here times four.
    assert (got.low, got.high) == pytest.approx(np.quantile(found, (0.025, 0.975)), abs=0.015)


@pytest.mark.parametrize("distance", ["nominal", "ordinal", "interval"])
def test_prompts_that_look_alike_leave_nothing_to_chance(distance: Distance) -> None:
    """Every resample is the data again then: the interval's formula is held to evalica's value."""
    v, item = np.tile([0, 0, 0, 1, 1, 3, 3], 9), np.tile([0, 0, 1, 1, 2, 2, 2], 9)
    prompt = np.repeat(np.arange(9), 7)
    got = alpha(v, item + 3 * prompt, prompt, distance=distance, resamples=100)
    assert 0 < got.value < 1
    assert (got.low, got.high) == pytest.approx((got.value, got.value), abs=1e-12)


def test_pairs_are_all_pairs_once() -> None:
    unit = np.array([3, 1, 3, 2, 1, 3])
    got = {tuple(sorted(p)) for p in np.stack(pairs(unit), 1).tolist()}
    assert got == {p for p in combinations(range(6), 2) if unit[p[0]] == unit[p[1]]}
    assert len(pairs(unit)[0]) == 4
    assert len(pairs([1, 2])[0]) == 0


def test_agreement_of_each_two() -> None:
    item = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    who = ["x", "y"] * 4 + ["x", "z"] * 2
    v = [1, 1, 1, -1, -1, -1, 1, 1, 1, -1, -1, 1]
    got = by_pair(v, item, who)
    assert [(p.first, p.second) for p in got] == [("x", "y"), ("x", "z")]
    assert [p.percent.value for p in got] == [0.75, 0.0]
    assert got[0].alpha.value == pytest.approx(loop(v[:8], item[:8], "interval"), abs=1e-12)
    assert got[1].alpha.value < -0.4
    # New names, the same figures; and rows may come in any order.
    renamed = {"x": 30, "y": 20, "z": 10}
    again = by_pair(v[::-1], item[::-1], [renamed[w] for w in who[::-1]])
    assert [(p.first, p.second, p.percent) for p in again] == [
        (10, 30, got[1].percent),
        (20, 30, got[0].percent),
    ]
    # One shared prompt says nothing about the spread.
    assert by_pair([1, 1, 1, 1], [0, 0, 1, 1], ["x", "y", "x", "z"], [0, 0, 0, 0]) == []


def test_soft_labels_and_what_to_adjudicate() -> None:
    v, item = [-2, 1, 0, -1, -1, 2, 2, -2, 0, 0], list("aaabbccddd")
    assert soft_labels(v, item) == [("a", 0.5, 3), ("b", 1.0, 2), ("c", 0.0, 2), ("d", 2 / 3, 3)]
    # a: |3| + |2| + |1| over 3 pairs; d: 2 + 2 + 0.
    assert to_adjudicate(v, item) == [("a", 2.0, 3), ("d", 4 / 3, 3)]
    assert to_adjudicate(v, item, least=1.5) == [("a", 2.0, 3)]
    assert to_adjudicate([1, 1, 2], [0, 0, 1]) == []
    # Swapping the responses of all items mirrors every label.
    turned = soft_labels(np.negative(v), item)
    assert [t.first + s.first for t, s in zip(turned, soft_labels(v, item), strict=True)] == [1] * 4


def test_win_rate_of_a_system_over_another() -> None:
    # a beats b twice, once shown as the second response; loses once; ties once; c is not asked.
    v, first, second = [-1, 2, 1, 0, -2], list("abaac"), list("babba")
    got = system_win_rate(v, first, second, [0, 1, 2, 3, 4], a="a", b="b")
    assert (got.value, got.n, got.ties) == (2.5 / 4, 4, 1)
    back = system_win_rate(v, first, second, [0, 1, 2, 3, 4], a="b", b="a")
    assert (back.value, back.low, back.high) == pytest.approx(
        (1 - got.value, 1 - got.high, 1 - got.low)
    )
    # Ten judgements of each prompt are not ten prompts.
    many = system_win_rate(v * 10, first * 10, second * 10, [0, 1, 2, 3, 4] * 10, a="a", b="b")
    assert many.value == got.value
    assert many.high - many.low > 0.5 * (got.high - got.low)


@pytest.mark.parametrize("seed", range(3))
def test_counting_one_by_one_gives_the_same(seed: int) -> None:
    draw = generator(seed, "count")
    rows = [(i, f"p{who}") for i in range(30) for who in draw.permutation(4)[: draw.integers(1, 5)]]
    item, who = [i for i, _ in rows], [w for _, w in rows]
    v = draw.integers(-2, 3, size=len(rows)).tolist()
    of = {i: [x for x, j in zip(v, item, strict=True) if j == i] for i in item}
    both = [abs(a - b) for values in of.values() for a, b in combinations(values, 2)]
    assert percent_agreement(v, item).value == pytest.approx(both.count(0) / len(both), abs=1e-12)
    for got in soft_labels(v, item):
        wins = sum(1.0 if x < 0 else 0.5 if x == 0 else 0.0 for x in of[int(got.item)])
        assert (got.first, got.n) == (
            pytest.approx(wins / got.n, abs=1e-12),
            len(of[int(got.item)]),
        )
    apart = {
        i: np.mean([abs(a - b) for a, b in combinations(values, 2)])
        for i, values in of.items()
        if len(values) > 1
    }
    listed = to_adjudicate(v, item)
    assert {d.item: d.distance for d in listed} == pytest.approx(
        {i: d for i, d in apart.items() if d}
    )
    assert [d.distance for d in listed] == sorted((d.distance for d in listed), reverse=True)
    for got in by_pair(v, item, who, resamples=100):
        said = {w: {i: x for x, i, o in zip(v, item, who, strict=True) if o == w} for w in who}
        a, b = said[str(got.first)], said[str(got.second)]
        shared = a.keys() & b.keys()
        assert got.percent.value == pytest.approx(np.mean([a[i] == b[i] for i in shared]))
        assert got.percent.n == got.alpha.n == len(shared)
    first = [draw.choice(["s", "t"]) for _ in rows]
    second = ["t" if x == "s" else "s" for x in first]
    score = [
        0.5 - 0.5 * np.sign(x) * (1 if f == "s" else -1) for x, f in zip(v, first, strict=True)
    ]
    wanted = rate(score, item)
    assert system_win_rate(v, first, second, item, a="s", b="t")[:4] == pytest.approx(wanted)


def test_order_changes_nothing() -> None:
    v, item = ratings(5)
    order = generator(0, "order").permutation(len(v))
    for call in (percent_agreement, soft_labels, to_adjudicate):
        assert call(v[order], item[order]) == call(v, item)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: alpha([], []), "leave skips out"),
        (lambda: alpha([1, math.nan], [0, 0]), "1 of them not finite"),
        (lambda: alpha([1, 2], [0]), "one item per judgement"),
        (lambda: alpha([1, 2, 3], [0, 0, 1]), "1 items of 1 prompts were judged twice"),
        (lambda: alpha([1, 2, 3, 4], [0, 0, 1, 1], [7, 7, 7, 7]), "2 items of 1 prompts"),
        (lambda: alpha([1, 2, 3, 4], [0, 0, 1, 1], [7, 8, 9, 9]), "item 0 came with two prompts"),
        (lambda: alpha(SKEWED, ITEMS, distance="ratio"), "choose nominal, ordinal or interval"),
        (lambda: alpha(SKEWED, ITEMS, level=1.0), "level 1.0 and 2000 resamples"),
        (lambda: alpha(SKEWED, ITEMS, resamples=10), "100 resamples are the least"),
        (lambda: percent_agreement([1, 2], [0, 1]), "none of 2 items was judged twice"),
        (lambda: soft_labels([1, math.inf], [0, 0]), "1 of them not finite"),
        (lambda: to_adjudicate([1, 2], [[0, 0]]), "one item per judgement"),
        (lambda: by_pair([1, 2], [0, 0], ["x", "x"]), "annotator x judged one item twice"),
        (lambda: system_win_rate([1], ["a"], ["c"], [0], a="a", b="b"), "none of 1 judgements"),
    ],
)
def test_bad_input_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "alpha": {
        "golden": test_golden_values,
        "law": (
            test_full_agreement_is_one_and_never_sure,
            test_random_labels_agree_by_chance_alone,
        ),
        "library": (
            test_alpha_is_fleiss_kappa_but_for_its_small_sample_correction,
            test_equal_to_the_loop_and_blind_to_order_and_names,
        ),
    },
    "percent_agreement": {"golden": test_golden_values},
    "percent_agreement soft_labels to_adjudicate": {"law": test_order_changes_nothing},
    "pairs": {
        "golden law library": test_pairs_are_all_pairs_once,
        "refusal": "whatever can be sorted is a name",
    },
    "by_pair": {"golden law": test_agreement_of_each_two},
    "soft_labels to_adjudicate": {"golden": test_soft_labels_and_what_to_adjudicate},
    "system_win_rate": {"golden law": test_win_rate_of_a_system_over_another},
    "percent_agreement soft_labels to_adjudicate by_pair system_win_rate": {
        "library": test_counting_one_by_one_gives_the_same,
    },
    "alpha percent_agreement soft_labels to_adjudicate by_pair system_win_rate": {
        "refusal": test_bad_input_is_refused,
    },
}
