"""Rates, means and comparisons, each with its interval.

Shapes: ``_N`` one number per row. ``cluster_N`` names the prompt a row belongs to; rows of one
prompt are not independent, so the standard error is taken over prompts, not rows (Miller 2024,
arXiv 2411.00640). Without it every row is a prompt of its own.

Two intervals are used. A *mean* of any numbers gets Student's t on the cluster-robust standard
error. A *rate*, a mean of numbers between 0 and 1, gets Wilson's interval at the effective number
of rows, which stays inside [0, 1] and never shrinks to a point, not even when every row agrees.
Every function raises ValueError for arrays that are empty, of unequal length or not finite.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtri, stdtrit  # pyright: ignore[reportMissingTypeStubs]
from statsmodels.genmod import families  # pyright: ignore[reportMissingTypeStubs]
from statsmodels.genmod.generalized_linear_model import (  # pyright: ignore[reportMissingTypeStubs]
    GLM,
)

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate from ``n`` rows and the ends of its interval."""

    value: float
    low: float
    high: float
    n: int


class WinRate(NamedTuple):
    """How often a beats b; a tie counts one half. ``ties`` is their number among the ``n`` rows."""

    value: float
    low: float
    high: float
    n: int
    ties: int


class LengthControlled(NamedTuple):
    """The win rate two answers of equal length would have had.

    ``length_effect`` is the change in log odds per unit of tanh(standardised length difference);
    ``reason`` is empty, or says why this is only the raw win rate.
    """

    value: float
    low: float
    high: float
    n: int
    length_effect: float
    reason: str


def mean(
    values_N: ArrayLike, cluster_N: ArrayLike | None = None, *, level: float = 0.95
) -> Interval:
    """Mean with Student's t interval on the cluster-robust standard error.

    se² = G/(G−1) · Σ_g (Σ_{i in g} (x_i − x̄))² / N², with G clusters and G−1 degrees of freedom;
    with one row per cluster that is s²/N.
    Differs: Miller 2024 has no G/(G−1), which matters only for few prompts.
    Equal values give an interval of width zero. Raises ValueError below two clusters: one prompt
    says nothing about the spread.
    """
    x_N = _finite("values", values_N)
    group_N, groups = _groups(cluster_N, len(x_N), least=2)
    centre = float(x_N.mean())
    sums_G = np.bincount(group_N, x_N - centre, groups)
    error = float(np.sqrt((sums_G @ sums_G) * groups / (groups - 1))) / len(x_N)
    reach = _quantile(level, groups - 1) * error
    return Interval(centre, centre - reach, centre + reach, len(x_N))


def rate(
    values_N: ArrayLike, cluster_N: ArrayLike | None = None, *, level: float = 0.95
) -> Interval:
    """Mean of numbers in [0, 1] with Wilson's interval at the effective number of rows.

    n_eff = N / D, where D = V_cluster / (p(1−p)/n) is the design effect (Kish 1965) and V_cluster
    the cluster-robust variance; then Wilson 1927 with n_eff in place of n. D is measured on the
    rows plus one cluster of wins and one of losses, of mean size, so that it is known even when all
    rows agree: 0 losses in N then has the upper end of about 3.8/N, a rule of three. The value
    itself is not touched. With 0/1 rows of their own D is 1 and this is Wilson's interval exactly.
    With rows that share prompts the normal quantile becomes Student's with G−1 degrees of freedom.

    Differs: common practice (Inspect, lm-eval) is value ± z·se, which leaves [0, 1] and has width
    zero when all rows agree.
    """
    x_N = _finite("rates", values_N)
    if x_N.min() < 0 or x_N.max() > 1:
        raise ValueError(
            f"a rate needs numbers from 0 to 1, got {x_N.min():g} to {x_N.max():g}: use mean()"
        )
    group_N, groups = _groups(cluster_N, len(x_N), least=min(len(x_N), 2))
    size = len(x_N) / groups
    total = len(x_N) + 2 * size
    guess = (x_N.sum() + size) / total
    sums_G = np.bincount(group_N, x_N - guess, groups)
    spread = sums_G @ sums_G + size**2 * (guess**2 + (1 - guess) ** 2)
    n = len(x_N) * guess * (1 - guess) * total / spread
    shared = groups < len(x_N)
    z2 = _quantile(level, groups - 1 if shared else None) ** 2
    value = float(x_N.mean())
    centre = (value + z2 / (2 * n)) / (1 + z2 / n)
    reach = np.sqrt(z2 * value * (1 - value) / n + z2**2 / (4 * n**2)) / (1 + z2 / n)
    # At 0 and 1 an end is the value itself; rounding must not move it past.
    low, high = min(max(centre - reach, 0.0), value), max(min(centre + reach, 1.0), value)
    return Interval(value, float(low), float(high), len(x_N))


