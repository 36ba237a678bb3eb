"""Policy gradients against an optimum that is known exactly: pi* = pi_ref exp(r / beta) / Z.

The space is a tree: tokens 0 and 1 and EOS (2), at most three tokens and a forced EOS, so 15
strings and 7 places at which something is decided. A policy is a table of logits, one row a place.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from truing.algorithms import (
    gae,
    k1,
    leave_one_out,
    ppo_clip,
    reduce_mean,
    sequence_sum,
    token_rewards,
    value_clip,
    whiten,
)
from truing.keys import generator

BETA, EOS = 0.5, 2
PREFIXES = [p for n in range(3) for p in product((0, 1), repeat=n)]
STRINGS = [p for n in range(4) for p in product((0, 1), repeat=n)]
PLACE = {prefix: i for i, prefix in enumerate(PREFIXES)}


def grid(of: Callable[[tuple[int, ...], int], int], fill: int) -> Tensor:
    """One number for each decision of each string; a forced EOS is no decision."""
    rows = [[of(s, t) for t in range(min(len(s) + 1, 3))] for s in STRINGS]
    return torch.tensor([row + [fill] * (3 - len(row)) for row in rows])


PLACE_ST = grid(lambda s, t: PLACE[s[:t]], 0)
TOKEN_ST = grid(lambda s, t: (*s, EOS)[t], 0)
MASK_ST = grid(lambda s, t: 1, 0).bool()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed, "tree").normal(size=shape))


REWARD_S, REF = draw(0, len(STRINGS)), draw(1, len(PREFIXES), 3)


def logp_of(table: Tensor) -> Tensor:
    """Log-probs (S, T) of every string's decisions."""
    return table.log_softmax(-1)[PLACE_ST, TOKEN_ST].masked_fill(~MASK_ST, 0.0)


REF_ST = logp_of(REF)
TILTED_S = REF_ST.sum(-1) + REWARD_S / BETA
LOG_Z = TILTED_S.logsumexp(0)
OPTIMUM_S = TILTED_S - LOG_Z


def optimal_table() -> Tensor:
    """The table whose strings have the optimum's probabilities: conditionals by summing up."""
    mass = torch.zeros(len(PREFIXES), 3, dtype=torch.float64)
    for s, logp in zip(STRINGS, OPTIMUM_S, strict=True):
        for t in range(min(len(s) + 1, 3)):
            mass[PLACE[s[:t]], (*s, EOS)[t]] += logp.exp()
    return mass.log()


def values_of(table: Tensor) -> Tensor:
    """Exact values (S, T) of what is still to come, the KL penalty included."""
    logp_ST, p_S = logp_of(table), logp_of(table).sum(-1).exp()
    paid_ST = token_rewards(REWARD_S, k1(logp_ST, REF_ST), MASK_ST, kl_coef=BETA)
    rest_ST = paid_ST.flip(-1).cumsum(-1).flip(-1)
    worth, weight = torch.zeros(2, len(PREFIXES), dtype=torch.float64)
    for t in range(3):
        on = MASK_ST[:, t]
        worth = worth.index_add(0, PLACE_ST[on, t], (p_S * rest_ST[:, t])[on])
        weight = weight.index_add(0, PLACE_ST[on, t], p_S[on])
    return (worth / weight)[PLACE_ST]


class Knobs(NamedTuple):
    """What may be broken, to see that the tests notice."""

    beta: float = BETA
    gamma: float = 1.0
    shift: int = 0  # the score lands that many tokens too early
    reference: Tensor = REF_ST


def token_advantages(table: Tensor, rows: Tensor, knobs: Knobs, lam: float = 0.95) -> Tensor:
    """GAE with the exact values of ``table``, for these strings."""
    logp, mask = logp_of(table).detach()[rows], MASK_ST[rows]
    kl = k1(logp, knobs.reference[rows])
    reward = token_rewards(REWARD_S[rows], kl, mask, kl_coef=knobs.beta).roll(-knobs.shift, -1)
    return gae(reward, values_of(table.detach())[rows], mask, gamma=knobs.gamma, lam=lam)


