"""Best of n: what choosing the highest of n samples comes to, exactly, and which pairs are clear.

Shapes: ``_N`` one number a sample, ``_S`` one a possible response. Torch is not needed here.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, gammaln  # pyright: ignore[reportMissingTypeStubs]

Array = NDArray[np.float64]


def best_of_n(gold_N: ArrayLike, score_N: ArrayLike, n: int) -> float:
    """The mean gold of the highest-scored of n, over all ways to take n of the N samples.

    Formula: ``sum over i >= n of C(i - 1, n - 1) / C(N, n) * gold_(i)``, gold in the order of the
    scores, the lowest first; those of equal score share their mean, as if one were drawn. Unbiased
    for n new samples, and with n below N far less noisy than a single draw of n.
    Source: Nakano et al. 2021 (WebGPT, arXiv:2112.09332); Gao et al. 2022 (arXiv:2210.10760).
    Raises ValueError for arrays that are empty, of unequal length or not finite, and for n outside
    1 to N.
    Differs: taken by log-gamma, so that N may be large. Coste et al. 2023 sort without regard to
    ties, so that the order in which samples came decides.
    """
    gold, score = _numbers("gold", gold_N), _numbers("scores", score_N)
    count = len(gold)
    if len(score) != count:
        raise ValueError(f"{count} gold values and {len(score)} scores came: one each is needed")
    if not 1 <= n <= count:
        raise ValueError(f"n is {n}: it must be from 1 to the number of samples, {count}")
    _, group_N = np.unique(score, return_inverse=True)
    mean = np.bincount(group_N, weights=gold) / np.bincount(group_N)
    i = np.arange(n, count + 1)
    log_share = _log_choose(i - 1, n - 1) - _log_choose(count, n)
    return float(np.exp(log_share) @ mean[np.sort(group_N)][n - 1 :])


def best_of_n_law(probability_S: ArrayLike, score_S: ArrayLike, n: int) -> Array:
    """The law (S,) of the highest-scored of n independent draws; equal scores share as they are
    drawn.

    Formula: ``F(y)^n - F(y-)^n``, F the chance of a score as high as that of y or lower, and
    ``F(y-)`` of a lower one. Its KL from the law of a single draw is at most `best_of_n_kl`.
    Source: Gao et al. 2022 (arXiv:2210.10760); Beirami et al. 2024 (arXiv:2401.01879).
    Raises ValueError for arrays that are empty, of unequal length or not finite, for probabilities
    that are below 0 or do not add up to 1, and for n below 1.
    Differs: ties. Without them a group is one response.
    """
    p, score = _numbers("probabilities", probability_S), _numbers("scores", score_S)
    if len(score) != len(p):
        raise ValueError(f"{len(p)} probabilities and {len(score)} scores came: one each is needed")
    if p.min() < 0 or not math.isclose(p.sum(), 1, abs_tol=1e-9):
        raise ValueError(f"the probabilities add up to {p.sum():g}: from 0 and to 1 is needed")
    if n < 1:
        raise ValueError(f"n is {n}: at least one draw is needed")
    _, group_S = np.unique(score, return_inverse=True)
    mass = np.bincount(group_S, weights=p)
    upper = np.minimum(np.cumsum(mass), 1.0)
    lower = np.concatenate([[0.0], upper[:-1]])
    won = upper**n - lower**n
    share_S = np.divide(p, mass[group_S], out=np.zeros_like(p), where=mass[group_S] > 0)
    return won[group_S] * share_S


def best_of_n_kl(n: int) -> float:
    """How far the best of n is from a single draw, at most: ``log n - (n - 1) / n`` nats.

    Reached where no response has a probability to speak of, less where some have. Source: as
    `best_of_n_law`. Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: at least one draw is needed")
    return math.log(n) - (n - 1) / n


def gap_probability(high_N: ArrayLike, low_N: ArrayLike, *, temperature: float) -> Array:
    """How sure a reward is of each pair: ``sigmoid((high - low) / temperature)``, (N,).

    Source: Khaki et al. 2024 (RS-DPO, arXiv:2402.10038), their tau; pairs at their eta or above are
    kept. Raises ValueError for a temperature that is not positive, and for arrays that are empty,
    of unequal length or not finite.
    """
    high, low = _numbers("higher scores", high_N), _numbers("lower scores", low_N)
    if len(high) != len(low):
        raise ValueError(f"{len(high)} higher and {len(low)} lower scores came: pairs are needed")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    return expit((high - low) / temperature)


def _log_choose(n: ArrayLike, k: int) -> Array:
    n = np.asarray(n, dtype=np.float64)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _numbers(name: str, values: ArrayLike) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"{name} of shape {found.shape} came: finite numbers are needed, one each")
    return found
