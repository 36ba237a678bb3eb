"""Reward losses at the end of learning: scores that minimise a loss on all judgements at once.

Five responses have true scores; every judgement of them is weighted by its probability. Comparisons
tell scores up to a constant, so both sides are moved to mean 0; ratings tell the constant too.
"""

from collections.abc import Callable
from itertools import combinations, permutations

import torch
from torch import Tensor

from truing.algorithms import (
    bradley_terry,
    centering,
    plackett_luce,
    score_l2,
    soft_bradley_terry,
    squared_error,
    step_cross_entropy,
)
from truing.conformance.spaces import draw, least

Loss = Callable[[Tensor], Tensor]
K = 5
TRUE_K = draw("scores", K)
FIRST_N, SECOND_N = torch.tensor(list(combinations(range(K), 2))).T
WINS_N = torch.sigmoid(TRUE_K[FIRST_N] - TRUE_K[SECOND_N])
RANKS_OK = torch.tensor(list(permutations(range(K))))  # the ranks of the responses in each order
# What people gave each response: three ratings whose mean is the true score, and none of them it.
RATINGS_K3 = TRUE_K[:, None] + torch.tensor([-1.0, -0.5, 1.5], dtype=torch.float64)


def distance(loss: Loss, *, constant: bool = False) -> float:
    """The largest difference between the true scores and those at which ``loss`` is least."""
    away_K = least(loss, torch.zeros(K, dtype=torch.float64)) - TRUE_K
    return float((away_K if constant else away_K - away_K.mean()).abs().max())


def pairs(
    score_K: Tensor,
    *,
    scale: float = 1.0,
    swapped: bool = False,
    loss: Callable[..., Tensor] = bradley_terry,
) -> Tensor:
    """Bradley-Terry on labels drawn from the true scores."""
    first, second = scale * score_K[FIRST_N], scale * score_K[SECOND_N]
    first, second = (second, first) if swapped else (first, second)
    return (WINS_N * loss(first, second) + (1 - WINS_N) * loss(second, first)).mean()


def labelled(
    score_K: Tensor,
    *,
    label: Callable[[Tensor], Tensor] = lambda p: p,
    loss: Callable[..., Tensor] = soft_bradley_terry,
) -> Tensor:
    """Soft labels: each pair once, with the probability that its first wins."""
    return loss(score_K[FIRST_N], score_K[SECOND_N], label(WINS_N)).mean()


WEIGHT = 0.01  # of the penalty: larger, and a label would leave [0, 1]


def drawn(score_K: Tensor, *, weight: float = WEIGHT, pairwise: bool = False) -> Tensor:
    """Pairs with the penalty, labelled so that they hold it off at the true scores about their
    mean t: labels that are x (t_i - t_j) too high push each score up by x K t_i / pairs, and the
    penalty draws it down by 2 weight t_i / K."""
    level = TRUE_K.mean()
    score_K, gap_N = score_K - level, TRUE_K[FIRST_N] - TRUE_K[SECOND_N]
    label_N = WINS_N + 2 * WEIGHT * len(gap_N) / K**2 * gap_N
    loss = soft_bradley_terry(score_K[FIRST_N], score_K[SECOND_N], label_N).mean()
    if pairwise:
        return loss + weight * centering(score_K[FIRST_N], score_K[SECOND_N]).mean()
    return loss + weight * score_l2(score_K).mean()


def probabilities() -> Tensor:
    """Of each order: choose the best of what is left, take it away, and choose again."""
    order_OK = RANKS_OK.argsort(-1)
    left_OK = TRUE_K[order_OK].flip(-1).logcumsumexp(-1).flip(-1)
    return (TRUE_K[order_OK] - left_OK).sum(-1).exp()


def orders(
    score_K: Tensor, *, turned: bool = False, loss: Callable[..., Tensor] = plackett_luce
) -> Tensor:
    ranks_OK = K - 1 - RANKS_OK if turned else RANKS_OK
    return (probabilities() * loss(score_K.expand(len(ranks_OK), K), ranks_OK)).sum()


def from_all(score_K: Tensor) -> Tensor:
    """Every choice among all five, those that were taken away included."""
    return K * score_K.logsumexp(0) - score_K.sum()


def neighbours(score_K: Tensor) -> Tensor:
    """Each pair of neighbours in an order, as if they had been compared."""
    order_OK = RANKS_OK.argsort(-1)
    better, worse = score_K[order_OK[:, :-1]], score_K[order_OK[:, 1:]]
    loss_OK = bradley_terry(better.flatten(), worse.flatten()).view(len(order_OK), -1)
    return (probabilities() * loss_OK.mean(-1)).sum()


def rated(score_K: Tensor, *, loss: Callable[..., Tensor] = squared_error) -> Tensor:
    each_K3 = score_K[:, None].expand_as(RATINGS_K3)
    return loss(each_K3.flatten(), RATINGS_K3.flatten()).mean()


def absolute(score_K: Tensor) -> Tensor:
    """Smooth enough to be minimised, and least at the median."""
    away_K3 = score_K[:, None] - RATINGS_K3
    return (away_K3.square() + 1e-6).sqrt().mean()


def judged_steps(score_K: Tensor, *, label: Callable[[Tensor], Tensor] = lambda p: p) -> Tensor:
    """Five steps, each judged by everyone: the share of those who find it right is its label."""
    return step_cross_entropy(score_K, label(TRUE_K.sigmoid())).mean()


def by_majority(score_K: Tensor) -> Tensor:
    """What most say is taken for certain; a little weight on the logits lets it end somewhere."""
    return judged_steps(score_K, label=lambda p: p.round()) + 1e-3 * score_l2(score_K).mean()


# For each loss: what it is on all judgements, the same put together wrongly, and whether it tells
# the constant.
SCORES: dict[str, tuple[Loss, dict[str, Loss], bool]] = {
    "bradley_terry": (
        pairs,
        {
            "pair swapped": lambda s: pairs(s, swapped=True),
            "differences doubled": lambda s: pairs(s, scale=2.0),
            "pairs of neighbours in an order": neighbours,
        },
        False,
    ),
    "soft labels": (
        labelled,
        {
            "label of the other side": lambda s: labelled(s, label=lambda p: 1 - p),
            "label smoothed by a tenth": lambda s: labelled(s, label=lambda p: 0.9 * p + 0.05),
        },
        False,
    ),
    "score_l2": (
        drawn,
        {
            "weight halved": lambda s: drawn(s, weight=WEIGHT / 2),
            "sums of pairs in place of scores": lambda s: drawn(s, pairwise=True),
            "about another zero": lambda s: drawn(s + 0.1),
        },
        True,
    ),
    "plackett_luce": (
        orders,
        {"order turned over": lambda s: orders(s, turned=True), "every choice from all": from_all},
        False,
    ),
    "process": (
        judged_steps,
        {
            "right and wrong exchanged": lambda s: judged_steps(s, label=lambda p: 1 - p),
            "labels by majority": by_majority,
            "shifted by a tenth": lambda s: judged_steps(s + 0.1),
        },
        True,
    ),
    "regression": (
        rated,
        {"absolute error": absolute, "shifted by a tenth": lambda s: rated(s + 0.1)},
        True,
    ),
}
