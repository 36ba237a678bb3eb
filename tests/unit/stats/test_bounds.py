"""Upper bounds: golden values, laws, agreement with statsmodels, and coverage by simulation."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from truing.keys import generator
from truing.stats.bounds import clopper_pearson, empirical_bernstein


def test_golden_values() -> None:
    # No event in 30: 1 - 0.05^(1/30) = 1 - exp(-2.9957323 / 30) = 1 - exp(-0.0998577).
    assert clopper_pearson(0, 30, delta=0.05) == pytest.approx(0.0950338, abs=1e-6)
    # One of two: the rate at which at most one of two comes with probability 0.05:
    # 1 - p^2 = 0.05, p = sqrt(0.95).
    assert clopper_pearson(1, 2, delta=0.05) == pytest.approx(math.sqrt(0.95), abs=1e-9)
    assert clopper_pearson(3, 3, delta=0.05) == 1.0
    # 50 zeros and 50 ones of [0, 10]: v = 25/99, ln 40 = 3.6888795;
    # 0.5 + sqrt(2 * 0.2525253 * 3.6888795 / 100) + 7 * 10 * 3.6888795 / (3 * 99)
    # = 0.5 + 0.1364943 + 0.8694328.
    got = empirical_bernstein([0.0, 1.0] * 50, low=0, high=10, delta=0.05)
    assert got == pytest.approx(1.5059272, abs=1e-6)
    assert empirical_bernstein([0.0, 1.0], low=0, high=1, delta=0.05) == 1.0


@pytest.mark.parametrize(("events", "n"), [(0, 7), (1, 20), (13, 20), (19, 20), (40, 400)])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.3])
def test_equal_to_statsmodels(events: int, n: int, delta: float) -> None:
    _, wanted = proportion_confint(events, n, alpha=2 * delta, method="beta")
    assert clopper_pearson(events, n, delta=delta) == pytest.approx(wanted, abs=1e-12)
    # And to its meaning: so few events come with probability delta at that rate.
    if events < n:
        rate = clopper_pearson(events, n, delta=delta)
        assert stats.binom.cdf(events, n, rate) == pytest.approx(delta, abs=1e-9)


def test_equal_to_the_loop_from_the_paper() -> None:
    """Theorem 4 for numbers in [0, 1], its variance as the mean over all pairs."""
    x = generator(0, "bounds").uniform(-2, 3, size=40)
    z = [(value + 2) / 5 for value in x]
    pairs = [(a - b) ** 2 / 2 for i, a in enumerate(z) for b in z[:i]]
    v, log = sum(pairs) / len(pairs), math.log(2 / 0.1)
    wanted = sum(z) / 40 + math.sqrt(2 * v * log / 40) + 7 * log / (3 * 39)
    got = empirical_bernstein(x, low=-2, high=3, delta=0.1)
    assert got == pytest.approx(5 * wanted - 2, abs=1e-12)


def test_laws() -> None:
    bounds = [clopper_pearson(k, 50, delta=0.05) for k in range(51)]
    assert bounds == sorted(bounds)
    assert all(bound > k / 50 for k, bound in enumerate(bounds[:-1]))
    x = generator(1, "bounds").uniform(size=300)
    plain = empirical_bernstein(x, low=0, high=1, delta=0.05)
    assert x.mean() < plain < empirical_bernstein(x, low=0, high=1, delta=0.01)
    # A shift and a scale of the numbers shift and scale the bound; order is nothing.
    moved = empirical_bernstein(4 * x[::-1] - 1, low=-1, high=3, delta=0.05)
    assert moved == pytest.approx(4 * plain - 1, abs=1e-12)


def test_they_hold_where_student_does_not() -> None:
    """2,000 repetitions at the border, a true rate of 0.1: how often is it called lower?"""
    runs, delta = 2000, 0.05
    # Three standard errors of a share of 0.05 in 2,000 repetitions.
    slack = 3 * math.sqrt(delta * (1 - delta) / runs)

    def wrong(n: int, bound: Any) -> float:
        draws = generator(n, "coverage").random((runs, n)) < 0.1
        return float(np.mean([bound(row) < 0.1 for row in draws.astype(float)]))

    def student(row: Any) -> float:
        reach = stats.t.ppf(1 - delta, len(row) - 1) * row.std(ddof=1) / math.sqrt(len(row))
        return float(row.mean() + reach)

    for n in (30, 200):
        assert (
            wrong(n, lambda r: clopper_pearson(int(r.sum()), len(r), delta=delta)) <= delta + slack
        )
        held = wrong(n, lambda r: empirical_bernstein(r, low=0, high=1, delta=delta))
        assert held <= delta + slack
        # Bites: what others do, and the mean alone.
        assert wrong(n, student) > delta + slack
        assert wrong(n, lambda r: float(r.mean())) > 0.4
    assert wrong(30, student) == pytest.approx(0.18, abs=0.03)  # 0.9^30 + 30 * 0.1 * 0.9^29


def test_what_is_refused() -> None:
    for events, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=f"{events} events in {n} rows came"):
            clopper_pearson(events, n, delta=0.05)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\), got"):
            clopper_pearson(1, 5, delta=delta)
        with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\), got"):
            empirical_bernstein([0.0, 1.0], low=0, high=1, delta=delta)
    for values, said in (([1.0], "a list of two at least"), ([0.5, 2.0], "1 of 2 numbers lie out")):
        with pytest.raises(ValueError, match=said):
            empirical_bernstein(values, low=0, high=1, delta=0.05)
    with pytest.raises(ValueError, match="1 of 2 numbers lie outside"):
        empirical_bernstein([0.5, math.nan], low=0, high=1, delta=0.05)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="the lower must come first"):
            empirical_bernstein([0.5, 0.6], low=low, high=high, delta=0.05)
