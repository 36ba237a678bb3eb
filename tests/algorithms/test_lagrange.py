"""The price of a constraint: golden, laws, the loop from the paper, bite, and the known saddle."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from truing.algorithms import Lagrange
from truing.keys import generator


def check_price(f: Any) -> None:
    # 0.5 * exp(0.1 * 0.5 * (3 - 1)) = 0.5 * e^0.1; below the threshold 0.5 * e^-0.05.
    assert f(0.5, 1.0, 0.1, None, 3.0) == pytest.approx(0.5525854590, abs=1e-9)
    assert f(0.5, 1.0, 0.1, None, 0.0) == pytest.approx(0.4756147123, abs=1e-9)
    # At the threshold it stays; the bound holds; one step is e at most.
    assert f(0.5, 1.0, 0.1, None, 1.0) == 0.5
    assert f(0.5, 1.0, 0.1, 0.52, 3.0) == 0.52
    assert f(2.0, 0.0, 1.0, None, 1e6) == pytest.approx(2 * math.e, abs=1e-9)
    # It never reaches 0, from where it would not come back.
    assert f(0.5, 0.0, 0.1, None, -1e3) > 0


def usual(coef: float, threshold: float, lr: float, most: float | None, cost: float) -> float:
    return Lagrange(coef, threshold, lr, most).after(cost).coef


def check_paid(f: Any) -> None:
    # (2 - 0.5 * 3) / 1.5 = 1/3.
    assert f(0.5, 2.0, 3.0) == pytest.approx(1 / 3, abs=1e-12)
    # A mean of the reward and of minus the cost: between the two, nearer to the dearer.
    assert -3.0 < f(100.0, 2.0, 3.0) < -2.9
    assert f(1.0, 2.0, -2.0) == 2.0


def test_golden_values_and_laws_hold_and_bite() -> None:
    check_price(usual)
    reference.bites(
        check_price,
        {
            "wrong way": lambda c, d, lr, m, x: usual(c, -d, lr, m, -x),
            "threshold dropped": lambda c, d, lr, m, x: usual(c, 0.0, lr, m, x),
            "added, not multiplied": lambda c, d, lr, m, x: c + lr * (x - d),
            "lambda left out of the step": lambda c, d, lr, m, x: c * math.exp(lr * (x - d)),
            "bound dropped": lambda c, d, lr, m, x: usual(c, d, lr, None, x),
            "rate dropped": lambda c, d, lr, m, x: usual(c, d, 1.0, m, x),
        },
    )
    paid = lambda c, r, x: Lagrange(c).combined(r, x)  # noqa: E731
    check_paid(paid)
    reference.bites(
        check_paid,
        {
            "cost added": lambda c, r, x: paid(c, r, -x),
            "not divided": lambda c, r, x: r - c * x,
            "divided by lambda": lambda c, r, x: (r - c * x) / c,
        },
    )


def test_equal_to_the_loop_from_the_paper() -> None:
    costs = generator(0, "lagrange").normal(size=50).tolist()
    state = Lagrange(0.7, 0.2, 0.05)
    for cost in costs:
        state = state.after(cost)
    assert state.coef == pytest.approx(reference.lagrange(costs, 0.7, 0.2, 0.05), abs=1e-12)
    # Saved and loaded it goes on as before.
    assert Lagrange(**state._asdict()).after(1.0) == state.after(1.0)


REWARD = torch.tensor([0.5, 2.0, -0.2, 1.0, 0.0], dtype=torch.float64)
COST = torch.tensor([-0.5, 1.5, -1.0, 0.5, -0.2], dtype=torch.float64)
PRIOR = torch.tensor([0.3, 0.25, 0.1, 0.2, 0.15], dtype=torch.float64)
BETA = 0.4


def best(price: float) -> Tensor:
    """The policy that maximises E[r - lambda c] - beta KL."""
    return (PRIOR.log() + (REWARD - price * COST) / BETA).softmax(0)


def saddle(threshold: float) -> float:
    """lambda* by bisection: the expected cost falls as the price rises."""
    low, high = 0.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(best(middle) @ COST) > threshold else (low, middle)
    return low


def settled(threshold: float, f: Any = Lagrange.after) -> float:
    state = Lagrange(1.0, threshold, 0.3)
    for _ in range(3000):
        state = f(state, float(best(state.coef) @ COST))
    return state.coef


def test_dual_ascent_arrives_at_the_saddle() -> None:
    for threshold in (-0.2, 0.3):
        assert settled(threshold) == pytest.approx(saddle(threshold), abs=1e-6)
    # A constraint that the best policy keeps by itself has no price.
    assert float(best(0.0) @ COST) < 1.5
    assert settled(3.0) < 1e-3
    # Bites: the other sign runs away; a threshold of 0 finds another saddle.
    away = settled(-0.2, lambda s, c: s.after(2 * s.threshold - c))
    assert abs(away - saddle(-0.2)) > 0.1
    assert abs(saddle(0.0) - saddle(-0.2)) > 0.1


@pytest.mark.parametrize(
    ("coef", "lr", "most", "cost"),
    [
        (0.0, 0.1, None, 1.0),
        (1.0, 0.0, None, 1.0),
        (1.0, 0.1, 0.0, 1.0),
        (1.0, 0.1, None, math.nan),
    ],
)
def test_what_is_refused(coef: float, lr: float, most: float | None, cost: float) -> None:
    with pytest.raises(ValueError, match="must be positive and the cost finite"):
        Lagrange(coef, 0.0, lr, most).after(cost)


# Which test answers for which duty.
DUTIES = {
    "Lagrange": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": "plain numbers",
        "invariance": "plain numbers",
        "loop": test_equal_to_the_loop_from_the_paper,
        "refusal": test_what_is_refused,
    },
}
