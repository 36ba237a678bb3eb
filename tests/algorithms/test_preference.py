"""Duties of `truing.algorithms.preference`, and the optimum that is known exactly."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from truing.algorithms import bradley_terry, dpo
from truing.conformance.spaces import least
from truing.keys import generator


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed, "test").normal(size=shape))


def same(got: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=0)


def check_dpo(f: Any) -> None:
    # beta (2 - (-1)) = 0.3: ln(1 + e^-0.3). beta (1 - 3) = -0.2: ln(1 + e^0.2).
    win, lose = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 3.0])
    same(f(win, lose, beta=0.1), [0.55435524, 0.79813887])
    # Laws: ln 2 where policy equals reference; the swapped pair has the negated margin.
    a, b = draw(0, 9), draw(1, 9)
    same(f(0 * a, 0 * b, beta=0.7), [math.log(2)] * 9, 1e-12)
    margin = lambda x: -torch.expm1(x).log()  # noqa: E731 (-ln sigmoid(z) -> z)
    same(margin(f(a, b, beta=0.7)), -margin(f(b, a, beta=0.7)), 1e-9)
    # Beta only scales the log-ratios, and it is Bradley-Terry on what it has scaled.
    same(f(a, b, beta=0.7), f(0.7 * a, 0.7 * b, beta=1.0), 1e-12)
    same(f(a, b, beta=0.7), bradley_terry(0.7 * a, 0.7 * b), 1e-12)


def test_golden_values_and_laws_hold_and_bite() -> None:
    check_dpo(dpo)
    mutants: dict[str, Any] = {
        "negated": lambda win, lose, beta: -dpo(win, lose, beta=beta),
        "pair swapped": lambda win, lose, beta: dpo(lose, win, beta=beta),
        "beta dropped": lambda win, lose, beta: dpo(win, lose, beta=1.0),
        "beta outside": lambda win, lose, beta: beta * dpo(win, lose, beta=1.0),
        "ratios added": lambda win, lose, beta: dpo(win, -lose, beta=beta),
        "rejected dropped": lambda win, lose, beta: dpo(win, 0 * lose, beta=beta),
        "chosen dropped": lambda win, lose, beta: dpo(0 * win, lose, beta=beta),
        "hinge instead": lambda win, lose, beta: (1 - beta * (win - lose)).clamp(min=0),
        "ipo instead": lambda win, lose, beta: (win - lose - 1 / (2 * beta)) ** 2,
    }
    reference.bites(check_dpo, mutants)


def test_gradients() -> None:
    win, lose = draw(0, 6).requires_grad_(), draw(1, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: dpo(x, y, beta=0.3), (win, lose))
    up, down = torch.autograd.grad(dpo(win, lose, beta=0.3).sum(), (win, lose))
    assert (up < 0).all()
    same(up, -down, 1e-12)
    # Eq. 8's weight: beta sigmoid(-margin), so the worst-ordered pair is pushed the hardest.
    same(up, -0.3 * torch.sigmoid(-0.3 * (win - lose)).detach(), 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loop_from_the_paper(seed: int) -> None:
    policy, frozen = draw(2 * seed, 12, 2) * 4, draw(2 * seed + 1, 12, 2) * 4
    beta = 0.05 + 0.2 * seed
    ratio = policy - frozen
    wanted = reference.dpo(policy.numpy(), frozen.numpy(), beta)
    same(dpo(ratio[:, 0], ratio[:, 1], beta=beta), wanted, 1e-12)


def test_order_changes_nothing() -> None:
    win, lose, order = draw(0, 5), draw(1, 5), torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(dpo(win[order], lose[order], beta=0.1), dpo(win, lose, beta=0.1)[order])
    same(dpo(torch.tensor([1e6]), torch.tensor([-1e6]), beta=1.0), [0.0])
    same(dpo(torch.tensor([-1e6]), torch.tensor([1e6]), beta=1.0), [2e6])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got .'chosen': .2,., 'rejected': .1,."):
        dpo(torch.zeros(2), torch.zeros(1), beta=0.1)
    for beta in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="beta must be positive"):
            dpo(torch.zeros(2), torch.zeros(2), beta=beta)


def optimum(loss: Any, reward_A: Tensor, prior_A: Tensor, beta: float) -> Tensor:
    """The policy over arms that minimises ``loss`` on all pairs, labelled by Bradley-Terry."""
    arms = len(reward_A)
    first, second = torch.triu_indices(arms, arms, 1)
    wins = torch.sigmoid(reward_A[first] - reward_A[second])

    def mean(theta_A: Tensor) -> Tensor:
        ratio_A = theta_A.log_softmax(0) - prior_A.log()
        a, b = ratio_A[first], ratio_A[second]
        return (wins * loss(a, b, beta=beta) + (1 - wins) * loss(b, a, beta=beta)).mean()

    return least(mean, torch.zeros(arms, dtype=torch.float64)).softmax(0)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_population_optimum_is_the_tilted_reference(beta: float) -> None:
    """pi* = pi_ref exp(r / beta) / Z (Rafailov et al., eq. 4), on six arms and all pairs."""
    reward_A = beta * torch.tensor([1.0, 0.3, -0.5, 2.0, 0.0, -1.2], dtype=torch.float64)
    prior_A = torch.tensor([0.3, 0.25, 0.2, 0.05, 0.15, 0.05], dtype=torch.float64)
    tilted_A = prior_A * (reward_A / beta).exp()
    wanted_A = tilted_A / tilted_A.sum()
    got_A = optimum(dpo, reward_A, prior_A, beta)
    assert float((got_A - wanted_A).abs().sum() / 2) <= 1e-6
    # Bite: with twice the tie to the reference, the optimum lies elsewhere.
    tied_A = optimum(lambda a, b, beta: dpo(a, b, beta=2 * beta), reward_A, prior_A, beta)
    assert float((tied_A - wanted_A).abs().sum() / 2) > 0.05


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "dpo": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
        "invariance": test_order_changes_nothing,
        "loop": test_equal_to_the_loop_from_the_paper,
        "refusal": test_what_is_refused,
    },
}
