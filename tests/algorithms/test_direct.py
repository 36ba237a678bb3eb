"""Duties of the kin of DPO that have a reference, and where each of them leads."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from tests.algorithms.bandit import REWARD, distance, optimum, preferred, tilted
from tests.algorithms.test_preference import draw, same
from truing.algorithms import cdpo, dpo, hinge, ipo, robust_dpo

WIN, LOSE = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 3.0])
A, B = draw(0, 9), draw(1, 9)


def check_cdpo(f: Any) -> None:
    # Margins 0.1 (2 + 1) = 0.3 and 0.1 (1 - 3) = -0.2: DPO is ln(1 + e^-0.3) = 0.55435524 and
    # ln(1 + e^0.2) = 0.79813887, of the swapped pair 0.3 more and 0.2 less.
    # 0.8 * 0.55435524 + 0.2 * 0.85435524; 0.8 * 0.79813887 + 0.2 * 0.59813887.
    same(f(WIN, LOSE, beta=0.1, label_smoothing=0.2), [0.61435524, 0.75813887])
    # Laws: without smoothing it is DPO; what one order gains by it, the other loses.
    same(f(A, B, beta=0.7, label_smoothing=0.0), dpo(A, B, beta=0.7), 1e-12)
    both = f(A, B, beta=0.7, label_smoothing=0.3) + f(B, A, beta=0.7, label_smoothing=0.3)
    same(both, dpo(A, B, beta=0.7) + dpo(B, A, beta=0.7), 1e-12)
    # Smallest, with the entropy of the label, where sigmoid(margin) is 1 - e: at ln 4 for 0.2.
    best = torch.full((3,), math.log(4) / 0.7, dtype=torch.float64)
    near = f(best + torch.tensor([-0.1, 0, 0.1]), 0 * best, beta=0.7, label_smoothing=0.2)
    same(near[1], -0.8 * math.log(0.8) - 0.2 * math.log(0.2), 1e-12)
    assert near[1] < near[0]
    assert near[1] < near[2]


def check_robust(f: Any) -> None:
    # As above: (0.8 * 0.55435524 - 0.2 * 0.85435524) / 0.6 and
    # (0.8 * 0.79813887 - 0.2 * 0.59813887) / 0.6.
    same(f(WIN, LOSE, beta=0.1, label_smoothing=0.2), [0.45435524, 0.86480554])
    # Laws: ln 2 where policy equals reference; over flips its mean is DPO on the true label.
    same(f(0 * A, 0 * B, beta=0.7, label_smoothing=0.3), [math.log(2)] * 9, 1e-12)
    right, wrong = (f(x, y, beta=0.7, label_smoothing=0.3) for x, y in ((A, B), (B, A)))
    same(0.7 * right + 0.3 * wrong, dpo(A, B, beta=0.7), 1e-12)


def check_ipo(f: Any) -> None:
    # 1 / (2 * 0.1) = 5: (3 - 5)^2 and (-2 - 5)^2.
    same(f(WIN, LOSE, beta=0.1), [4.0, 49.0])
    # Laws: 1 / (4 beta^2) where policy equals reference; 0 at a difference of 1 / (2 beta); the
    # swapped pair costs 2 / beta more for each nat.
    same(f(0 * A, 0 * B, beta=0.7), [1 / (4 * 0.49)] * 9, 1e-12)
    same(f(A + 1 / 1.4, A, beta=0.7), [0.0] * 9, 1e-12)
    same(f(B, A, beta=0.7) - f(A, B, beta=0.7), 2 / 0.7 * (A - B), 1e-12)


def check_hinge(f: Any) -> None:
    # 1 - 0.3 and 1 + 0.2; with beta 0.5: max(0, 1 - 1.5) and 1 + 1.
    same(f(WIN, LOSE, beta=0.1), [0.7, 1.2])
    same(f(WIN, LOSE, beta=0.5), [0.0, 2.0])
    # Laws: 1 where policy equals reference; both orders cost 2 together until one is settled.
    same(f(0 * A, 0 * B, beta=0.7), [1.0] * 9, 1e-12)
    same(f(A, B, beta=0.1) + f(B, A, beta=0.1), [2.0] * 9, 1e-12)
    assert (f(A + 5, A, beta=0.3) == 0).all()


Mutants = dict[str, Callable[..., Tensor]]


def common(f: Any, **fixed: float) -> Mutants:
    """Broken forms that any loss of a pair can have."""
    return {
        "negated": lambda w, x, **k: -f(w, x, **k),
        "pair swapped": lambda w, x, **k: f(x, w, **k),
        "beta dropped": lambda w, x, **k: f(w, x, **(k | {"beta": 1.0})),
        "beta outside": lambda w, x, **k: k["beta"] * f(w, x, **(k | {"beta": 1.0})),
        "beta inverted": lambda w, x, **k: f(w, x, **(k | {"beta": 1 / k["beta"]})),
        "ratios added": lambda w, x, **k: f(w, -x, **k),
        "rejected dropped": lambda w, x, **k: f(w, 0 * x, **k),
        "chosen dropped": lambda w, x, **k: f(0 * w, x, **k),
    }


def smoothed(f: Any) -> Mutants:
    """Broken forms of a smoothing."""
    return {
        "not smoothed": lambda w, x, beta, label_smoothing: dpo(w, x, beta=beta),
        "smoothed twice": lambda w, x, beta, label_smoothing: f(
            w, x, beta=beta, label_smoothing=label_smoothing * 1.5
        ),
    }


MUTANTS: dict[str, tuple[Any, Any, Mutants]] = {
    "cdpo": (check_cdpo, cdpo, {
        **smoothed(cdpo),
        "robust instead": robust_dpo,
        "the share on the wrong side": lambda w, x, beta, label_smoothing: (
            label_smoothing * dpo(w, x, beta=beta) + (1 - label_smoothing) * dpo(x, w, beta=beta)),
        "flipped term dropped": lambda w, x, beta, label_smoothing: (
            (1 - label_smoothing) * dpo(w, x, beta=beta)),
        "kept term whole": lambda w, x, beta, label_smoothing: (
            dpo(w, x, beta=beta) + label_smoothing * dpo(x, w, beta=beta)),
    }),
    "robust": (check_robust, robust_dpo, {
        **smoothed(robust_dpo),
        "conservative instead": cdpo,
        "divisor dropped": lambda w, x, beta, label_smoothing: (1 - 2 * label_smoothing)
        * robust_dpo(w, x, beta=beta, label_smoothing=label_smoothing),
        "divisor 1 - e": lambda w, x, beta, label_smoothing: (1 - 2 * label_smoothing)
        / (1 - label_smoothing) * robust_dpo(w, x, beta=beta, label_smoothing=label_smoothing),
        "flipped term dropped": lambda w, x, beta, label_smoothing: (
            (1 - label_smoothing) / (1 - 2 * label_smoothing) * dpo(w, x, beta=beta)),
    }),
    "ipo": (check_ipo, ipo, {
        "target 1 / beta": lambda w, x, beta: (w - x - 1 / beta) ** 2,
        "target dropped": lambda w, x, beta: (w - x) ** 2,
        "scaled inside": lambda w, x, beta: (beta * (w - x) - 0.5) ** 2,
        "not squared": lambda w, x, beta: (w - x - 1 / (2 * beta)).abs(),
        "one-sided": lambda w, x, beta: (1 / (2 * beta) - w + x).clamp(min=0) ** 2,
        "halved": lambda w, x, beta: ipo(w, x, beta=beta) / 2,
    }),
    "hinge": (check_hinge, hinge, {
        "not clamped": lambda w, x, beta: 1 - beta * (w - x),
        "margin 0": lambda w, x, beta: (-beta * (w - x)).clamp(min=0),
        "margin beta": lambda w, x, beta: (beta - (w - x)).clamp(min=0),
        "squared": lambda w, x, beta: hinge(w, x, beta=beta) ** 2,
        "dpo instead": dpo,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_golden_values_and_laws_hold_and_bite(name: str) -> None:
    check, f, own = MUTANTS[name]
    check(f)
    reference.bites(check, common(f) | own)


# Each loss with its numbers fixed, and its loop from the paper likewise.
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "cdpo": (
        partial(cdpo, beta=0.3, label_smoothing=0.2),
        partial(reference.cdpo, beta=0.3, smoothing=0.2),
    ),
    "robust": (
        partial(robust_dpo, beta=0.3, label_smoothing=0.2),
        partial(reference.robust_dpo, beta=0.3, flips=0.2),
    ),
    "ipo": (partial(ipo, beta=0.3), partial(reference.ipo, tau=0.3)),
    "hinge": (partial(hinge, beta=0.3), partial(reference.hinge, gamma=0.3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    f, _ = LOSSES[name]
    win, lose = (draw(0, 6) / 3).requires_grad_(), (draw(1, 6) / 3).requires_grad_()
    assert torch.autograd.gradcheck(f, (win, lose))
    up, down = torch.autograd.grad(f(win, lose).sum(), (win, lose))
    # All margins here are short of where a loss turns, so the chosen is pushed up.
    assert (up < 0).all()
    same(up, -down, 1e-12)


def test_where_the_gradient_turns() -> None:
    """cDPO and IPO pull a margin back that is too wide, hinge lets it be, robust DPO never does."""
    far = torch.tensor([30.0], dtype=torch.float64, requires_grad=True)
    slope = {}
    for name, (f, _) in LOSSES.items():
        (grad,) = torch.autograd.grad(f(far, torch.zeros_like(far)).sum(), far)
        slope[name] = float(grad)
    assert slope["cdpo"] > 0
    assert slope["ipo"] > 0
    assert slope["hinge"] == 0
    # -beta e / (1 - 2 e): the loss falls for ever.
    assert slope["robust"] == pytest.approx(-0.3 * 0.2 / 0.6, abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_equal_to_the_loop_from_the_paper(name: str, seed: int) -> None:
    f, loop = LOSSES[name]
    policy, frozen = draw(2 * seed, 12, 2) * 4, draw(2 * seed + 1, 12, 2) * 4
    ratio = policy - frozen
    same(f(ratio[:, 0], ratio[:, 1]), loop(policy.numpy(), frozen.numpy()), 1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_order_changes_nothing_and_nan_stays(name: str) -> None:
    f, _ = LOSSES[name]
    order = torch.tensor([3, 1, 4, 0, 2])
    win, lose = A[:5], B[:5]
    assert torch.equal(f(win[order], lose[order]), f(win, lose)[order])
    # The training loop stops at NaN and says which rows; a clamp must not hide it.
    hurt = f(torch.tensor([math.nan, 1.0]), torch.tensor([0.0, 0.0]))
    assert hurt.isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_refused(name: str) -> None:
    f, _ = LOSSES[name]
    with pytest.raises(ValueError, match="must have one shape"):
        f(torch.zeros(2), torch.zeros(1))
    for beta in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"beta must be positive, got {beta}"):
            f(torch.zeros(2), torch.zeros(2), beta=beta)


def test_a_share_of_flips_that_cannot_be() -> None:
    pair = torch.zeros(2), torch.zeros(2)
    for share in (-0.1, 0.5, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 0.5\), got"):
            cdpo(*pair, beta=0.1, label_smoothing=share)
    for share in (0.0, -0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"in \(0, 0.5\), got"):
            robust_dpo(*pair, beta=0.1, label_smoothing=share)


BETA, FLIPS = 0.5, 0.2


def flipped(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss over labels of which a share of `FLIPS` is turned round."""
    return lambda win, lose: (1 - FLIPS) * f(win, lose) + FLIPS * f(lose, win)


