"""A world of solutions in six steps: each step is right or wrong, and wrong ones may be lucky.

A step is read through features, from which it can be told up to chance whether it is right. A
solution is right if all its steps are; its answer is right then, and also in a share of the wrong
solutions, by luck. What luck comes from shows: such a solution mostly has a step that guesses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from truing.algorithms import step_cross_entropy, step_product
from truing.conformance.spaces import ROUGHLY, draw, least
from truing.keys import generator

STEPS, FEATURES = 6, 8
SHARP, EASY = 3.0, 5.5  # of a step's log-odds: its slope in the features, and its level


@dataclass(frozen=True)
class Chains:
    """N solutions: features (N, S, F), whether each step is right (N, S), how likely that was, and
    whether the answer is (N,)."""

    seen_NSF: Tensor
    right_NS: Tensor
    chance_NS: Tensor
    answer_N: Tensor


def chains(seed: int, stream: str, count: int, *, luck: float) -> Chains:
    """Solutions that a fixed solver writes."""
    random = generator(seed, f"chains {stream}")
    seen_NSF = torch.from_numpy(random.normal(size=(count, STEPS, FEATURES)))
    # The last feature is whether a step guesses: one step of some solutions, and mostly wrong.
    guess_N = torch.from_numpy(random.random(count)) < 0.12
    where_N = torch.from_numpy(random.integers(STEPS, size=count))
    seen_NSF[..., -1] = 0.0
    seen_NSF[torch.arange(count), where_N, -1] = guess_N.double()
    weight_F = draw(f"chains weights {seed}", FEATURES)
    weight_F[-1] = 0.0
    weight_F = SHARP * weight_F / weight_F.norm()
    weight_F[-1] = -2 * EASY
    chance_NS = (seen_NSF @ weight_F + EASY).sigmoid()
    right_NS = torch.from_numpy(random.random((count, STEPS))) < chance_NS
    wrong_N, guessed_N = ~right_NS.all(-1), guess_N
    # As many wrong solutions are lucky as ``luck`` says; those that guess first.
    rate = luck * wrong_N.sum() / (wrong_N & guessed_N).sum().clamp(min=1)
    lucky_N = wrong_N & guessed_N & (torch.from_numpy(random.random(count)) < rate)
    return Chains(seen_NSF, right_NS, chance_NS, ~wrong_N | lucky_N)


def logits(weight_G: Tensor, seen_NSF: Tensor) -> Tensor:
    """Of each step (N, S), linear in its features; the last weight is the level."""
    return seen_NSF @ weight_G[:-1] + weight_G[-1]


def process_reward(given: Chains, label_NS: Tensor) -> Tensor:
    """Weights of a reader that learns from labels of steps."""

    def loss(weight_G: Tensor) -> Tensor:
        logit_NS = logits(weight_G, given.seen_NSF)
        return step_cross_entropy(logit_NS.flatten(), label_NS.flatten()).mean() + prior(weight_G)

    return least(loss, torch.zeros(FEATURES + 1, dtype=torch.float64), ROUGHLY)


def outcome_reward(given: Chains) -> Tensor:
    """Weights of the same reader that learns from answers: they are right with the probability
    that all steps are."""
    label_N, mask_NS = given.answer_N.double(), torch.ones_like(given.right_NS)

    def loss(weight_G: Tensor) -> Tensor:
        logp_N = step_product(logits(weight_G, given.seen_NSF), mask_NS).clamp(max=-1e-9)
        logit_N = logp_N - (-torch.expm1(logp_N)).log()
        return step_cross_entropy(logit_N, label_N).mean() + prior(weight_G)

    return least(loss, torch.zeros(FEATURES + 1, dtype=torch.float64), ROUGHLY)


def prior(weight_G: Tensor) -> Tensor:
    return 1e-4 * weight_G.square().sum()


def worth(given: Chains, luck: float) -> Tensor:
    """The chance (N, S) of a right answer behind each step, were the rest written anew: that all
    later steps are right, or luck; behind a wrong step only luck."""
    later_S = torch.arange(STEPS - 1, -1, -1)
    rest_S = given.chance_NS.mean() ** later_S
    fine_NS = given.right_NS.double().cumprod(-1)
    return fine_NS * (rest_S + (1 - rest_S) * luck) + (1 - fine_NS) * luck


def rolled_out(worth_NS: Tensor, seed: int, rollouts: int) -> Tensor:
    """Math-Shepherd's soft labels (N, S): the share of rollouts with a right answer."""
    random = generator(seed, "chains rollouts", rollouts)
    return torch.from_numpy(random.binomial(rollouts, worth_NS.numpy()) / rollouts)
