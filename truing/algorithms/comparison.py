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
    """
    check_shapes(chosen=chosen_N, rejected=rejected_N)
    difference_N = chosen_N - rejected_N
    if margin_N is not None:
        check_shapes(chosen=chosen_N, margin=margin_N)
        difference_N = difference_N - margin_N
    return -F.logsigmoid(difference_N)


def centering(chosen_N: Tensor, rejected_N: Tensor) -> Tensor:
    """Penalty ``(c + r)^2`` that keeps the scores of a pair around zero.

    Source: Eisenstein et al. 2023 (arXiv:2312.09244), section 2. Shapes: (N,); result (N,).
    """
    check_shapes(chosen=chosen_N, rejected=rejected_N)
    return (chosen_N + rejected_N).square()


def ranked_pairs(ranks_K: Sequence[int]) -> list[tuple[int, int]]:
    """All (better, worse) index pairs of one ranking, rank 0 the best; tied responses form no pair.

    Source: Ouyang et al. 2022, section 3.5: all pairs of a prompt are one batch element, weighted
    by 1 / their number, so that a prompt with more responses does not count for more.
    """
    return [(i, j) for i, a in enumerate(ranks_K) for j, b in enumerate(ranks_K) if a < b]
