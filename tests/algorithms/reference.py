"""The formulas of floor 0 once more, as plain float64 loops from the papers.

Nothing of the package is imported here: what is compared must not share its mistakes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def token_logp(logits: Array, targets: NDArray[np.int64]) -> Array:
    """ln softmax(logits)[target], one token at a time."""
    out = np.zeros(targets.shape)
    for place in np.ndindex(*targets.shape):
        row = [float(x) for x in logits[place]]
        highest = max(row)
        total = sum(math.exp(x - highest) for x in row)
        out[place] = row[int(targets[place])] - highest - math.log(total)
    return out


def k1(logp: Array, ref_logp: Array) -> Array:
    """Schulman (2020): the mean of log p/q under p is KL(p || q)."""
    out = np.zeros(logp.shape)
    for place in np.ndindex(*logp.shape):
        out[place] = logp[place] - ref_logp[place]
    return out


def k3(logp: Array, ref_logp: Array) -> Array:
    """Schulman (2020): (r - 1) - log r with r = q/p."""
    out = np.zeros(logp.shape)
    for place in np.ndindex(*logp.shape):
        ratio = math.exp(ref_logp[place]) / math.exp(logp[place])
        out[place] = (ratio - 1) - math.log(ratio)
    return out


def sequence_sum(x: Array, mask: Array) -> Array:
    out = np.zeros(len(x))
    for row, column in np.ndindex(*x.shape):
        if mask[row, column]:
            out[row] += x[row, column]
    return out


def reduce_mean(x: Array, denominator: float) -> float:
    return math.fsum(float(v) for v in x.ravel()) / denominator


def bradley_terry(chosen: Array, rejected: Array, margin: Array) -> Array:
    """InstructGPT eq. 1 with Llama 2's margin: -ln 1 / (1 + e^-(c - r - m))."""
    pairs = zip(chosen, rejected, margin, strict=True)
    return np.array([-math.log(1 / (1 + math.exp(-(c - r - m)))) for c, r, m in pairs])


def centering(chosen: Array, rejected: Array) -> Array:
    """Eisenstein et al. (2023), section 2."""
    return np.array([(c + r) ** 2 for c, r in zip(chosen, rejected, strict=True)])


def ranked_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            if ranks[i] < ranks[j]:
                pairs.append((i, j))
    return pairs


def dpo(policy: Array, reference: Array, beta: float) -> Array:
    """Rafailov et al. (2023), eq. 7. Rows: log-probs of (chosen, rejected) responses."""
    out: list[float] = []
    for (pw, pl), (rw, rl) in zip(policy, reference, strict=True):
        h = beta * (pw - rw) - beta * (pl - rl)
        out.append(-math.log(1 / (1 + math.exp(-h))))
    return np.array(out)


def bites(check: Callable[[Any], None], mutants: Mapping[str, Any]) -> None:
    """Assert that ``check`` fails for each broken form of the function it checks."""
    for name, mutant in mutants.items():
        try:
            check(mutant)
        except AssertionError:
            continue
        raise AssertionError(f"the check does not notice when the function is broken: {name}")
