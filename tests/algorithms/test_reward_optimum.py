"""Reward losses against scores that are known: the least population loss is at the true ones.

Judgements are not drawn; each loss is weighed by the probability of what it is about.
"""

from collections.abc import Callable
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from truing.algorithms import (
    bradley_terry,
    plackett_luce,
    ranked_pairs,
    soft_bradley_terry,
    squared_error,
)
from truing.conformance.spaces import least
from truing.keys import generator

K = 5
TRUE_K = torch.from_numpy(generator(0, "scores").normal(size=K))
ALL = list(combinations(range(K), 2))
CHAIN = [(i, i + 1) for i in range(K - 1)]
Loss = Callable[[Tensor], Tensor]


def minimum(loss: Loss, start_K: Tensor | None = None) -> Tensor:
    """Scores (K,) at which ``loss`` is least, by L-BFGS."""
    return least(loss, torch.zeros(K, dtype=torch.float64) if start_K is None else start_K)


def distance(score_K: Tensor, wanted_K: Tensor = TRUE_K) -> float:
    """The largest difference once both have the mean 0: a constant is not told by comparisons."""
    return float(((score_K - score_K.mean()) - (wanted_K - wanted_K.mean())).abs().max())


def soft(pairs: list[tuple[int, int]], label: Callable[[Tensor], Tensor]) -> Loss:
    """The mean loss of pairs whose label is made from the true difference."""
    i, j = torch.tensor(pairs).T
    label_N = label(TRUE_K[i] - TRUE_K[j])
    return lambda score_K: soft_bradley_terry(score_K[i], score_K[j], label_N).mean()


@pytest.mark.parametrize("pairs", [ALL, CHAIN], ids=["all pairs", "a chain"])
def test_soft_labels_are_learnt_to_the_true_scores(pairs: list[tuple[int, int]]) -> None:
    assert distance(minimum(soft(pairs, torch.sigmoid))) < 1e-6
    # Bite: labels of the other side, of another temperature, smoothed towards a coin's.
    assert distance(minimum(soft(pairs, lambda d: torch.sigmoid(-d)))) > 0.5
    assert distance(minimum(soft(pairs, lambda d: torch.sigmoid(2 * d)))) > 0.5
    assert distance(minimum(soft(pairs, lambda d: 0.8 * torch.sigmoid(d) + 0.1))) > 0.1


def test_ties_as_half_a_win_draw_scores_together_and_left_out_do_not() -> None:
    """People who tie with probability t whatever the pair: a half shrinks every log-odds, while the
    pairs that they did order still have the true ones."""
    t = 0.3
    half = minimum(soft(ALL, lambda d: (1 - t) * d.sigmoid() + t / 2))
    assert half.max() - half.min() < 0.8 * (TRUE_K.max() - TRUE_K.min())
    i, j = torch.tensor(ALL).T
    win_N = (1 - t) * (TRUE_K[i] - TRUE_K[j]).sigmoid()
    lose_N = 1 - t - win_N
    ones = torch.ones(len(ALL), dtype=torch.float64)

    def ordered(score_K: Tensor) -> Tensor:
        first, second = score_K[i], score_K[j]
        won = win_N * soft_bradley_terry(first, second, ones)
        return (won + lose_N * soft_bradley_terry(second, first, ones)).mean()

    assert distance(minimum(ordered)) < 1e-6


# --- whole rankings -------------------------------------------------------------------------------

ORDERS = torch.tensor(list(permutations(range(K))))  # the ranks of each order


def luce(score_K: Tensor) -> Tensor:
    """The probability of each order, written out once more: choose, take away, choose again."""
    likely: list[Tensor] = []
    for ranks in ORDERS.tolist():
        left, p = list(range(K)), torch.ones((), dtype=torch.float64)
        for rank in range(K):
            best = ranks.index(rank)
            p = p * score_K[best].exp() / score_K[left].exp().sum()
            left.remove(best)
        likely.append(p)
    return torch.stack(likely)


LIKELY = luce(TRUE_K)


def whole(score_K: Tensor, likely: Tensor = LIKELY, ranks: Tensor = ORDERS) -> Tensor:
    return (likely * plackett_luce(score_K.expand(len(ranks), K), ranks)).sum()


