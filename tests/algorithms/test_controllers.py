"""The KL controller and the running moments: golden, law, reference, bite."""

import math
import statistics
from typing import Any

import pytest

from tests.algorithms import reference
from truing.algorithms import KLController, Moments
from truing.keys import generator


def check_controller(f: Any) -> None:
    # 512 episodes at a horizon of 10,000. KL 9 of 6: e = 0.5, clipped to 0.2: factor 1 + 0.01024.
    assert f(0.15, 6.0, 9.0, 512) == pytest.approx(0.15 * 1.01024, abs=1e-12)
    # KL 5.4 of 6: e = -0.1: factor 1 - 0.00512. On target nothing moves.
    assert f(0.15, 6.0, 5.4, 512) == pytest.approx(0.15 * 0.99488, abs=1e-12)
    assert f(0.15, 6.0, 6.0, 512) == 0.15
    # A KL of 0 is as far as a negative one: e = -0.2.
    assert f(0.15, 6.0, 0.0, 512) == pytest.approx(0.15 * 0.98976, abs=1e-12)
    assert f(0.15, 6.0, -50.0, 512) == f(0.15, 6.0, 0.0, 512)
    # Targets and horizons below 1 are as good as any: 1 + 0.1 * 1 / 0.5.
    assert f(0.15, 0.5, 0.55, 1, 0.5) == pytest.approx(0.15 * 1.2, abs=1e-12)
    assert f(0.15, None, 9.0, 512) == 0.15


def usual(
    coef: float, target: float | None, kl: float, episodes: int, horizon: float = 10_000.0
) -> float:
    return KLController(coef, target, horizon).after(kl, episodes).coef


def test_the_controller_holds_and_bites() -> None:
    check_controller(usual)
    mutants: dict[str, Any] = {
        "wrong way": lambda c, t, k, n, *h: 2 * c - usual(c, t, k, n, *h),
        "error not clipped": lambda c, t, k, n, h=1e4: c * (1 + (k / (t or k) - 1) * n / h),
        "per batch": lambda c, t, k, n, *h: usual(c, t, k, 1, *h),
        "always fixed": lambda c, t, k, n, *h: c,
        "no target needed": lambda c, t, k, n, *h: usual(c, t or 6.0, k, n, *h),
        "horizon dropped": lambda c, t, k, n, *h: usual(c, t, k, n),
    }
    reference.bites(check_controller, mutants)


def test_it_settles_where_the_kl_is_the_target() -> None:
    """Two arms, reward 1 and 0, reference (1/2, 1/2): the optimum for beta is known, so is its KL.

    p = e^(1/b) / (1 + e^(1/b)), KL = p ln 2p + (1 - p) ln 2(1 - p).
    """

    def kl(beta: float) -> float:
        p = 1 / (1 + math.exp(-1 / beta))
        return p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))

    for target in (0.1, 0.3, 0.5):
        state = KLController(1.0, target, 1000.0)
        for _ in range(400):
            state = state.after(kl(state.coef), 64)
        assert kl(state.coef) == pytest.approx(target, rel=1e-3)
        # Bite: the other sign runs away from it.
        away = 1.0
        for _ in range(50):
            away *= 2 - KLController(away, target, 1000.0).after(kl(away), 64).coef / away
        assert abs(kl(away) - target) > abs(kl(1.0) - target)


def test_halving_takes_68_batches_of_512() -> None:
    state, batches = KLController(0.2, 6.0), 0
    while state.coef > 0.1:
        state, batches = state.after(0.0, 512), batches + 1
    assert batches == math.ceil(math.log(2) / -math.log(1 - 0.2 * 512 / 10_000)) == 68


def test_saved_and_loaded_it_goes_on_as_before() -> None:
    state = KLController(0.1, 4.0, 500.0).after(6.0, 32)
    assert KLController(**state._asdict()).after(5.0, 32) == state.after(5.0, 32)
    moments = Moments().after([1.0, 2.0])
    assert Moments(**moments._asdict()).after([7.0]) == moments.after([7.0])


