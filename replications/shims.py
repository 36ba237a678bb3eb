"""TO BE REPLACED AT THE MERGE by the package's own: worst_case and uncertainty_weighted of
truing/algorithms/ensembles.py, best_of_n of truing/stats. Nothing else imports from here.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor


def worst_case(score_EN: Tensor) -> Tensor:
    return score_EN.min(0).values


def uncertainty_weighted(score_EN: Tensor, *, coef: float) -> Tensor:
    return score_EN.mean(0) - coef * score_EN.var(0, correction=0)


def best_of_n(score_N: NDArray[np.float64], gold_N: NDArray[np.float64], n: int) -> float:
    """The mean gold of the best of n by score, over all subsets of n: unbiased."""
    count = len(score_N)
    i = np.arange(n, count + 1)
    log_ways = gammaln(i) - gammaln(i - n + 1) - gammaln(n)
    log_all = gammaln(count + 1) - gammaln(n + 1) - gammaln(count - n + 1)
    return float(np.exp(log_ways - log_all) @ gold_N[score_N.argsort(kind="stable")][n - 1 :])
