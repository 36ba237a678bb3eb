"""Direct losses at the end of learning: the policy that minimises a loss on all pairs at once.

Every pair of a space is weighted by how often it is drawn, and by the probability that each of the
two wins (Bradley-Terry on the true reward, a share of the labels turned round if asked for). That
is the loss on infinitely many labels, and where it is least is the method's fixed point.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.algorithms import bradley_terry, cdpo, dpo, ipo, log_odds_ratio, robust_dpo, simpo
from truing.conformance.spaces import Space, bandit, cycle, draw, fixed, forest, least, tree

# fn(logp_chosen_B, logp_rejected_B, ref_logp_chosen_B, ref_logp_rejected_B, *, beta) -> loss_B
DirectLoss = Callable[..., Tensor]
# The share of labels turned round, where some are.
FLIPS = 0.2


class Direct(NamedTuple):
    """A direct loss and where it ends. ``target``: the log-probs (S,) of that policy; ``broken``:
    what else it must not be taken for; ``flips``: the share of labels turned round; ``mean``: its
    log-probs are means over tokens, not sums; ``crossed``: the reference answers other prompts;
    ``counted``: it is given ``lengths``, decisions (2, B) of both, besides."""

    loss: DirectLoss
    about: str
    target: Callable[[Space], Tensor]
    broken: Callable[["Direct"], dict[str, "Direct"]]
    flips: float = 0.0
    mean: bool = False
    crossed: bool = False
    counted: bool = False
    spaces: tuple[Callable[[], Space], ...] = (bandit, tree)


def drawn(space: Space) -> Tensor:
    """How likely each string is to be one of its prompt's pairs: unequal, so that nothing rests on
    an even draw."""
    return space.normal(draw("pairs", len(space.reward_S))).exp()


def minimised(of: Direct, space: Space) -> Tensor:
    """Log-probs (S,) of the policy at which the loss on all pairs is least."""

    def seen(table: Tensor) -> Tensor:
        return space.logps(table) / (space.lengths_S if of.mean else 1.0)

    first, second = space.pairs
    wins_N = space.beats_SS[first, second]
    wins_N = wins_N * (1 - of.flips) + (1 - wins_N) * of.flips
    pair_N = drawn(space)[first] * drawn(space)[second]
    pair_N = pair_N / pair_N.sum()
    with torch.no_grad():
        frozen = seen(space.reference).roll(space.each if of.crossed else 0)

    length_2N = torch.stack([space.lengths_S[first], space.lengths_S[second]])
    there = {"lengths": length_2N} if of.counted else {}
    back = {"lengths": length_2N.flip(0)} if of.counted else {}

    def mean(table: Tensor) -> Tensor:
        logp, beta = seen(table), space.beta
        a = (logp[first], logp[second], frozen[first], frozen[second])
        b = (logp[second], logp[first], frozen[second], frozen[first])
        won_N, lost_N = of.loss(*a, beta=beta, **there), of.loss(*b, beta=beta, **back)
        return (pair_N * (wins_N * won_N + (1 - wins_N) * lost_N)).sum()

    return space.logps(least(mean, space.reference))


# --- how a loss may be put together wrongly, and still train --------------------------------------

BROKEN: dict[str, Callable[[DirectLoss], DirectLoss]] = {
    "beta doubled": lambda f: (
        lambda c, r, rc, rr, *, beta, **k: f(c, r, rc, rr, beta=2 * beta, **k)
    ),
    "pair swapped": lambda f: lambda c, r, rc, rr, **k: f(r, c, rr, rc, **k),
    "reference dropped": lambda f: lambda c, r, rc, rr, **k: f(c, r, 0 * rc, 0 * rr, **k),
    "chosen's reference dropped": lambda f: lambda c, r, rc, rr, **k: f(c, r, 0 * rc, rr, **k),
    "references exchanged": lambda f: lambda c, r, rc, rr, **k: f(c, r, rr, rc, **k),
}


def usual(of: Direct) -> dict[str, Direct]:
    return {name: of._replace(loss=turn(of.loss)) for name, turn in BROKEN.items()}


def with_others(**losses: DirectLoss) -> Callable[[Direct], dict[str, Direct]]:
    """The usual ones, and these methods in the place of the right one."""

    def variants(of: Direct) -> dict[str, Direct]:
        others = {f"{name} in its place": of._replace(loss=f) for name, f in losses.items()}
        return usual(of) | others

    return variants


def by_length(*, beta: bool, **losses: DirectLoss) -> Callable[[Direct], dict[str, Direct]]:
    """Of a loss without a reference, on means over tokens."""
    names = ("beta doubled", "pair swapped") if beta else ("pair swapped",)

    def variants(of: Direct) -> dict[str, Direct]:
        others = {f"{name} in its place": of._replace(loss=f) for name, f in losses.items()}
        turned = {name: of._replace(loss=BROKEN[name](of.loss)) for name in names}
        return turned | others | {"sums, not means": of._replace(mean=False)}

    return variants


# --- our losses on four log-probs -----------------------------------------------------------------


def on_ratios(loss: Callable[..., Tensor], **options: float) -> DirectLoss:
    """A loss on two log-ratios, with its other settings."""

    def of_four(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, *, beta: float) -> Tensor:
        return loss(c - rc, r - rr, beta=beta, **options)

    return of_four


def on_means(loss: Callable[..., Tensor], **options: float) -> DirectLoss:
    """A loss on two mean log-probs, which knows no reference."""

    def of_four(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, *, beta: float) -> Tensor:
        return loss(c, r, beta=beta, **options)

    return of_four


def odds_term(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """ORPO's second term alone; beta only weighs it against the first."""
    return -F.logsigmoid(log_odds_ratio(chosen, rejected))


