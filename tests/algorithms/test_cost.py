"""Duties of `truing.algorithms.cost`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch

from tests.algorithms import reference
from tests.algorithms.test_comparison import draw, same
from truing.algorithms import bradley_terry, cost_sign


def check_cost_sign(f: Any) -> None:
    # -ln sigmoid(x) = ln(1 + e^-x) at x = 1 (harmful, above 0), -1 (harmless, above 0), 2 (it is,
    # below 0) and 0.
    costs, harmful = torch.tensor([1.0, 1.0, -2.0, 0.0]), torch.tensor([1, 0, 0, 1])
    same(f(costs, harmful), [0.31326169, 1.31326169, 0.12692801, 0.69314718])
    # Laws: one of the two it is, for certain; harmless is harmful with the cost turned; harmful is
    # a comparison won against a cost of 0.
    a, yes, no = draw(0, 9), torch.ones(9), torch.zeros(9)
    same((-f(a, yes)).exp() + (-f(a, no)).exp(), torch.ones(9), 1e-12)
    same(f(a, no), f(-a, yes), 1e-12)
    same(f(a, yes), bradley_terry(a, 0 * a), 1e-12)


MUTANTS: dict[str, Any] = {
    "negated": lambda c, h: -cost_sign(c, h),
    "sign turned": lambda c, h: cost_sign(-c, h),
    "label turned": lambda c, h: cost_sign(c, 1 - h),
    "harmful ones only": lambda c, h: cost_sign(c, h) * h,
    "label dropped": lambda c, h: cost_sign(c, h * 0 + 1),
    "hinge": lambda c, h: (1 - c * (2 * h - 1)).clamp(min=0),
    "mean over all": lambda c, h: cost_sign(c, h).mean().expand(c.shape),
}


def test_golden_values_and_laws_hold_and_bite() -> None:
    check_cost_sign(cost_sign)
    reference.bites(check_cost_sign, MUTANTS)


def test_gradients_reference_and_order() -> None:
    c, harmful = draw(1, 8).requires_grad_(), torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    assert torch.autograd.gradcheck(lambda x: cost_sign(x, harmful), (c,))
    (slope,) = torch.autograd.grad(cost_sign(c, harmful).sum(), c)
    # Descent raises what is harmful and lowers what is not.
    same(slope, c.sigmoid() - harmful, 1e-12)
    c = c.detach()
    for labels in (harmful, harmful.bool(), harmful.double()):
        wanted = reference.cost_sign(c.numpy(), harmful.double().numpy())
        same(cost_sign(c, labels), wanted, 1e-12)
    assert torch.equal(cost_sign(c.flip(0), harmful.flip(0)), cost_sign(c, harmful).flip(0))
    same(cost_sign(torch.tensor([1e4, 1e4]), torch.tensor([1, 0])), [0.0, 1e4])


def test_bad_input_is_refused() -> None:
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="must have one shape"):
        cost_sign(two, torch.zeros(1))
    for label in (0.5, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"labels \[{label}\] came: a response is harmful"):
            cost_sign(two, torch.tensor([1.0, label]))
    assert cost_sign(two * math.nan, two).isnan().all()


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "cost_sign": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient invariance loop": test_gradients_reference_and_order,
        "refusal": test_bad_input_is_refused,
    },
}
