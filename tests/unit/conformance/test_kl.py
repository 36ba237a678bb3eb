"""Where a KL leads, by its place and estimate: what docs/kl.md says is measured here."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from truing.algorithms import k1
from truing.conformance.groups import (
    Method,
    TokenK2,
    by_own_deviation,
    descended,
    forward_optimum,
    method,
    pull,
    scaled_optimum,
    settled,
    spread,
)
from truing.conformance.spaces import Space, bandit, tree
from truing.stages.estimate import by_group
from truing.stages.learner import Sums
from truing.stages.objective import Reinforcement, each_token

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "kl.md").read_text(encoding="utf-8")


def others(space: Space, estimator: str) -> Method:
    """RLOO with a KL in the loss alone."""
    made = method("reinforce", space, in_loss=1.0).measured(by_group)
    return made.having(kl_loss_estimator=estimator)


class TokenK1(Reinforcement):
    def kl(self, logp_BT: Tensor, weight_BT: Tensor, given: Any) -> tuple[Tensor | float, Sums]:
        found_BT = k1(each_token(logp_BT, given["mask_BT"]), given["ref_logp_T"])
        return self.config.kl_loss_coef * (weight_BT * found_BT).sum(), {}


def figures(row: str) -> list[str]:
    """The last two columns of a row of the page."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in line.split("|")[-3:-1]]


@pytest.mark.parametrize(
    ("row", "of"),
    [
        ("loss | k2 of a whole response", lambda s: others(s, "k2")),
        ("loss | k2 of each token", lambda s: others(s, "k2")._replace(objective=TokenK2)),
        ("loss | k3 of each token", lambda s: others(s, "k3")),
        ("loss | the same in `dr_grpo`", lambda s: method("dr_grpo", s, in_loss=1.0)),
        (
            "loss | the same in `grpo`",
            lambda s: method("grpo", s, in_loss=1.0).measured(by_own_deviation(s)),
        ),
        ("reward | k1", lambda s: method("reinforce", s, in_reward=1.0)),
    ],
)
def test_the_figures_on_the_page(row: str, of: Any) -> None:
    told = figures(row)
    for space, figure in zip((bandit(), tree()), told, strict=True):
        if figure:
            away = space.divergence(settled(space, of(space)))
            assert away == pytest.approx(float(figure), abs=5e-4)
    assert re.search(r"^0$|^0\.\d{3}$", told[0])


def test_k1_in_the_loss_has_no_gradient() -> None:
    for space in (bandit(), tree()):
        for table in (space.reference, space.table_of(space.optimum_S)):
            tied = others(space, "k3")._replace(objective=TokenK1)
            free = tied.having(kl_loss_coef=0.0)
            torch.testing.assert_close(
                pull(space, table, tied), pull(space, table, free), atol=1e-12, rtol=0
            )


def test_k2_of_a_response_has_the_gradient_of_the_divergence() -> None:
    """And that of each token has not, but on a bandit."""
    for space, alike in ((bandit(), True), (tree(), False)):
        table = space.table_of(space.optimum_S).requires_grad_()
        logp_S = space.logps(table)
        divergence = (logp_S.exp() * (logp_S - space.ref_S)).sum()
        (wanted,) = torch.autograd.grad(space.beta * divergence, table)
        for objective, same in ((Reinforcement, True), (TokenK2, alike)):
            of = others(space, "k2")._replace(objective=objective)
            got = pull(space, table, of) - pull(space, table, of.having(kl_loss_coef=0.0))
            assert (float((got - wanted).abs().max()) < 1e-12) == same


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_leave_one_arm(estimator: str) -> None:
    space = bandit()
    of = method("reinforce", space, in_reward=1.0).having(kl_estimator=estimator)
    left = [
        space.logps(descended(space, of, steps)).exp().sort(descending=True).values
        for steps in (100, 400)
    ]
    assert float(left[1][0]) > float(left[0][0]) > 0.8
    assert float(left[1][1:].sum()) < 3e-3  # of pi* it is 0.065
    assert float(space.optimum_S.exp().max()) < 0.94


def test_the_closed_forms_are_what_they_say() -> None:
    space = bandit()
    for beta in (0.1, 0.5, 3.0):
        logp_S = forward_optimum(space, beta)
        assert float(logp_S.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        # lambda - r is the same number for each arm: beta pi_ref / pi + r.
        level = beta * (space.ref_S - logp_S).exp() + space.reward_S
        assert float(level.max() - level.min()) < 1e-9
    # Without a tie all mass goes to the best arm, with a strong one the policy is the reference.
    assert float(forward_optimum(space, 1e-4).exp().max()) > 0.99
    assert space.divergence(forward_optimum(space, 1e4), space.ref_S) < 1e-6
    logp_S = scaled_optimum(space)
    again = forward_optimum(space, 2 * space.beta * float(spread(space, logp_S)))
    torch.testing.assert_close(again, logp_S, atol=1e-12, rtol=0)
