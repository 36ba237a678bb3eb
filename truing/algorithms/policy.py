"""Losses of policy gradients: the clipped surrogate, the clipped value loss, and a critic's worth.

Unreduced, of any shape: (B, T) where each token is an action, (B, 1) where a whole response is one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from truing.algorithms.tokens import check_shapes


class Surrogate(NamedTuple):
    """The loss, the importance ratio, and where the clip took the gradient away."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


class ValueLoss(NamedTuple):
    """The loss, and where the clip took the gradient away."""

    loss: Tensor
    clipped: Tensor


def ppo_clip(
    logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, *, clip: float
) -> Surrogate:
    """Clipped surrogate: ``-min(w A, clip(w, 1 - c, 1 + c) A)``, ``w = exp(logp - old_logp)``.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7, with the sign of a loss.
    Shapes: three of one shape; results of that shape. Where policy equals behaviour the gradient is
    REINFORCE's, ``-A grad logp``. Raises ValueError when shapes differ or the clip is not positive.
    Differs: no dual clip (verl has one); TRL's RLOO takes the same with whole responses as actions.
    """
    check_shapes(logp=logp_BT, old_logp=old_logp_BT, advantage=advantage_BT)
    if not clip > 0:
        raise ValueError(f"the clip must be positive, got {clip}: nothing could be learnt")
    ratio_BT = (logp_BT - old_logp_BT).exp()
    free_BT = -ratio_BT * advantage_BT
    bound_BT = -ratio_BT.clamp(1 - clip, 1 + clip) * advantage_BT
    return Surrogate(torch.maximum(free_BT, bound_BT), ratio_BT, bound_BT > free_BT)


def value_clip(
    value_BT: Tensor, old_value_BT: Tensor, return_BT: Tensor, *, clip: float
) -> ValueLoss:
    """Clipped value loss: ``max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2``.

    Source: OpenAI baselines' PPO2, as in Ziegler et al. 2019 (arXiv:1909.08593).
    Shapes: three of one shape; results of that shape. Raises ValueError when shapes differ or the
    clip is not positive.
    """
    check_shapes(value=value_BT, old_value=old_value_BT, returns=return_BT)
    if not clip > 0:
        raise ValueError(f"the clip must be positive, got {clip}: nothing could be learnt")
    near_BT = old_value_BT + (value_BT - old_value_BT).clamp(-clip, clip)
    free_BT, bound_BT = (value_BT - return_BT).square(), (near_BT - return_BT).square()
    return ValueLoss(torch.maximum(free_BT, bound_BT) / 2, bound_BT > free_BT)


def explained_variance(value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Share of the returns' variance that the values foresee: ``1 - Var(R - V) / Var(R)``.

    1 for a perfect critic, 0 for a constant one, below 0 for one that misleads; NaN where the
    returns do not vary. Shapes: (B, T) each; result (). Raises ValueError when shapes differ or
    nothing counts.
    """
    check_shapes(value=value_BT, returns=return_BT, mask=mask_BT)
    value_N, return_N = value_BT[mask_BT.bool()], return_BT[mask_BT.bool()]
    if not len(return_N):
        raise ValueError("there is no return to explain: every position is masked")
    variance = return_N.var(correction=0)
    left = (return_N - value_N).var(correction=0)
    return torch.where(variance > 0, 1 - left / variance, torch.nan)
