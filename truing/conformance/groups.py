"""Learning without a critic at its end: the rows of `truing reinforce` and `truing grpo`, and a KL
in the reward or in the loss.

The stage's own advantages, objective and weights are put on *all* groups of two strings, each with
its chance of being drawn, so that the gradient is exact; where it is 0 is the method's fixed point.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from truing.algorithms import centred, k2, whiten
from truing.config import check
from truing.conformance.spaces import Space
from truing.settings_group import LOSSES, GrpoConfig, ReinforceConfig
from truing.settings_online import OnlineConfig
from truing.stages.estimate import ESTIMATORS, Experience, whole
from truing.stages.learner import Sums
from truing.stages.objective import Recipe, Reinforcement, each_token
from truing.stages.online import RECIPES

# Settings that say nothing here, but must be given.
NOWHERE = {"model_name_or_path": "-", "dataset_name": "-", "output_dir": "-", "reward": ["-"]}


class Method(NamedTuple):
    """How learning is put together. ``sign``: of the reward; ``rolled``: the reference's log-probs
    are of other strings."""

    recipe: Recipe
    config: OnlineConfig
    objective: type[Reinforcement] = Reinforcement
    sign: float = 1.0
    rolled: bool = False

    def having(self, **changed: Any) -> "Method":
        """The same with other settings."""
        return self._replace(config=self.config.model_copy(update=changed))

    def measured(self, advantage: Callable[..., Tensor]) -> "Method":
        """The same with another advantage."""
        return self._replace(recipe=self.recipe._replace(advantage=advantage))


def method(name: str, space: Space, *, in_reward: float = 0.0, in_loss: float = 0.0) -> Method:
    """A row of the stage in groups of two, with the weights of its KL in terms of the space's."""
    kl = {"kl_coef": in_reward * space.beta, "kl_loss_coef": in_loss * space.beta}
    pairs = {"num_generations": 2, **kl, **NOWHERE}
    if name in LOSSES:
        return Method(RECIPES[name], check(GrpoConfig, {"loss_type": name, **pairs}))
    return Method(RECIPES[name], check(ReinforceConfig, {"advantage_estimator": name, **pairs}))


def lessons(space: Space, table: Tensor, rows_B: Tensor, of: Method) -> dict[str, Tensor]:
    """What the objective is given of strings (by number) that the policy drew, a group after the
    other."""
    old_ST, ref_ST = space.token_logps(table).detach(), space.token_logps(space.reference)
    ref_ST = ref_ST.roll(1, 0) if of.rolled else ref_ST
    mask_BT, old_BT, ref_BT = (x[rows_B] for x in (space.mask_ST, old_ST, ref_ST))
    kl_BT = ESTIMATORS[of.config.kl_estimator](old_BT, ref_BT)
    x = Experience(of.sign * space.reward_S[rows_B], kl_BT, torch.zeros_like(kl_BT), mask_BT)
    return {
        "mask_BT": mask_BT,
        "logp_T": old_BT,
        "ref_logp_T": ref_BT,
        "advantage_T": of.recipe.advantage(x, of.config, of.config.kl_coef),
    }


def loss(
    space: Space, table: Tensor, rows_B: Tensor, share_B: Tensor, of: Method, given: Any
) -> Tensor:
    """The stage's loss of responses, of which each stands for a share of all groups."""
    mask_BT, objective = given["mask_BT"], of.objective(of.config, of.recipe)
    totals = {"tokens": (share_B * mask_BT.sum(-1)).sum(), "responses": share_B.sum()}
    weight_BT = of.recipe.reduction(mask_BT, totals, mask_BT.shape[1]) * share_B[:, None]
    logp_BT = space.token_logps(table)[rows_B]
    policy, _ = objective.surrogate(logp_BT, weight_BT, given)
    kl, _ = objective.kl(logp_BT, weight_BT, given)
    return policy + kl


def pairs(space: Space, table: Tensor) -> tuple[Tensor, Tensor]:
    """All groups of two strings, one after the other, and the chance of each by response."""
    every = torch.arange(len(space.reward_S))
    rows_PG, p_S = torch.cartesian_prod(every, every), space.logps(table.detach()).exp()
    return rows_PG.flatten(), p_S[rows_PG].prod(-1).repeat_interleave(2)


def pull(space: Space, table: Tensor, of: Method) -> Tensor:
    """The exact gradient of the loss, at a table."""
    point = table.detach().requires_grad_()
    rows_B, share_B = pairs(space, point)
    given = lessons(space, point, rows_B, of)
    (slope,) = torch.autograd.grad(loss(space, point, rows_B, share_B, of, given), point)
    return slope


def settled(space: Space, of: Method, steps: int = 150) -> Tensor:
    """Log-probs (S,) of the policy at which the gradient is 0: Adam from the reference, then
    Newton's steps, with the slope of the gradient by differences."""
    table = descended(space, of, steps)
    size = table.numel()
    for _ in range(8):
        here = pull(space, table, of).flatten()
        if float(here.abs().max()) < 1e-13:
            break
        columns: list[Tensor] = []
        for i in range(size):
            step = torch.zeros(size, dtype=table.dtype)
            step[i] = 1e-5
            ahead, behind = (
                pull(space, table + s * step.view_as(table), of).flatten() for s in (1, -1)
            )
            columns.append((ahead - behind) / 2e-5)
        # Logits have a constant to spare, so there is no inverse.
        move = torch.linalg.lstsq(torch.stack(columns, -1), here, driver="gelsd", rcond=1e-8)
        table = table - move.solution.view_as(table)
    return space.logps(table)


