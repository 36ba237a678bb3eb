"""Duties of `truing.algorithms.comparison`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from truing.algorithms import bradley_terry, centering, ranked_pairs
from truing.keys import generator


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed, "test").normal(size=shape))


def same(got: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=0)


def check_bradley_terry(f: Any) -> None:
    c, r = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 1.0])
    # -ln sigmoid(x) = ln(1 + e^-x) at x = 1, 0, -2; with a margin of 1/2 at 1/2, -1/2, -5/2.
    same(f(c, r), [0.31326169, 0.69314718, 2.12692801])
    same(f(c, r, torch.full((3,), 0.5)), [0.47407698, 0.97407698, 2.57888973])
    # Laws: one of the two wins, for certain; adding to both scores changes nothing.
    a, b = draw(0, 9), draw(1, 9)
    same((-f(a, b)).exp() + (-f(b, a)).exp(), torch.ones(9), 1e-12)
    same(f(a + 3, b + 3), f(a, b), 1e-12)


def check_centering(f: Any) -> None:
    same(f(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 3.0])), [(2 - 1) ** 2, (1 + 3) ** 2])
    # Laws: opposite scores cost nothing, and it does not matter which is which.
    a, b = draw(0, 9), draw(1, 9)
    same(f(a, -a), torch.zeros(9))
    same(f(a, b), f(b, a))


def check_ranked_pairs(f: Any) -> None:
    assert f([0, 1, 2]) == [(0, 1), (0, 2), (1, 2)]
    assert f([1, 0]) == [(1, 0)]
    assert f([0, 1, 0]) == [(0, 1), (2, 1)]  # the tie of the first and the third is no pair
    assert f([0, 0]) == []
    assert len(f([4, 2, 0, 1, 3])) == 5 * 4 / 2  # law: without ties, each pair once


CHECKS = {
    bradley_terry: check_bradley_terry,
    centering: check_centering,
    ranked_pairs: check_ranked_pairs,
}
MUTANTS: dict[Any, dict[str, Any]] = {
    bradley_terry: {
        "negated": lambda *x: -bradley_terry(*x),
        "swapped": lambda c, r, *m: bradley_terry(r, c, *m),
        "margin dropped": lambda c, r, *_: bradley_terry(c, r),
        "margin added": lambda c, r, *m: bradley_terry(c, r, *(-x for x in m)),
        "no logarithm": lambda *x: (-bradley_terry(*x)).exp(),
    },
    centering: {
        "difference": lambda c, r: (c - r) ** 2,
        "negated": lambda c, r: -centering(c, r),
        "one only": lambda c, r: c**2,
        "not squared": lambda c, r: (c + r).abs(),
    },
    ranked_pairs: {
        "turned over": lambda k: [(j, i) for i, j in ranked_pairs(k)],
        "ties too": lambda k: [
            (i, j) for i in range(len(k)) for j in range(len(k)) if k[i] <= k[j]
        ],
        "neighbours": lambda k: [(i, j) for i, j in ranked_pairs(k) if k[j] == k[i] + 1],
    },
}


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_golden_values_and_laws_hold_and_bite(function: Any) -> None:
    CHECKS[function](function)
    reference.bites(CHECKS[function], MUTANTS[function])


def test_gradients() -> None:
    c, r, m = (draw(seed, 5).requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(bradley_terry, (c, r, m))
    assert torch.autograd.gradcheck(centering, (c, r))
    up, down, gap = torch.autograd.grad(bradley_terry(c, r, m).sum(), (c, r, m))
    # Descent raises the chosen score and lowers the rejected one by as much; a margin costs.
    assert (up < 0).all()
    same(up, -down, 1e-12)
    same(gap, -up, 1e-12)
    (pull,) = torch.autograd.grad(centering(c, r).sum(), c)
    assert (pull.sign() == (c + r).sign()).all()


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    c, r, m = (draw(3 * seed + i, 20) * 3 for i in range(3))
    wanted = reference.bradley_terry(c.numpy(), r.numpy(), m.numpy())
    same(bradley_terry(c, r, m), wanted, 1e-12)
    same(centering(c, r), reference.centering(c.numpy(), r.numpy()), 1e-12)
    ranks = generator(seed, "ranks").integers(4, size=6).tolist()
    assert ranked_pairs(ranks) == reference.ranked_pairs(ranks)


def test_order_changes_nothing_and_far_scores_stay_finite() -> None:
    c, r = draw(0, 6), draw(1, 6)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    assert torch.equal(bradley_terry(c[order], r[order]), bradley_terry(c, r)[order])
    far = torch.tensor([1e4, -1e4])
    same(bradley_terry(far, -far), [0.0, 2e4])


def test_wrong_shapes_are_refused() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    for call in (
        lambda: bradley_terry(one, two),
        lambda: bradley_terry(two, two, one),
        lambda: centering(two, one),
    ):
        with pytest.raises(ValueError, match="must have one shape"):
            call()


def test_a_ranking_of_two_is_a_comparison() -> None:
    """Plackett-Luce of K = 2 and the pairs of a ranking of two are both Bradley-Terry."""
    scores = draw(0, 2)
    ((i, j),) = ranked_pairs([0, 1])
    plackett_luce = -(scores[0] - scores.logsumexp(0))
    same(bradley_terry(scores[i : i + 1], scores[j : j + 1])[0], plackett_luce, 1e-12)
    assert math.isclose(float(bradley_terry(scores[:1], scores[:1])), math.log(2), abs_tol=1e-12)
