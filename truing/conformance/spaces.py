"""Spaces small enough to be counted out: all strings, their rewards, the reference, the optimum.

A policy is a table of logits, one row for each place at which something is decided. What the
theory promises can then be written down: ``pi* = pi_ref exp(r / beta) / Z`` (Rafailov et al. 2023,
arXiv:2305.18290, eq. 4), the value of each place, the law of every pair.

Suffixes: ``S`` strings, of all prompts one after the other; ``T`` decisions of a string; ``P``
prompts; ``N`` pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from truing.keys import generator


@dataclass(frozen=True)
class Space:
    """S strings of at most T decisions. ``place_ST``, ``token_ST``: which row and which token each
    decision is; ``mask_ST``: whether there is one; ``reference``: the reference policy's table (a
    row a place); ``reward_S``: the reward of each string; ``beta``: the weight of the KL;
    ``prompts``: how many, each with as many strings, side by side, and places of its own;
    ``wins_SS``: how often the first beats the second, where no reward says it."""

    name: str
    place_ST: Tensor
    token_ST: Tensor
    mask_ST: Tensor
    reference: Tensor
    reward_S: Tensor
    beta: float
    prompts: int = 1
    wins_SS: Tensor | None = None

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

    @cached_property
    def beats_SS(self) -> Tensor:
        """The probability that a string is preferred to another of its prompt: Bradley-Terry on
        the reward, unless the space has preferences of its own. 0 across prompts."""
        if self.wins_SS is not None:
            return self.wins_SS
        prompt_S = torch.arange(self.prompts).repeat_interleave(self.each)
        beats_SS = torch.sigmoid(self.reward_S[:, None] - self.reward_S)
        return beats_SS * (prompt_S[:, None] == prompt_S)

    @property
    def each(self) -> int:
        """Strings of a prompt."""
        return len(self.reward_S) // self.prompts

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """First and second string (N,) of every pair that answers one prompt."""
        first, second = torch.triu_indices(self.each, self.each, 1)
        start_P1 = self.each * torch.arange(self.prompts)[:, None]
        return (start_P1 + first).flatten(), (start_P1 + second).flatten()

    def normal(self, weight_S: Tensor) -> Tensor:
        """Log-weights as log-probs that sum to 1 for each prompt."""
        return weight_S.view(self.prompts, -1).log_softmax(-1).flatten()

    def tilted(self, gain_S: Tensor) -> Tensor:
        """``log(pi_ref exp(gain) / Z)`` of each string."""
        return self.normal(self.ref_S + gain_S)

    @cached_property
    def optimum_S(self) -> Tensor:
        """Log-probs of pi*."""
        return self.tilted(self.reward_S / self.beta)

    @property
    def log_z(self) -> Tensor:
        """``log Z`` of each prompt (P,)."""
        return (self.ref_S + self.reward_S / self.beta).view(self.prompts, -1).logsumexp(-1)

    def objective(self, logp_S: Tensor) -> Tensor:
        """``J = E[r] - beta KL(pi || pi_ref)``, a mean over the prompts."""
        paid_S = self.reward_S - self.beta * (logp_S - self.ref_S)
        return (logp_S.exp() * paid_S).sum() / self.prompts

    def regret(self, logp_S: Tensor) -> float:
        """``(J* - J) / (J* - J_ref)``: 0 at pi*, 1 where learning began."""
        best, start = self.beta * self.log_z.mean(), self.objective(self.ref_S)
        return float((best - self.objective(logp_S)) / (best - start))

    def passing(self, mass_S: Tensor) -> Tensor:
        """The mass that takes each token at each place, of the reference table's shape."""
        mass = torch.zeros_like(self.reference)
        for t in range(self.mask_ST.shape[1]):
            on = self.mask_ST[:, t]
            index = (self.place_ST[on, t], self.token_ST[on, t])
            mass = mass.index_put(index, mass_S[on], accumulate=True)
        return mass

    def table_of(self, logp_S: Tensor) -> Tensor:
        """A table whose strings have these log-probs: conditionals, by summing up."""
        return self.passing(logp_S.exp()).log()

    @cached_property
    def best_values(self) -> Tensor:
        """``V* = beta log E_ref[exp(r / beta) | place]`` of every place."""
        gained_S = self.ref_S + self.reward_S / self.beta
        mass = self.passing(gained_S.exp()).sum(-1) / self.passing(self.ref_S.exp()).sum(-1)
        return self.beta * mass.log()

    def divergence(self, logp_S: Tensor, from_S: Tensor | None = None) -> float:
        """``KL(from || logp)`` in nats, a mean over the prompts; from pi* unless another law is
        given."""
        from_S = self.optimum_S if from_S is None else from_S
        return float((from_S.exp() * (from_S - logp_S)).sum()) / self.prompts

    def sampled(self, logp_S: Tensor, count: int, group: int, random: torch.Generator) -> Tensor:
        """Strings (count,), by number: every prompt as often as the others, ``group`` draws of it
        side by side."""
        p_PS = logp_S.exp().view(self.prompts, -1)
        turn = torch.arange(count // group) % self.prompts
        drawn = torch.multinomial(p_PS[turn], group, replacement=True, generator=random)
        return (drawn + turn[:, None] * self.each).flatten()

    def together(self, group: int) -> Tensor:
        """Every string once as the first of a group of its prompt; the groups one after another."""
        string_S, near_G = torch.arange(len(self.reward_S)), torch.arange(group)
        start_S = string_S // self.each * self.each
        return (start_S[:, None] + (string_S[:, None] + near_G) % self.each).flatten()


def draw(stream: str, *shape: int) -> Tensor:
    """Fixed normal numbers in float64."""
    return torch.from_numpy(generator(0, f"conformance {stream}").normal(size=shape))


# To rounding; and to the digits that matter beside the noise of samples, many times quicker.
EXACTLY = {"max_iter": 3000, "max_eval": 6000, "tolerance_grad": 1e-13, "tolerance_change": 0}
ROUGHLY = {"max_iter": 300, "max_eval": 375, "tolerance_grad": 1e-7, "tolerance_change": 1e-12}


def least(
    loss: Callable[[Tensor], Tensor], start: Tensor, effort: Mapping[str, Any] = EXACTLY
) -> Tensor:
    """The point at which ``loss`` is least, by L-BFGS from ``start``."""
    point = start.detach().clone().requires_grad_()
    solver = torch.optim.LBFGS([point], history_size=20, line_search_fn="strong_wolfe", **effort)

    def step() -> Tensor:
        solver.zero_grad()
        total = loss(point)
        total.backward()
        return total

    solver.step(step)
    return point.detach()


def grown(
    name: str, *, symbols: int, depth: int, prompts: int = 1, ends: bool = True, beta: float = 0.5
) -> Space:
    """All strings of at most ``depth`` symbols, each of them a decision, and the end token (the
    last) too, but behind a longest string, where it is forced. Without ``ends``: all strings of
    that very length. Every prompt has its own reference and reward."""
    width = symbols + ends
    lengths = range(depth + 1) if ends else [depth]
    prefixes = [p for n in range(depth) for p in product(range(symbols), repeat=n)]
    strings = [s for n in lengths for s in product(range(symbols), repeat=n)]
    place = {prefix: i for i, prefix in enumerate(prefixes)}

    def grid(of: Callable[[tuple[int, ...], int], int]) -> Tensor:
        rows = [[of(s, t) for t in range(min(len(s) + 1, depth))] for s in strings]
        return torch.tensor([row + [0] * (depth - len(row)) for row in rows])

    place_ST, count = grid(lambda s, t: place[s[:t]]), len(prefixes)
    return Space(
        name,
        torch.cat([place_ST + p * count for p in range(prompts)]),
        grid(lambda s, t: (*s, symbols)[t]).repeat(prompts, 1),
        grid(lambda s, t: 1).bool().repeat(prompts, 1),
        draw(f"{name} reference", prompts * count, width),
        draw(f"{name} reward", prompts * len(strings)),
        beta,
        prompts,
    )


def tree() -> Space:
    """Tokens 0 and 1 and EOS (2): all 15 strings of at most three tokens."""
    return grown("tree", symbols=2, depth=3)


def forest() -> Space:
    """Four prompts with a tree each."""
    return grown("forest", symbols=2, depth=3, prompts=4)


def fixed() -> Space:
    """All 27 strings of three tokens out of three; nothing ends early."""
    return grown("fixed length", symbols=3, depth=3, ends=False)


def arms(name: str, count: int, beta: float = 0.5) -> Space:
    """One decision among ``count`` arms; the reference is far from uniform."""
    one = torch.zeros(count, 1, dtype=torch.long)
    return Space(
        name,
        one,
        torch.arange(count).unsqueeze(-1),
        torch.ones(count, 1, dtype=torch.bool),
        1.5 * draw(f"{name} reference", 1, count),
        draw(f"{name} reward", count),
        beta,
    )


def bandit() -> Space:
    """Eight arms."""
    return arms("bandit", 8)


def cycle() -> Space:
    """Three responses of which each is preferred to the next: no reward says so. Its reward is 0,
    and pi* of it the reference."""
    wins_SS = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]], dtype=torch.float64)
    return replace(arms("cycle", 3), reward_S=torch.zeros(3).double(), wins_SS=wins_SS)
