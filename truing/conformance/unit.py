"""Each function on a few numbers, against its formula and the formula's derivative written out.

What no fixed point can show is held here: the clip, the padding, a weight that only scales. The
distance is the largest difference in any value, in any gradient, and between a row's value among
its neighbours, in another order, and in a batch cut in two.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from truing.algorithms import (
    bradley_terry,
    gae,
    hinge,
    leave_one_out,
    plackett_luce,
    soft_bradley_terry,
    squared_error,
    value_clip,
)
from truing.conformance.direct import BROKEN, DIRECT, FLIPS, DirectLoss, on_ratios
from truing.conformance.online import surrogate
from truing.conformance.spaces import draw

Function = Callable[..., Tensor]
# What is wrong with a function -> the function with it.
Turns = Mapping[str, Callable[[Function], Function]]


class Unit(NamedTuple):
    """``inputs``: what the function is given; ``options``: its settings; ``value``: the formula;
    ``slopes``: the gradients of the sum of all values, one for each of the first inputs."""

    inputs: tuple[Tensor, ...]
    options: Mapping[str, float]
    value: Function
    slopes: tuple[Function, ...]
    turns: Turns

    def distance(self, function: Function) -> float:
        """How far ``function`` is from the formula."""
        count = len(self.slopes)
        leaves = [x.clone().requires_grad_() for x in self.inputs[:count]]
        given = (*leaves, *self.inputs[count:])
        call = partial(function, **self.options)
        found = call(*given)
        plain = [f(*self.inputs, **self.options) for f in (self.value, *self.slopes)]
        gaps = [found.detach() - plain[0]]
        if leaves:
            slopes = torch.autograd.grad(found.sum(), leaves, materialize_grads=True)
            gaps += [mine - theirs for mine, theirs in zip(slopes, plain[1:], strict=True)]
        with torch.no_grad():
            gaps.append(call(*(x.flip(0) for x in self.inputs)).flip(0) - found)
            halves = [call(*(x[part] for x in self.inputs)) for part in (slice(0, 3), slice(3, 6))]
            gaps.append(torch.cat(halves) - found)
        return max(float(gap.abs().max()) for gap in gaps)


# Wrong in any loss, and seen by its value on no row alone.
TURNED: Turns = {
    "gradient turned round": lambda f: lambda *a, **k: 2 * f(*a, **k).detach() - f(*a, **k),
    "loss of the row beside": lambda f: lambda *a, **k: f(*a, **k).roll(1, 0),
}


def numbers(stream: str, *shape: int) -> Tensor:
    return draw(f"unit {stream}", *(shape or (6,)))


# --- direct losses: functions of a margin ---------------------------------------------------------

Curve = Callable[[Tensor, float], Tensor]


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def log_loss(m: Tensor, beta: float) -> Tensor:
    return torch.log(1 + torch.exp(-beta * m))


def log_slope(m: Tensor, beta: float) -> Tensor:
    return -beta * logistic(-beta * m)


def mixed(curve: Curve, sign: float, right: float, wrong: float) -> Curve:
    """``right f(m) + wrong f(-m)``; ``sign``: -1 for the derivative of the second term."""
    return lambda m, beta: right * curve(m, beta) + sign * wrong * curve(-m, beta)


def on_margin(curve: Curve, slope: Curve, turns: Turns, *, mean: bool = False) -> Unit:
    """A loss that is ``curve`` of the margin of two log-ratios (of two log-probs, if of means)."""

    def margin(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
        return c - r if mean else (c - rc) - (r - rr)

    rows = tuple(-numbers(f"log-prob {i}").exp() for i in range(4))
    return Unit(
        rows,
        {"beta": 0.5},
        lambda *x, beta: curve(margin(*x), beta),
        (
            lambda *x, beta: slope(margin(*x), beta),
            lambda *x, beta: -slope(margin(*x), beta),
        ),
        turns | TURNED,
    )


def odds(x: Tensor) -> Tensor:
    return x - torch.log(1 - x.exp())


def odds_unit() -> Unit:
    """ORPO's odds term: no function of a difference."""

    def push(c: Tensor, r: Tensor) -> Tensor:
        return -logistic(odds(r) - odds(c))

    return Unit(
        tuple(-numbers(f"log-prob {i}").exp() for i in range(4)),
        {"beta": 0.5},
        lambda c, r, *_, beta: torch.log(1 + torch.exp(odds(r) - odds(c))),
        (
            lambda c, r, *_, beta: push(c, r) / (1 - c.exp()),
            lambda c, r, *_, beta: -push(c, r) / (1 - r.exp()),
        ),
        {"pair swapped": BROKEN["pair swapped"]} | TURNED,
    )


