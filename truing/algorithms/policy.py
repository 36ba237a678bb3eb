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
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantage_BT: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
) -> Surrogate:
    """Clipped surrogate: ``-min(w A, clip(w, 1 - c, 1 + c) A)``, ``w = exp(logp - old_logp)``.

    ``clip_high``: the upper c, where it is another (DAPO's clip-higher).
    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7, with the sign of a loss; Yu et al. 2025
    (arXiv:2503.14476), eq. 10 for the two clips. On means over tokens as log-probs it is GSPO's
    (Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7).
    Shapes: three of one shape; results of that shape. Where policy equals behaviour the gradient is
    REINFORCE's, ``-A grad logp``. Raises ValueError when shapes differ or a clip is not positive.
    Differs: no dual clip (verl has one); TRL's RLOO takes the same with whole responses as actions.
    """
    ratio_BT, near_BT = _ratios(logp_BT, old_logp_BT, advantage_BT, clip, clip_high)
    free_BT, bound_BT = -ratio_BT * advantage_BT, -near_BT * advantage_BT
    return Surrogate(torch.maximum(free_BT, bound_BT), ratio_BT, bound_BT > free_BT)


def cispo(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantage_BT: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
) -> Surrogate:
    """Clipped weight: ``-sg(clip(w, 1 - c, 1 + c)) A logp``: every token keeps a gradient, whose
    weight is bounded.

    ``clip_high``: the upper c, where it is another; a ``clip`` of 1 is no lower bound, for no ratio
    is below 0. ``clipped`` says where the weight was bounded.
    Source: MiniMax 2025 (arXiv:2506.13585), eq. 4 and 5. Shapes and errors as `ppo_clip`, whose
    gradient it has where policy equals behaviour. Its value is not an objective: it may rise while
    the policy gets better.
    Differs: the bounds are 1 - c and 1 + c_high as in the paper and in verl; TRL's epsilon_high is
    the upper bound itself (its 5.0 is 4.0 here), and it has no lower one.
    """
    ratio_BT, near_BT = _ratios(logp_BT, old_logp_BT, advantage_BT, clip, clip_high)
    ratio_BT, near_BT = ratio_BT.detach(), near_BT.detach()
    return Surrogate(-near_BT * advantage_BT * logp_BT, ratio_BT, near_BT != ratio_BT)


def _ratios(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantage_BT: Tensor,
    clip: float,
    clip_high: float | None,
) -> tuple[Tensor, Tensor]:
    """The importance ratio, free and clipped."""
    check_shapes(logp=logp_BT, old_logp=old_logp_BT, advantage=advantage_BT)
    high = clip if clip_high is None else clip_high
    if not (clip > 0 and high > 0):
        raise ValueError(
            f"the clip must be positive, got {clip} and {high}: nothing could be learnt"
        )
    ratio_BT = (logp_BT - old_logp_BT).exp()
    return ratio_BT, ratio_BT.clamp(1 - clip, 1 + high)


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
    moved_BT = value_BT - old_value_BT
    near_BT = old_value_BT + moved_BT.clamp(-clip, clip)
    free_BT, bound_BT = (value_BT - return_BT).square(), (near_BT - return_BT).square()
    # Within the clip both are the same but for rounding, which is no clipping.
    clipped_BT = (moved_BT.abs() > clip) & (bound_BT > free_BT)
    return ValueLoss(torch.maximum(free_BT, bound_BT) / 2, clipped_BT)


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
