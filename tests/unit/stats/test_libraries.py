"""Rates and means beside scipy, statsmodels and counting by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from truing.keys import generator
from truing.stats.ratings import (
    agreement_ceiling,
    distinct_n,
    numbered,
    pair_accuracy,
    paired_difference,
    proportion,
    rate,
    win_rate,
)


def by_hand(values: Sequence[float], names: Sequence[int], level: float) -> tuple[float, ...]:
    """Wilson's interval at the effective number of rows, cluster by cluster: `rate`'s docstring."""
    clusters = sorted(set(names))
    size = len(values) / len(clusters)
    guess = (sum(values) + size) / (len(values) + 2 * size)
    squares = size**2 * ((1 - guess) ** 2 + guess**2)
    for name in clusters:
        inside = [v for v, n in zip(values, names, strict=True) if n == name]
        squares += sum(v - guess for v in inside) ** 2
    # The variance of the mean of all rows, those two clusters too, against that of a coin.
    rows = len(values) + 2 * size
    design = (squares / rows**2) / (guess * (1 - guess) / rows)
    n = len(values) / design
    if len(clusters) < len(values):
        z = stats.t.ppf(0.5 + level / 2, len(clusters) - 1)
    else:
        z = stats.norm.ppf(0.5 + level / 2)
    p = sum(values) / len(values)
    # The two roots of (p - x)^2 = z^2 x (1 - x) / n.
    a, b, c = 1 + z**2 / n, 2 * p + z**2 / n, p**2
    root = math.sqrt(b**2 - 4 * a * c)
    return p, (b - root) / (2 * a), (b + root) / (2 * a)


@pytest.mark.parametrize("seed", range(4))
def test_rates_equal_statsmodels_and_counting(seed: int) -> None:
    random = generator(seed, "rates")
    won = (random.random(40) < 0.7).astype(float)
    wilson = proportion_confint(won.sum(), 40, method="wilson")
    for f in (rate, proportion):
        assert f(won)[1:3] == pytest.approx(wilson, rel=1e-10)
        assert f(won)[0] == won.mean()
    wilson = proportion_confint(won.sum(), 40, alpha=0.2, method="wilson")
    assert rate(won, level=0.8)[1:3] == pytest.approx(wilson, rel=1e-10)
    share, names = random.random(40), random.integers(0, 9, 40)
    for values, level in ((won, 0.95), (share, 0.8)):
        wanted = by_hand(values.tolist(), names.tolist(), level)
        assert rate(values, names, level=level)[:3] == pytest.approx(wanted, rel=1e-9)
    wanted = by_hand(share.tolist(), names.tolist(), 0.95)
    assert agreement_ceiling(share, names)[:3] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_wins_are_counted_and_differences_are_those_of_scipy(seed: int) -> None:
    random = generator(seed, "wins")
    a, b, names = random.integers(0, 6, 30), random.integers(0, 6, 30), random.integers(0, 8, 30)
    for tie in (0.0, 1.0):
        ahead = [
            1.0 if x > y + tie else 0.0 if y > x + tie else 0.5 for x, y in zip(a, b, strict=True)
        ]
        got = win_rate(a, b, cluster_N=names, tie=tie)
        assert got[:3] == pytest.approx(by_hand(ahead, names.tolist(), 0.95), rel=1e-9)
        assert (got.n, got.ties) == (30, ahead.count(0.5))
    signs = [1.0 if x > y else 0.0 if y > x else 0.5 for x, y in zip(a, b, strict=True)]
    got = pair_accuracy(a - b, names)
    assert got[:3] == pytest.approx(by_hand(signs, names.tolist(), 0.95), rel=1e-9)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.9)
    got = paired_difference(a, b, level=0.9)
    assert got[:3] == pytest.approx(((a - b).mean(), low, high), rel=1e-9)


def test_a_paired_difference_by_hand() -> None:
    # 2, 0, 4 and 2: mean 2, squared deviations 8, s^2 = 8/3, se = sqrt(2/3) = 0.8164966;
    # t(0.975, 3) = 3.1824463, reach 2.5984566.
    got = paired_difference([3, 1, 5, 2], [1, 1, 1, 0])
    assert got == pytest.approx((2, -0.5984566, 4.5984566, 4), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_names_and_n_grams_are_counted(seed: int) -> None:
    random = generator(seed, "names")
    names = random.integers(0, 7, 25).tolist()
    first = sorted(set(names), key=names.index)
    assert numbered(names) == [first.index(name) for name in names]
    texts = [random.integers(0, 3, size).tolist() for size in (0, 1, 2, 9, 14)]
    for n in (1, 2, 3):
        grams: list[tuple[int, ...]] = []
        for text in texts:
            for start in range(len(text)):
                if start + n <= len(text):
                    grams.append(tuple(text[start : start + n]))
        assert distinct_n(texts, n) == pytest.approx(len(np.unique(grams, axis=0)) / len(grams))


def test_laws_of_rates() -> None:
    random = generator(0, "laws")
    share, names = random.random(30), random.integers(0, 6, 30)
    value, low, high, n = rate(share, names)
    for f, given in (
        (rate, 1 - share),
        (agreement_ceiling, 1 - share),
    ):
        # What is lost is what is not won.
        assert f(given, names) == pytest.approx((1 - value, 1 - high, 1 - low, n))
    won = share > 0.4
    value, low, high, n = proportion(won, names)
    assert proportion(~won, names) == pytest.approx((1 - value, 1 - high, 1 - low, n))
    margin = share - 0.4
    value, low, high, n = pair_accuracy(margin, names)
    assert pair_accuracy(-margin, names) == pytest.approx((1 - value, 1 - high, 1 - low, n))
    # Only the sign of a margin counts.
    assert pair_accuracy(1e-3 * margin, names) == pair_accuracy(margin, names)
    # Names are names, and numbers of numbers are the numbers.
    assert numbered([f"prompt {x}" for x in names]) == numbered(names) == numbered(numbered(names))
    # Twice the text has half the share of different words at most.
    text = random.integers(0, 9, 40).tolist()
    assert distinct_n([text, text], 1) == distinct_n([text], 1) / 2
    assert distinct_n([text, text], 2) == distinct_n([text], 2) / 2


def test_margins_and_chances_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="margins must be finite, but number 1 is nan"):
        pair_accuracy([1.0, math.nan])
    with pytest.raises(ValueError, match=r"needs numbers from 0 to 1, got 0 to 1\.2"):
        agreement_ceiling([0.0, 1.2])


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "rate proportion agreement_ceiling": {"library": test_rates_equal_statsmodels_and_counting},
    "win_rate pair_accuracy paired_difference": {
        "library": test_wins_are_counted_and_differences_are_those_of_scipy,
    },
    "paired_difference": {"golden": test_a_paired_difference_by_hand},
    "numbered distinct_n": {"library": test_names_and_n_grams_are_counted},
    "rate agreement_ceiling proportion pair_accuracy numbered distinct_n": {
        "law": test_laws_of_rates,
    },
    "pair_accuracy agreement_ceiling": {
        "refusal": test_margins_and_chances_that_are_none_are_refused,
    },
}
