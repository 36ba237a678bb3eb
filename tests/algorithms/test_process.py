"""Duties of `truing.algorithms.process`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.algorithms import reference
from tests.algorithms.test_comparison import draw, same
from truing.algorithms import (
    soft_bradley_terry,
    step_cross_entropy,
    step_minimum,
    step_product,
)

# Three solutions of 3, 1 and 2 steps.
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()


def check_step_cross_entropy(f: Any) -> None:
    # e^z = 3, so sigmoid(z) = 3/4: -ln 3/4 if it is right, -ln 1/4 if wrong, the mean of them if
    # half of the people say so; at z = 0 it is ln 2 whatever the label.
    z = torch.tensor([math.log(3)] * 3 + [0.0])
    same(f(z, torch.tensor([1, 0, 0.5, 0.3])), [0.28768207, 1.38629436, 0.83698822, 0.69314718])
    # Laws: wrong is right with the logit turned; a label between is a mixture; it is a comparison
    # with a score of 0.
    a, y = draw(0, 9), draw(1, 9).sigmoid()
    same(f(a, y), f(-a, 1 - y), 1e-12)
    same(f(a, y), y * f(a, y * 0 + 1) + (1 - y) * f(a, y * 0), 1e-12)
    same(f(a, y), soft_bradley_terry(a, 0 * a, y), 1e-12)


def check_step_product(f: Any) -> None:
    # Probabilities 3/4, 1/2, 1/4: 3/32; 1/2 alone; 1/4 and 3/4: 3/16.
    three = torch.tensor([math.log(3), 0.0, -math.log(3)])
    logits = torch.stack([three, three[[1, 0, 0]], three[[2, 0, 1]]])
    same(f(logits, MASK), [math.log(3 / 32), math.log(1 / 2), math.log(3 / 16)])
    # Laws: the steps of two solutions in one row are both products; a certain step costs nothing.
    a, b = draw(0, 5, 3), draw(1, 5, 4)
    full_a, full_b = torch.ones(5, 3).bool(), torch.ones(5, 4).bool()
    both = f(torch.cat([a, b], 1), torch.cat([full_a, full_b], 1))
    same(both, f(a, full_a) + f(b, full_b), 1e-12)
    same(f(torch.cat([a, a[:, :1] * 0 + 800], 1), full_b), f(a, full_a), 1e-12)


def check_step_minimum(f: Any) -> None:
    three = torch.tensor([math.log(3), 0.0, -math.log(3)])
    logits = torch.stack([three, three[[1, 2, 2]], three[[0, 1, 2]]])
    same(f(logits, MASK), [math.log(1 / 4), math.log(1 / 2), math.log(1 / 2)])
    # Laws: of one step it is the product; of several at least that; again the same steps are
    # nothing new; the order does not matter.
    a, full = draw(0, 5, 3), torch.ones(5, 3).bool()
    same(f(a[:, :1], full[:, :1]), step_product(a[:, :1], full[:, :1]), 1e-12)
    assert (f(a, full) > step_product(a, full)).all()
    same(f(torch.cat([a, a], 1), torch.cat([full, full], 1)), f(a, full), 1e-12)
    same(f(a.flip(1), full), f(a, full), 1e-12)


def logp(z: Tensor, mask: Tensor) -> Tensor:
    return F.logsigmoid(z) * mask


CHECKS = {
    step_cross_entropy: check_step_cross_entropy,
    step_product: check_step_product,
    step_minimum: check_step_minimum,
}
MUTANTS: dict[Any, dict[str, Any]] = {
    step_cross_entropy: {
        "negated": lambda z, y: -step_cross_entropy(z, y),
        "label turned": lambda z, y: step_cross_entropy(z, 1 - y),
        "logit turned": lambda z, y: step_cross_entropy(-z, y),
        "right steps only": lambda z, y: -y * F.logsigmoid(z),
        "squared error": lambda z, y: (z.sigmoid() - y).square(),
        "label rounded": lambda z, y: step_cross_entropy(z, (y >= 0.5).to(y.dtype)),
    },
    step_product: {
        "negated": lambda z, m: -step_product(z, m),
        "mask dropped": lambda z, m: F.logsigmoid(z).sum(-1),
        "mean of steps": lambda z, m: step_product(z, m) / m.sum(-1),
        "minimum": step_minimum,
        "probability": lambda z, m: step_product(z, m).exp(),
        "product of logits": lambda z, m: torch.where(m, z, 1.0).prod(-1),
        "wrong steps": lambda z, m: step_product(-z, m),
        "last step": lambda z, m: logp(z, m)[torch.arange(len(z)), m.sum(-1) - 1],
    },
    step_minimum: {
        "negated": lambda z, m: -step_minimum(z, m),
        "mask dropped": lambda z, m: F.logsigmoid(z).min(-1).values,
        "maximum": lambda z, m: F.logsigmoid(z.masked_fill(~m, -math.inf)).max(-1).values,
        "product": step_product,
        "logit": lambda z, m: z.masked_fill(~m, math.inf).min(-1).values,
        "first step": lambda z, m: F.logsigmoid(z[:, 0]),
    },
}


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_golden_values_and_laws_hold_and_bite(function: Any) -> None:
    CHECKS[function](function)
    reference.bites(CHECKS[function], MUTANTS[function])


def test_gradients() -> None:
    z, y = draw(0, 6).requires_grad_(), draw(1, 6).sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(step_cross_entropy, (z, y))
    (slope,) = torch.autograd.grad(step_cross_entropy(z, y).sum(), z)
    # Up where it is held for likelier than it is.
    same(slope, z.sigmoid() - y, 1e-12)
    z = draw(2, 3, 3).requires_grad_()
    for function in (step_product, step_minimum):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, MASK), (z,))
        (slope,) = torch.autograd.grad(function(z, MASK).sum(), z)
        assert (slope[~MASK] == 0).all()
        assert (slope[MASK] >= 0).all()
        # Every step counts, or the worst one alone.
        wanted = [3, 1, 2] if function is step_product else [1, 1, 1]
        assert (slope > 0).sum(-1).tolist() == wanted


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    z, y = 2 * draw(seed, 20), draw(seed + 9, 20).sigmoid()
    wanted = reference.step_cross_entropy(z.numpy(), y.numpy())
    same(step_cross_entropy(z, y), wanted, 1e-12)
    z, mask = draw(seed, 7, 5), draw(seed + 5, 7, 5) > 0
    mask[:, seed] = True
    for ours, theirs in (
        (step_product, reference.step_product),
        (step_minimum, reference.step_minimum),
    ):
        same(ours(z, mask), theirs(z.numpy(), mask.double().numpy()), 1e-12)


def test_filling_and_order_change_nothing_and_far_logits_stay_finite() -> None:
    z = draw(0, 3, 3)
    for function in (step_product, step_minimum):
        wanted = function(z, MASK)
        for filling in (math.nan, 1e9, -1e9):
            filled = z.masked_fill(~MASK, filling).requires_grad_()
            assert torch.equal(function(filled, MASK), wanted)
            (slope,) = torch.autograd.grad(function(filled, MASK).sum(), filled)
            assert slope.isfinite().all()
        left = torch.cat([z[:, :1] * 0 - 9, z], 1), F.pad(MASK, (1, 0))
        assert torch.equal(function(*left), wanted)
        assert torch.equal(function(z.flip(0), MASK.flip(0)), wanted.flip(0))
        assert torch.equal(function(z, MASK.long()), wanted)
        same(function(torch.tensor([[1e4], [-1e4]]), torch.ones(2, 1)), [0.0, -1e4])
        broken = z.clone()
        broken[1, 0] = math.nan
        assert function(broken, MASK).isnan().tolist() == [False, True, False]
    far, y = torch.tensor([1e4, -1e4]), torch.tensor([1.0, 1.0])
    same(step_cross_entropy(far, y), [0.0, 1e4])
    assert torch.equal(step_cross_entropy(far.flip(0), y), step_cross_entropy(far, y).flip(0))
    assert step_cross_entropy(far * math.nan, y).isnan().all()


def test_bad_input_is_refused() -> None:
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="must have one shape"):
        step_cross_entropy(two, torch.zeros(1))
    for label in (1.5, -0.25, math.nan):
        with pytest.raises(ValueError, match=rf"labels \[{label}\] came: each must be from 0"):
            step_cross_entropy(two, torch.tensor([0.5, label]))
    for function in (step_product, step_minimum):
        with pytest.raises(ValueError, match="must have one shape"):
            function(torch.zeros(2, 3), torch.ones(2, 2))
        with pytest.raises(ValueError, match=r"steps of shape \(2,\) came: a row for each"):
            function(two, torch.ones(2))
        with pytest.raises(ValueError, match="with one step at least"):
            function(torch.zeros(2, 2), torch.tensor([[1, 1], [0, 0]]))


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "step_cross_entropy step_product step_minimum": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
        "invariance": test_filling_and_order_change_nothing_and_far_logits_stay_finite,
        "loop": test_equal_to_the_loops,
        "refusal": test_bad_input_is_refused,
    },
}