def descended(space: Space, of: Method, steps: int, rate: float = 0.05) -> Tensor:
    """The table after ``steps`` of Adam on the exact gradient."""
    table = space.reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        table.grad = pull(space, table, of)
        optimizer.step()
    return table.detach()


def learnt(space: Space, of: Method, steps: int, groups: int = 128) -> Tensor:
    """Log-probs (S,) after ``steps`` rollouts of samples, learnt from as the stage does."""
    table = space.reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.05)
    count = groups * of.config.group
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        random = torch.Generator().manual_seed(step)
        rows_B = space.sampled(space.logps(table.detach()), count, of.config.group, random)
        given = lessons(space, table, rows_B, of)
        if of.config.whiten_advantages:
            advantage = given["advantage_T"]
            on = torch.ones_like(advantage).bool() if advantage.shape[1] == 1 else given["mask_BT"]
            given["advantage_T"] = whiten(advantage, on)
        share_B = torch.full((count,), 1 / count, dtype=torch.float64)
        optimizer.zero_grad()
        loss(space, table, rows_B, share_B, of, given).backward()
        optimizer.step()
    return space.logps(table.detach())


def largest_advantage(space: Space, of: Method) -> float:
    """The largest advantage of any group of two at pi*."""
    table = space.table_of(space.optimum_S)
    rows_B, _ = pairs(space, table)
    return float(lessons(space, table, rows_B, of)["advantage_T"].abs().max())


# --- where a KL in the loss leads -----------------------------------------------------------------


def forward_optimum(space: Space, beta: float) -> Tensor:
    """Log-probs of ``beta pi_ref / (lambda - r)`` on a bandit, lambda such that they add up to 1:
    where the gain of reward is weighed against ``KL(ref || pi)``."""
    ref_S, top = space.ref_S.exp(), float(space.reward_S.max())
    low, high = top, top + beta  # at the upper end all is at most the reference
    for _ in range(200):
        middle = (low + high) / 2
        mass = float((beta * ref_S / (middle - space.reward_S)).sum())
        low, high = (middle, high) if mass > 1 else (low, middle)
    return (beta * ref_S / (high - space.reward_S)).log()


def scaled_optimum(space: Space, group: int = 2) -> Tensor:
    """The same for advantages in standard deviations of the policy's own rewards, in groups of G:
    beta is then ``G / (G - 1) beta sigma``, and sigma that of the policy it leads to."""
    sigma = 1.0
    for _ in range(200):
        found = forward_optimum(space, group / (group - 1) * space.beta * sigma)
        sigma = (sigma + float(spread(space, found))) / 2
    return found


def spread(space: Space, logp_S: Tensor) -> Tensor:
    """Standard deviation of the reward under a policy."""
    p_S = logp_S.exp()
    return ((p_S * (space.reward_S - (p_S * space.reward_S).sum()) ** 2).sum()).sqrt()


def by_own_deviation(space: Space) -> Callable[..., Tensor]:
    """GRPO's advantage with the deviation of infinitely many responses in the place of a group's.
    All strings come once in what is seen, so the policy is known."""

    def advantage(x: Experience, config: Any, kl_coef: float) -> Tensor:
        reward_PG = whole(x, config, kl_coef).view(-1, 2)
        # Of a bandit the KL of a string tells its probability.
        count = len(space.reward_S)
        logp_S = x.kl_BT[1 : 2 * count : 2, 0] + space.ref_S
        return (centred(reward_PG) / spread(space, logp_S)).view(-1, 1)

    return advantage


class TokenK2(Reinforcement):
    """Broken: k2 of each token, which leaves out what a token does to those behind it."""

    def kl(self, logp_BT: Tensor, weight_BT: Tensor, given: Any) -> tuple[Tensor | float, Sums]:
        found_BT = k2(each_token(logp_BT, given["mask_BT"]), given["ref_logp_T"])
        return self.config.kl_loss_coef * (weight_BT * found_BT).sum(), {}


# --- to first order -------------------------------------------------------------------------------


def first_order(space: Space, of: Method, reduction: str, group: Callable[..., Tensor]) -> float:
    """How far the gradient at ratio 1 is from the policy gradient of a group's advantages, by the
    formula: the mean of ``A grad log pi``, over tokens, within responses or over the longest."""
    table = space.reference.clone().requires_grad_()
    rows_B, share_B = pairs(space, table)
    reward_PG = space.reward_S[rows_B].view(-1, 2)
    advantage_B = group(reward_PG).flatten()
    length_B = space.lengths_S[rows_B]
    by = {
        "tokens": (share_B * length_B).sum().expand_as(length_B),
        "responses": share_B.sum() * length_B,
        "longest": share_B.sum() * space.mask_ST.shape[1],
    }[reduction]
    wanted = -(share_B * advantage_B / by * space.logps(table)[rows_B]).sum()
    (slope,) = torch.autograd.grad(wanted, table)
    return float((pull(space, table, of) - slope).abs().max())


def missing_mass(space: Space, of: Method, steps: int = 100) -> float:
    """What probability the best string lacks after learning without a KL."""
    logp_S = space.logps(descended(space, of, steps, rate=1.0))
    return 1 - float(logp_S.exp()[space.reward_S.argmax()])
