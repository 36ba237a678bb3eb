"""The likelihood of a whole ranking. Scores come in, one unreduced loss a ranking goes out."""

import torch
from torch import Tensor

from truing.algorithms.tokens import check_shapes


def plackett_luce(score_PK: Tensor, rank_PK: Tensor, mask_PK: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a ranking that is made by choosing the best of what is left.

    Formula: ``sum_i [logsumexp of s_j over all j that are not ranked above i] - s_i``, i and j over
    the responses of one ranking, rank 0 the best. At equal scores and without ties it is ln K!; of
    two responses it is `bradley_terry`.
    Ties are treated as Breslow (1974) does: each of those that tie is chosen from all of them and
    the rest, as if the others of its rank had not been chosen yet. Where all K tie, equal scores
    cost K ln K and are the least.
    Source: Luce (1959) and Plackett (1975); as a reward-model loss Zhu et al. 2023
    (arXiv:2301.11270), their maximum-likelihood estimator for K-wise comparisons.
    Shapes: P rankings of up to K responses (P, K); ranks of whole numbers; ``mask`` is 1 where
    there is a response, and what stands elsewhere does not matter; result (P,).
    Raises ValueError when shapes differ, for ranks that are no whole numbers from 0 upwards, and
    for a ranking of fewer than two. A score of NaN gives NaN, for the training loop to stop at.
    Differs: lm-human-preferences (Ziegler et al. 2019) scores the first choice of four only.
    InstructGPT splits a ranking into its pairs (`ranked_pairs`): consistent too, less efficient.
    """
    mask_PK = torch.ones_like(rank_PK) if mask_PK is None else mask_PK
    check_shapes(score=score_PK, rank=rank_PK, mask=mask_PK)
    _check_ranks(rank_PK, mask_PK.bool())
    mask_PK = mask_PK.bool()
    score_PK = score_PK.masked_fill(~mask_PK, 0.0)
    # Whether j (last axis) can still be chosen when i is. Filling sees itself alone, which costs
    # nothing: no row is empty, so no gradient is NaN.
    open_PKK = (rank_PK[:, None, :] >= rank_PK[:, :, None]) & mask_PK[:, None, :]
    open_PKK = open_PKK | torch.eye(rank_PK.shape[1], dtype=torch.bool, device=rank_PK.device)
    rest_PKK = score_PK[:, None, :].masked_fill(~open_PKK, -torch.inf)
    loss_PK = rest_PKK.logsumexp(-1) - score_PK
    return loss_PK.masked_fill(~mask_PK, 0.0).sum(-1)


def _check_ranks(rank_PK: Tensor, mask_PK: Tensor) -> None:
    if rank_PK.dim() != 2 or rank_PK.dtype.is_floating_point or rank_PK.dtype == torch.bool:
        raise ValueError(
            f"ranks of shape {tuple(rank_PK.shape)} and {rank_PK.dtype} came: whole numbers are "
            "needed, a row for each ranking, 0 for the best"
        )
    if bool((rank_PK[mask_PK] < 0).any()):
        raise ValueError(f"the rank {int(rank_PK[mask_PK].min())} came: the best has 0")
    if bool((mask_PK.sum(-1) < 2).any()):
        raise ValueError(
            f"a ranking of {int(mask_PK.sum(-1).min())} came: there is an order of two or more only"
        )
