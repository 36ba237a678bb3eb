"""What is added to an objective, and where it moves the optimum: entropy, a target for the KL,
pretraining text."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from truing.algorithms import KLController, entropy, k1, reduce_mean
from truing.conformance.games import root
from truing.conformance.online import RIGHT, group_advantages, surrogate
from truing.conformance.rows import FIXED, SAMPLED, Check
from truing.conformance.spaces import Space, bandit, draw, least

ALPHA = 0.3  # the weight of the entropy
NATS = 0.5  # the KL that is steered to
PTX = 0.5  # the weight of the pretraining loss


def with_entropy(space: Space, alpha: float) -> Tensor:
    """Log-probs of the policy that maximises ``E[r - beta KL] + alpha H``, by our KL and entropy on
    all arms."""

    def loss(table: Tensor) -> Tensor:
        logp_S = space.logps(table)
        paid_S = space.reward_S - space.beta * k1(logp_S, space.ref_S)
        return -(logp_S.exp() * paid_S).sum() - alpha * entropy(table).sum()

    return space.logps(least(loss, space.reference))


def entropy_check() -> Check:
    space = bandit()
    weight = space.beta + ALPHA
    target_S = space.normal((space.beta * space.ref_S + space.reward_S) / weight)

    def end(alpha: float) -> float:
        return space.divergence(with_entropy(space, alpha), target_S)

    return Check(
        "entropy bonus, bandit",
        "population",
        "pi_ref^(beta / (alpha + beta)) exp(r / (alpha + beta)) / Z",
        FIXED,
        partial(end, ALPHA),
        {
            "left out": partial(end, 0.0),
            "doubled": partial(end, 2 * ALPHA),
            "halved": partial(end, ALPHA / 2),
        },
    )


def steered(space: Space, *, target: float = NATS, per: float = 1.0, turned: bool = False) -> float:
    """The coefficient that the controller comes to, shown the exact KL of the policy that is best
    for each coefficient on the way. ``per``: what the KL is divided by."""
    controller = KLController(1.0, target, 10_000.0)
    for _ in range(2000):
        at = replace(space, beta=controller.coef)
        kl = space.divergence(space.ref_S, at.optimum_S) / per
        after = controller.after(kl, 256)
        coef = controller.coef**2 / after.coef if turned else after.coef
        controller = controller._replace(coef=min(coef, 1e3))
    return controller.coef


def steering_check() -> Check:
    space = bandit()

    def short(beta: float) -> float:
        return NATS - space.divergence(space.ref_S, replace(space, beta=beta).optimum_S)

    right = root(short, 1e-3, 1e3)

    def away(found: float) -> float:
        return found / right - 1

    return Check(
        "adaptive KL, bandit",
        "population",
        f"beta* = {right:.4f}, at which pi* is {NATS} nats from the reference",
        FIXED,
        lambda: away(steered(space)),
        {
            "target doubled": lambda: away(steered(space, target=2 * NATS)),
            "KL of a token, of two": lambda: away(steered(space, per=2.0)),
            "turned round": lambda: away(steered(space, turned=True)),
        },
    )


def reminded(space: Space, text_S: Tensor, coefficient: float) -> Tensor:
    """Log-probs of the policy that is best for ``J + coefficient E_text[log pi]``."""

    def loss(table: Tensor) -> Tensor:
        logp_S = space.logps(table)
        return -space.objective(logp_S) - coefficient * (text_S * logp_S).sum()

    return space.logps(least(loss, space.reference))


def ptx_learnt(
    space: Space, text_S: Tensor, coefficient: float, *, rows: int, steps: int
) -> Tensor:
    """RLOO's surrogate and the negative log-likelihood of text, learnt together from samples of
    both; the tables of the second half are averaged, for here the noise does not vanish."""
    table = space.reference.clone().requires_grad_()
    optimizer = torch.optim.SGD([table], lr=1.0)
    kept = torch.zeros_like(space.reference)
    for step in range(steps):
        random = torch.Generator().manual_seed(step)
        optimizer.param_groups[0]["lr"] = 1.0 if step < steps // 4 else 0.3
        drawn = space.sampled(space.logps(table.detach()), rows, 4, random)
        text = torch.multinomial(text_S, rows, replacement=True, generator=random)
        logp_S = space.logps(table)
        gain = group_advantages(space, table, drawn, RIGHT)
        policy = surrogate(logp_S[drawn], logp_S[drawn].detach(), gain, clip=0.2)
        loss = reduce_mean(policy, rows) + coefficient * reduce_mean(-logp_S[text], rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept += table.detach() * (step >= steps // 2)
    return space.logps(kept / (steps - steps // 2))


def ptx_check(*, quick: bool) -> Check:
    space, steps = bandit(), 600 if quick else 1500
    text_S = draw("pretraining text", len(space.reward_S)).softmax(0)
    target_S = reminded(space, text_S, PTX)

    def end(coefficient: float, at: Space = space) -> float:
        found_S = ptx_learnt(at, text_S, coefficient, rows=256, steps=steps)
        return space.divergence(found_S, target_S)

    return Check(
        "PPO-ptx, bandit",
        f"sampled, {steps} steps",
        "the optimum of J + gamma E[log pi(text)], by L-BFGS",
        SAMPLED,
        partial(end, PTX),
        {
            "left out": partial(end, 0.0),
            "doubled": partial(end, 2 * PTX),
            "beta doubled": partial(end, PTX, replace(space, beta=2 * space.beta)),
        },
    )


def checks(*, quick: bool) -> Iterator[Check]:
    """Entropy bonus, adaptive coefficient, PPO-ptx."""
    yield entropy_check()
    yield steering_check()
    yield ptx_check(quick=quick)
