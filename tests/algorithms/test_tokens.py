"""Duties of `truing.algorithms.tokens`: golden, law, gradient, invariance, reference, bite."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from truing.algorithms import (
    entropy,
    k1,
    k2,
    k3,
    reduce_mean,
    sequence_mean,
    sequence_sum,
    token_logp,
)
from truing.keys import generator

SEEDS = range(4)
LN2 = math.log(2)
# pi = (1/2, 1/4, 1/4), ref = (1/4, 1/4, 1/2):
# KL(pi || ref) = 1/2 ln 2 + 1/4 ln 1 + 1/4 ln(1/2) = 1/4 ln 2.
PI = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
REF = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed, "test").normal(size=shape))


def same(got: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=0)


# --- golden values and laws, as functions of the function, so that mutants can be put in ----------


def check_token_logp(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    # The exponentials of (0, ln 2, ln 5) are 1, 2, 5 and add up to 8.
    logits = torch.tensor([[[0.0, math.log(2), math.log(5)]] * 2])
    got = f(logits, torch.tensor([[2, 0]]))
    same(got, [[math.log(5 / 8), math.log(1 / 8)]])
    # Law: over all targets the probabilities add up to 1, and a shift of all logits is nothing.
    logits = draw(0, 1, 1, 7)
    every = f(logits.expand(1, 7, 7), torch.arange(7)[None])
    same(every.exp().sum(), 1.0, 1e-12)
    same(f(logits.expand(1, 7, 7) + 50, torch.arange(7)[None]), every, 1e-12)


def check_k1(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    # ln(1/2) - ln(1/4) = ln 2; ln(1/4) - ln(1/2) = -ln 2.
    same(f(PI.log(), REF.log()), [[LN2, 0, -LN2]])
    # Law: its mean under pi, here all of pi, is the divergence.
    same((PI * f(PI.log(), REF.log())).sum(), LN2 / 4, 1e-12)


def check_k3(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    # l = ln 2: 1/2 - 1 + ln 2; l = 0: 0; l = -ln 2: 2 - 1 - ln 2.
    same(f(PI.log(), REF.log()), [[LN2 - 0.5, 0, 1 - LN2]])
    same((PI * f(PI.log(), REF.log())).sum(), LN2 / 4, 1e-12)
    assert (f(draw(1, 9, 9), draw(2, 9, 9)) >= 0).all()


def check_k2(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    # l^2 / 2 for l = ln 2, 0, -ln 2.
    same(f(PI.log(), REF.log()), [[LN2**2 / 2, 0, LN2**2 / 2]])
    # Laws: symmetric; and the divergence of near policies to second order: with q = p (1 + d),
    # sum p d = 0, KL = sum p d^2 / 2 + O(d^3). Here d = (h, -h, -h) on p = (1/2, 1/4, 1/4).
    same(f(PI.log(), REF.log()), f(REF.log(), PI.log()), 1e-12)
    near = PI * (1 + 1e-3 * torch.tensor([[1.0, -1.0, -1.0]], dtype=torch.float64))
    same((PI * f(PI.log(), near.log())).sum(), 0.5e-6, 1e-9)


def check_entropy(f: Callable[[Tensor], Tensor]) -> None:
    # Of (1/2, 1/4, 1/4): 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2; an impossible token adds nothing.
    impossible = torch.tensor([[-math.inf]], dtype=torch.float64)
    same(f(PI.log()), [1.5 * LN2], 1e-12)
    same(f(torch.cat([PI.log(), impossible], 1)), [1.5 * LN2], 1e-12)
    # Laws: a shift of all logits is nothing; equal logits give ln V, the most there is; it is minus
    # the mean log-prob.
    logits = draw(0, 2, 7) * 3
    same(f(logits + 50), f(logits), 1e-9)
    same(f(torch.zeros(1, 8)), [math.log(8)])
    assert (f(logits) < math.log(7)).all()
    logp = logits.log_softmax(-1)
    same(f(logits), -(logp.exp() * logp).sum(-1), 1e-12)


def check_sequence_sum(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    same(f(x, mask), [1 + 2, 5 + 6])
    # Law: what counts and what does not add up to everything; what does not count may be anything.
    same(f(x, mask) + f(x, 1 - mask), x.sum(-1))
    same(f(x.masked_fill(mask == 0, math.nan), mask), [3, 11])


def check_sequence_mean(f: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.tensor([[1.0, 2.0, math.nan], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    # (1 + 2) / 2; 6; nothing counts.
    same(f(x, mask), [1.5, 6.0, 0.0])
    # Laws: of equal numbers it is that number, whatever counts; times the count it is the sum.
    same(f(torch.full((3, 3), 2.5), mask), [2.5, 2.5, 0.0])
    y = draw(4, 3, 3)
    same(f(y, mask) * mask.sum(-1), sequence_sum(y, mask), 1e-12)
    # Whatever is not 0 counts, once.
    same(f(y, 3 * mask), f(y, mask.bool()), 1e-12)


def check_reduce_mean(f: Callable[[Tensor, Any], Tensor]) -> None:
    same(f(torch.tensor([1.0, 2.0, 6.0]), 4), 9 / 4)
    # Law: the shares of micro-batches add up, whatever their sizes.
    x = draw(3, 10)
    same(f(x[:7], 10) + f(x[7:], torch.tensor(10.0)), x.mean(), 1e-12)
    same(f(x, 0.5), 2 * x.sum(), 1e-12)


CHECKS = {
    token_logp: check_token_logp,
    k1: check_k1,
    k2: check_k2,
    k3: check_k3,
    entropy: check_entropy,
    sequence_sum: check_sequence_sum,
    sequence_mean: check_sequence_mean,
    reduce_mean: check_reduce_mean,
}
MUTANTS: dict[Any, dict[str, Any]] = {
    token_logp: {
        "negated": lambda x, t: -token_logp(x, t),
        "not normalised": lambda x, t: x.gather(-1, t[..., None])[..., 0],
        "target shifted": lambda x, t: token_logp(x, t.roll(1, -1)),
        "base 2": lambda x, t: token_logp(x, t) / LN2,
    },
    k1: {
        "negated": lambda p, q: -k1(p, q),
        "swapped": lambda p, q: k1(q, p),
        "absolute": lambda p, q: k1(p, q).abs(),
    },
    k2: {
        "negated": lambda p, q: -k2(p, q),
        "not halved": lambda p, q: 2 * k2(p, q),
        "k3 instead": k3,
        "k1 instead": k1,
    },
    entropy: {
        "negated": lambda z: -entropy(z),
        "not normalised": lambda z: -(z.softmax(-1) * z).sum(-1),
        "base 2": lambda z: entropy(z) / LN2,
        "impossible tokens": lambda z: -(z.softmax(-1) * z.log_softmax(-1)).sum(-1),
    },
    k3: {
        "negated": lambda p, q: -k3(p, q),
        "swapped": lambda p, q: k3(q, p),
        "k2 instead": lambda p, q: k1(p, q) ** 2 / 2,
        "k1 instead": k1,
        "no minus one": lambda p, q: k3(p, q) + 1,
    },
    sequence_sum: {
        "mask dropped": lambda x, m: x.sum(-1),
        "mask turned over": lambda x, m: sequence_sum(x, 1 - m),
        "mask multiplied": lambda x, m: (x * m).sum(-1),
        "mean": lambda x, m: sequence_sum(x, m) / m.sum(-1),
        "negated": lambda x, m: -sequence_sum(x, m),
    },
    sequence_mean: {
        "mask dropped": lambda x, m: x.mean(-1),
        "sum": sequence_sum,
        "over the width": lambda x, m: sequence_sum(x, m) / m.shape[1],
        "mask turned over": lambda x, m: sequence_mean(x, 1 - m),
        "nothing over nothing": lambda x, m: sequence_sum(x, m) / m.sum(-1),
    },
    reduce_mean: {
        "own denominator": lambda x, d: x.mean(),
        "multiplied": lambda x, d: x.sum() * d,
        "sum": lambda x, d: x.sum(),
        "negated": lambda x, d: -reduce_mean(x, d),
    },
}


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_golden_values_and_laws_hold_and_bite(function: Any) -> None:
    CHECKS[function](function)
    reference.bites(CHECKS[function], MUTANTS[function])


# --- gradient, reference, invariance, errors ------------------------------------------------------


def test_gradients() -> None:
    target = torch.tensor([[1, 4], [0, 3]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    logits = draw(0, 2, 2, 5).requires_grad_()
    p, q = (draw(s, 2, 3).requires_grad_() for s in (1, 2))
    check = torch.autograd.gradcheck
    assert check(lambda x: token_logp(x, target), logits)
    assert check(k1, (p, q))
    assert check(k2, (p, q))
    assert check(k3, (p, q))
    assert check(entropy, logits)
    assert check(lambda x: sequence_sum(x, mask), p)
    assert check(lambda x: sequence_mean(x, mask), p)
    assert check(lambda x: reduce_mean(x, 3.0), p)
    # Signs: a higher logit raises its own token's log-prob and lowers every other's; k3 pulls pi
    # towards ref from both sides; a masked token gets nothing.
    (slope,) = torch.autograd.grad(token_logp(logits, target).sum(), logits)
    own = torch.nn.functional.one_hot(target, 5).bool()
    assert (slope[own] > 0).all()
    assert (slope[~own] < 0).all()
    (pull,) = torch.autograd.grad(k3(p, q).sum(), p)
    assert (pull.sign() == (p - q).sign()).all()
    for f, slopes in ((k1, torch.ones(2, 3)), (k2, (p - q).detach())):
        (pull,) = torch.autograd.grad(f(p, q).sum(), p)
        same(pull, slopes, 1e-12)
    (share,) = torch.autograd.grad(reduce_mean(p, 3.0), p)
    same(share, torch.ones(2, 3) / 3)
    # A raised logit sharpens where it is the highest one, and levels where it is the lowest.
    (spread,) = torch.autograd.grad(entropy(logits).sum(), logits)
    assert (spread.gather(-1, logits.argmax(-1, keepdim=True)) < 0).all()
    assert (spread.gather(-1, logits.argmin(-1, keepdim=True)) > 0).all()
    (counted,) = torch.autograd.grad(sequence_sum(p, mask).sum(), p)
    assert torch.equal(counted, mask.double())
    (shared,) = torch.autograd.grad(sequence_mean(p, mask).sum(), p)
    assert torch.equal(shared, mask.double() / 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_to_the_loops(seed: int) -> None:
    logits, p, q = draw(seed, 3, 4, 6) * 5, draw(seed + 10, 3, 4), draw(seed + 20, 3, 4)
    target = torch.from_numpy(generator(seed, "target").integers(6, size=(3, 4)))
    mask = torch.from_numpy(generator(seed, "mask").integers(2, size=(3, 4)))
    same(token_logp(logits, target), reference.token_logp(logits.numpy(), target.numpy()), 1e-12)
    same(k1(p, q), reference.k1(p.numpy(), q.numpy()), 1e-12)
    same(k2(p, q), reference.k1(p.numpy(), q.numpy()) ** 2 / 2, 1e-12)
    same(k3(p, q), reference.k3(p.numpy(), q.numpy()), 1e-12)
    same(entropy(logits), reference.entropy(logits.numpy()), 1e-12)
    same(sequence_sum(p, mask), reference.sequence_sum(p.numpy(), mask.numpy()), 1e-12)
    counted = np.maximum(mask.numpy().sum(-1), 1)
    wanted = reference.sequence_sum(p.numpy(), mask.numpy()) / counted
    same(sequence_mean(p, mask), wanted, 1e-12)
    same(reduce_mean(p, 7.0), reference.reduce_mean(p.numpy(), 7.0), 1e-12)


def test_padding_and_order_change_nothing() -> None:
    x, mask = draw(0, 4, 5), draw(1, 4, 5) > 0
    order = torch.tensor([2, 0, 3, 1])
    for f in (sequence_sum, sequence_mean):
        whole = f(x, mask)
        for side in ((3, 0), (0, 3)):
            wide = torch.nn.functional.pad(x, side, value=99.0)
            narrow = torch.nn.functional.pad(mask, side, value=False)
            assert torch.equal(f(wide, narrow), whole)
        assert torch.equal(f(x[order], mask[order]), whole[order])
    logits, target = draw(2, 4, 5, 6), torch.arange(20).view(4, 5) % 6
    same(token_logp(logits[order], target[order]), token_logp(logits, target)[order], 1e-12)
    assert torch.equal(entropy(logits[order]), entropy(logits)[order])
    y = draw(3, 4, 5)
    for f in (k1, k2, k3):
        assert torch.equal(f(x[order], y[order]), f(x, y)[order])
        assert torch.equal(torch.cat([f(x[:1], y[:1]), f(x[1:], y[1:])]), f(x, y))
    same(reduce_mean(x[order], 20.0), reduce_mean(x, 20.0), 1e-12)


def test_half_precision_logits_are_summed_in_single() -> None:
    logits = draw(0, 1, 3, 1000).bfloat16()
    target = torch.tensor([[1, 2, 3]])
    got = token_logp(logits, target)
    assert got.dtype == torch.float32
    same(got, reference.token_logp(logits.double().numpy(), target.numpy()), 1e-5)
    got = entropy(logits)
    assert got.dtype == torch.float32
    same(got, reference.entropy(logits.double().numpy()), 1e-5)


def test_far_logits_stay_finite() -> None:
    same(token_logp(torch.tensor([[1e4, -1e4]]), torch.tensor([1])), [-2e4], 1e-2)
    # A tiny ratio keeps its digits: exp(-l) - 1 + l is l^2 / 2 - ..., 5e-17 for l = 1e-8.
    tiny = k3(torch.tensor([[1e-8]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    assert 0 <= float(tiny) < 1e-15


def test_wrong_shapes_and_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(2, 3, 5\) need targets of shape \(2, 3\), got"):
        token_logp(torch.zeros(2, 3, 5), torch.zeros(2, 1, dtype=torch.long))
    for f in (k1, k2, k3, sequence_sum, sequence_mean):
        with pytest.raises(ValueError, match="must have one shape"):
            f(torch.zeros(2, 3), torch.zeros(1, 3))
    for scalar in (torch.tensor(1.0), torch.zeros(3, 0)):
        for f in (entropy, lambda x: token_logp(x, torch.tensor(0))):
            with pytest.raises(ValueError, match="logits of a vocabulary are needed, got shape"):
                f(scalar)
    for denominator in (0.0, -1.0, math.nan, torch.tensor(0.0)):
        with pytest.raises(ValueError, match="the denominator must be positive"):
            reduce_mean(torch.ones(3), denominator)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "token_logp entropy": {"law": test_half_precision_logits_are_summed_in_single},
    "token_logp entropy k1 k2 k3 sequence_sum sequence_mean reduce_mean": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
        "invariance": test_padding_and_order_change_nothing,
        "loop": test_equal_to_the_loops,
        "refusal": test_wrong_shapes_and_empty_batches_are_refused,
    },
}