def proportion(
    success_N: ArrayLike, cluster_N: ArrayLike | None = None, *, level: float = 0.95
) -> Interval:
    """Share of successes (0/1 or booleans) with `rate`'s interval: Wilson's when unclustered."""
    x_N = _finite("successes", success_N)
    if not np.isin(x_N, (0.0, 1.0)).all():
        raise ValueError("a proportion needs successes of 0 or 1: use rate() for numbers between")
    return rate(x_N, cluster_N, level=level)


def win_rate(
    score_a_N: ArrayLike,
    score_b_N: ArrayLike,
    *,
    cluster_N: ArrayLike | None = None,
    tie: float = 0.0,
    level: float = 0.95,
) -> WinRate:
    """How often a scores above b on the same rows, with `rate`'s interval.

    value = (wins + ties/2) / N; scores at most ``tie`` apart are a tie. Swapping a and b gives
    1 − value and the mirrored interval.
    """
    wins_N = _wins(score_a_N, score_b_N, tie)
    return WinRate(*rate(wins_N, cluster_N, level=level), ties=int((wins_N == 0.5).sum()))


def paired_difference(
    a_N: ArrayLike, b_N: ArrayLike, cluster_N: ArrayLike | None = None, *, level: float = 0.95
) -> Interval:
    """Mean of a − b over the same rows: what the rows share cancels."""
    a_N, b_N = _finite("a", a_N), _finite("b", b_N)
    _same_length(a=a_N, b=b_N)
    return mean(a_N - b_N, cluster_N, level=level)


def pair_accuracy(
    margin_N: ArrayLike, cluster_N: ArrayLike | None = None, *, level: float = 0.95
) -> Interval:
    """Share of comparisons with score(chosen) − score(rejected) above zero; zero counts a half."""
    margin_N = _finite("margins", margin_N)
    return rate(0.5 + 0.5 * np.sign(margin_N), cluster_N, level=level)


def agreement_ceiling(
    probability_N: ArrayLike, cluster_N: ArrayLike | None = None, *, level: float = 0.95
) -> Interval:
    """The accuracy that a scorer equal to gold would have against the noisy labels.

    ``probability_N`` is, for each comparison, the probability that its label agrees with gold; the
    ceiling is its mean. It is a ceiling for whoever predicts gold: where labels are wrong more
    often than right, as with a shared bias, a scorer that learns the bias can pass it.
    """
    return rate(probability_N, cluster_N, level=level)


