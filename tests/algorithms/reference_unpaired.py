"""KTO once more, as plain float64 loops from the paper. Nothing of the package is imported here."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def kto(
    policy: Array, reference: Array, labels: Sequence[bool], z0: float, beta: float, weights: Array
) -> Array:
    """Ethayarajh et al. (2024), eq. 8: lambda_y - v(x, y), v with the implied reward r of eq. 7."""
    out: list[float] = []
    for logp, ref, good in zip(policy, reference, labels, strict=True):
        r = math.log(math.exp(logp) / math.exp(ref))
        if good:
            value, weight = weights[0] / (1 + math.exp(-beta * (r - z0))), weights[0]
        else:
            value, weight = weights[1] / (1 + math.exp(-beta * (z0 - r))), weights[1]
        out.append(weight - value)
    return np.array(out)


def kto_baseline(policy: Array, reference: Array) -> float:
    """Section 4.1: the mean over mismatched pairs, and 0 where that is below."""
    total = 0.0
    for logp, ref in zip(policy, reference, strict=True):
        total += logp - ref
    return max(0.0, total / len(policy))
