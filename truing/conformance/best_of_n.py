"""Best of n against all ways to draw: its law, its KL, and the estimate of its worth."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from truing.conformance.rows import Check
from truing.conformance.spaces import draw
from truing.stats.best_of import best_of_n, best_of_n_kl, best_of_n_law

# Responses that are drawn, how many at a time, and how many of those the best is taken of.
ARMS, N, SAMPLES = 6, 3, 5
P_S = draw("best of n", ARMS).softmax(0).numpy()
SCORE_S = draw("best of n scores", ARMS).numpy()
GOLD_S = draw("best of n gold", ARMS).numpy()
FINE = 20_000

Law = Callable[[Any, Any, int], Any]
Estimator = Callable[[Any, Any, int], float]


def counted() -> Any:
    """How often each response is the best, over all ways to draw `N`."""
    won_S = np.zeros(ARMS)
    for drawn in product(range(ARMS), repeat=N):
        won_S[max(drawn, key=SCORE_S.__getitem__)] += P_S[list(drawn)].prod()
    return won_S


def law_distance(law: Law = best_of_n_law) -> float:
    """Total variation between the law and what all draws come to."""
    return float(np.abs(law(P_S, SCORE_S, N) - counted()).sum() / 2)


def bias(estimator: Estimator = best_of_n) -> float:
    """The mean of an estimate from `SAMPLES`, over all ways to draw them, less the true worth."""
    mean = 0.0
    for drawn in map(list, product(range(ARMS), repeat=SAMPLES)):
        mean += P_S[drawn].prod() * estimator(GOLD_S[drawn], SCORE_S[drawn], N)
    return float(mean - counted() @ GOLD_S)


def kl_distance(bound: Callable[[int], float] = best_of_n_kl) -> float:
    """How far the KL is from its bound, where no response has a probability to speak of."""
    law_S = best_of_n_law(np.full(FINE, 1 / FINE), np.arange(FINE), N)
    return float(law_S @ np.log(law_S * FINE)) - bound(N)


def _in_order(gold: Any, score: Any, n: int) -> float:
    """The first n, which is unbiased but for its order: the last of them, not the best."""
    return float(gold[n - 1])


def checks() -> Iterator[Check]:
    """What stands in the table."""
    yield Check(
        "best of n",
        "unit, law",
        "F(y)^n - F(y-)^n, by all draws of three",
        1e-5,
        law_distance,
        {
            "lowest of n": partial(law_distance, lambda p, s, n: best_of_n_law(p, -s, n)),
            "best of n + 1": partial(law_distance, lambda p, s, n: best_of_n_law(p, s, n + 1)),
            "p^n": partial(law_distance, lambda p, s, n: p**n / (p**n).sum()),
        },
    )
    yield Check(
        "best of n",
        "unit, estimate from five",
        "unbiased: the mean over all draws",
        1e-5,
        bias,
        {
            "best of all five": partial(bias, lambda g, s, n: best_of_n(g, s, len(g))),
            "gold's own order": partial(bias, lambda g, s, n: best_of_n(g, g, n)),
            "scores left out": partial(bias, _in_order),
        },
    )
    yield Check(
        "best of n",
        "unit, KL",
        "log n - (n - 1) / n, of many rare responses",
        1e-3,
        kl_distance,
        {
            "log n": partial(kl_distance, lambda n: float(np.log(n))),
            "n + 1": partial(kl_distance, lambda n: best_of_n_kl(n + 1)),
        },
    )
