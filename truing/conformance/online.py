"""Policy gradients at the optimum, and on their way to it.

At pi* every return ``r - beta KL`` is the same number ``beta ln Z``, so that no sample has an
advantage: not on the mean, but each of them. Away from it, sampled learning has to arrive there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

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


def surrogate(logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, *, clip: float) -> Tensor:
    """The loss alone of `ppo_clip`."""
    return ppo_clip(logp_BT, old_logp_BT, advantage_BT, clip=clip).loss


class Knobs(NamedTuple):
    """What may be put together wrongly, and what of it is whose."""

    beta: float = 1.0  # times the space's
    gamma: float = 1.0
    early: int = 0  # the score lands so many tokens before the last
    shuffled: bool = False  # the reference's log-probs are of other strings
    estimate: Callable[..., Tensor] = gae
    compare: Callable[..., Tensor] = leave_one_out
    surrogate: Callable[..., Tensor] = surrogate


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
    return knobs.estimate(paid_ST, known_ST, space.mask_ST, gamma=knobs.gamma, lam=0.95)


def group_advantages(space: Space, table: Tensor, rows: Tensor, knobs: Knobs = RIGHT) -> Tensor:
    """Leave-one-out of ``r - beta KL`` for ``rows`` in groups of four."""
    paid_ST = rewards(space, space.token_logps(table).detach(), knobs)
    return knobs.compare(sequence_sum(paid_ST, space.mask_ST)[rows].view(-1, 4)).view(-1)


def zero_advantage(space: Space, kind: str, knobs: Knobs = RIGHT) -> float:
    """The largest advantage of any string at pi*."""
    table = space.table_of(space.optimum_S)
    if kind == "ppo":
        return float(token_advantages(space, table, knobs).abs().max())
    return float(group_advantages(space, table, space.together(4), knobs).abs().max())


class Actor(Protocol):
    """What learns: a policy and its critic, as tables over the places of a space."""

    rate: float

    def parameters(self) -> Sequence[Tensor]: ...

    def table(self) -> Tensor:
        """Logits, of the reference table's shape."""
        ...

    def values(self) -> Tensor:
        """What the critic says of each place."""
        ...


class Tabular:
    """Tables that are themselves what learns."""

    rate = 0.05

    def __init__(self, space: Space) -> None:
        self.logits = space.reference.clone().requires_grad_()
        worth = torch.zeros(len(space.reference), dtype=torch.float64)
        self.worth = worth.requires_grad_()

    def parameters(self) -> Sequence[Tensor]:
        return [self.logits, self.worth]

    def table(self) -> Tensor:
        return self.logits

    def values(self) -> Tensor:
        return self.worth


def learnt(space: Space, kind: str, knobs: Knobs = RIGHT, steps: int = 300) -> float:
    """KL(pi* || pi) after ``steps`` rollouts of 256 samples."""
    return space.divergence(trained(space, Tabular(space), kind, knobs, steps))


def trained(space: Space, actor: Actor, kind: str, knobs: Knobs, steps: int) -> Tensor:
    """Log-probs (S,) of the strings after ``steps`` rollouts of 256 samples, learnt from as the
    stage does. The rate climbs for 20 steps, then falls to 0."""
    update, group = (_ppo, 1) if kind == "ppo" else (_rloo, 4)
    optimizer = torch.optim.Adam(actor.parameters(), lr=actor.rate, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = actor.rate * min((step + 1) / 20, 1 - step / steps)
        random = torch.Generator().manual_seed(step)
        with torch.no_grad():
            rows = space.sampled(space.logps(actor.table()), 256, group, random)
        for loss in update(space, actor, rows, knobs):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return space.logps(actor.table())


def _rloo(space: Space, actor: Actor, rows: Tensor, knobs: Knobs) -> Iterator[Tensor]:
    table = actor.table()
    logp_B = space.logps(table)[rows]
    advantage_B = group_advantages(space, table, rows, knobs)
    # A response is one action.
    new_B1, old_B1, gain_B1 = (x.unsqueeze(-1) for x in (logp_B, logp_B.detach(), advantage_B))
    yield reduce_mean(knobs.surrogate(new_B1, old_B1, gain_B1, clip=0.2), len(rows))


def _ppo(space: Space, actor: Actor, rows: Tensor, knobs: Knobs) -> Iterator[Tensor]:
    """Two epochs a rollout, with values that are learnt."""
    with torch.no_grad():
        old_ST, places = space.token_logps(actor.table()), space.place_ST[rows]
        seen = actor.values()[places]
    mask, old = space.mask_ST[rows], old_ST[rows]
    paid = rewards(space, old_ST, knobs)[rows]
    advantage = knobs.estimate(paid, seen, mask, gamma=knobs.gamma, lam=0.95)
    target, advantage = advantage + seen, whiten(advantage, mask)
    for _ in range(2):
        new = space.token_logps(actor.table())[rows]
        policy = knobs.surrogate(new, old, advantage, clip=0.2)
        critic = value_clip(actor.values()[places], seen, target, clip=0.2).loss
        yield reduce_mean((policy + critic)[mask], mask.sum())
