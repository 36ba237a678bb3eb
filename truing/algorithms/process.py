"""Losses and scores on the steps of a solution. Logits come in, one for each step."""

import torch.nn.functional as F
from torch import Tensor

from truing.algorithms.tokens import check_shapes


def step_cross_entropy(logit_N: Tensor, label_N: Tensor) -> Tensor:
    """Cross-entropy of whether a step is right: ``-y log sigmoid(z) - (1-y) log sigmoid(-z)``.

    Least, over all judgements of one step, at the log-odds of it being right.
    Source: Uesato et al. 2022 (arXiv:2211.14275) and Lightman et al. 2023 (arXiv:2305.20050), who
    read it at the last token of each step; labels between 0 and 1 are the soft estimation of Wang
    et al. 2023 (Math-Shepherd, arXiv:2312.08935).
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ, or for a label that is not
    from 0 to 1 (NaN too). A logit of NaN gives NaN, for the training loop to stop at.
    Differs: Lightman et al. and Math-Shepherd ask the language model for one of two (or three)
    words, TRL has a head with two outputs; their difference is this one logit.
    """
    check_shapes(logit=logit_N, label=label_N)
    fine_N = (label_N >= 0) & (label_N <= 1)
    if not bool(fine_N.all()):
        wrong: list[float] = label_N[~fine_N].tolist()  # pyright: ignore
        raise ValueError(
            f"labels {wrong[:5]} came: each must be from 0 (wrong) to 1 (right): bring them to that"
        )
    return -(label_N * F.logsigmoid(logit_N) + (1 - label_N) * F.logsigmoid(-logit_N))


def step_product(logit_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Log-probability that every step is right: the sum of ``log sigmoid(z)`` over the steps.

    Source: Lightman et al. 2023, section 2.6: the score of a solution is the product of its steps'
    probabilities. If each is the probability given that the steps before are right, it is the
    chain rule.
    Shapes: B solutions of up to S steps (B, S), the mask true where there is one; result (B,), 0 at
    most. Raises ValueError when shapes differ, and for a solution without steps.
    Differs: they tell the probability; its logarithm orders alike and does not run out of digits.
    """
    return _logps(logit_BS, mask_BS).sum(-1)


def step_minimum(logit_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Log-probability that the worst step is right: the least ``log sigmoid(z)`` of a solution.

    Source: Lightman et al. 2023, appendix F, and Wang et al. 2023 (Math-Shepherd), section 3.4.
    Shapes, errors and what differs: as `step_product`. Of equal steps the first has the gradient.
    """
    logp_BS = _logps(logit_BS, mask_BS)
    return logp_BS.gather(-1, logp_BS.argmin(-1, keepdim=True)).squeeze(-1)


def _logps(logit_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """``log sigmoid(z)`` of each step, and 0 where there is none: certain to be right."""
    check_shapes(logit=logit_BS, mask=mask_BS)
    if logit_BS.dim() != 2 or not bool(mask_BS.any(-1).all()):
        raise ValueError(
            f"steps of shape {tuple(logit_BS.shape)} came: a row for each solution is needed, with "
            "one step at least"
        )
    return F.logsigmoid(logit_BS.masked_fill(~mask_BS.bool(), float("inf")))
