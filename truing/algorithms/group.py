"""Advantages within groups of responses to one prompt, and the price of nearly endless responses.

Shapes as in `truing.algorithms.advantages`: ``P`` prompts, ``G`` responses to each of them.
"""

import torch
from torch import Tensor


def centred(reward_PG: Tensor) -> Tensor:
    """Advantage over the mean of the group: ``A_i = R_i - mean R``.

    Source: Liu et al. 2025 (arXiv:2503.20783), Dr. GRPO. Shapes: (P, G); result (P, G). Raises
    ValueError for groups of one, for no group and for integers; so do all here.
    Differs: the mean includes R_i, so that on average this is (G - 1) / G of `leave_one_out`; what
    is weighed against it (a KL in the loss) then weighs G / (G - 1) times as much.
    """
    _check_group(reward_PG)
    return reward_PG - reward_PG.mean(-1, keepdim=True)


def group_scaled(reward_PG: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """Advantage in standard deviations of the group: ``(R_i - mean R) / (std R + epsilon)``.

    Source: Shao et al. 2024 (arXiv:2402.03300), section 4.1.2. Shapes: (P, G); result (P, G), 0 in
    a group of equal rewards. Raises ValueError as `centred`, and for an epsilon below 0.
    Differs: the deviation divides by G - 1, and epsilon is 1e-4, as in TRL; verl adds 1e-6, oat
    1e-8. The paper adds none and does not say which deviation it means.
    """
    _check_epsilon(epsilon)
    return centred(reward_PG) / (reward_PG.std(-1, keepdim=True) + epsilon)


def batch_scaled(reward_PG: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """Advantage in standard deviations of all rewards: ``(R_i - mean of the group) / (std + eps)``.

    Source: the ``scale_rewards: batch`` of TRL, after Liu et al. 2025 (arXiv:2508.08221).
    Shapes: (P, G); result (P, G). Raises ValueError as `group_scaled`.
    Differs: the deviation is that of the rewards themselves, so that it also holds what lies
    between prompts; REINFORCE++ whitens what is left after the group's mean instead.
    """
    _check_epsilon(epsilon)
    return centred(reward_PG) / (reward_PG.std() + epsilon)


def overlong(length_B: Tensor, *, limit: int, buffer: int) -> Tensor:
    """What nearly endless responses lose: ``clip((length - (limit - buffer)) / buffer, 0, 1)``.

    Nothing up to ``limit - buffer`` tokens, then evenly more, 1 from ``limit`` on.
    Source: Yu et al. 2025 (arXiv:2503.14476), equation 13, with the sign of a penalty.
    Shapes: (B,) of lengths in tokens; result (B,) in float64. Raises ValueError unless the buffer
    is positive and at most the limit.
    Differs: the paper punishes the same whether a response of ``limit`` tokens ended or was cut,
    and so do we; ``missing_eos`` looks at the end alone.
    """
    if not 0 < buffer <= limit:
        raise ValueError(
            f"the buffer lies within the limit, so it must be from 1 to {limit}, got {buffer}"
        )
    return ((length_B.double() - (limit - buffer)) / buffer).clamp(0.0, 1.0)


def flat_groups(reward_PG: Tensor) -> Tensor:
    """Whether all rewards of a group are equal, so that none of its responses has an advantage.

    Source: Yu et al. 2025 (arXiv:2503.14476), section 3.2. Shapes: (P, G); result (P,) of bool.
    Raises ValueError as `centred`, and for a reward that is no finite number: it would look like
    an advantage.
    Differs: their rewards are 0 or 1; for others, equal is what differs by less than 1e-8, as
    torch's isclose has it for TRL's ``frac_reward_zero_std``.
    """
    _check_group(reward_PG)
    if not bool(reward_PG.isfinite().all()):
        wrong: list[float] = reward_PG[~reward_PG.isfinite()].tolist()  # pyright: ignore
        raise ValueError(f"the rewards {wrong[:5]} came: each must be a finite number")
    return reward_PG.amax(-1) - reward_PG.amin(-1) < 1e-8


def _check_group(reward_PG: Tensor) -> None:
    group = reward_PG.shape[-1] if reward_PG.dim() else 1
    if group < 2:
        raise ValueError(
            f"a group needs two responses to a prompt at least, got {group}: one is its own mean, "
            "and has no advantage; raise num_generations"
        )
    if not reward_PG.numel():
        raise ValueError(f"rewards of shape {tuple(reward_PG.shape)} came: a group is needed")
    if not torch.is_floating_point(reward_PG):
        raise ValueError(f"rewards must be floating-point numbers, got {reward_PG.dtype}")


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