def length_controlled_win_rate(
    win_N: ArrayLike,
    length_a_N: ArrayLike,
    length_b_N: ArrayLike,
    cluster_N: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> LengthControlled:
    """The win rate at equal length, from a logistic regression on the length difference.

    logit P(a wins) = θ + γ · tanh(d / s),  d = length_a − length_b,  s = its standard deviation;
    the answer is sigmoid(θ), the model's win rate at d = 0 (Dubois et al. 2024, arXiv 2404.04475,
    without the term for how hard an instruction is). ``win_N`` is 1, 0, or ½ for a tie, which
    stands for a win and a loss of half weight each. The interval is sigmoid(θ ± t_{G−1} · se) with
    the cluster-robust se: a delta method on the log odds, so it stays inside [0, 1].

    Lengths that differ by the same number in every row leave θ and γ inseparable: the result is
    then the raw win rate, and ``reason`` says so.

    Differs: AlpacaEval fits with an L1 penalty, cross-validated. Here one cluster of ties one
    standard deviation longer and one as much shorter are added, the same two clusters as in
    `rate`: they keep both numbers finite when every row, or every longer answer, wins.
    """
    win_N = _finite("wins", win_N)
    if not np.isin(win_N, (0.0, 0.5, 1.0)).all():
        raise ValueError("wins must be 1, 0, or 0.5 for a tie: see win_rate() for scores")
    length_a_N, length_b_N = _finite("length_a", length_a_N), _finite("length_b", length_b_N)
    _same_length(wins=win_N, length_a=length_a_N, length_b=length_b_N)
    group_N, groups = _groups(cluster_N, len(win_N), least=2)
    gap_N = length_a_N - length_b_N
    scale = float(gap_N.std())
    if scale == 0:
        reason = f"every pair differs in length by {gap_N[0]:g}: this is the raw win rate"
        return LengthControlled(*rate(win_N, group_N, level=level), 0.0, reason)
    extra = -(-len(win_N) // groups)
    x_M = np.concatenate([np.tanh(gap_N / scale), np.repeat(np.tanh([1.0, -1.0]), extra)])
    y_M = np.concatenate([win_N, np.full(2 * extra, 0.5)])
    group_M = np.concatenate([group_N, np.repeat([groups, groups + 1], extra)])
    model: Any = GLM(y_M, np.stack([np.ones_like(x_M), x_M], 1), families.Binomial())
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": group_M})
    theta, reach = fit.params[0], _quantile(level, groups - 1) * fit.bse[0]
    value, low, high = (float(p) for p in expit([theta, theta - reach, theta + reach]))
    return LengthControlled(value, low, high, len(win_N), float(fit.params[1]), "")


def numbered(names_N: Iterable[Hashable]) -> list[int]:
    """A number for each row, the same wherever the name is: clusters of prompts, say."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names_N]


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int = 2) -> float:
    """Share of different n-grams among all n-grams of the texts (Li et al. 2016, distinct-n).

    It falls with the amount of text, so compare it only over equally many texts. 0.0 when no text
    has n tokens.
    """
    if n < 1:
        raise ValueError(f"n-grams need n of at least 1, got {n}")
    grams = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _wins(score_a_N: ArrayLike, score_b_N: ArrayLike, tie: float) -> Array:
    """1 where a is ahead, 0 where b is, ½ for a tie."""
    a_N, b_N = _finite("scores of a", score_a_N), _finite("scores of b", score_b_N)
    _same_length(a=a_N, b=b_N)
    if not tie >= 0:
        raise ValueError(f"the tie margin must not be negative, got {tie}")
    gap_N = a_N - b_N
    return 0.5 + 0.5 * np.sign(np.where(np.abs(gap_N) <= tie, 0.0, gap_N))


def _finite(name: str, values_N: ArrayLike) -> Array:
    x_N = np.asarray(values_N, np.float64)
    if x_N.ndim != 1 or not len(x_N):
        raise ValueError(f"{name} must be one row of numbers, got shape {x_N.shape}")
    if not np.isfinite(x_N).all():
        bad = int(np.argmin(np.isfinite(x_N)))
        raise ValueError(f"{name} must be finite, but number {bad} is {x_N[bad]}")
    return x_N


def _same_length(**arrays: Array) -> None:
    if len({len(x) for x in arrays.values()}) > 1:
        sizes = ", ".join(f"{name} has {len(x)}" for name, x in arrays.items())
        raise ValueError(f"rows must correspond one to one, but {sizes}")


def _groups(cluster_N: ArrayLike | None, n: int, *, least: int) -> tuple[NDArray[np.intp], int]:
    """Cluster names as numbers 0..G−1, and G, which must be ``least`` or more."""
    names = np.arange(n) if cluster_N is None else np.asarray(cluster_N)
    if names.shape != (n,):
        raise ValueError(f"one cluster name per row is needed: {n} rows, names {names.shape}")
    unique, number_N = np.unique(names, return_inverse=True)
    if len(unique) < least:
        raise ValueError(f"an interval needs at least two prompts, got {len(unique)}: add prompts")
    return number_N, len(unique)


def _quantile(level: float, df: int | None) -> float:
    """Two-sided quantile: normal without ``df``, otherwise Student's t."""
    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, got {level}")
    upper = 0.5 + level / 2
    return float(ndtri(upper) if df is None else stdtrit(df, upper))
