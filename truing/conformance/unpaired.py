"""KTO on all labels at once: which way each response is pushed, and where all of the mass goes.

There is no best policy between the extremes. A response whose chance of a thumb up is above
``lambda_U / (lambda_D + lambda_U)`` is pushed up for ever, any other down: what is left is the set
of the first, and nothing says how the mass lies within it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from truing.algorithms import kto, kto_baseline
from truing.conformance.direct import drawn
from truing.conformance.rows import Check
from truing.conformance.spaces import Space, bandit, tree


class Kto(NamedTuple):
    """KTO as it may be put together. ``loss`` and ``baseline``: as `kto` and `kto_baseline` are
    called; ``turned``: thumbs the wrong way."""

    loss: Callable[..., Tensor] = kto
    baseline: Callable[[Tensor, float], Tensor] = kto_baseline
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.5
    turned: bool = False


RIGHT = Kto()


def liked(space: Space) -> Tensor:
    """How probable a thumb up is for each string."""
    return torch.sigmoid(space.reward_S)


def kept(space: Space) -> Tensor:
    """The strings that are pushed up."""
    total = RIGHT.desirable_weight + RIGHT.undesirable_weight
    return liked(space) > RIGHT.undesirable_weight / total


def mean_loss(space: Space, logp_S: Tensor, of: Kto) -> Tensor:
    """The loss on all labels. Responses to other prompts are drawn as those to this one are."""
    q_S, p_S = drawn(space), liked(space)
    p_S = 1 - p_S if of.turned else p_S
    ratio_S = logp_S - space.ref_S
    z0, up_S = of.baseline(q_S * ratio_S, 1.0), torch.ones(len(q_S), dtype=torch.bool)
    weights = (of.desirable_weight, of.undesirable_weight)
    numbers = dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True))
    good_S = of.loss(ratio_S, up_S, z0, beta=space.beta, **numbers)
    bad_S = of.loss(ratio_S, ~up_S, z0, beta=space.beta, **numbers)
    return (q_S * (p_S * good_S + (1 - p_S) * bad_S)).sum()


def mass_outside(space: Space, of: Kto = RIGHT, steps: int = 600) -> float:
    """The probability of strings that should be pushed down, after ``steps`` of Adam."""
    table = space.reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        mean_loss(space, space.logps(table), of).backward()
        optimizer.step()
    return float(space.logps(table.detach()).exp()[~kept(space)].sum())


def push(space: Space, of: Kto = RIGHT) -> float:
    """How far the gradient lies from what it should be, where the policy is the law of the data:
    the reference point is above 0 there, ``KL(data || reference)``."""
    logp_S = drawn(space).log().requires_grad_()
    (slope_S,) = torch.autograd.grad(mean_loss(space, logp_S, of), logp_S)
    ratio_S = logp_S.detach() - space.ref_S
    z0 = (drawn(space) * ratio_S).sum()
    bend_S = torch.sigmoid(space.beta * (ratio_S - z0))
    odds_S = RIGHT.undesirable_weight * (1 - liked(space)) - RIGHT.desirable_weight * liked(space)
    wanted_S = drawn(space) * space.beta * bend_S * (1 - bend_S) * odds_S
    return float((slope_S - wanted_S).abs().max())


def _leaking(ratio: Tensor, up: Tensor, z0: Tensor, *, beta: float, **weights: float) -> Tensor:
    """`kto` with a gradient into its reference point: only ``rho - z0`` counts."""
    return kto(ratio - z0, up, torch.zeros_like(z0.detach()), beta=beta, **weights)


def _raw(ratio_S: Tensor, denominator: float) -> Tensor:
    return ratio_S.sum() / denominator


def _turned_baseline(ratio: Tensor, up: Tensor, z0: Tensor, **numbers: float) -> Tensor:
    return kto(ratio + 2 * z0, up, z0, **numbers)


MASS: dict[str, Kto] = {
    "weights exchanged": Kto(desirable_weight=1.5, undesirable_weight=1.0),
    "thumbs turned over": Kto(turned=True),
    "reference point learnt, not clamped": Kto(loss=_leaking, baseline=_raw),
}
PUSH: dict[str, Kto] = {
    "gradient into the reference point": Kto(loss=_leaking, baseline=_raw),
    "reference point added": Kto(loss=_turned_baseline),
    "no reference point": Kto(baseline=lambda ratio_S, denominator: 0 * ratio_S.detach().sum()),
    "weights exchanged": Kto(desirable_weight=1.5, undesirable_weight=1.0),
}


def checks() -> Iterator[Check]:
    """What stands in the table."""
    for space in (bandit(), tree()):
        yield Check(
            f"kto, {space.name}",
            "unit, a step",
            "the gradient with z0 = KL(data || pi_ref) held",
            1e-5,
            partial(push, space),
            {name: partial(push, space, of) for name, of in PUSH.items()},
        )
    space = bandit()
    yield Check(
        f"kto, {space.name}",
        "population, 600 steps",
        "no mass where P(thumb up) < lambda_U / (lambda_D + lambda_U)",
        1e-3,
        partial(mass_outside, space),
        {name: partial(mass_outside, space, of) for name, of in MASS.items()},
    )
