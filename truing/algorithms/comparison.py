"""Losses on scores that people's comparisons order. Scores come in, unreduced losses go out."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from truing.algorithms.tokens import check_shapes


def bradley_terry(chosen_N: Tensor, rejected_N: Tensor, margin_N: Tensor | None = None) -> Tensor:
    """Negative log-likelihood that the chosen response wins: ``-log sigmoid(c - r - m)``.

    Source: Bradley and Terry (1952); as a reward-model loss Ouyang et al. 2022 (arXiv:2203.02155),
    eq. 1; the margin m from Touvron et al. 2023 (arXiv:2307.09288), eq. 2.
    Shapes: scores of N pairs (N,); result (N,). Raises ValueError when shapes differ.
    Differs: TRL and OpenRLHF average over pairs, so a prompt counts by the number of its pairs;
    here the caller weighs them.
    """
    check_shapes(chosen=chosen_N, rejected=rejected_N)
    difference_N = chosen_N - rejected_N
    if margin_N is not None:
        check_shapes(chosen=chosen_N, margin=margin_N)
        difference_N = difference_N - margin_N
    return -F.logsigmoid(difference_N)


def soft_bradley_terry(
    first_N: Tensor, second_N: Tensor, probability_N: Tensor, margin_N: Tensor | None = None
) -> Tensor:
    """Cross-entropy of a label that is a probability: ``-p log sigmoid(d) - (1-p) log sigmoid(-d)``
    with ``d = f - s - m``; p is the probability that the first wins, and a tie is the label 1/2.

    Least where ``d = log(p / (1-p))``. At p = 1 it is `bradley_terry`.
    Source: Christiano et al. 2017 (arXiv:1706.03741), section 2.2.3; the margin as in
    `bradley_terry`.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ, or for a label that is
    not from 0 to 1 (NaN too). A score of NaN gives NaN, for the training loop to stop at.
    Differs: Christiano et al. also mix every prediction with a coin's (10 %), for people who err
    whatever the scores; here p holds what is known of that. TRL and OpenRLHF know hard labels and
    margins only; the latter two are the same here. Rao and Kupper (1967) and Davidson (1970) make
    the tie a third outcome with a parameter of its own; here it is half a win for each side.
    """
    check_shapes(first=first_N, second=second_N, probability=probability_N)
    fine_N = (probability_N >= 0) & (probability_N <= 1)
    if not bool(fine_N.all()):
        wrong: list[float] = probability_N[~fine_N].tolist()  # pyright: ignore
        raise ValueError(
            f"labels {wrong[:5]} came: each must be the probability that the first wins, from 0 "
            "to 1; a tie is 0.5"
        )
    difference_N = first_N - second_N
    if margin_N is not None:
        check_shapes(first=first_N, margin=margin_N)
        difference_N = difference_N - margin_N
    wins_N, loses_N = F.logsigmoid(difference_N), F.logsigmoid(-difference_N)
    return -(probability_N * wins_N + (1 - probability_N) * loses_N)


def centering(chosen_N: Tensor, rejected_N: Tensor) -> Tensor:
    """Penalty ``(c + r)^2`` that keeps the scores of a pair around zero.

    Source: Eisenstein et al. 2023 (arXiv:2312.09244), section 2. Shapes: (N,); result (N,).
    Raises ValueError when shapes differ.
    Differs: nothing; TRL's ``center_rewards_coefficient`` is its weight there as here.
    """
    check_shapes(chosen=chosen_N, rejected=rejected_N)
    return (chosen_N + rejected_N).square()


def score_l2(score_N: Tensor) -> Tensor:
    """Penalty ``s^2`` on each score alone: a normal prior of mean 0 and variance 1 / (2 weight).

    It draws all scores towards 0, their differences too, where `centering` leaves the difference
    of a pair alone.
    Source: the ``regularization`` of Safe RLHF's reward and cost models (Dai et al. 2023,
    arXiv:2310.12773).
    Shapes: (N,); result (N,). Raises ValueError for another shape.
    Differs: there it is averaged over the scores of all pairs; here the caller weighs them.
    """
    if score_N.dim() != 1:
        raise ValueError(f"scores of shape {tuple(score_N.shape)} came: one row of them is needed")
    return score_N.square()


def ranked_pairs(ranks_K: Sequence[int]) -> list[tuple[int, int]]:
    """All (better, worse) index pairs of one ranking, rank 0 the best; tied responses form no pair.

    Source: Ouyang et al. 2022, section 3.5: all pairs of a prompt are one batch element, weighted
    by 1 / their number, so that a prompt with more responses does not count for more.
    """
    return [(i, j) for i, a in enumerate(ranks_K) for j, b in enumerate(ranks_K) if a < b]


def tied_pairs(ranks_K: Sequence[int]) -> list[tuple[int, int]]:
    """All index pairs of one ranking that share a rank, each once: pairs of the label 1/2.

    Source: Christiano et al. 2017 (arXiv:1706.03741), section 2.2.3.
    Differs: InstructGPT's labellers were to tie what they held for equal, and the paper does not
    say what became of it; the stage leaves such pairs out unless a setting asks for them.
    """
    return [
        (i, j) for i, a in enumerate(ranks_K) for j, b in enumerate(ranks_K) if i < j and a == b
    ]
