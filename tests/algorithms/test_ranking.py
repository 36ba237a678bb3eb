"""Duties of `ranking` and `rating`: golden, law, gradient, invariance, reference, bite."""

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from tests.algorithms.test_comparison import draw, same
from truing.algorithms import bradley_terry, plackett_luce, squared_error
from truing.keys import generator


def orders(k: int) -> Tensor:
    """The ranks (K!, K) of every order of K."""
    return torch.tensor(list(permutations(range(k))))


def check_plackett_luce(f: Any) -> None:
    # e^s = 4, 2, 1. In this order: 4/7 of all, then 2/3 of the rest: 8/21. Turned over: 1/7 and
    # 2/6: 1/21. The first two as equals: 4/7 and 2/7: 8/49. Filling (the last column) is nothing.
    scores = torch.tensor([[4.0, 2.0, 1.0, 9.0]]).log().expand(3, 4)
    ranks = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 0], [0, 0, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 0]]).expand(3, 4)
    same(f(scores, ranks, mask), [0.96508090, 3.04452244, 1.81237876])
    # Laws: one of the orders comes about, for certain, and with a tie for first place the first
    # choice of a softmax; equal scores cost ln K!; a pair is Bradley-Terry; a constant is nothing.
    s = draw(0, 4).expand(24, 4)
    likely = (-f(s, orders(4))).exp()
    same(likely.sum(), 1.0, 1e-12)
    same(likely[orders(4)[:, 2] == 0].sum(), s[0].softmax(0)[2], 1e-12)
    same(f(0 * s, orders(4)), [math.log(24)] * 24, 1e-12)
    a, b = draw(1, 9), draw(2, 9)
    pair = torch.tensor([[0, 1]]).expand(9, 2)
    same(f(torch.stack([a, b], -1), pair), bradley_terry(a, b), 1e-12)
    same(f(s + 3, orders(4)), f(s, orders(4)), 1e-12)