PLAIN: Turns = {name: BROKEN[name] for name in ("beta doubled", "pair swapped")}
SHARE = 1 / (1 - 2 * FLIPS)
# Formulas by the names of the table of direct losses; hinge, which has no fixed point, besides.
MARGINS: dict[str, Unit] = {
    "dpo": on_margin(log_loss, log_slope, BROKEN),
    "cdpo": on_margin(
        mixed(log_loss, 1, 1 - FLIPS, FLIPS), mixed(log_slope, -1, 1 - FLIPS, FLIPS), BROKEN
    ),
    "robust": on_margin(
        mixed(log_loss, 1, SHARE * (1 - FLIPS), -SHARE * FLIPS),
        mixed(log_slope, -1, SHARE * (1 - FLIPS), -SHARE * FLIPS),
        BROKEN,
    ),
    "ipo": on_margin(
        lambda m, beta: (m - 1 / (2 * beta)) ** 2, lambda m, beta: 2 * m - 1 / beta, BROKEN
    ),
    "hinge": on_margin(
        lambda m, beta: torch.where(beta * m < 1, 1 - beta * m, 0.0),
        lambda m, beta: -beta * (beta * m < 1).double(),
        BROKEN,
    ),
    "simpo": on_margin(log_loss, log_slope, PLAIN, mean=True),
    "orpo": odds_unit(),
}


def direct_function(name: str) -> DirectLoss:
    """Our direct loss of that name."""
    return on_ratios(hinge) if name == "hinge" else DIRECT[name].loss


# --- rewards --------------------------------------------------------------------------------------


def ranking(score_PK: Tensor, rank_PK: Tensor) -> Tensor:
    """Choice after choice, best first."""
    rows: list[Tensor] = []
    for score_K, rank_K in zip(score_PK, rank_PK, strict=True):
        left = score_K[rank_K.argsort()].exp()
        rows.append(-sum(torch.log(left[i] / left[i:].sum()) for i in range(len(left))))
    return torch.stack(rows)


def ranking_slope(score_PK: Tensor, rank_PK: Tensor) -> Tensor:
    """Of each response: how likely it was in every choice that it stood for, less 1."""
    chance_PK = torch.zeros_like(score_PK)
    for p, (score_K, rank_K) in enumerate(zip(score_PK, rank_PK, strict=True)):
        for i in range(len(score_K)):
            stood = rank_K >= i
            weight_K = score_K.exp() * stood
            chance_PK[p] += weight_K / weight_K.sum()
    return chance_PK - 1


SCORE = numbers("scores", 6, 4)
LABEL = logistic(numbers("labels"))
REWARDS: dict[str, tuple[Function, Unit]] = {
    "bradley_terry": (
        bradley_terry,
        Unit(
            (SCORE[:, 0], SCORE[:, 1]),
            {},
            lambda c, r: log_loss(c - r, 1.0),
            (lambda c, r: -logistic(r - c), lambda c, r: logistic(r - c)),
            {"pair swapped": lambda f: lambda c, r: f(r, c)} | TURNED,
        ),
    ),
    "soft_bradley_terry": (
        soft_bradley_terry,
        Unit(
            (SCORE[:, 0], SCORE[:, 1], LABEL),
            {},
            lambda a, b, p: p * log_loss(a - b, 1.0) + (1 - p) * log_loss(b - a, 1.0),
            (lambda a, b, p: logistic(a - b) - p, lambda a, b, p: p - logistic(a - b)),
            {"label of the other side": lambda f: lambda a, b, p: f(a, b, 1 - p)} | TURNED,
        ),
    ),
    "plackett_luce": (
        plackett_luce,
        Unit(
            (SCORE, numbers("ranks", 6, 4).argsort(-1)),
            {},
            ranking,
            (ranking_slope,),
            {"order turned over": lambda f: lambda s, ranks: f(s, 3 - ranks)} | TURNED,
        ),
    ),
    "regression": (
        squared_error,
        Unit(
            (SCORE[:, 0], SCORE[:, 1]),
            {},
            lambda s, y: (s - y) * (s - y),
            (lambda s, y: 2 * (s - y),),
            {"halved": lambda f: lambda s, y: f(s, y) / 2} | TURNED,
        ),
    ),
}

# --- policy gradients -----------------------------------------------------------------------------

LENGTHS = torch.tensor([4, 1, 3, 2, 4, 3])
MASK = torch.arange(4) < LENGTHS[:, None]


def estimate(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float):
    """GAE as the sum that it is: ``sum over l of (gamma lam)^l delta_{t + l}``."""
    found_BT = torch.zeros_like(reward_BT)
    for b, length in enumerate(mask_BT.sum(-1).tolist()):
        value = [*value_BT[b, :length].tolist(), 0.0]
        delta = [float(reward_BT[b, t]) + gamma * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            found_BT[b, t] = sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:]))
    return found_BT


