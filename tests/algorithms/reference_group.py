"""The formulas of groups once more, as plain float64 loops from the papers.

Nothing of the package is imported here: what is compared must not share its mistakes.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def centred(reward: Array) -> Array:
    """Liu et al. (2025), Dr. GRPO: the reward less the mean of all answers to its question."""
    out = np.zeros(reward.shape)
    for p, i in np.ndindex(*reward.shape):
        out[p, i] = reward[p, i] - math.fsum(reward[p]) / reward.shape[1]
    return out


def group_scaled(reward: Array, epsilon: float) -> Array:
    """Shao et al. (2024), section 4.1.2, with the deviation that divides by G - 1."""
    out = np.zeros(reward.shape)
    for p, group in enumerate(reward):
        mean = math.fsum(group) / len(group)
        deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / (len(group) - 1))
        for i, r in enumerate(group):
            out[p, i] = (r - mean) / (deviation + epsilon)
    return out


def batch_scaled(reward: Array, epsilon: float) -> Array:
    every = [float(r) for r in reward.ravel()]
    mean = math.fsum(every) / len(every)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in every) / (len(every) - 1))
    out = np.zeros(reward.shape)
    for p, group in enumerate(reward):
        for i, r in enumerate(group):
            out[p, i] = (r - math.fsum(group) / len(group)) / (deviation + epsilon)
    return out


def overlong(lengths: Sequence[int], limit: int, buffer: int) -> list[float]:
    """Yu et al. (2025), equation 13, negated."""
    out: list[float] = []
    for length in lengths:
        if length <= limit - buffer:
            out.append(0.0)
        elif length <= limit:
            out.append(-((limit - buffer) - length) / buffer)
        else:
            out.append(1.0)
    return out


def ppo_clip(logp: Array, old: Array, advantage: Array, low: float, high: float) -> Array:
    """Yu et al. (2025), equation 10, one token, negated."""
    out = np.zeros(logp.shape)
    for place in np.ndindex(*logp.shape):
        w, a = math.exp(logp[place]) / math.exp(old[place]), advantage[place]
        out[place] = -min(w * a, min(max(w, 1 - low), 1 + high) * a)
    return out


def cispo(logp: Array, old: Array, advantage: Array, low: float, high: float) -> Array:
    """MiniMax (2025), equations 4 and 5, one token, negated."""
    out = np.zeros(logp.shape)
    for place in np.ndindex(*logp.shape):
        w = math.exp(logp[place] - old[place])
        w = 1 + high if w > 1 + high else 1 - low if w < 1 - low else w
        out[place] = -w * advantage[place] * logp[place]
    return out
