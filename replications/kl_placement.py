"""Where the KL stands: in the reward it leads to the best policy, in the loss to another one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from replications import figures
from replications.record import Measure, Record, over_seeds
from truing.algorithms import k1
from truing.conformance.groups import (
    Method,
    by_own_deviation,
    forward_optimum,
    learnt,
    method,
    scaled_optimum,
    settled,
)
from truing.conformance.spaces import Space, bandit, draw, tree
from truing.stages.estimate import by_group
from truing.stages.learner import Sums
from truing.stages.objective import Reinforcement

GROUP, ROLLOUTS, RESPONSES = 4, 400, 512


class K1InLoss(Reinforcement):
    """k1 of whole responses in the loss: its gradient is nothing on the mean."""

    def kl(self, logp_BT: Tensor, weight_BT: Tensor, given: Any) -> tuple[Tensor | float, Sums]:
        return self.config.kl_loss_coef * (weight_BT * k1(logp_BT, given["ref_logp_T"])).sum(), {}


def in_reward(space: Space) -> Method:
    """REINFORCE with the mean of the others, k1 in the reward: RLOO."""
    return method("reinforce", space, in_reward=1.0).measured(by_group)


def far(space: Space, of: Method, target: Tensor | None = None) -> float:
    """KL in nats from a target, pi* where none is given, to where the exact gradient is 0."""
    return abs(space.divergence(settled(space, of, steps=60), target))


def sampled(spaces: list[Space], of: Callable[[Space], Method], rollouts: int) -> list[float]:
    """KL(pi* || pi) after learning from samples, in each space."""
    found: list[float] = []
    for space in spaces:
        right = of(space).having(num_generations=GROUP)
        logp_S = learnt(space, right, rollouts, groups=RESPONSES // GROUP)
        found.append(space.divergence(logp_S))
    return found


# --- criteria -------------------------------------------------------------------------------------


def best(distance: float) -> Measure:
    return Measure("k1 in the reward, bandit: KL from the best policy, nats", distance, most=1e-6)


def own(name: str, distance: float) -> Measure:
    return Measure(f"{name}, bandit: KL from its own closed form, nats", distance, most=1e-6)


def away(name: str, distance: float) -> Measure:
    return Measure(f"{name}, bandit: KL from the best policy, nats", distance, least=0.01)


def times(right_N: list[float], wrong_N: list[float]) -> Measure:
    """The smallest ratio of distances."""
    what = "tree, from samples: GRPO's distance from the best policy over RLOO's, the smallest"
    return Measure(what, float(np.min(np.divide(wrong_N, right_N))), least=10.0)


def run(quick: bool) -> Record:
    space, rollouts = bandit(), 150 if quick else ROLLOUTS
    trees = [
        replace(tree(), reward_S=draw(f"KL placement reward {i}", len(tree().reward_S)))
        for i in range(2 if quick else 4)
    ]
    dr_grpo, grpo = (method(name, space, in_loss=1.0) for name in ("dr_grpo", "grpo"))
    grpo = grpo.measured(by_own_deviation(space))
    grpo_S = settled(space, grpo, steps=60)
    forward, scaled = forward_optimum(space, 2 * space.beta), scaled_optimum(space)
    wrong = (partial(method, name, in_loss=1.0) for name in ("dr_grpo", "grpo"))
    rloo_N, dr_grpo_N, grpo_N = (sampled(trees, of, rollouts) for of in (in_reward, *wrong))
    doubled_N = sampled(trees, lambda s: in_reward(s).having(kl_coef=2 * s.beta), rollouts)
    measures = [
        best(far(space, in_reward(space))),
        own("Dr. GRPO, k3 in the loss", far(space, dr_grpo, forward)),
        own("GRPO, k3 in the loss", abs(space.divergence(grpo_S, scaled))),
        away("Dr. GRPO, k3 in the loss", space.divergence(forward)),
        away("GRPO, k3 in the loss", space.divergence(scaled)),
        times(rloo_N, grpo_N),
        over_seeds("tree, from samples: RLOO, KL from the best policy, nats", rloo_N),
        over_seeds("tree, from samples: Dr. GRPO, the same", dr_grpo_N),
        over_seeds("tree, from samples: GRPO, the same", grpo_N),
    ]
    loss = method("reinforce", space, in_loss=1.0).measured(by_group)._replace(objective=K1InLoss)
    controls = {
        "k1 in the loss": [best(far(space, loss))],
        "the best policy taken for GRPO's fixed point": [
            own("GRPO, k3 in the loss", space.divergence(grpo_S))
        ],
        "RLOO with beta doubled": [times(doubled_N, grpo_N)],
    }
    if not quick:
        added, others = in_reward(space).having(kl_coef=-space.beta), dr_grpo.measured(by_group)
        controls["KL added to the reward"] = [best(far(space, added))]
        controls["the mean of the others in Dr. GRPO"] = [
            own("Dr. GRPO, k3 in the loss", far(space, others, forward))
        ]
    return Record(
        name="kl-placement",
        title="Where the KL stands",
        claim="With the KL estimate k1 in the reward, policy gradients end at the best policy of "
        "the KL-regularised objective. k3 in the loss, as in GRPO, has the gradient of another "
        "divergence and ends elsewhere; k1 in the loss does not regularise at all.",
        source="Tang and Munos 2025, arXiv:2506.09477; GRPO is that of Shao et al. 2024, "
        "arXiv:2402.03300.",
        setup="Exact: the stage's own advantages, objective and weights on all groups of two of a "
        "bandit of 8 arms, to where the gradient is 0. The closed form of k3 in the loss is "
        "2 beta pi_ref / (lambda - r), for groups of two; for GRPO beta also has the standard "
        f"deviation of the policy's rewards. Sampled: {rollouts} rollouts of {RESPONSES} responses "
        f"in groups of {GROUP}, trees of 15 strings with {len(trees)} draws of rewards.",
        measures=measures,
        controls=controls,
        caption="Arms of the bandit under each fixed point, and reward by KL for all betas",
        differs="The papers train language models; here the ends are exact. That GRPO's end is "
        "another does not say that it is worse: over all betas both trace nearly the same curve on "
        "a bandit (right), so that what differs is where one beta leads.",
        figure=drawn_up(space),
    )


def drawn_up(space: Space) -> Figure:
    figure, (left, right) = figures.panels(2)
    arms = np.arange(len(space.reward_S))
    laws = {
        "reference": (space.ref_S, figures.GREY),
        "k1 in the reward: the best": (space.optimum_S, figures.BLUE),
        "k3 in the loss: Dr. GRPO": (forward_optimum(space, 2 * space.beta), figures.OCHRE),
        "k3 in the loss: GRPO": (scaled_optimum(space), figures.RED),
    }
    for i, (name, (logp_S, colour)) in enumerate(laws.items()):
        left.bar(arms + 0.2 * (i - 1.5), logp_S.exp().numpy(), 0.2, color=colour, label=name)
    left.set_xticks(arms, [f"{r:.1f}" for r in space.reward_S.tolist()])
    betas = np.geomspace(0.02, 20, 60)
    for name, color, of in (
        ("k1 in the reward", figures.BLUE, lambda b: space.tilted(space.reward_S / b)),
        ("k3 in the loss", figures.RED, partial(forward_optimum, space)),
    ):
        points = np.array([at(space, of(float(b))) for b in betas])
        right.plot(*points.T, color=color, label=name)
    figures.named(left, "a bandit, one beta", "arm, by its reward", "probability")
    figures.named(
        right, "all betas: nearly one curve", "KL from the reference, nats", "mean reward"
    )
    return figure


def at(space: Space, logp_S: Tensor) -> tuple[float, float]:
    """KL from the reference, and mean reward."""
    reward = float((logp_S.exp() * space.reward_S).sum())
    return space.divergence(space.ref_S, from_S=logp_S), reward
