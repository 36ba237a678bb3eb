"""Six arms with known rewards and an uneven reference: the policy that a preference loss leads to.

Populations are exact: all pairs, each with its chance of being drawn and of being won.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from truing.conformance.spaces import least

REWARD = torch.tensor([0.5, 0.15, -0.25, 1.0, 0.0, -0.6], dtype=torch.float64)
PRIOR = torch.tensor([0.3, 0.25, 0.2, 0.05, 0.15, 0.05], dtype=torch.float64)
EVEN = torch.ones(6, dtype=torch.float64) / 6


def preferred(reward_A: Tensor) -> Tensor:
    """Bradley-Terry: the chance (A, A) that the arm of the row wins."""
    return torch.sigmoid(reward_A[:, None] - reward_A)


def tilted(exponent_A: Tensor) -> Tensor:
    """The reference, times exp(exponent), normalised."""
    return (PRIOR.log() + exponent_A).softmax(0)


def distance(one_A: Tensor, other_A: Tensor) -> float:
    """Total variation."""
    return float((one_A - other_A).abs().sum() / 2)


def log_ratio(logp_A: Tensor) -> Tensor:
    return logp_A - PRIOR.log()


def optimum(
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    reward: Tensor = REWARD,
    mu: Tensor = EVEN,
    seen: Callable[[Tensor], Tensor] = log_ratio,
) -> Tensor:
    """The policy with the smallest mean loss over pairs whose sides are drawn from ``mu``.

    ``seen``: what the loss is given of the arms' log-probs.
    """
    first, second = torch.triu_indices(len(reward), len(reward), 1)
    wins = preferred(reward)[first, second]
    weight = mu[first] * mu[second]

    def mean(theta: Tensor) -> Tensor:
        a, b = (seen(theta.log_softmax(0))[side] for side in (first, second))
        return (weight * (wins * loss(a, b) + (1 - wins) * loss(b, a))).sum() / weight.sum()

    return least(mean, torch.zeros(len(reward), dtype=torch.float64)).softmax(0)
