"""Duties of the preference losses without a reference, and where each of them leads."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from tests.algorithms.bandit import EVEN, REWARD, distance, optimum, preferred
from tests.algorithms.test_preference import draw, same
from truing.algorithms import cpo, dpo, log_odds_ratio, orpo, simpo

# Probabilities 1/2 and 3/4 of the chosen, 1/4 and 1/2 of the rejected; odds 1, 3, 1/3, 1.
WIN, LOSE = torch.tensor([0.5, 0.75]).log(), torch.tensor([0.25, 0.5]).log()
NLL = torch.tensor([2.0, 0.5])
A, B, C = -draw(0, 9).abs() - 0.1, -draw(1, 9).abs() - 0.1, draw(2, 9).abs()


def check_simpo(f: Any) -> None:
    # Means -2 and -1 against -3 and -2: both margins are 2 * 1 - 0.5 = 1.5, ln(1 + e^-1.5); and
    # swapped -2 - 0.5: ln(1 + e^2.5).
    near, far = torch.tensor([-2.0, -1.0]), torch.tensor([-3.0, -2.0])
    same(f(near, far, beta=2.0, gamma=0.5), [0.20141328] * 2)
    same(f(far, near, beta=2.0, gamma=0.5), [2.57888973] * 2)
    # Laws: without a margin it is DPO; at a tie it costs ln(1 + e^gamma), whatever beta.
    same(f(A, B, beta=0.7, gamma=0.0), dpo(A, B, beta=0.7), 1e-12)
    same(f(A, A, beta=0.7, gamma=1.2), [math.log(1 + math.exp(1.2))] * 9, 1e-12)
    # A margin is a head start of gamma / beta.
    same(f(A + 1.2 / 0.7, B, beta=0.7, gamma=1.2), dpo(A, B, beta=0.7), 1e-12)


def check_cpo(f: Any) -> None:
    # Sums -4 and -6, margin 0.1 * 2 = 0.2: ln(1 + e^-0.2) = 0.59813887, and 0.5 * 2; and -6 and
    # -3, margin -0.3: ln(1 + e^0.3) = 0.85435524, and 0.5 * 0.5.
    win, lose = torch.tensor([-4.0, -6.0]), torch.tensor([-6.0, -3.0])
    same(f(win, lose, NLL, beta=0.1, alpha=0.5), [1.59813887, 1.10435524])
    # Laws: without imitation it is DPO whose reference is even; imitation adds up.
    same(f(A, B, C, beta=0.7, alpha=0.0), dpo(A, B, beta=0.7), 1e-12)
    same(f(A, B, C, beta=0.7, alpha=0.3), dpo(A, B, beta=0.7) + 0.3 * C, 1e-12)


def check_odds(f: Any) -> None:
    # ln(1 / (1/3)) and ln(3 / 1): both ln 3.
    same(f(WIN, LOSE), [math.log(3)] * 2)
    # Laws: the swapped pair has the negated ratio; odds of p = sigmoid(z) are e^z.
    same(f(A, B), -f(B, A), 1e-12)
    z, y = draw(3, 9), draw(4, 9)
    log = torch.nn.functional.logsigmoid
    same(f(log(z), log(y)), z - y, 1e-10)


def check_orpo(f: Any) -> None:
    # -log sigmoid(ln 3) = ln(1 + 1/3) = 0.28768207: 2 + 0.1 * 0.28768207, 0.5 + the same.
    same(f(WIN, LOSE, NLL, beta=0.1), [2.02876821, 0.52876821])
    # Laws: at a tie it is the imitation and beta ln 2; the swapped pair differs by the log odds.
    same(f(A, A, C, beta=0.7), C + 0.7 * math.log(2), 1e-12)
    same(f(B, A, C, beta=0.7) - f(A, B, C, beta=0.7), 0.7 * log_odds_ratio(A, B), 1e-12)


def sided(f: Any) -> dict[str, Callable[..., Tensor]]:
    """Broken forms that any loss of a pair can have."""
    return {
        "negated": lambda w, x, *n, **k: -f(w, x, *n, **k),
        "pair swapped": lambda w, x, *n, **k: f(x, w, *n, **k),
        "rejected dropped": lambda w, x, *n, **k: f(w, 0 * x - 1, *n, **k),
        "chosen dropped": lambda w, x, *n, **k: f(0 * w - 1, x, *n, **k),
    }


def scaled(f: Any) -> dict[str, Callable[..., Tensor]]:
    return {
        "beta dropped": lambda w, x, *n, **k: f(w, x, *n, **(k | {"beta": 1.0})),
        "beta inverted": lambda w, x, *n, **k: f(w, x, *n, **(k | {"beta": 1 / k["beta"]})),
    }


def only_pair(w: Tensor, x: Tensor, beta: float) -> Tensor:
    return -beta * torch.nn.functional.logsigmoid(log_odds_ratio(w, x))


MUTANTS: dict[str, tuple[Any, Any, dict[str, Callable[..., Tensor]]]] = {
    "simpo": (check_simpo, simpo, scaled(simpo) | {
        "gamma dropped": lambda w, x, beta, gamma: simpo(w, x, beta=beta, gamma=0.0),
        "gamma added": lambda w, x, beta, gamma: simpo(w + 2 * gamma / beta, x, beta=beta,
                                                       gamma=gamma),
        "gamma scaled by beta": lambda w, x, beta, gamma: simpo(w, x, beta=beta,
                                                                gamma=beta * gamma),
        "gamma is the ratio": lambda w, x, beta, gamma: simpo(w, x, beta=beta, gamma=gamma / beta),
    }),
    "cpo": (check_cpo, cpo, scaled(cpo) | {
        "nll dropped": lambda w, x, n, beta, alpha: cpo(w, x, 0 * n, beta=beta, alpha=alpha),
        "nll negated": lambda w, x, n, beta, alpha: cpo(w, x, -n, beta=beta, alpha=alpha),
        "alpha dropped": lambda w, x, n, beta, alpha: cpo(w, x, n, beta=beta, alpha=1.0),
        "alpha on the pair": lambda w, x, n, beta, alpha: alpha * dpo(w, x, beta=beta) + n,
        "pair dropped": lambda w, x, n, beta, alpha: alpha * n,
        "a mixture": lambda w, x, n, beta, alpha: (1 - alpha) * dpo(w, x, beta=beta) + alpha * n,
    }),
    "odds": (check_odds, log_odds_ratio, {
        "probabilities": lambda w, x: w - x,
        "complements": lambda w, x: torch.log1p(-x.exp()) - torch.log1p(-w.exp()),
        "complements exchanged": lambda w, x: w - x + torch.log1p(-w.exp()) - torch.log1p(-x.exp()),
        "not logged": lambda w, x: log_odds_ratio(w, x).exp(),
    }),
    "orpo": (check_orpo, orpo, scaled(orpo) | {
        "nll dropped": lambda w, x, n, beta: only_pair(w, x, beta),
        "nll negated": lambda w, x, n, beta: orpo(w, x, -n, beta=beta),
        "pair dropped": lambda w, x, n, beta: n,
        "pair negated": lambda w, x, n, beta: n - only_pair(w, x, beta),
        "beta inside": lambda w, x, n, beta: n - torch.nn.functional.logsigmoid(
            beta * log_odds_ratio(w, x)),
        "beta on both": lambda w, x, n, beta: beta * orpo(w, x, n, beta=1.0),
        "probabilities": lambda w, x, n, beta: n + beta * dpo(w, x, beta=1.0),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_golden_values_and_laws_hold_and_bite(name: str) -> None:
    check, f, own = MUTANTS[name]
    check(f)
    reference.bites(check, sided(f) | own)


# Each loss as a function of mean log-probs (SimPO, ORPO) or sums (CPO) and the NLL of the chosen.
FIXED: dict[str, Callable[..., Tensor]] = {
    "simpo": lambda w, x, n: simpo(w, x, beta=2.0, gamma=0.5),
    "cpo": partial(cpo, beta=0.3, alpha=0.7),
    "orpo": partial(orpo, beta=0.3),
}


@pytest.mark.parametrize("name", FIXED)
def test_gradients(name: str) -> None:
    f = FIXED[name]
    win, lose, nll = (x[:6].clone().requires_grad_() for x in (A, B, C))
    assert torch.autograd.gradcheck(f, (win, lose, nll))
    found = torch.autograd.grad(f(win, lose, nll).sum(), (win, lose, nll), allow_unused=True)
    up, down, imitate = found
    assert up is not None
    assert down is not None
    assert (up < 0).all()
    assert (down > 0).all()
    if name == "simpo":
        assert imitate is None
    else:
        same(imitate, [0.7 if name == "cpo" else 1.0] * 6, 1e-12)


def test_gradients_of_the_odds() -> None:
    win, lose = A[:6].clone().requires_grad_(), B[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(log_odds_ratio, (win, lose))
    up, down = torch.autograd.grad(log_odds_ratio(win, lose).sum(), (win, lose))
    # d log odds / d log p = 1 / (1 - p).
    same(up, (1 / (1 - win.exp())).detach(), 1e-10)
    same(down, -(1 / (1 - lose.exp())).detach(), 1e-10)


def test_odds_stay_finite_where_a_response_is_certain() -> None:
    for dtype in (torch.float32, torch.float64):
        sure = torch.zeros(2, dtype=dtype, requires_grad=True)
        least = torch.tensor([-800.0, -1e-3], dtype=dtype, requires_grad=True)
        loss = orpo(sure, least, -sure, beta=0.1) + orpo(least, sure, -least, beta=0.1)
        assert loss.isfinite().all()
        for grad in torch.autograd.grad(loss.sum(), (sure, least)):
            assert grad.isfinite().all()


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loop_from_the_paper(seed: int) -> None:
    logp = -draw(seed, 12, 2).abs() * 9 - 0.5
    length = (draw(seed + 9, 12, 2).abs() * 7).ceil().clamp(min=1)
    mean, nll = logp / length, -(logp / length)[:, 0]
    beta, other = 0.2 + 0.3 * seed, 0.1 * seed
    numbers = (logp.numpy(), length.numpy(), beta)
    got = simpo(mean[:, 0], mean[:, 1], beta=beta, gamma=other)
    same(got, reference.simpo(*numbers, gamma=other), 1e-12)
    got = cpo(logp[:, 0], logp[:, 1], nll, beta=beta, alpha=other)
    same(got, reference.cpo(*numbers, alpha=other), 1e-12)
    same(orpo(mean[:, 0], mean[:, 1], nll, beta=beta), reference.orpo(*numbers), 1e-10)
    same(log_odds_ratio(mean[:, 0], mean[:, 1]), reference.log_odds_ratio(mean.numpy()), 1e-10)


@pytest.mark.parametrize("name", FIXED)
def test_order_changes_nothing_and_nan_stays(name: str) -> None:
    f, order = FIXED[name], torch.tensor([3, 1, 4, 0, 2])
    trio = [x[:5] for x in (A, B, C)]
    assert torch.equal(f(*(x[order] for x in trio)), f(*trio)[order])
    hurt = f(torch.tensor([math.nan, -1.0]), torch.tensor([-1.0, -1.0]), torch.ones(2))
    assert hurt.isnan().tolist() == [True, False]
    whole = log_odds_ratio(A[:5], B[:5])
    assert torch.equal(log_odds_ratio(A[order], B[order]), whole[order])


def test_what_is_refused() -> None:
    two, one = -torch.ones(2), -torch.ones(1)
    cases: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], dict[str, float]]] = [
        (simpo, (two, one), {"gamma": 0.5}),
        (cpo, (two, one, two), {"alpha": 1.0}),
        (cpo, (two, two, one), {"alpha": 1.0}),
        (orpo, (two, one, two), {}),
        (orpo, (two, two, one), {}),
    ]
    for f, tensors, more in cases:
        with pytest.raises(ValueError, match="must have one shape"):
            f(*tensors, beta=0.1, **more)
        for beta in (0.0, -0.1, math.nan):
            with pytest.raises(ValueError, match=f"beta must be positive, got {beta}"):
                f(*(two for _ in tensors), beta=beta, **more)
    with pytest.raises(ValueError, match="must have one shape"):
        log_odds_ratio(two, one)
    for below in (-0.1, math.nan):
        with pytest.raises(ValueError, match=f"gamma must not be negative, got {below}"):
            simpo(two, two, beta=0.1, gamma=below)
        with pytest.raises(ValueError, match=f"alpha must not be negative, got {below}"):
            cpo(two, two, two, beta=0.1, alpha=below)
    # One of them is enough, and a gradient that hangs on it is no hindrance.
    above = torch.tensor([-1.0, 1.0], requires_grad=True)
    for pair in ((two, above), (above, two)):
        with pytest.raises(ValueError, match=r"log-probs must not be above 0, got 1"):
            log_odds_ratio(*pair)
    # Up to 1e-3 is rounding.
    edge = torch.tensor([1e-3], dtype=torch.float64)
    assert log_odds_ratio(edge, edge) == 0
    with pytest.raises(ValueError, match=r"log-probs must not be above 0, got 0.00101"):
        log_odds_ratio(1.01 * edge, edge)


# Arms as responses of unequal lengths, and what a loss per token sees of them.
LENGTH = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 4.0], dtype=torch.float64)


def per_token(logp_A: Tensor) -> Tensor:
    return logp_A / LENGTH


def normalised(logp_of: Callable[[float], Tensor]) -> Tensor:
    """The probabilities at the constant for which they add up to 1; they rise with it."""
    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if logp_of(middle).exp().sum() > 1 else (middle, high)
    return logp_of(low).exp()


def test_simpo_without_margin_makes_rewards_of_log_probs_per_token() -> None:
    """log pi = |y| (r / beta + c): exactly the reward per token, and no reference to stay near."""
    beta = 2.0
    wanted = normalised(lambda c: LENGTH * (REWARD / beta + c))
    found = optimum(partial(simpo, beta=beta, gamma=0.0), seen=per_token)
    assert distance(found, wanted) <= 1e-6
    # Bites: sums in the place of means; a margin, with which it is no proper score any more.
    sums = optimum(partial(simpo, beta=beta, gamma=0.0), seen=lambda logp: logp)
    assert distance(sums, wanted) > 0.1
    margin = optimum(partial(simpo, beta=beta, gamma=1.0), seen=per_token)
    assert distance(margin, wanted) > 0.05


def test_the_odds_of_orpo_become_rewards() -> None:
    """Its second term alone: odds of the mean log-prob = e^(r + c)."""
    logit = torch.nn.functional.logsigmoid
    wanted = normalised(lambda c: LENGTH * logit(REWARD + c))
    found = optimum(lambda a, b: orpo(a, b, 0 * a, beta=1.0), seen=per_token)
    assert distance(found, wanted) <= 1e-6
    # Its weight changes nothing while it is alone; probabilities for odds do.
    found = optimum(lambda a, b: orpo(a, b, 0 * a, beta=0.1), seen=per_token)
    assert distance(found, wanted) <= 1e-6
    bite = optimum(partial(simpo, beta=1.0, gamma=0.0), seen=per_token)
    assert distance(bite, wanted) > 0.01


# How often each arm is the chosen one, all pairs alike often.
SHARE = (preferred(REWARD) * EVEN).sum(-1) - EVEN / 2
SHARE = SHARE / SHARE.sum()


def test_imitation_alone_leads_to_how_often_each_is_chosen() -> None:
    """ORPO and CPO with responses of one token, where nll is -log pi: at the ends of their weights.

    Between the ends there is no closed form.
    """
    plain = lambda logp: logp  # noqa: E731
    # A weight of 1e-9 moves the optimum by about as much.
    found = optimum(lambda a, b: orpo(a, b, -a, beta=1e-9), seen=plain)
    assert distance(found, SHARE) <= 1e-6
    found = optimum(lambda a, b: cpo(a, b, -a, beta=1e-9, alpha=1.0), seen=plain)
    assert distance(found, SHARE) <= 1e-6
    # CPO without imitation: DPO's optimum with an even reference.
    wanted = (REWARD / 0.5).softmax(0)
    found = optimum(lambda a, b: cpo(a, b, -a, beta=0.5, alpha=0.0), seen=plain)
    assert distance(found, wanted) <= 1e-6
    # Bites: the other weight.
    both = optimum(lambda a, b: cpo(a, b, -a, beta=0.5, alpha=1.0), seen=plain)
    assert distance(both, wanted) > 0.02
    assert distance(both, SHARE) > 0.02


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "simpo cpo orpo": {"gradient": test_gradients},
    "simpo cpo log_odds_ratio orpo": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "invariance": test_order_changes_nothing_and_nan_stays,
        "loop": test_equal_to_the_loop_from_the_paper,
        "refusal": test_what_is_refused,
    },
    "log_odds_ratio": {
        "gradient": test_gradients_of_the_odds,
    },
    "orpo": {"law": test_odds_stay_finite_where_a_response_is_certain},
}
