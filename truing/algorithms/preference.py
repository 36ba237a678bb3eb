"""Direct preference losses, on sequence log-ratios ``rho = log pi(y|x) - log pi_ref(y|x)``.

Each is a function of the two log-ratios of a pair, summed over response tokens; where a method
averages over tokens instead, its recipe says so (`truing.stages.preference.RECIPES`).
"""

from torch import Tensor

from truing.algorithms.comparison import bradley_terry


def dpo(chosen_ratio_N: Tensor, rejected_ratio_N: Tensor, *, beta: float) -> Tensor:
    """Direct preference optimisation: Bradley-Terry on implicit rewards ``beta * rho``.

    Formula: ``-log sigmoid(beta * (rho_w - rho_l))``; log 2 where policy equals reference.
    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ or beta is not positive.
    Differs: TRL and OpenRLHF subtract the pair's policy and reference log-probs in another order;
    equal up to rounding.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}: it is the strength of the KL penalty")
    return bradley_terry(beta * chosen_ratio_N, beta * rejected_ratio_N)
