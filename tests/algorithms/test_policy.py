"""Duties of `truing.algorithms.policy`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from tests.algorithms import reference_group as groups
from truing.algorithms import cispo, explained_variance, ppo_clip, value_clip
from truing.algorithms.policy import Surrogate, ValueLoss
from truing.keys import generator


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed, "test").normal(size=shape))


def same(got: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=0)


def check_ppo_clip(f: Any) -> None:
    old = torch.full((4,), -1.0)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0])
    got = f(old + ratio.log(), old, advantage, clip=0.2)
    # min(3, 1.2 * 2) = 2.4; min(-3, -2.4) = -3; min(1, 0.8 * 2) = 1; min(-1, -1.6) = -1.6.
    same(got.loss, [-2.4, 3.0, -1.0, 1.6])
    same(got.ratio, ratio)
    # The clip holds where the policy already went the right way, far enough.
    assert got.clipped.tolist() == [True, False, False, True]
    # A clip of its own above: min(3, 1.3 * 2) = 2.6; below all is as it was.
    high = f(old + ratio.log(), old, advantage, clip=0.2, clip_high=0.3)
    same(high.loss, [-2.6, 3.0, -1.0, 1.6])
    # Laws: at ratio 1 the loss is -A and nothing is clipped; a clip of infinity is plain
    # importance weighting; the loss is never below that of the free ratio.
    logp, a, old = draw(0, 9), draw(1, 9), draw(2, 9)
    start = f(logp, logp, a, clip=0.2)
    same(start.loss, -a, 1e-12)
    assert not start.clipped.any()
    same(f(logp, old, a, clip=math.inf).loss, -(logp - old).exp() * a, 1e-12)
    assert (f(logp, old, a, clip=0.2).loss >= -(logp - old).exp() * a).all()


def check_cispo(f: Any) -> None:
    old = torch.full((4,), -1.0)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0])
    logp = (old + ratio.log()).requires_grad_()
    got = f(logp, old, advantage, clip=0.3, clip_high=0.2)
    # Weights 1.2, 1.2, 0.7, 0.7; log-probs -1 + ln 1.5 = -0.594535, -1 + ln 0.5 = -1.693147:
    # -1.2 * 2 * -0.594535; its negative; -0.7 * 2 * -1.693147; its negative.
    same(got.loss.detach(), [1.426884, -1.426884, 2.370406, -2.370406])
    same(got.ratio, ratio)
    assert not got.ratio.requires_grad
    assert got.clipped.all()
    # The clipped still learn: each log-prob's slope is -weight A.
    (slope,) = torch.autograd.grad(got.loss.sum(), logp)
    same(slope, [-2.4, 2.4, -1.4, 1.4])
    # A clip of 1 is no lower bound; without another one the upper is the lower.
    assert f(logp, old, advantage, clip=1.0).clipped.tolist() == [False] * 4
    same(f(logp, old, advantage, clip=0.2).loss[1], -1.426884)
    # Laws: at ratio 1 the slope is PPO's, -A; without clips it is that of importance weighting.
    x, a, o = draw(0, 9).requires_grad_(), draw(1, 9), draw(2, 9)
    (slope,) = torch.autograd.grad(f(x, x.detach(), a, clip=0.2).loss.sum(), x)
    same(slope, -a, 1e-12)
    (slope,) = torch.autograd.grad(f(x, o, a, clip=math.inf).loss.sum(), x)
    same(slope, (-(x - o).exp() * a).detach(), 1e-12)


def check_value_clip(f: Any) -> None:
    value, old = torch.tensor([1.0, 1.0, 0.1]), torch.zeros(3)
    target = torch.tensor([2.0, -2.0, 2.0])
    got = f(value, old, target, clip=0.5)
    # near = 0.5, 0.5, 0.1: max(1, 2.25) / 2; max(9, 6.25) / 2; max(3.61, 3.61) / 2.
    same(got.loss, [1.125, 4.5, 1.805])
    assert got.clipped.tolist() == [True, False, False]
    # Downwards it clips too; where both lie as far from the return, and where what moved by just
    # the clip comes back off by a rounding, it does not.
    assert f(-value, old, -target, clip=0.5).clipped.tolist() == [True, False, False]
    assert not f(value[:1], old[:1], torch.tensor([0.75]), clip=0.5).clipped.any()
    before, after = torch.tensor([0.6]), torch.tensor([2.8])
    just, ten = float(after - before), torch.tensor([10.0])
    assert before + just != after
    assert not f(after, before, ten, clip=just).clipped.any()
    v, o, r = draw(0, 9), draw(1, 9), draw(2, 9)
    # Laws: without a clip half the squared error; the clip only ever adds.
    same(f(v, o, r, clip=math.inf).loss, (v - r) ** 2 / 2, 1e-12)
    assert (f(v, o, r, clip=0.1).loss >= (v - r) ** 2 / 2 - 1e-12).all()
    same(f(v, v, r, clip=0.1).loss, (v - r) ** 2 / 2, 1e-12)


def check_explained_variance(f: Any) -> None:
    value, target = torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[1.0, 5.0, 0.0]])
    mask = torch.tensor([[1, 1, 0]])
    # Var R = 4; R - V = (0, 3), variance 2.25: 1 - 2.25 / 4.
    same(f(value, target, mask), 0.4375)
    r, on = draw(0, 3, 4), torch.ones(3, 4)
    same(f(r, r, on), 1.0)
    same(f(r + 5, r, on), 1.0, 1e-9)
    same(f(0 * r, r, on), 0.0)
    assert f(-r, r, on) < -2
    assert f(r, 0 * r, on).isnan()


CHECKS = {
    ppo_clip: check_ppo_clip,
    cispo: check_cispo,
    value_clip: check_value_clip,
    explained_variance: check_explained_variance,
}
MUTANTS: dict[Any, dict[str, Any]] = {
    ppo_clip: {
        "negated": lambda n, o, a, **c: ppo_clip(n, o, -a, **c),
        "swapped": lambda n, o, a, **c: ppo_clip(o, n, a, **c),
        "clip dropped": lambda n, o, a, **c: ppo_clip(n, o, a, clip=math.inf),
        "clip alone": lambda n, o, a, **c: Surrogate(
            -(n - o).exp().clamp(1 - c["clip"], 1 + c.get("clip_high", c["clip"])) * a,
            *ppo_clip(n, o, a, **c)[1:],
        ),
        "best of both": lambda n, o, a, **c: Surrogate(
            -ppo_clip(n, o, -a, **c).loss, *ppo_clip(n, o, a, **c)[1:]
        ),
        "clip doubled": lambda n, o, a, clip, **c: ppo_clip(n, o, a, clip=2 * clip, **c),
        "high dropped": lambda n, o, a, clip, **c: ppo_clip(n, o, a, clip=clip),
        "high for both": lambda n, o, a, clip, clip_high=None: ppo_clip(
            n, o, a, clip=clip_high or clip
        ),
    },
    cispo: {
        "negated": lambda n, o, a, **c: cispo(n, o, -a, **c),
        "swapped": lambda n, o, a, **c: cispo(o, n, a, **c),
        "ppo instead": ppo_clip,
        "high dropped": lambda n, o, a, clip, **c: cispo(n, o, a, clip=clip),
        "no lower bound": lambda n, o, a, clip, clip_high=None: cispo(
            n, o, a, clip=1.0, clip_high=clip_high or clip
        ),
        "gradient through the weight": lambda n, o, a, clip, clip_high=None: Surrogate(
            -(n - o).exp().clamp(1 - clip, 1 + (clip_high or clip)) * a * n,
            *cispo(n, o, a, clip=clip, clip_high=clip_high)[1:],
        ),
    },
    value_clip: {
        "halved again": lambda v, o, r, clip: ValueLoss(
            value_clip(v, o, r, clip=clip).loss / 2, value_clip(v, o, r, clip=clip).clipped
        ),
        "clip dropped": lambda v, o, r, clip: value_clip(v, o, r, clip=math.inf),
        "around the return": lambda v, o, r, clip: value_clip(v, r, r, clip=clip),
        "best of both": lambda v, o, r, clip: ValueLoss(
            torch.minimum((v - r) ** 2, (o + (v - o).clamp(-clip, clip) - r) ** 2) / 2,
            value_clip(v, o, r, clip=clip).clipped,
        ),
    },
    explained_variance: {
        "swapped": lambda v, r, m: explained_variance(r, v, m),
        "mask dropped": lambda v, r, m: explained_variance(v, r, torch.ones_like(m)),
        "mean error": lambda v, r, m: 1 - ((r - v) ** 2)[m.bool()].mean() / r[m.bool()].var(),
    },
}


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_golden_values_and_laws_hold_and_bite(function: Any) -> None:
    CHECKS[function](function)
    reference.bites(CHECKS[function], MUTANTS[function])


def test_gradients() -> None:
    logp, value = draw(0, 6).requires_grad_(), draw(1, 6).requires_grad_()
    old, a, target = draw(2, 6), draw(3, 6), draw(4, 6)
    check = torch.autograd.gradcheck
    assert check(lambda x: ppo_clip(x, old, a, clip=0.2).loss, logp)
    assert check(lambda x: ppo_clip(x, old, a, clip=0.2, clip_high=0.4).loss, logp)
    assert check(lambda x: value_clip(x, old, target, clip=0.2).loss, value)
    # Cispo holds the weight fixed: what it is a derivative of is there where all are at a bound.
    shift = torch.tensor([1.0, -1.0] * 3)
    assert check(lambda x: cispo(x, logp.detach() + shift, a, clip=0.2, clip_high=0.4).loss, logp)
    (slope,) = torch.autograd.grad(cispo(logp, old, a, clip=0.2, clip_high=0.4).loss.sum(), logp)
    same(slope, -(logp.detach() - old).exp().clamp(0.8, 1.4) * a, 1e-12)
    assert torch.equal(slope.sign(), -a.sign())
    # At ratio 1 the slope is REINFORCE's, -A; where the clip holds there is none.
    (start,) = torch.autograd.grad(ppo_clip(logp, logp.detach(), a, clip=0.2).loss.sum(), logp)
    same(start, -a, 1e-12)
    far = ppo_clip(logp, logp.detach() - 1, a, clip=0.2)
    (slope,) = torch.autograd.grad(far.loss.sum(), logp)
    assert torch.equal(far.clipped, a > 0)
    assert torch.equal(slope == 0, a > 0)
    near = value_clip(value, value.detach(), target, clip=0.2)
    (pull,) = torch.autograd.grad(near.loss.sum(), value)
    same(pull, (value - target).detach(), 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    x, y, z = (draw(10 * seed + i, 5, 4) for i in range(3))
    wanted = reference.ppo_clip(x.numpy(), y.numpy(), z.numpy(), 0.2)
    same(ppo_clip(x, y, z, clip=0.2).loss, wanted, 1e-12)
    wanted = groups.ppo_clip(x.numpy(), y.numpy(), z.numpy(), 0.2, 0.28)
    same(ppo_clip(x, y, z, clip=0.2, clip_high=0.28).loss, wanted, 1e-12)
    wanted = groups.cispo(x.numpy(), y.numpy(), z.numpy(), 0.2, 0.28)
    same(cispo(x, y, z, clip=0.2, clip_high=0.28).loss, wanted, 1e-12)
    wanted = reference.value_clip(x.numpy(), y.numpy(), z.numpy(), 0.3)
    same(value_clip(x, y, z, clip=0.3).loss, wanted, 1e-12)


def test_the_share_of_a_critic() -> None:
    """`explained_variance` alone: it is measured and never trained on, but it is a function."""
    v, r, mask = draw(0, 3, 4).requires_grad_(), draw(1, 3, 4).requires_grad_(), draw(2, 3, 4) > -1
    assert torch.autograd.gradcheck(lambda v, r: explained_variance(v, r, mask), (v, r))
    (slope,) = torch.autograd.grad(explained_variance(0 * r.detach() + v, r.detach(), mask), v)
    # Up where a value lies below its return, but for what all values have in common.
    gap = (r - v).detach()[mask]
    same(slope[mask].sign(), (gap - gap.mean()).sign())
    assert not slope[~mask].any()
    v, r = v.detach(), r.detach()
    for m in (mask, mask.int()):
        wanted = reference.explained_variance(v.numpy(), r.numpy(), m.numpy())
        same(explained_variance(v, r, m), wanted, 1e-12)
    order = torch.tensor([2, 0, 1])
    got = explained_variance(v[order].flip(-1), r[order].flip(-1), mask[order].flip(-1))
    same(got, wanted, 1e-12)
    with pytest.raises(ValueError, match="must have one shape"):
        explained_variance(v, r, mask[:1])
    with pytest.raises(ValueError, match="no return to explain: every position is masked"):
        explained_variance(v, r, mask & False)


def test_order_changes_nothing_and_shapes_are_checked() -> None:
    x, y, z, order = draw(0, 5), draw(1, 5), draw(2, 5), torch.tensor([3, 1, 4, 0, 2])
    for f in (ppo_clip, cispo, value_clip):
        assert torch.equal(
            f(x[order], y[order], z[order], clip=0.2).loss, f(x, y, z, clip=0.2).loss[order]
        )
        with pytest.raises(ValueError, match="must have one shape"):
            f(x, y, z[:1], clip=0.2)
        for clip in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="the clip must be positive"):
                f(x, y, z, clip=clip)
    for f in (ppo_clip, cispo):
        for clip, high in ((0.2, 0.0), (0.0, 0.2), (0.2, math.nan)):
            with pytest.raises(ValueError, match=f"must be positive, got {clip} and {high}"):
                f(x, y, z, clip=clip, clip_high=high)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "ppo_clip cispo value_clip explained_variance": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
    },
    "explained_variance": {"gradient invariance loop refusal": test_the_share_of_a_critic},
    "ppo_clip cispo value_clip": {
        "gradient": test_gradients,
        "invariance": test_order_changes_nothing_and_shapes_are_checked,
        "loop": test_equal_to_the_loops,
        "refusal": test_order_changes_nothing_and_shapes_are_checked,
    },
}
