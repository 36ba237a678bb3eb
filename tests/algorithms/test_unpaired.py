"""Duties of `unpaired`: golden values, laws, gradients, invariance, the paper's loop, bites."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference, reference_unpaired
from tests.algorithms.test_preference import draw, same
from truing.algorithms import kto, kto_baseline

GOOD = torch.tensor([True, True, False, False])
RHO = torch.tensor([3.0, -1.0, 3.0, -1.0])
ZERO, ONE = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
WEIGHTS: dict[str, float] = {"desirable_weight": 2.0, "undesirable_weight": 3.0}
A = draw(0, 9)
UP = torch.tensor([True, False, True] * 3)


def check_kto(f: Any) -> None:
    # beta (rho - z0) = 0.5 (3 - 1) = 1 and 0.5 (-1 - 1) = -1; sigmoid(1) = 0.73105858.
    # 2 (1 - 0.73105858), 2 (0.73105858), 3 (0.73105858), 3 (1 - 0.73105858).
    wanted = [0.53788284, 1.46211716, 2.19317574, 0.80682426]
    same(f(RHO, GOOD, ONE.float(), beta=0.5, **WEIGHTS), wanted)
    # Laws: half the weight where rho is z0; the two labels of one response add up to 1 with equal
    # weights; only rho - z0 counts; what mirrors a response is the other label.
    same(f(ONE.expand(9), UP, ONE, beta=0.7, **WEIGHTS), torch.where(UP, 1.0, 1.5), 1e-12)
    one = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    same(f(A, UP, ONE, beta=0.7, **one) + f(A, ~UP, ONE, beta=0.7, **one), [1.0] * 9, 1e-12)
    same(f(A + 1, UP, ONE, beta=0.7, **WEIGHTS), f(A, UP, ZERO, beta=0.7, **WEIGHTS), 1e-12)
    same(f(A, UP, ZERO, beta=0.7, **one), f(-A, ~UP, ZERO, beta=0.7, **one), 1e-12)
    # Beta only scales, and no gradient runs into z0.
    same(f(A, UP, ZERO, beta=0.7, **one), f(0.7 * A, UP, ZERO, beta=1.0, **one), 1e-12)
    point = ONE.clone().requires_grad_()
    f(A.clone().requires_grad_(), UP, point, beta=0.7, **one).sum().backward()
    assert point.grad is None


def leaky(r: Tensor, y: Tensor, z: Tensor, *, beta: float, **w: float) -> Tensor:
    gain = beta * (r - z)
    bad = w["undesirable_weight"] * torch.sigmoid(gain)
    return torch.where(y, w["desirable_weight"] * torch.sigmoid(-gain), bad)


def exchanged(w: dict[str, float]) -> dict[str, float]:
    one, other = w.values()
    return dict(zip(w, (other, one), strict=True))


MUTANTS: dict[str, Any] = {
    "negated": lambda r, y, z, **k: -kto(r, y, z, **k),
    "labels exchanged": lambda r, y, z, **k: kto(r, ~y, z, **k),
    "weights exchanged": lambda r, y, z, *, beta, **w: kto(r, y, z, beta=beta, **exchanged(w)),
    "weights dropped": lambda r, y, z, *, beta, **w: kto(r, y, z, beta=beta),
    "baseline dropped": lambda r, y, z, **k: kto(r, y, 0 * z, **k),
    "baseline added": lambda r, y, z, **k: kto(r + 2 * z.detach(), y, z, **k),
    "baseline outside beta": lambda r, y, z, *, beta, **w: kto(beta * r, y, z, beta=1.0, **w),
    "beta dropped": lambda r, y, z, *, beta, **w: kto(r, y, z, beta=1.0, **w),
    "gradient into the baseline": leaky,
    "value, not loss": lambda r, y, z, **k: 1 - kto(r, y, z, **k),
    "log sigmoid": lambda r, y, z, **k: -(1 - kto(r, y, z, **k) / 4).log(),
    "all desirable": lambda r, y, z, **k: kto(r, y | True, z, **k),
}


def test_golden_values_and_laws_hold_and_bite() -> None:
    check_kto(kto)
    reference.bites(check_kto, MUTANTS)


def check_baseline(f: Any) -> None:
    # (1 + 3 - 1) / 6; below 0 it is 0.
    same(f(torch.tensor([1.0, 3.0, -1.0]), 6), 0.5)
    same(f(torch.tensor([1.0, -3.0, -1.0]), 3), 0.0)
    # Laws: no distance, no baseline; a sum that is taken before is the same; parts add up where
    # each alone would be clamped.
    same(f(0 * A, 9), 0.0, 1e-12)
    same(f(A.abs().sum(), 9), A.abs().mean(), 1e-12)
    both = torch.tensor([5.0, -1.0])
    same(f(both.sum(), 2), 2.0, 1e-12)
    rho = A.clone().requires_grad_()
    assert not f(rho + 3, 9).requires_grad


def test_the_baseline_golden_values_and_laws_hold_and_bite() -> None:
    check_baseline(kto_baseline)
    mutants: dict[str, Any] = {
        "negated": lambda r, n: (-r.detach()).sum().clamp(min=0) / n,
        "not clamped": lambda r, n: r.detach().sum() / n,
        "clamped first": lambda r, n: r.detach().clamp(min=0).sum() / n,
        "own mean": lambda r, n: r.detach().mean().clamp(min=0),
        "sum": lambda r, n: kto_baseline(r, 1),
        "absolute": lambda r, n: r.detach().sum().abs() / n,
        "with gradient": lambda r, n: (r.sum() / n).clamp(min=0),
    }
    reference.bites(check_baseline, mutants)


def test_gradients() -> None:
    rho = draw(2, 6).requires_grad_()
    up = torch.tensor([True, False] * 3)
    assert torch.autograd.gradcheck(lambda r: kto(r, up, ONE, beta=0.3, **WEIGHTS), (rho,))
    (slope,) = torch.autograd.grad(kto(rho, up, ONE, beta=0.3).sum(), rho)
    assert ((slope < 0) == up).all()
    # What is far from z0, either way, is left alone.
    far = torch.tensor([200.0, -200.0, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kto(far, up[:3] | True, ONE, beta=0.3).sum(), far)
    assert slope.abs().argmax() == 2
    assert (slope[:2].abs() < 1e-20).all()


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loop_from_the_paper(seed: int) -> None:
    # The first stays below its reference on average, where the baseline is 0; the others are above.
    policy, frozen = draw(2 * seed, 12) + 0.2 * seed, draw(2 * seed + 1, 12)
    up = draw(seed + 50, 12) > 0
    z0 = reference_unpaired.kto_baseline(policy.numpy(), frozen.numpy())
    assert (z0 > 0) == (seed > 0)
    found = kto_baseline(policy - frozen, 12)
    assert float(found) == pytest.approx(z0, abs=1e-12)
    weights = torch.tensor([1.5, 0.5]).double().numpy()
    wanted = reference_unpaired.kto(policy.numpy(), frozen.numpy(), up.tolist(), z0, 0.3, weights)
    got = kto(policy - frozen, up, found, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    same(got, wanted, 1e-12)


def test_order_and_parts_change_nothing_and_nan_stays() -> None:
    order = torch.tensor([3, 1, 4, 0, 2])
    rho, up = A[:5], UP[:5]
    whole = kto(rho, up, ONE, beta=0.3)
    assert torch.equal(kto(rho[order], up[order], ONE, beta=0.3), whole[order])
    parts = [kto(rho[part], up[part], ONE, beta=0.3) for part in (slice(2), slice(2, 5))]
    assert torch.equal(torch.cat(parts), whole)
    same(kto_baseline(rho[order] + 3, 5), kto_baseline(rho + 3, 5), 1e-12)
    hurt = kto(torch.tensor([math.nan, 1.0]), up[:2], ZERO, beta=0.3)
    assert hurt.isnan().tolist() == [True, False]
    assert kto_baseline(torch.tensor([math.nan, 1.0]), 2).isnan()
    assert kto(torch.ones(2), up[:2], torch.tensor(math.nan), beta=0.3).isnan().all()


def test_what_is_refused() -> None:
    two, up = torch.zeros(2), torch.tensor([True, False])
    with pytest.raises(ValueError, match="must have one shape"):
        kto(two, up[:1], ZERO, beta=0.1)
    with pytest.raises(ValueError, match=r"labels of torch.int64 came: true or false"):
        kto(two, up.long(), ZERO, beta=0.1)
    with pytest.raises(ValueError, match=r"a baseline -1.0 came: one number from 0 upwards"):
        kto(two, up, -ONE, beta=0.1)
    with pytest.raises(ValueError, match=r"a baseline of shape \(2,\) came"):
        kto(two, up, two, beta=0.1)
    for name in ("beta", *WEIGHTS):
        for wrong in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be positive, got {wrong}"):
                kto(two, up, ZERO, **({"beta": 0.1} | {name: wrong}))
    with pytest.raises(ValueError, match="denominator must be positive"):
        kto_baseline(two, 0)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "kto": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
    },
    "kto_baseline": {
        "golden law bite": test_the_baseline_golden_values_and_laws_hold_and_bite,
        "gradient": "a constant beside the loss",
    },
    "kto kto_baseline": {
        "invariance": test_order_and_parts_change_nothing_and_nan_stays,
        "loop": test_equal_to_the_loop_from_the_paper,
        "refusal": test_what_is_refused,
    },
}
