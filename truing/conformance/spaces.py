"""Spaces small enough to be counted out: all strings, their rewards, the reference, the optimum.

A policy is a table of logits, one row for each place at which something is decided. What the
theory promises can then be written down: ``pi* = pi_ref exp(r / beta) / Z`` (Rafailov et al. 2023,
arXiv:2305.18290, eq. 4), the value of each place, the law of every pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from truing.keys import generator


@dataclass(frozen=True)
class Space:
    """S strings of at most T decisions. ``place_ST``, ``token_ST``: which row and which token each
    decision is; ``mask_ST``: whether there is one; ``reference``: the reference policy's table (a
    row a place); ``reward_S``: the reward of each string; ``beta``: the weight of the KL."""

    name: str
    place_ST: Tensor
    token_ST: Tensor
    mask_ST: Tensor
    reference: Tensor
    reward_S: Tensor
    beta: float

    def token_logps(self, table: Tensor) -> Tensor:
        """Log-probs (S, T) of every string's decisions, 0 where there is none."""
        logp_ST = table.log_softmax(-1)[self.place_ST, self.token_ST]
        return logp_ST.masked_fill(~self.mask_ST, 0.0)

    def logps(self, table: Tensor) -> Tensor:
        """Log-probs (S,) of the strings."""
        return self.token_logps(table).sum(-1)

    @cached_property
    def ref_S(self) -> Tensor:
        return self.logps(self.reference)

    @property
    def lengths_S(self) -> Tensor:
        """Decisions of each string."""
        return self.mask_ST.sum(-1).double()

    def tilted(self, gain_S: Tensor) -> Tensor:
        """``log(pi_ref exp(gain) / Z)`` of each string."""
        return (self.ref_S + gain_S).log_softmax(0)

    @cached_property
    def optimum_S(self) -> Tensor:
        """Log-probs of pi*."""
        return self.tilted(self.reward_S / self.beta)

    @property
    def log_z(self) -> Tensor:
        return (self.ref_S + self.reward_S / self.beta).logsumexp(0)

    def table_of(self, logp_S: Tensor) -> Tensor:
        """A table whose strings have these log-probs: conditionals, by summing up."""
        mass = torch.zeros_like(self.reference)
        for t in range(self.mask_ST.shape[1]):
            on = self.mask_ST[:, t]
            index = (self.place_ST[on, t], self.token_ST[on, t])
            mass = mass.index_put(index, logp_S.exp()[on], accumulate=True)
        return mass.log()

    def divergence(self, logp_S: Tensor, from_S: Tensor | None = None) -> float:
        """``KL(from || logp)`` in nats; from pi* unless another law is given."""
        from_S = self.optimum_S if from_S is None else from_S
        return float((from_S.exp() * (from_S - logp_S)).sum())


def draw(stream: str, *shape: int) -> Tensor:
    """Fixed normal numbers in float64."""
    return torch.from_numpy(generator(0, f"conformance {stream}").normal(size=shape))


def least(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The point at which ``loss`` is least, by L-BFGS from ``start``."""
    point = start.detach().clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [point],
        max_iter=3000,
        max_eval=6000,
        tolerance_grad=1e-13,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def step() -> Tensor:
        solver.zero_grad()
        total = loss(point)
        total.backward()
        return total

    solver.step(step)
    return point.detach()


def tree(depth: int = 3, beta: float = 0.5) -> Space:
    """Tokens 0 and 1 and EOS (2): all strings of at most ``depth`` tokens, 15 for 3. At the end of
    a longest one EOS is forced, which is no decision."""
    prefixes = [p for n in range(depth) for p in product((0, 1), repeat=n)]
    strings = [p for n in range(depth + 1) for p in product((0, 1), repeat=n)]
    place: dict[tuple[int, ...], int] = {prefix: i for i, prefix in enumerate(prefixes)}

    def grid(of: Callable[[tuple[int, ...], int], int]) -> Tensor:
        rows = [[of(s, t) for t in range(min(len(s) + 1, depth))] for s in strings]
        return torch.tensor([row + [0] * (depth - len(row)) for row in rows])

    return Space(
        "tree",
        grid(lambda s, t: place[s[:t]]),
        grid(lambda s, t: (*s, 2)[t]),
        grid(lambda s, t: 1).bool(),
        draw("tree reference", len(prefixes), 3),
        draw("tree reward", len(strings)),
        beta,
    )


def bandit(arms: int = 8, beta: float = 0.5) -> Space:
    """One decision among ``arms``; the reference is far from uniform."""
    one = torch.zeros(arms, 1, dtype=torch.long)
    return Space(
        "bandit",
        one,
        torch.arange(arms).unsqueeze(-1),
        torch.ones(arms, 1, dtype=torch.bool),
        1.5 * draw("bandit reference", 1, arms),
        draw("bandit reward", arms),
        beta,
    )
