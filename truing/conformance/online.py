"""Policy gradients at the optimum, and on their way to it.

At pi* every return ``r - beta KL`` is the same number ``beta ln Z``, so that no sample has an
advantage: not on the mean, but each of them. Away from it, sampled learning has to arrive there.
"""

from typing import NamedTuple

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
from truing.conformance.spaces import Space


class Knobs(NamedTuple):
    """What may be put together wrongly."""

    beta: float = 1.0  # times the space's
    gamma: float = 1.0
    early: int = 0  # the score lands so many tokens before the last
    shuffled: bool = False  # the reference's log-probs are of other strings


RIGHT = Knobs()
BROKEN = {
    "beta doubled": Knobs(beta=2.0),
    "KL added, not subtracted": Knobs(beta=-1.0),
    "gamma 0.9": Knobs(gamma=0.9),
    "score one token early": Knobs(early=1),
    "reference of other rows": Knobs(shuffled=True),
}


def values(space: Space, table: Tensor) -> Tensor:
    """Exact values (S, T) of what is still to come at each place, the KL penalty included."""
    logp_ST = space.token_logps(table)
    p_S = logp_ST.sum(-1).exp()
    kl_ST = k1(logp_ST, space.token_logps(space.reference))
    paid_ST = token_rewards(space.reward_S, kl_ST, space.mask_ST, kl_coef=space.beta)
    rest_ST = paid_ST.flip(-1).cumsum(-1).flip(-1)
    worth, weight = torch.zeros(2, len(space.reference), dtype=torch.float64)
    for t in range(space.mask_ST.shape[1]):
        on = space.mask_ST[:, t]
        worth = worth.index_add(0, space.place_ST[on, t], (p_S * rest_ST[:, t])[on])
        weight = weight.index_add(0, space.place_ST[on, t], p_S[on])
    return (worth / weight)[space.place_ST]


def rewards(space: Space, logp_ST: Tensor, knobs: Knobs) -> Tensor:
    """Rewards (S, T) of each token, the KL penalty included."""
    ref_ST = space.token_logps(space.reference)
    ref_ST = ref_ST.roll(1, 0) if knobs.shuffled else ref_ST
    kl_ST = k1(logp_ST, ref_ST)
    paid = token_rewards(space.reward_S, kl_ST, space.mask_ST, kl_coef=knobs.beta * space.beta)
    return paid.roll(-knobs.early, -1)


def token_advantages(space: Space, table: Tensor, knobs: Knobs = RIGHT) -> Tensor:
    """GAE (S, T) with the exact values of the policy."""
    logp_ST = space.token_logps(table).detach()
    known_ST = values(space, table.detach())
    paid_ST = rewards(space, logp_ST, knobs)
    return gae(paid_ST, known_ST, space.mask_ST, gamma=knobs.gamma, lam=0.95)


def group_advantages(space: Space, table: Tensor, rows: Tensor, knobs: Knobs = RIGHT) -> Tensor:
    """Leave-one-out of ``r - beta KL`` for ``rows`` in groups of four."""
    paid_ST = rewards(space, space.token_logps(table).detach(), knobs)
    return leave_one_out(sequence_sum(paid_ST, space.mask_ST)[rows].view(-1, 4)).view(-1)


def zero_advantage(space: Space, kind: str, knobs: Knobs = RIGHT) -> float:
    """The largest advantage of any string at pi*."""
    table = space.table_of(space.optimum_S)
    if kind == "ppo":
        return float(token_advantages(space, table, knobs).abs().max())
    rows = torch.arange(len(space.reward_S)).repeat(4)
    return float(group_advantages(space, table, rows, knobs).abs().max())


def some(space: Space, table: Tensor, count: int, seed: int) -> Tensor:
    """Strings (by number) that the policy draws."""
    random = torch.Generator().manual_seed(seed)
    p_S = space.logps(table.detach()).exp()
    return torch.multinomial(p_S, count, replacement=True, generator=random)


def learnt(space: Space, kind: str, knobs: Knobs = RIGHT, steps: int = 300) -> float:
    """KL(pi* || pi) after ``steps`` rollouts of 256 samples, learnt from as the stage does."""
    table = space.reference.clone().requires_grad_()
    value = torch.zeros(len(space.reference), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([table, value], lr=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        rows = some(space, table, 256, step)
        update = _ppo if kind == "ppo" else _rloo
        for loss in update(space, table, value, rows, knobs):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return space.divergence(space.logps(table.detach()))


def _rloo(space: Space, table: Tensor, value: Tensor, rows: Tensor, knobs: Knobs):
    logp_B = space.logps(table)[rows]
    advantage_B = group_advantages(space, table, rows, knobs)
    yield reduce_mean(ppo_clip(logp_B, logp_B.detach(), advantage_B, clip=0.2).loss, len(rows))


def _ppo(space: Space, table: Tensor, value: Tensor, rows: Tensor, knobs: Knobs):
    """Two epochs a rollout, with values that are learnt."""
    old_ST = space.token_logps(table).detach()
    mask, places, old = space.mask_ST[rows], space.place_ST[rows], old_ST[rows]
    seen = value.detach()[places]
    advantage = gae(rewards(space, old_ST, knobs)[rows], seen, mask, gamma=knobs.gamma, lam=0.95)
    target, advantage = advantage + seen, whiten(advantage, mask)
    for _ in range(2):
        policy = ppo_clip(space.token_logps(table)[rows], old, advantage, clip=0.2).loss
        critic = value_clip(value[places], seen, target, clip=0.2).loss
        yield reduce_mean((policy + critic)[mask], mask.sum())
