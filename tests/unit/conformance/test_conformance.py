"""The table of exact optima: what it rests on, that it passes, and that what is broken fails."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from truing.cli import main
from truing.conformance import direct, online
from truing.conformance.checks import checks, direct_checks
from truing.conformance.direct import DIRECT, minimised
from truing.conformance.own import KINDS, tried
from truing.conformance.rows import Check, found
from truing.conformance.scores import SCORES, probabilities
from truing.conformance.spaces import Space, bandit, draw, fixed, forest, tree
from truing.settings_conformance import Against

SPACES: list[Callable[[], Space]] = [bandit, tree, fixed, forest]


# --- the spaces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", SPACES)
def test_a_space_is_whole(make: Callable[[], Space]) -> None:
    space = make()
    for logp_S in (space.ref_S, space.optimum_S):
        sums = logp_S.exp().view(space.prompts, -1).sum(-1)
        assert sums.tolist() == pytest.approx([1.0] * space.prompts, abs=1e-12)
    # Any law over the strings is some table's.
    table = space.table_of(space.optimum_S)
    torch.testing.assert_close(space.logps(table), space.optimum_S, atol=1e-12, rtol=0)
    assert space.divergence(space.optimum_S) == 0
    assert space.divergence(space.ref_S) > 0.1


@pytest.mark.parametrize("make", SPACES)
def test_the_optimum_is_one(make: Callable[[], Space]) -> None:
    """J(pi) = E r - beta KL(pi || ref) is beta ln Z at pi*, and less by beta KL(pi || pi*)
    anywhere else."""
    space = make()

    best = float(space.beta * space.log_z.mean())
    assert float(space.objective(space.optimum_S)) == pytest.approx(best, abs=1e-12)
    other = space.tilted(2 * space.reward_S)
    lost = space.beta * space.divergence(space.optimum_S, from_S=other)
    assert float(space.objective(other)) == pytest.approx(best - lost, abs=1e-12)
    assert space.regret(space.optimum_S) == pytest.approx(0.0, abs=1e-12)
    assert space.regret(space.ref_S) == 1


def test_the_tree_counted_out() -> None:
    space = tree()
    assert len(space.reward_S) == 15  # 1 + 2 + 4 + 8 strings
    assert len(space.reference) == 7  # 1 + 2 + 4 places
    assert space.lengths_S.tolist() == [1] + [2] * 2 + [3] * 12  # EOS behind the longest is forced
    probability = space.reference.log_softmax(-1)[0, 2]
    assert float(space.ref_S[0]) == float(probability)  # the empty string: EOS at once


def test_the_other_spaces_counted_out() -> None:
    assert (len(forest().reward_S), len(forest().reference)) == (60, 28)  # four trees
    assert (len(fixed().reward_S), len(fixed().reference)) == (27, 13)  # 3^3; 1 + 3 + 9
    assert bool(fixed().mask_ST.all())
    first, second = forest().pairs
    assert len(first) == 4 * 15 * 14 // 2
    assert torch.equal(first // 15, second // 15)  # none of two prompts
    assert set(forest().beats_SS[0, 15:].tolist()) == {0.0}
    groups = forest().together(4).view(-1, 4)
    assert groups[:, 0].tolist() == list(range(60))
    assert torch.equal(groups // 15, (groups[:, :1] // 15).expand(-1, 4))


def test_draws_are_by_prompt_and_group() -> None:
    space = forest()
    rows = space.sampled(space.ref_S, 4096, 4, torch.Generator().manual_seed(0))
    prompt = (rows // 15).view(-1, 4)
    assert torch.equal(prompt, prompt[:, :1].expand(-1, 4))
    assert prompt[:, 0].bincount().tolist() == [256] * 4
    share = rows.bincount(minlength=60).double() / 1024
    # Four standard errors of a share of 1024 draws.
    assert float((share - space.ref_S.exp()).abs().max()) < 4 * (0.25 / 1024) ** 0.5


def test_the_orders_of_five_are_all_there() -> None:
    assert len(probabilities()) == 120
    assert float(probabilities().sum()) == pytest.approx(1.0, abs=1e-12)


def test_values_are_what_is_to_be_expected() -> None:
    space = tree()
    at_best = online.values(space, space.table_of(space.optimum_S))
    # The same everywhere at the start: beta ln Z (every string begins there).
    assert at_best[:, 0].tolist() == pytest.approx([float(space.beta * space.log_z)] * 15)
    # V* = beta log E_ref[exp(r / beta) | place], at every place.
    gap = (at_best - space.best_values[space.place_ST])[space.mask_ST]
    assert float(gap.abs().max()) < 1e-12
    at_reference = online.values(space, space.reference)
    mean = float((space.ref_S.exp() * space.reward_S).sum())  # no KL there
    assert float(at_reference[0, 0]) == pytest.approx(mean, abs=1e-12)


# --- the table ------------------------------------------------------------------------------------


def test_everything_passes_with_room(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "checks passed" in shown
    assert "FAIL" not in shown
    page = (Path(__file__).resolve().parents[3] / "docs" / "conformance.md").read_text("utf-8")
    for name in (*DIRECT, "ppo", "rloo"):
        assert f"\n{name}, tree" in shown
        assert f"`{name}`" in page
    for name in SCORES:
        assert f"\n{name} " in shown
        assert name in page


def test_every_check_has_variants_that_must_fail() -> None:
    for check in checks(quick=False):
        assert check.broken
        assert 0 < check.bar <= (0.1 if check.number == "L4" else 1e-3)
        assert check.number in ("E", "L0", "L1", "L2", "L3", "L4")


def test_a_check_passes_only_between_the_right_and_the_broken() -> None:
    def check(right: float, wrong: float) -> Check:
        return Check("a", "b", "c", 0.1, lambda: right, {"x": lambda: wrong, "y": lambda: 9.0})

    assert found(check(0.1, 0.2)).passed
    assert found(check(0.1, 0.2)).nearest == "x"
    assert not found(check(0.2, 0.3)).passed  # the right one is too far
    assert not found(check(0.0, 0.1)).passed  # the broken one is too near
    assert not found(check(math.nan, 0.3)).passed
    assert found(check(0.0, math.nan)).passed  # what is no number is infinitely far


def test_what_a_group_cannot_know() -> None:
    """Leave-one-out takes the sum of a response's rewards: the table asks nothing about gamma."""
    assert online.zero_advantage(tree(), "rloo", online.BROKEN["gamma 0.9"]) < 1e-5
    assert online.zero_advantage(tree(), "ppo", online.BROKEN["gamma 0.9"]) > 1e-2


