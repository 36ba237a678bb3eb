"""Losses of single responses with a thumb up or down, on log-ratios ``rho`` (`preference`)."""

import torch
from torch import Tensor

from truing.algorithms.tokens import check_shapes, reduce_mean


def kto(
    ratio_N: Tensor,
    label_N: Tensor,
    baseline: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation: each response gains or loses beside a reference point z0.

    Formula: ``lambda_D (1 - sigmoid(beta (rho - z0)))`` for a desirable response,
    ``lambda_U (1 - sigmoid(beta (z0 - rho)))`` for an undesirable one. ``z0`` is a constant: no
    gradient runs through ``baseline``, of which `kto_baseline` is the estimate. Half of the weight
    where policy equals reference.
    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 7 and 8.
    Shapes: ratio (N,), label (N,) of bool, true for desirable, baseline a scalar; result (N,).
    Raises ValueError when shapes differ, for labels that are no bools, for a baseline below 0, and
    for a beta or a weight that is not positive.
    Differs: the paper's value function is lambda minus this, a constant apart; so are HALOs and
    TRL, which take the baseline of each micro-batch. See docs/kto.md.
    """
    check_shapes(ratio=ratio_N, label=label_N)
    if label_N.dtype != torch.bool:
        raise ValueError(f"labels of {label_N.dtype} came: true or false is needed (torch.bool)")
    baseline = baseline.detach()
    if baseline.dim() or float(baseline) < 0:
        came = f"of shape {tuple(baseline.shape)}" if baseline.dim() else f"{float(baseline)}"
        raise ValueError(f"a baseline {came} came: one number from 0 upwards is needed")
    settings = {
        "beta": beta,
        "desirable_weight": desirable_weight,
        "undesirable_weight": undesirable_weight,
    }
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    gain_N = beta * (ratio_N - baseline)
    good_N = desirable_weight * torch.sigmoid(-gain_N)
    bad_N = undesirable_weight * torch.sigmoid(gain_N)
    return torch.where(label_N, good_N, bad_N)


def kto_baseline(mismatched_ratio_N: Tensor, denominator: Tensor | float) -> Tensor:
    """The reference point z0 of `kto`: how far the policy is from its reference, estimated.

    Formula: ``max(0, sum of rho(x, y') / denominator)``, y' a response to another prompt than x:
    what the policy makes likelier whatever it is asked. Clamped after the sum, so parts of a step
    have to be added up before.
    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.1.
    Shapes: (N,), or a scalar that is a sum already; result a scalar, without gradient. Raises
    ValueError when the denominator, the number of pairs, is not positive.
    Differs: it is no estimate of KL(policy || reference) unless y' comes from the policy; the name
    is the paper's.
    """
    return reduce_mean(mismatched_ratio_N.detach(), denominator).clamp(min=0)
