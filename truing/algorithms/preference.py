"""Direct preference losses, on sequence log-ratios ``rho = log pi(y|x) - log pi_ref(y|x)``.

Each is a function of the two log-ratios of a pair, summed over response tokens; where a method
averages over tokens instead, its recipe says so (`truing.stages.preference.RECIPES`). A NaN gives
NaN, for the training loop to stop at.
"""

from torch import Tensor

from truing.algorithms.comparison import bradley_terry
from truing.algorithms.tokens import check_shapes


def dpo(chosen_ratio_N: Tensor, rejected_ratio_N: Tensor, *, beta: float) -> Tensor:
    """Direct preference optimisation: Bradley-Terry on implicit rewards ``beta * rho``.

    Formula: ``-log sigmoid(beta * (rho_w - rho_l))``; log 2 where policy equals reference.
    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ or beta is not positive.
    Differs: TRL and OpenRLHF subtract the pair's policy and reference log-probs in another order;
    equal up to rounding.
    """
    check_pair(chosen_ratio_N, rejected_ratio_N, beta)
    return bradley_terry(beta * chosen_ratio_N, beta * rejected_ratio_N)


def cdpo(
    chosen_ratio_N: Tensor, rejected_ratio_N: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Conservative DPO: cross-entropy with a label that is wrong with probability e.

    Formula: ``(1 - e) DPO(w, l) + e DPO(l, w)``; smallest at a margin of ``log((1 - e) / e)``.
    Source: Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO".
    Shapes: (N,) each; result (N,). Raises ValueError as `dpo`, and for a label_smoothing outside
    [0, 0.5).
    Differs: it bounds margins, but where labels really flip it leads further from the optimum than
    DPO does; `robust_dpo` is the correction.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing must lie in [0, 0.5), got {label_smoothing}: it is the share of "
            "labels that are wrong"
        )
    right_N = dpo(chosen_ratio_N, rejected_ratio_N, beta=beta)
    wrong_N = dpo(rejected_ratio_N, chosen_ratio_N, beta=beta)
    return (1 - label_smoothing) * right_N + label_smoothing * wrong_N


def robust_dpo(
    chosen_ratio_N: Tensor, rejected_ratio_N: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Robust DPO: over labels that flip with probability e, its mean is DPO on the true labels.

    Formula: ``((1 - e) DPO(w, l) - e DPO(l, w)) / (1 - 2 e)``; unbounded below.
    Source: Chowdhury, Kini and Natarajan 2024 (arXiv:2403.00409), the loss of rDPO.
    Shapes: (N,) each; result (N,). Raises ValueError as `dpo`, and for a label_smoothing outside
    (0, 0.5).
    Differs: nothing in the formula; 0, with which it would be DPO, is refused here.
    """
    if not 0 < label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing must lie in (0, 0.5), got {label_smoothing}: it is the share of "
            "labels that are flipped, and with 0 robust DPO is DPO"
        )
    right_N = dpo(chosen_ratio_N, rejected_ratio_N, beta=beta)
    wrong_N = dpo(rejected_ratio_N, chosen_ratio_N, beta=beta)
    return ((1 - label_smoothing) * right_N - label_smoothing * wrong_N) / (1 - 2 * label_smoothing)


def ipo(chosen_ratio_N: Tensor, rejected_ratio_N: Tensor, *, beta: float) -> Tensor:
    """Identity preference optimisation: regress the difference of log-ratios on ``1 / (2 beta)``.

    Formula: ``(rho_w - rho_l - 1 / (2 beta))^2``, beta the paper's tau; ``1 / (4 beta^2)`` where
    policy equals reference.
    Source: Azar et al. 2023 (arXiv:2310.12036), eq. 17.
    Shapes: (N,) each; result (N,). Raises ValueError as `dpo`.
    Differs: the paper's log-ratios are sums over tokens. TRL and HALOs give it means over tokens,
    another method with another optimum: the recipe ``ipo_mean``.
    """
    check_pair(chosen_ratio_N, rejected_ratio_N, beta)
    return (chosen_ratio_N - rejected_ratio_N - 1 / (2 * beta)).square()


def hinge(chosen_ratio_N: Tensor, rejected_ratio_N: Tensor, *, beta: float) -> Tensor:
    """Hinge loss on implicit rewards: a pair with a margin of 1 is left alone.

    Formula: ``max(0, 1 - beta (rho_w - rho_l))``; 1 where policy equals reference.
    Source: Zhao et al. 2023 (SLiC-HF, arXiv:2305.10425), with the reference of Liu et al.
    2023 (RSO, arXiv:2309.06657, "hinge-norm"; beta is their gamma).
    Shapes: (N,) each; result (N,). Raises ValueError as `dpo`.
    Differs: SLiC-HF has no reference, a free margin and a term that imitates; TRL's hinge is ours.
    """
    check_pair(chosen_ratio_N, rejected_ratio_N, beta)
    return (1 - beta * (chosen_ratio_N - rejected_ratio_N)).clamp(min=0)


def check_pair(chosen_N: Tensor, rejected_N: Tensor, beta: float) -> None:
    """Raise ValueError for shapes that differ, and for a beta that is not positive."""
    check_shapes(chosen=chosen_N, rejected=rejected_N)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}: it is the strength of the KL penalty")
