"""Optima that are no tilted reference: equilibria of preferences, groups, and a bounded cost.

Each is found by an equation in one unknown, or by trying every support, and each comes with a
certificate that does not use how it was found: a gap or a residual which is 0 nowhere else.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from truing.conformance.spaces import Space, arms, draw


def nash(wins_NN: Tensor) -> Tensor:
    """The mixture (N,) that no response beats in more than half of all comparisons, by trying every
    support. ``wins_NN``: how often the first is preferred to the second. Raises ValueError where no
    support will do, which cannot be if ``wins_NN`` and its transpose sum to 1."""
    count = len(wins_NN)
    for size in range(1, count + 1):
        for support in combinations(range(count), size):
            p_N = _even(wins_NN, list(support))
            if p_N is not None and exploitability(wins_NN, p_N) < 1e-12:
                return p_N
    raise ValueError("no mixture is an equilibrium: wins and losses of a pair must sum to 1")


def _even(wins_NN: Tensor, support: list[int]) -> Tensor | None:
    """The mixture of ``support`` that each of it meets as evenly as the others, if there is one."""
    size = len(support)
    equations = torch.ones(size + 1, size + 1, dtype=torch.float64)
    equations[:size, :size] = wins_NN[support][:, support]
    equations[:size, size], equations[size, size] = -1.0, 0.0
    given = torch.zeros(size + 1, dtype=torch.float64)
    given[size] = 1.0
    solved, failed = torch.linalg.solve_ex(equations, given)
    if int(failed) or not bool((solved[:size] >= 0).all()):
        return None
    return torch.zeros(len(wins_NN), dtype=torch.float64).index_put(
        (torch.tensor(support),), solved[:size]
    )


def exploitability(wins_NN: Tensor, p_N: Tensor) -> float:
    """How much more than half of its comparisons with ``p_N`` the best response wins."""
    return float((wins_NN @ p_N).max()) - 0.5


def regularised_nash(space: Space) -> Tensor:
    """Log-probs of the equilibrium ``pi = pi_ref exp(P(y beats pi) / beta) / Z`` (Munos et al.
    2024, arXiv:2312.00886), by steps of half the way."""
    logp_S = space.ref_S
    for _ in range(500):
        logp_S = space.normal((logp_S + _answer(space, logp_S)) / 2)
    return logp_S


def _answer(space: Space, logp_S: Tensor) -> Tensor:
    return space.tilted(space.beats_SS @ logp_S.exp() / space.beta)


def residual(space: Space, logp_S: Tensor) -> float:
    """How far a policy is from the regularised best answer to itself."""
    return float((logp_S - _answer(space, logp_S)).abs().max())


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a growing function passes 0, by halving; the nearer end where it does not."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


class Weighted(NamedTuple):
    """A space whose reward is a sum of two. ``value_2S``: both; ``weight``: of the second."""

    space: Space
    value_2S: Tensor
    weight: float

    def at(self, weight: float) -> Space:
        """The space with another weight in its reward."""
        return self.space_of(self._weights(weight))

    def space_of(self, weights: Iterable[float]) -> Space:
        first, second = weights
        return replace(self.space, reward_S=first * self.value_2S[0] + second * self.value_2S[1])

    def _weights(self, weight: float) -> tuple[float, float]:
        return 1 - weight, weight

    def means(self, weight: float) -> Tensor:
        """Mean of either value (2,) under the policy that is best for a weight."""
        return self.value_2S @ self.at(weight).optimum_S.exp()


class Priced(Weighted):
    """A reward, and a cost whose mean must not be above ``LIMIT``; ``weight``: lambda."""

    __slots__ = ()
    LIMIT = -1.0

    def _weights(self, weight: float) -> tuple[float, float]:
        return 1.0, -weight


def groups() -> Weighted:
    """Two groups that want different things, and the policy whose worse-off group is best off
    (max-min, Chakraborty et al. 2024, arXiv:2402.08925): that of the mixture of their rewards at
    which both gain the same."""
    space = arms("groups", 8)
    value_2S = torch.stack([space.reward_S, 0.5 * draw("groups other", 8) - 0.5 * space.reward_S])
    made = Weighted(space, value_2S, 0.0)

    def gap(weight: float) -> float:
        first, second = made.means(weight)
        return float(second - first)

    weight = root(gap, 0.0, 1.0)
    return made._replace(space=made.at(weight), weight=weight)


def costs() -> Priced:
    """The policy of most reward among those whose mean cost is at the limit: that of ``r - lambda*
    c`` (Dai et al. 2024, arXiv:2310.12773)."""
    space = arms("costs", 8)
    cost_S = draw("costs cost", 8) + 0.5 * space.reward_S
    made = Priced(space, torch.stack([space.reward_S, cost_S]), 0.0)
    weight = root(lambda weight: made.LIMIT - float(made.means(weight)[1]), 0.0, 100.0)
    return made._replace(space=made.at(weight), weight=weight)