def split(score_K: Tensor) -> Tensor:
    """InstructGPT's mean over all pairs of each order."""
    pairs = torch.tensor([ranked_pairs(ranks) for ranks in ORDERS.tolist()])
    better, worse = score_K[pairs].flatten(0, 1).T
    return (LIKELY * bradley_terry(better, worse).view(len(ORDERS), -1).mean(-1)).sum()


def test_whole_rankings_and_their_pairs_both_find_the_true_scores() -> None:
    assert distance(minimum(whole)) < 1e-6
    assert distance(minimum(split)) < 1e-6
    # Bite: the order turned over; every choice from all; neighbours only, which are not
    # independent of their places.
    assert distance(minimum(lambda s: whole(s, LIKELY, K - 1 - ORDERS))) > 0.5
    naive = lambda s: (LIKELY * (K * s.logsumexp(0) - s.sum())).sum()  # noqa: E731
    assert distance(minimum(naive)) > 0.5

    def neighbours(score_K: Tensor) -> Tensor:
        order = ORDERS.argsort(-1)
        better, worse = score_K[order[:, :-1]], score_K[order[:, 1:]]
        loss = bradley_terry(better.flatten(), worse.flatten()).view(len(ORDERS), -1)
        return (LIKELY * loss.mean(-1)).sum()

    assert distance(minimum(neighbours)) > 0.05


def variances(k: int, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The mean squared error, per ranking, of scores of k equal responses, for many rankings: the
    trace of H^-1 J H^-1, with J the mean square of the slope and H the mean curvature."""
    ranks, zero = torch.tensor(list(permutations(range(k)))), torch.zeros(k, dtype=torch.float64)
    curve = torch.autograd.functional.hessian(lambda s: loss(s, ranks).mean(), zero)  # pyright: ignore
    slope = torch.autograd.functional.jacobian(lambda s: loss(s, ranks), zero)  # pyright: ignore
    # A constant changes nothing: without it the curvature can be inverted.
    inverse = torch.linalg.inv(torch.as_tensor(curve) + 1 / k)
    return float(torch.trace(inverse @ (slope.T @ slope / len(ranks)) @ inverse))


@pytest.mark.parametrize(("k", "ratio"), [(2, 1.0), (3, 28 / 27), (4, 115 / 108)])
def test_whole_rankings_waste_less_than_their_pairs(k: int, ratio: float) -> None:
    def pairs(s: Tensor, ranks: Tensor) -> Tensor:
        listed = torch.tensor([ranked_pairs(row) for row in ranks.tolist()])
        better, worse = s[listed].flatten(0, 1).T
        return bradley_terry(better, worse).view(len(ranks), -1).mean(-1)

    by_order = variances(k, lambda s, ranks: plackett_luce(s.expand(ranks.shape), ranks))
    assert variances(k, pairs) / by_order == pytest.approx(ratio, abs=1e-9)


# --- ratings --------------------------------------------------------------------------------------


def test_ratings_are_learnt_to_their_means_and_no_constant_is_left_open() -> None:
    # Three ratings of each response, far from symmetric, whose mean is its true score.
    share_R = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    apart_R = torch.tensor([-1.0, 0.0, 6.0], dtype=torch.float64)
    rating_KR = TRUE_K[:, None] + apart_R

    def loss(score_K: Tensor, rating_KR: Tensor = rating_KR) -> Tensor:
        error = squared_error(score_K.repeat_interleave(3), rating_KR.flatten()).view(K, 3)
        return (error * share_R).sum(-1).mean()

    assert (minimum(loss) - TRUE_K).abs().max() < 1e-6
    # Bite: ratings of the next response, their signs turned, their middle in place of the mean.
    assert distance(minimum(lambda s: loss(s, rating_KR.roll(1, 0)))) > 0.5
    assert distance(minimum(lambda s: loss(s, -rating_KR))) > 0.5
    middle = minimum(lambda s: (((s[:, None] - rating_KR) ** 2 + 1e-4).sqrt() * share_R).sum())
    assert (middle - TRUE_K).abs().max() > 0.5
    # Standardised ratings have standardised scores for their optimum: the same order and ratios.
    mean, spread = rating_KR.mean(), rating_KR.std(correction=0)
    standard = minimum(lambda s: loss(s, (rating_KR - mean) / spread))
    assert (standard * spread + mean - TRUE_K).abs().max() < 1e-6