def clipped(new_BT: Tensor, old_BT: Tensor, advantage_BT: Tensor, *, clip: float) -> Tensor:
    """Where the clip holds the ratio."""
    ratio_BT = (new_BT - old_BT).exp()
    above, below = ratio_BT > 1 + clip, ratio_BT < 1 - clip
    return (above & (advantage_BT > 0)) | (below & (advantage_BT < 0))


def ppo(new_BT: Tensor, old_BT: Tensor, advantage_BT: Tensor, *, clip: float) -> Tensor:
    bound_BT = 1 + clip * advantage_BT.sign()
    held_BT = clipped(new_BT, old_BT, advantage_BT, clip=clip)
    return -torch.where(held_BT, bound_BT, (new_BT - old_BT).exp()) * advantage_BT


def ppo_slope(new_BT: Tensor, old_BT: Tensor, advantage_BT: Tensor, *, clip: float) -> Tensor:
    held_BT = clipped(new_BT, old_BT, advantage_BT, clip=clip)
    return torch.where(held_BT, 0.0, -(new_BT - old_BT).exp() * advantage_BT)


def critic(value_BT: Tensor, old_BT: Tensor, return_BT: Tensor, *, clip: float) -> Tensor:
    step_BT = value_BT - old_BT
    near_BT = torch.where(step_BT.abs() > clip, old_BT + clip * step_BT.sign(), value_BT)
    return torch.maximum((value_BT - return_BT) ** 2, (near_BT - return_BT) ** 2) / 2


def critic_slope(value_BT: Tensor, old_BT: Tensor, return_BT: Tensor, *, clip: float) -> Tensor:
    """0 where the clipped value counts and is held."""
    free_BT = (value_BT - return_BT) ** 2 / 2
    held_BT = critic(value_BT, old_BT, return_BT, clip=clip) > free_BT
    return torch.where(held_BT, 0.0, value_BT - return_BT)


def value_loss(value_BT: Tensor, old_BT: Tensor, return_BT: Tensor, *, clip: float) -> Tensor:
    """The loss alone of `value_clip`."""
    return value_clip(value_BT, old_BT, return_BT, clip=clip).loss


ROWS = tuple(0.5 * numbers(f"tokens {i}", 6, 4) for i in range(3))
ONLINE: dict[str, tuple[Function, Unit]] = {
    "gae": (
        gae,
        Unit(
            # What stands in the padding must not matter.
            (ROWS[0].masked_fill(~MASK, 0.0), ROWS[1].masked_fill(~MASK, 7.0), MASK),
            {"gamma": 0.9, "lam": 0.8},
            estimate,
            (),
            {
                "lambda 1": lambda f: lambda r, v, m, *, gamma, lam: f(r, v, m, gamma=gamma, lam=1),
                "values left out": lambda f: lambda r, v, m, **k: f(r, 0 * v, m, **k),
                "padding counted": lambda f: lambda r, v, m, **k: f(r, v, m | True, **k),
            },
        ),
    ),
    "rloo": (
        leave_one_out,
        Unit(
            (SCORE,),
            {},
            lambda r: r - (r.sum(-1, keepdim=True) - r) / (r.shape[-1] - 1),
            (),
            {
                "mean of all": lambda f: lambda r: r - r.mean(-1, keepdim=True),
                "divided by the deviation": lambda f: lambda r: f(r) / r.std(-1, keepdim=True),
            },
        ),
    ),
    "ppo": (
        surrogate,
        Unit(
            ROWS,
            {"clip": 0.2},
            ppo,
            (ppo_slope,),
            {
                "clip left out": lambda f: lambda *a, clip: f(*a, clip=1e6),
                "clip without the minimum": lambda f: (
                    lambda n, o, a, *, clip: -(n - o).exp().clamp(1 - clip, 1 + clip) * a
                ),
                "advantage turned round": lambda f: lambda n, o, a, *, clip: f(n, o, -a, clip=clip),
            }
            | TURNED,
        ),
    ),
    "value": (
        value_loss,
        Unit(
            ROWS,
            {"clip": 0.2},
            critic,
            (critic_slope,),
            {
                "clip left out": lambda f: lambda *a, clip: f(*a, clip=1e6),
                "not halved": lambda f: lambda *a, **k: 2 * f(*a, **k),
            }
            | TURNED,
        ),
    ),
}

# Every function with its formula, by the names under which a user's own stands against it.
UNITS: dict[str, tuple[Function, Unit]] = {
    **{name: (direct_function(name), unit) for name, unit in MARGINS.items()},
    **REWARDS,
    **ONLINE,
}