def test_robust_dpo_finds_the_optimum_that_flips_hide() -> None:
    """pi* = pi_ref exp(r / beta) / Z again, though a fifth of the labels is wrong."""
    wanted = tilted(REWARD / BETA)
    plain = partial(dpo, beta=BETA)
    smooth = partial(cdpo, beta=BETA, label_smoothing=FLIPS)
    robust = partial(robust_dpo, beta=BETA, label_smoothing=FLIPS)
    assert distance(optimum(flipped(robust)), wanted) <= 1e-6
    # DPO is led away, and cDPO further: on true labels it lands where DPO lands on flipped ones.
    off, further = (distance(optimum(flipped(f)), wanted) for f in (plain, smooth))
    assert 0.05 < off < further
    assert distance(optimum(smooth), optimum(flipped(plain))) <= 1e-6
    # Bite: a wrong share.
    wrong = partial(robust_dpo, beta=BETA, label_smoothing=FLIPS / 2)
    assert distance(optimum(flipped(wrong)), wanted) > 0.02


def test_ipo_tilts_by_the_chance_to_win() -> None:
    """pi = pi_ref exp(p(y > mu) / tau) / Z, mu the law that draws the pairs (Azar et al. 2023)."""
    mu = torch.tensor([0.3, 0.05, 0.1, 0.15, 0.2, 0.2], dtype=torch.float64)
    tau, reward = 0.2, 5 * REWARD
    wanted = tilted((preferred(reward) * mu).sum(-1) / tau)
    loss = partial(ipo, beta=tau)
    assert distance(optimum(loss, reward=reward, mu=mu), wanted) <= 1e-7
    # Bites: pairs drawn otherwise, the optimum of DPO, another tau.
    assert distance(optimum(loss, reward=reward), wanted) > 0.01
    assert distance(tilted(reward / tau), wanted) > 0.1
    assert distance(optimum(partial(ipo, beta=2 * tau), reward=reward, mu=mu), wanted) > 0.1


def test_hinge_learns_the_order_and_not_the_strength() -> None:
    """Two arms: the margin is 1 whenever one wins more often, so no pi* for a reward."""
    margins = torch.linspace(-3, 3, 601, dtype=torch.float64) / BETA
    for wins in (0.51, 0.7, 0.99):
        loss = wins * hinge(margins, 0 * margins, beta=BETA)
        loss = loss + (1 - wins) * hinge(0 * margins, margins, beta=BETA)
        assert float(margins[loss.argmin()]) == pytest.approx(1 / BETA, abs=1e-9)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "cdpo robust_dpo ipo hinge": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
        "invariance": test_order_changes_nothing_and_nan_stays,
        "loop": test_equal_to_the_loop_from_the_paper,
        "refusal": test_what_is_refused,
    },
    "cdpo robust_dpo": {"refusal": test_a_share_of_flips_that_cannot_be},
}