@pytest.mark.parametrize(
    ("target", "horizon", "kl"), [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, math.nan)]
)
def test_what_is_refused(target: float, horizon: float, kl: float) -> None:
    with pytest.raises(ValueError, match="target and horizon must be positive and the KL finite"):
        KLController(0.1, target, horizon).after(kl, 8)


def check_moments(f: Any) -> None:
    # (1, 3) then (8,): mean 4, squared deviations 9 + 1 + 16 = 26.
    count, mean, squares = f([[1.0, 3.0], [8.0]])
    assert (count, mean, squares) == (3, pytest.approx(4, abs=1e-12), pytest.approx(26, abs=1e-12))
    # Law: how the numbers are cut into batches is nothing. Far from 0 too.
    numbers = [1e6 + float(x) for x in generator(0, "test").normal(size=30)]
    whole = f([numbers])
    for cut in (1, 11, 29):
        assert f([numbers[:cut], [], numbers[cut:]]) == pytest.approx(whole, rel=1e-9)
    assert whole[2] == pytest.approx(30 * statistics.pvariance(numbers), rel=1e-9)


def folded(batches: list[list[float]]) -> tuple[float, ...]:
    state = Moments()
    for batch in batches:
        state = state.after(batch)
    return tuple(state)


def test_moments_hold_and_bite() -> None:
    check_moments(folded)

    def without_gap(batches: list[list[float]]) -> tuple[float, ...]:
        squares = sum(len(b) * statistics.pvariance(b) for b in batches if b)
        return (*folded(batches)[:2], squares)

    mutants: dict[str, Any] = {
        "gap between batches dropped": without_gap,
        "last batch only": lambda batches: folded(batches[-1:]),
        "mean of means": lambda b: (
            folded(b)[0],
            statistics.mean([statistics.mean(x) for x in b if x]),
            folded(b)[2],
        ),
    }
    reference.bites(check_moments, mutants)


def test_equal_to_the_loops_and_batches_change_nothing() -> None:
    random = generator(0, "numbers")
    numbers = [float(x) for x in random.normal(size=20)]
    wanted = reference.moments(numbers)
    assert folded([numbers]) == pytest.approx(wanted, abs=1e-12)
    assert folded([numbers[:3], numbers[3:4], numbers[4:]]) == pytest.approx(wanted, abs=1e-12)
    assert folded([numbers[::-1]]) == pytest.approx(wanted, abs=1e-12)
    state = KLController(0.2, 3.0, 500.0)
    for kl in random.normal(3, 2, size=20):
        there = reference.kl_coefficient(state.coef, 3.0, float(kl), 7, 500.0)
        # One step of 14 episodes is two of 7 at a time but for the second order.
        once, twice = state.after(float(kl), 14), state.after(float(kl), 7).after(float(kl), 7)
        state = state.after(float(kl), 7)
        assert state.coef == pytest.approx(there, abs=1e-12)
        assert once.coef == pytest.approx(twice.coef, abs=1e-4 * there)


def test_numbers_that_are_none_are_refused() -> None:
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"the numbers \[{wrong}\] came: each must be finite"):
            Moments().after([1.0, wrong])


def test_a_deviation_one_may_divide_by() -> None:
    assert Moments().deviation == Moments().after([3.0]).deviation == 1.0
    assert Moments().after([3.0, 3.0]).deviation == 1.0
    assert Moments().after([1.0, 5.0]).deviation == 2.0
    assert Moments().after([0.25, 0.75]).deviation == 0.25


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "KLController": {
        "golden law bite": test_the_controller_holds_and_bites,
        "gradient": "plain numbers",
        "invariance loop": test_equal_to_the_loops_and_batches_change_nothing,
        "refusal": test_what_is_refused,
    },
    "Moments": {
        "golden law bite": test_moments_hold_and_bite,
        "law": test_a_deviation_one_may_divide_by,
        "gradient": "plain numbers",
        "invariance loop": test_equal_to_the_loops_and_batches_change_nothing,
        "refusal": test_numbers_that_are_none_are_refused,
    },
}