def test_without_the_penalty_learning_ends_elsewhere() -> None:
    free = online.Knobs(beta=0.0)
    assert online.learnt(tree(), "rloo", free, steps=200) > 0.3


def test_label_noise_leads_away_and_robust_dpo_back() -> None:
    """With a fifth of the labels flipped DPO misses pi*, conservative DPO misses it by more, and
    robust DPO finds it."""
    space = tree()
    ends = {
        name: space.divergence(minimised(DIRECT[name]._replace(flips=0.2), space))
        for name in ("dpo", "cdpo", "robust")
    }
    assert ends["robust"] < 1e-6
    assert 0.01 < ends["dpo"] < ends["cdpo"]


# --- a loss of one's own --------------------------------------------------------------------------

MODULE = """
import torch.nn.functional as F


def right(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    return F.softplus(-beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def without_reference(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    return F.softplus(-beta * (chosen - rejected))


def reduced(*logps, beta):
    return right(*logps, beta=beta).mean()


def of_the_batch(*logps, beta):
    loss = right(*logps, beta=beta)
    return loss / loss[0]


def nothing(*logps, beta):
    right(*logps, beta=beta)


def detached(*logps, beta):
    return right(*logps, beta=beta).detach()


def not_finite(*logps, beta):
    return right(*logps, beta=beta) * float("nan")


def other(chosen, rejected, *, beta):
    return chosen - rejected
"""


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("right", 0, "all 5 checks passed"),
        ("without_reference", 1, "5 of 5 checks failed: mine:without_reference (unit)"),
        (
            "reduced",
            1,
            "mine:reduced gave () for inputs of shapes (6,), (6,), (6,), (6,); needed: (6,",
        ),
        ("nothing", 1, "mine:nothing gave NoneType"),
        ("detached", 1, "no gradient leads out of"),
        ("not_finite", 1, "mine:not_finite gave nan for ordinary numbers"),
        ("of_the_batch", 1, "must not depend on its neighbours"),
        ("other", 1, "needed: fn(logp_chosen_B, logp_rejected_B"),
        ("missing", 1, "cannot load the function mine:missing"),
    ],
)
def test_a_loss_of_ones_own(
    name: str,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["conformance", "--module", f"mine:{name}"]) == code
    shown = capsys.readouterr()
    assert said in " ".join((shown.out + shown.err).split())


def test_a_loss_is_held_against_the_fixed_point_that_is_named() -> None:
    name = "tests.unit.conformance.losses:dpo"
    assert main(["conformance", "--module", name, "--against", "dpo"]) == 0
    assert main(["conformance", "--module", name, "--against", "ipo"]) == 1
    assert main(["conformance", "--module", name, "--against", "dqo"]) == 2
    assert set(get_args(Against)) == set(KINDS)


def test_every_way_to_break_a_loss_is_another_loss() -> None:
    of = DIRECT["dpo"].loss
    rows = list(draw("pairs to break", 4, 3))
    plain = tried("dpo", of, "dpo")(*rows, beta=0.5)
    for turn in direct.BROKEN.values():
        assert not torch.allclose(turn(of)(*rows, beta=0.5), plain)


def test_the_direct_rows_are_of_all_spaces() -> None:
    rows: list[Any] = [check.algorithm for check in direct_checks("x", DIRECT["dpo"])]
    assert rows == ["x, bandit", "x, tree", "x, fixed length", "x, forest"]
    (many,) = [c for c in direct_checks("x", DIRECT["dpo"]) if c.algorithm == "x, forest"]
    assert "reference of another prompt" in many.broken