def group_advantages(table: Tensor, rows: Tensor, knobs: Knobs, group: int = 4) -> Tensor:
    """Leave-one-out of ``r - beta KL``, for these strings in groups."""
    kl = k1(logp_of(table).detach(), knobs.reference)
    total = REWARD_S - knobs.beta * sequence_sum(kl, MASK_ST)
    return leave_one_out(total[rows].view(-1, group)).view(-1)


def some(seed: int, count: int, logp_S: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.multinomial(logp_S.exp(), count, replacement=True, generator=random)


def test_at_the_optimum_no_sample_has_an_advantage() -> None:
    """Every return is beta ln Z, so the baseline leaves nothing: exact, for any sample."""
    table = optimal_table()
    torch.testing.assert_close(logp_of(table).sum(-1), OPTIMUM_S, atol=1e-12, rtol=0)
    rows = torch.arange(len(STRINGS)).repeat(4)[:60]
    assert token_advantages(table, rows, Knobs()).abs().max() < 1e-12
    assert group_advantages(table, rows, Knobs()).abs().max() < 1e-12
    assert float(values_of(table)[0, 0]) == pytest.approx(float(BETA * LOG_Z), abs=1e-12)
    # Bite: every way in which the parts could be put together wrongly.
    for broken in (
        Knobs(beta=2 * BETA),
        Knobs(beta=-BETA),
        Knobs(gamma=0.9),
        Knobs(shift=1),
        Knobs(reference=REF_ST.roll(1, 0)),
    ):
        assert token_advantages(table, rows, broken).abs().max() > 1e-2
    for broken in (Knobs(beta=2 * BETA), Knobs(beta=-BETA), Knobs(reference=REF_ST.roll(1, 0))):
        assert group_advantages(table, rows, broken).abs().max() > 1e-2


def divergence(table: Tensor) -> float:
    """KL(pi* || pi)."""
    return float((OPTIMUM_S.exp() * (OPTIMUM_S - logp_of(table.detach()).sum(-1))).sum())


def learn_rloo(knobs: Knobs, steps: int = 600) -> float:
    table = REF.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        rows = some(step, 256, logp_of(table).detach().sum(-1))
        logp_B = logp_of(table)[rows].sum(-1)
        advantage_B = group_advantages(table, rows, knobs)
        loss = reduce_mean(ppo_clip(logp_B, logp_B.detach(), advantage_B, clip=0.2).loss, 256)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return divergence(table)


def learn_ppo(knobs: Knobs, steps: int = 300, *, white: bool = True) -> float:
    """Two epochs a batch, with values that are learnt, as in the stage."""
    table = REF.clone().requires_grad_()
    value = torch.zeros(len(PREFIXES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([table, value], lr=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        old_ST = logp_of(table).detach()
        rows = some(step, 256, old_ST.sum(-1))
        mask, places = MASK_ST[rows], PLACE_ST[rows]
        old, seen = old_ST[rows], value.detach()[places]
        kl = k1(old, knobs.reference[rows])
        paid = token_rewards(REWARD_S[rows], kl, mask, kl_coef=knobs.beta)
        advantage = gae(paid, seen, mask, gamma=knobs.gamma, lam=0.95)
        target = advantage + seen
        advantage = whiten(advantage, mask) if white else advantage
        for _ in range(2):
            policy = ppo_clip(logp_of(table)[rows], old, advantage, clip=0.2).loss
            critic = value_clip(value[places], seen, target, clip=0.2).loss
            loss = reduce_mean((policy + critic)[mask], mask.sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return divergence(table)


def test_sampled_rloo_and_ppo_reach_the_optimum() -> None:
    assert divergence(REF) > 0.5
    assert learn_rloo(Knobs()) < 1e-3
    assert learn_ppo(Knobs(), white=False) < 1e-3
    assert learn_ppo(Knobs()) < 1e-3


@pytest.mark.parametrize(
    ("broken", "least"), [(Knobs(beta=2 * BETA), 0.05), (Knobs(beta=0.0), 0.3)]
)
def test_a_wrong_coefficient_ends_elsewhere(broken: Knobs, least: float) -> None:
    assert learn_rloo(broken) > least
    assert learn_ppo(broken) > least
