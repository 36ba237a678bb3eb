"""Duties of `truing.algorithms.ensembles`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch

from tests.algorithms import reference
from tests.algorithms.test_comparison import draw, same
from truing.algorithms import ensemble_mean, ensemble_std, uncertainty_weighted, worst_case

# Three members' scores of two responses: means 2 and 1; population variances (1 + 0 + 1) / 3 and
# (4 + 16 + 4) / 3.
SCORES = torch.tensor([[1.0, -1.0], [2.0, 5.0], [3.0, -1.0]])


def check_mean(f: Any) -> None:
    same(f(SCORES), [2.0, 1.0])
    same(f(SCORES[:2]), [(1 + 2) / 2, (-1 + 5) / 2])  # two members are the fewest
    a, b = draw(0, 4, 9), draw(1, 9)
    same(f(a + b), f(a) + b, 1e-12)
    same(f(3 * a), 3 * f(a), 1e-12)
    same(f(torch.cat([a, a])), f(a), 1e-12)


def check_worst_case(f: Any) -> None:
    same(f(SCORES), [1.0, -1.0])
    # Laws: what is added to all is added; a scale is one; never above the mean; the same member
    # again changes nothing.
    a, b = draw(0, 4, 9), draw(1, 9)
    same(f(a + b), f(a) + b, 1e-12)
    same(f(3 * a), 3 * f(a), 1e-12)
    assert (f(a) < ensemble_mean(a)).all()
    same(f(torch.cat([a, a[:1]])), f(a), 1e-12)


def check_uncertainty_weighted(f: Any) -> None:
    same(f(SCORES, coef=0.5), [2 - 0.5 * 2 / 3, 1 - 0.5 * 24 / 3])
    # Laws: without a weight it is the mean; what is added to all is added; at twice the scale half
    # the weight is the same; all members twice are no news; where they agree nothing is lost.
    a, b = draw(0, 4, 9), draw(1, 9)
    same(f(a, coef=0.0), ensemble_mean(a), 1e-12)
    same(f(a + b, coef=0.3), f(a, coef=0.3) + b, 1e-12)
    same(f(2 * a, coef=0.15), 2 * f(a, coef=0.3), 1e-12)
    same(f(torch.cat([a, a]), coef=0.3), f(a, coef=0.3), 1e-12)
    same(f(b.expand(4, 9), coef=9.0), b, 1e-12)


def check_ensemble_std(f: Any) -> None:
    same(f(SCORES), [math.sqrt(2 / 3), math.sqrt(8)])
    # Laws: its square is what is weighted; a shift of all is nothing; no members are apart from
    # themselves.
    a, b = draw(0, 4, 9), draw(1, 9)
    same(f(a) ** 2, ensemble_mean(a) - uncertainty_weighted(a, coef=1.0), 1e-12)
    same(f(a + b), f(a), 1e-12)
    same(f(torch.cat([a, a])), f(a), 1e-12)
    same(f(b.expand(4, 9)), torch.zeros(9), 1e-12)


CHECKS = {
    ensemble_mean: check_mean,
    worst_case: check_worst_case,
    uncertainty_weighted: check_uncertainty_weighted,
    ensemble_std: check_ensemble_std,
}
MUTANTS: dict[Any, dict[str, Any]] = {
    ensemble_mean: {
        "negated": lambda s: -s.mean(0),
        "sum": lambda s: s.sum(0),
        "median": lambda s: s.median(0).values,
        "first member": lambda s: s[0],
        "over responses": lambda s: s.mean(),
    },
    worst_case: {
        "best case": lambda s: s.amax(0),
        "negated": lambda s: -worst_case(s),
        "mean": lambda s: s.mean(0),
        "last member": lambda s: s[-1],
        "worst member": lambda s: s[s.mean(1).argmin()],
    },
    uncertainty_weighted: {
        "negated": lambda s, coef: -uncertainty_weighted(s, coef=coef),
        "sign turned": lambda s, coef: s.mean(0) + coef * s.var(0, unbiased=False),
        "deviation": lambda s, coef: s.mean(0) - coef * s.std(0, unbiased=False),
        "sample variance": lambda s, coef: s.mean(0) - coef * s.var(0),
        "weight dropped": lambda s, coef: s.mean(0) - s.var(0, unbiased=False),
        "variance dropped": lambda s, coef: s.mean(0),
        "about zero": lambda s, coef: s.mean(0) - coef * s.square().mean(0),
    },
    ensemble_std: {
        "negated": lambda s: -ensemble_std(s),
        "sample": lambda s: s.std(0),
        "variance": lambda s: s.var(0, unbiased=False),
        "range": lambda s: s.amax(0) - s.amin(0),
        "over responses": lambda s: s.std(1, unbiased=False).mean(),
    },
}


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_golden_values_and_laws_hold_and_bite(function: Any) -> None:
    CHECKS[function](function)
    reference.bites(CHECKS[function], MUTANTS[function])


def test_gradients() -> None:
    s = draw(2, 4, 6).requires_grad_()
    for function in (
        ensemble_mean,
        worst_case,
        ensemble_std,
        lambda x: uncertainty_weighted(x, coef=0.3),
    ):
        assert torch.autograd.gradcheck(function, (s,))
    (slope,) = torch.autograd.grad(worst_case(s).sum(), s)
    # The least counts alone.
    assert torch.equal(slope.argmax(0), s.argmin(0))
    same(slope.sum(0), torch.ones(6), 1e-12)
    (slope,) = torch.autograd.grad(uncertainty_weighted(s, coef=0.3).sum(), s)
    same(slope, (1 - 2 * 0.3 * (s - s.mean(0))) / 4, 1e-12)
    (slope,) = torch.autograd.grad(ensemble_mean(s).sum(), s)
    same(slope, torch.full((4, 6), 1 / 4), 1e-12)
    # What lies above the mean draws them apart.
    (slope,) = torch.autograd.grad(ensemble_std(s).sum(), s)
    assert torch.equal(slope > 0, s > s.mean(0))


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    s = draw(seed, 5, 20) * 3
    for function, wanted in (
        (ensemble_mean, reference.members(s.numpy(), "mean")),
        (worst_case, reference.members(s.numpy(), "least")),
        (ensemble_std, reference.members(s.numpy(), "deviation")),
    ):
        same(function(s), wanted, 1e-12)
    wanted = reference.uncertainty_weighted(s.numpy(), 0.3)
    same(uncertainty_weighted(s, coef=0.3), wanted, 1e-12)


def test_the_order_of_members_and_responses_changes_nothing() -> None:
    s = draw(0, 4, 6)
    for function in (
        ensemble_mean,
        worst_case,
        ensemble_std,
        lambda x: uncertainty_weighted(x, coef=0.3),
    ):
        same(function(s.flip(0)), function(s), 1e-12)
        same(function(s.flip(1)), function(s).flip(0), 1e-12)
        same(torch.cat([function(s[:, :2]), function(s[:, 2:])]), function(s), 1e-12)


def test_bad_input_is_refused() -> None:
    for function in CHECKS:
        more = {"coef": 0.5} if function is uncertainty_weighted else {}
        for wrong in (torch.zeros(3), torch.zeros(1, 3), torch.zeros(2, 0), torch.zeros(2, 2, 2)):
            with pytest.raises(ValueError, match="a row for each member is needed, of two"):
                function(wrong, **more)
    for coef in (-0.1, math.nan):
        with pytest.raises(ValueError, match="must be 0 or above, or doubt would pay"):
            uncertainty_weighted(SCORES, coef=coef)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "ensemble_mean ensemble_std uncertainty_weighted worst_case": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
        "invariance": test_the_order_of_members_and_responses_changes_nothing,
        "loop": test_equal_to_the_loops,
        "refusal": test_bad_input_is_refused,
    },
}
