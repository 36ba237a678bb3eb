"""Duties of `truing.algorithms.comparison`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from truing.algorithms import (
    bradley_terry,
    centering,
    ranked_pairs,
    score_l2,
    soft_bradley_terry,
    tied_pairs,
)
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


def check_score_l2(f: Any) -> None:
    same(f(torch.tensor([2.0, -0.5, 0.0])), [4.0, 0.25, 0.0])
    # Laws: it is even; the square of a scale; over a pair, half of what sum and difference cost.
    a, b = draw(0, 9), draw(1, 9)
    same(f(-a), f(a), 1e-12)
    same(f(3 * a), 9 * f(a), 1e-12)
    same(f(a) + f(b), (centering(a, b) + centering(a, -b)) / 2, 1e-12)


def check_ranked_pairs(f: Any) -> None:
    assert f([0, 1, 2]) == [(0, 1), (0, 2), (1, 2)]
    assert f([1, 0]) == [(1, 0)]
    assert f([0, 1, 0]) == [(0, 1), (2, 1)]  # the tie of the first and the third is no pair
    assert f([0, 0]) == []
    assert len(f([4, 2, 0, 1, 3])) == 5 * 4 / 2  # law: without ties, each pair once


def check_soft_bradley_terry(f: Any) -> None:
    # d = 1: -ln sigmoid(1) = 0.31326169 and -ln sigmoid(-1) = 1.31326169; p = 1, 3/4, 1/2, 0 of
    # the first and the rest of the second: 0.31326169 + (0, 1/4, 1/2, 1).
    one, zero = torch.ones(4), torch.zeros(4)
    label = torch.tensor([1.0, 0.75, 0.5, 0.0])
    same(f(one, zero, label), [0.31326169, 0.56326169, 0.81326169, 1.31326169])
    # With a margin of 1/2, d = 1/2: 0.47407698 + (0, 1/8, 1/4, 1/2).
    half = torch.full((4,), 0.5)
    same(f(one, zero, label, half), [0.47407698, 0.59907698, 0.72407698, 0.97407698])
    # Laws: p of one order is 1 - p of the other; it is a mixture of the two hard labels; equal
    # scores cost ln 2 whatever the label; adding to both scores changes nothing.
    a, b, p = draw(0, 9), draw(1, 9), draw(2, 9).sigmoid()
    same(f(a, b, p), f(b, a, 1 - p), 1e-12)
    same(f(a, b, p), p * bradley_terry(a, b) + (1 - p) * bradley_terry(b, a), 1e-12)
    same(f(a, b, torch.ones(9)), bradley_terry(a, b), 1e-12)
    same(f(a, a, p), [math.log(2)] * 9, 1e-12)
    same(f(a + 3, b + 3, p), f(a, b, p), 1e-12)


def check_tied_pairs(f: Any) -> None:
    assert f([0, 1, 0, 1, 2]) == [(0, 2), (1, 3)]
    assert f([0, 0, 0]) == [(0, 1), (0, 2), (1, 2)]
    assert f([0, 1]) == []
    # Law: with the pairs that are ordered, each pair is there once.
    ranks = [3, 0, 0, 1, 3, 3]
    both = {frozenset(pair) for pair in f(ranks) + ranked_pairs(ranks)}
    assert len(both) == len(f(ranks)) + len(ranked_pairs(ranks)) == 6 * 5 / 2


CHECKS = {
    bradley_terry: check_bradley_terry,
    soft_bradley_terry: check_soft_bradley_terry,
    tied_pairs: check_tied_pairs,
    centering: check_centering,
    score_l2: check_score_l2,
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
    soft_bradley_terry: {
        "negated": lambda *x: -soft_bradley_terry(*x),
        "swapped": lambda a, b, *x: soft_bradley_terry(b, a, *x),
        "label flipped": lambda a, b, p, *m: soft_bradley_terry(a, b, 1 - p, *m),
        "label dropped": lambda a, b, p, *m: bradley_terry(a, b, *m),
        "last term dropped": lambda a, b, p, *m: p * bradley_terry(a, b, *m),
        "margin dropped": lambda a, b, p, *_: soft_bradley_terry(a, b, p),
        "margin of the winner": lambda a, b, p, *m: (
            p * bradley_terry(a, b, *m) + (1 - p) * bradley_terry(b, a, *m)
        ),
        "label inside": lambda a, b, p, *m: bradley_terry((2 * p - 1) * a, (2 * p - 1) * b, *m),
    },
    tied_pairs: {
        "both ways": lambda k: tied_pairs(k) + [(j, i) for i, j in tied_pairs(k)],
        "itself too": lambda k: tied_pairs(k) + [(i, i) for i in range(len(k))],
        "neighbours": lambda k: [(i, j) for i, j in tied_pairs(k) if j == i + 1],
        "ordered ones": lambda k: [(i, j) for i, j in ranked_pairs(k) if i < j],
    },
    centering: {
        "difference": lambda c, r: (c - r) ** 2,
        "negated": lambda c, r: -centering(c, r),
        "one only": lambda c, r: c**2,
        "not squared": lambda c, r: (c + r).abs(),
    },
    score_l2: {
        "negated": lambda s: -score_l2(s),
        "halved": lambda s: score_l2(s) / 2,
        "not squared": lambda s: s.abs(),
        "about the mean": lambda s: score_l2(s - s.mean()),
        "mean over all": lambda s: score_l2(s).mean().expand(s.shape),
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
    p = draw(3, 5).sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(soft_bradley_terry, (c, r, p, m))
    up, down = torch.autograd.grad(soft_bradley_terry(c, r, p).sum(), (c, r))
    # The slope is sigmoid(d) - p: up where the first wins less often than it should.
    same(up, (c - r).sigmoid() - p, 1e-12)
    same(down, -up, 1e-12)
    (pull,) = torch.autograd.grad(centering(c, r).sum(), c)
    assert (pull.sign() == (c + r).sign()).all()
    assert torch.autograd.gradcheck(score_l2, (c,))
    (pull,) = torch.autograd.grad(score_l2(c).sum(), c)
    assert (pull.sign() == c.sign()).all()


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    c, r, m = (draw(3 * seed + i, 20) * 3 for i in range(3))
    wanted = reference.bradley_terry(c.numpy(), r.numpy(), m.numpy())
    same(bradley_terry(c, r, m), wanted, 1e-12)
    same(centering(c, r), reference.centering(c.numpy(), r.numpy()), 1e-12)
    same(score_l2(c), reference.score_l2(c.numpy()), 1e-12)
    ranks = generator(seed, "ranks").integers(4, size=6).tolist()
    assert ranked_pairs(ranks) == reference.ranked_pairs(ranks)
    assert tied_pairs(ranks) == reference.tied_pairs(ranks)
    p = draw(seed, 20).sigmoid()
    wanted = reference.soft_bradley_terry(c.numpy(), r.numpy(), p.numpy(), m.numpy())
    same(soft_bradley_terry(c, r, p, m), wanted, 1e-12)


def test_order_changes_nothing_and_far_scores_stay_finite() -> None:
    c, r = draw(0, 6), draw(1, 6)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    assert torch.equal(bradley_terry(c[order], r[order]), bradley_terry(c, r)[order])
    assert torch.equal(score_l2(c[order]), score_l2(c)[order])
    p = draw(2, 6).sigmoid()
    soft = soft_bradley_terry(c, r, p)
    assert torch.equal(soft_bradley_terry(c[order], r[order], p[order]), soft[order])
    far = torch.tensor([1e4, -1e4])
    same(bradley_terry(far, -far), [0.0, 2e4])
    same(soft_bradley_terry(far, -far, torch.tensor([1.0, 0.5])), [0.0, 1e4])
    assert torch.equal(centering(c[order], r[order]), centering(c, r)[order])
    # Responses that are named in another order form the same pairs under their new names.
    ranks = [2, 0, 1, 0, 2, 2]
    named = [ranks[i] for i in order]
    for f in (ranked_pairs, tied_pairs):
        found = {tuple(int(order[i]) for i in pair) for pair in f(named)}
        pairs = {p if f is ranked_pairs or p[0] < p[1] else p[::-1] for p in found}
        assert pairs == set(f(ranks))


def test_wrong_shapes_are_refused() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    for call in (
        lambda: bradley_terry(one, two),
        lambda: bradley_terry(two, two, one),
        lambda: centering(two, one),
        lambda: soft_bradley_terry(two, two, one),
        lambda: soft_bradley_terry(two, one, two),
        lambda: soft_bradley_terry(two, two, two, one),
    ):
        with pytest.raises(ValueError, match="must have one shape"):
            call()
    with pytest.raises(ValueError, match=r"scores of shape \(2, 1\) came"):
        score_l2(two.view(2, 1))


def test_labels_that_are_no_probabilities_are_refused() -> None:
    two = torch.zeros(2)
    for label in (1.5, -0.25, math.nan):
        with pytest.raises(ValueError, match=rf"labels \[{label}\] came: each must be the prob"):
            soft_bradley_terry(two, two, torch.tensor([0.5, label]))
    # A score of NaN is left to the training loop, which names the rows.
    nan = torch.tensor([math.nan, 0.0])
    assert soft_bradley_terry(nan, two, two + 0.5).isnan().tolist() == [True, False]


def test_ranks_that_are_no_numbers_are_refused() -> None:
    for f in (ranked_pairs, tied_pairs):
        with pytest.raises(ValueError, match=r"the ranks \[0, nan\] came: nan is no place"):
            f([0, math.nan])
        assert f([]) == f([3]) == []


def test_a_ranking_of_two_is_a_comparison() -> None:
    """Plackett-Luce of K = 2 and the pairs of a ranking of two are both Bradley-Terry."""
    scores = draw(0, 2)
    ((i, j),) = ranked_pairs([0, 1])
    plackett_luce = -(scores[0] - scores.logsumexp(0))
    same(bradley_terry(scores[i : i + 1], scores[j : j + 1])[0], plackett_luce, 1e-12)
    assert math.isclose(float(bradley_terry(scores[:1], scores[:1])), math.log(2), abs_tol=1e-12)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "bradley_terry soft_bradley_terry centering score_l2 ranked_pairs tied_pairs": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "loop": test_equal_to_the_loops,
    },
    "bradley_terry soft_bradley_terry centering score_l2": {
        "gradient": test_gradients,
        "invariance": test_order_changes_nothing_and_far_scores_stay_finite,
        "refusal": test_wrong_shapes_are_refused,
    },
    "soft_bradley_terry": {"refusal": test_labels_that_are_no_probabilities_are_refused},
    "ranked_pairs tied_pairs": {
        "gradient": "ranks in, indices out",
        "invariance": test_order_changes_nothing_and_far_scores_stay_finite,
        "refusal": test_ranks_that_are_no_numbers_are_refused,
    },
}