def whole_normaliser(s: Tensor, rank: Tensor, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(s) if mask is None else mask
    s = s.masked_fill(mask == 0, -math.inf)
    return (s.logsumexp(-1, keepdim=True) - s).masked_fill(mask == 0, 0).sum(-1)


def first_only(s: Tensor, rank: Tensor, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(s) if mask is None else mask
    best = rank.masked_fill(mask == 0, 99).argmin(-1, keepdim=True)
    s = s.masked_fill(mask == 0, -math.inf)
    return s.logsumexp(-1) - s.gather(-1, best)[:, 0]


MUTANTS: dict[str, Any] = {
    "negated": lambda s, *x: -plackett_luce(s, *x),
    "scores turned over": lambda s, *x: plackett_luce(-s, *x),
    "order swapped": lambda s, rank, *m: plackett_luce(s, rank.max() - rank, *m),
    "normaliser over all": whole_normaliser,
    "first choice only": first_only,
    "mask dropped": lambda s, rank, *_: plackett_luce(s, rank),
    "mean over choices": lambda s, rank, *m: plackett_luce(s, rank, *m) / (rank.shape[1] - 1),
    "ties in the order that they came in": lambda s, rank, *m: plackett_luce(
        s, rank * rank.shape[1] + torch.arange(rank.shape[1]), *m
    ),
    "the last is left out": lambda s, rank, *m: (
        plackett_luce(
            s, rank, (rank < rank.max(-1, keepdim=True).values).int() * (m[0] if m else 1)
        )
        if rank.shape[1] > 3
        else plackett_luce(s, rank, *m)
    ),
}


def test_golden_values_and_laws_hold_and_bite() -> None:
    check_plackett_luce(plackett_luce)
    reference.bites(check_plackett_luce, MUTANTS)


def some_rankings(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Seven rankings of 2 to 6, some with ties."""
    random = generator(seed, "rankings")
    scores = torch.from_numpy(random.normal(size=(7, 6))) * 2
    ranks = torch.from_numpy(random.integers(4, size=(7, 6)))
    sizes = torch.tensor([2, 3, 4, 5, 6, 6, 2])
    return scores, ranks, torch.arange(6) < sizes[:, None]


def test_gradients() -> None:
    s, ranks, mask = some_rankings(0)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: plackett_luce(x, ranks, mask), (s,))
    (slope,) = torch.autograd.grad(plackett_luce(s, ranks, mask).sum(), s)
    assert (slope[~mask] == 0).all()
    # Whatever fills, its gradient is 0 and not NaN, and it reaches no other.
    filled = s.detach().masked_fill(~mask, math.nan).requires_grad_()
    (other,) = torch.autograd.grad(plackett_luce(filled, ranks, mask).sum(), filled)
    assert torch.equal(other, slope)
    same(slope.sum(-1), torch.zeros(7), 1e-12)
    (slope,) = torch.autograd.grad(plackett_luce(s, ranks.argsort(-1).argsort(-1)).sum(), s)
    # Descent raises the best score and lowers the worst.
    order = ranks.argsort(-1).argsort(-1)
    assert (slope[order == 0] < 0).all()
    assert (slope[order == 5] > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    s, ranks, mask = some_rankings(seed)
    wanted = [
        reference.plackett_luce(s[i][mask[i]].tolist(), ranks[i][mask[i]].tolist())
        for i in range(len(s))
    ]
    same(plackett_luce(s, ranks, mask), wanted, 1e-11)


def test_order_and_filling_change_nothing_and_far_scores_stay_finite() -> None:
    s, ranks, mask = some_rankings(1)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    wanted = plackett_luce(s, ranks, mask)
    same(plackett_luce(s[:, order], ranks[:, order], mask[:, order]), wanted, 1e-12)
    assert torch.equal(plackett_luce(s.flip(0), ranks.flip(0), mask.flip(0)), wanted.flip(0))
    filled, other = s.masked_fill(~mask, math.nan), ranks.masked_fill(~mask, -7)
    assert torch.equal(plackett_luce(filled, other, mask), wanted)
    # Only the order of the ranks counts, so those of a subset need not be counted anew.
    assert torch.equal(plackett_luce(s, 3 * ranks + 2, mask), wanted)
    far = torch.tensor([[1e4, 0.0, -1e4]])
    same(plackett_luce(far, torch.tensor([[0, 1, 2]])), [0.0])
    same(plackett_luce(far, torch.tensor([[2, 1, 0]])), [3e4])


def test_a_score_of_nan_is_left_to_the_training_loop() -> None:
    s, ranks, mask = some_rankings(2)
    s[3, 0] = math.nan
    assert plackett_luce(s, ranks, mask).isnan().tolist() == [i == 3 for i in range(7)]


@pytest.mark.parametrize(
    ("scores", "ranks", "mask", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 2).long(), None, "must have one shape"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), torch.ones(2, 2), "must have one shape"),
        (torch.zeros(3), torch.arange(3), None, r"ranks of shape \(3,\) .* a row for each"),
        (torch.zeros(1, 2), torch.tensor([[0, math.nan]]), None, "whole numbers are needed"),
        (torch.zeros(1, 2), torch.tensor([[0, -1]]), None, "the rank -1 came: the best has 0"),
        (torch.zeros(1, 1), torch.tensor([[0]]), None, "a ranking of 1 came"),
        (torch.zeros(2, 2), torch.ones(2, 2).long(), torch.eye(2), "a ranking of 1 came"),
        (
            *(torch.zeros(2, 3), torch.ones(2, 3).long()),
            *(torch.tensor([[1, 0, 0], [1, 1, 1]]), "a ranking of 1 came"),
        ),
    ],
)
def test_bad_input_is_refused(scores: Tensor, ranks: Tensor, mask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plackett_luce(scores, ranks, mask)


# --- ratings --------------------------------------------------------------------------------------


def check_squared_error(f: Any) -> None:
    score, rating = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([3.0, -1.5, 0.5])
    same(f(score, rating), [(1 - 3) ** 2, (-1 + 1.5) ** 2, 0.0])
    # Laws: nothing where they agree; either side alike; the square of a scale; the mean loss of
    # two ratings is that of their mean and a rest that no score changes.
    a, b, c = draw(0, 9), draw(1, 9), draw(2, 9)
    same(f(a, a), torch.zeros(9), 1e-12)
    same(f(a, b), f(b, a), 1e-12)
    same(f(3 * a, 3 * b), 9 * f(a, b), 1e-12)
    same((f(a, b) + f(a, c)) / 2 - f(a, (b + c) / 2), (b - c) ** 2 / 4, 1e-12)


def test_ratings_golden_values_and_laws_hold_and_bite() -> None:
    check_squared_error(squared_error)
    mutants = {
        "negated": lambda s, y: -squared_error(s, y),
        "sum": lambda s, y: squared_error(s, -y),
        "halved": lambda s, y: squared_error(s, y) / 2,
        "absolute": lambda s, y: (s - y).abs(),
        "rating dropped": lambda s, y: squared_error(s, 0 * y),
        "mean over all": lambda s, y: squared_error(s, y).mean().expand(s.shape),
    }
    reference.bites(check_squared_error, mutants)


def test_ratings_gradients_reference_and_order() -> None:
    s, y = draw(3, 8).requires_grad_(), draw(4, 8)
    assert torch.autograd.gradcheck(squared_error, (s, y))
    (slope,) = torch.autograd.grad(squared_error(s, y).sum(), s)
    assert (slope.sign() == (s - y).sign()).all()
    s = s.detach()
    same(squared_error(s, y), reference.squared_error(s.numpy(), y.numpy()), 1e-12)
    assert torch.equal(squared_error(s.flip(0), y.flip(0)), squared_error(s, y).flip(0))


def test_ratings_that_are_none_are_refused() -> None:
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="must have one shape"):
        squared_error(two, torch.zeros(1))
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"the ratings \[{wrong}\] came"):
            squared_error(two, torch.tensor([0.0, wrong]))
    assert squared_error(two + math.nan, two).isnan().all()


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "plackett_luce": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
        "invariance": test_order_and_filling_change_nothing_and_far_scores_stay_finite,
        "loop": test_equal_to_the_loops,
        "refusal": test_bad_input_is_refused,
    },
    "squared_error": {
        "golden law bite": test_ratings_golden_values_and_laws_hold_and_bite,
        "gradient invariance loop": test_ratings_gradients_reference_and_order,
        "refusal": test_ratings_that_are_none_are_refused,
    },
}
