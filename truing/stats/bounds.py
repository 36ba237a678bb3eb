"""Upper bounds that hold however skewed the numbers are: for a rate, and for a mean within limits.

A bound at ``delta`` lies below the truth in at most that share of all repetitions, with any number
of rows. Student's t does not keep that promise for rare events: with a true rate of 0.1 and thirty
rows its bound at 0.05 lies below the truth in 18 % of them.

The rows must be independent of each other and of whatever chose the model: one response to each
held-out prompt, looked at once.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs]


def clopper_pearson(events: int, n: int, *, delta: float) -> float:
    """Upper bound for the rate behind ``events`` in ``n`` independent rows.

    Formula: the 1 - delta quantile of Beta(events + 1, n - events), 1 where all are events: the
    rate at which so few events would come with probability delta. 0 of n gives
    ``1 - delta^(1/n)``, about 3/n at 0.05.
    Source: Clopper and Pearson 1934. Raises ValueError for counts that cannot be, and for a delta
    outside (0, 1).
    Differs: Safe RLHF work bounds the mean cost by Student's t (Chittepu et al. 2025), which is
    too low for rare events.
    """
    _check_delta(delta)
    if not 0 <= events <= n or n < 1:
        raise ValueError(
            f"{events} events in {n} rows came: there must be a row, and no more events"
        )
    return 1.0 if events == n else float(betaincinv(events + 1, n - events, 1 - delta))


def empirical_bernstein(values_N: ArrayLike, *, low: float, high: float, delta: float) -> float:
    """Upper bound for the mean behind independent numbers that all lie within [low, high].

    Formula: ``mean + sqrt(2 v ln(2 / delta) / n) + 7 (high - low) ln(2 / delta) / (3 (n - 1))``,
    v the sample variance (n - 1), and never above ``high``.
    Source: Maurer and Pontil 2009 (arXiv:0907.3740), theorem 4, scaled and turned round.
    Raises ValueError below two rows, for a number outside the limits (NaN too), for limits that
    are no interval, and for a delta outside (0, 1).
    """
    _check_delta(delta)
    x_N: NDArray[np.float64] = np.asarray(values_N, dtype=np.float64)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the limits {low:g} and {high:g} came: the lower must come first")
    if x_N.ndim != 1 or len(x_N) < 2:
        raise ValueError(f"values of shape {x_N.shape} came: a list of two at least is needed")
    outside = x_N[~((x_N >= low) & (x_N <= high))]
    if len(outside):
        raise ValueError(
            f"{len(outside)} of {len(x_N)} numbers lie outside [{low:g}, {high:g}], such as "
            f"{outside[0]:g}: no bound holds for what has no limits; give the true ones, or clip "
            "the cost"
        )
    n, log = len(x_N), math.log(2 / delta)
    spread = math.sqrt(2 * float(x_N.var(ddof=1)) * log / n)
    return min(float(x_N.mean()) + spread + 7 * (high - low) * log / (3 * (n - 1)), float(high))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}: the risk of a bound too low")