def plain_term(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    return bradley_terry(chosen, rejected)


# --- where each ends ------------------------------------------------------------------------------


def ipo_target(space: Space) -> Tensor:
    """``pi_ref exp(p(y beats mu) / tau) / Z``, mu the law that pairs are drawn from (Azar et al.
    2023, eq. 7)."""
    return space.tilted(space.beats_SS @ drawn(space) / space.beta)


def normalised(logps: Callable[[Tensor], Tensor]) -> Tensor:
    """``logps(c)`` for the c at which their probabilities sum to 1; the sum must grow with c."""
    low, high = torch.tensor([-100.0, 100.0], dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        if float(logps(middle).exp().sum()) < 1:
            low = middle
        else:
            high = middle
    return logps(low)


def simpo_target(space: Space) -> Tensor:
    """``log pi = |y| (r / beta + c)`` for gamma 0: length in the place of a reference."""
    return normalised(lambda c: space.lengths_S * (space.reward_S / space.beta + c))


def odds_target(space: Space) -> Tensor:
    """``odds(mean log-prob) = exp(r + c)``."""
    return normalised(lambda c: space.lengths_S * F.logsigmoid(space.reward_S + c))


DIRECT: dict[str, Direct] = {
    "dpo": Direct(
        on_ratios(dpo),
        "pi_ref exp(r / beta) / Z",
        lambda space: space.optimum_S,
        usual,
        spaces=(bandit, tree, fixed, forest),
    ),
    "robust": Direct(
        on_ratios(robust_dpo, label_smoothing=FLIPS),
        "pi_ref exp(r / beta) / Z, with a fifth of the labels flipped",
        lambda space: space.optimum_S,
        with_others(DPO=on_ratios(dpo), cDPO=on_ratios(cdpo, label_smoothing=FLIPS)),
        flips=FLIPS,
    ),
    "cdpo": Direct(
        on_ratios(cdpo, label_smoothing=FLIPS),
        "where DPO ends with a fifth of the labels flipped: not at pi*",
        lambda space: minimised(DIRECT["dpo"]._replace(flips=FLIPS), space),
        with_others(DPO=on_ratios(dpo)),
    ),
    "ipo": Direct(
        on_ratios(ipo),
        "pi_ref exp(p(y beats mu) / beta) / Z: not pi*",
        ipo_target,
        with_others(DPO=on_ratios(dpo)),
        spaces=(bandit, tree, forest, cycle),
    ),
    "simpo": Direct(
        on_means(simpo, gamma=0.0),
        "log pi = |y| (r / beta + c), with gamma 0",
        simpo_target,
        by_length(beta=True, margin=on_means(simpo, gamma=0.5)),
        mean=True,
        spaces=(tree,),  # on a bandit all lengths are 1
    ),
    "orpo": Direct(
        on_means(odds_term),
        "odds(mean log-prob) = exp(r + c), of the odds term alone",
        odds_target,
        by_length(beta=False, probabilities=on_means(plain_term)),
        mean=True,
        spaces=(tree,),
    ),
}
