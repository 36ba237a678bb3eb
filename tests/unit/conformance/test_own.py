"""Functions of one's own for every stage, what is refused of them, and which rows are asked for."""

import pytest
import torch
from torch import Tensor

from truing.cli import main
from truing.conformance.checks import checks
from truing.conformance.own import KINDS, own_checks, tried
from truing.conformance.peers import PEERS
from truing.conformance.peers.trl import dpo_loss, module
from truing.conformance.rows import found
from truing.conformance.run import selected
from truing.conformance.spaces import draw
from truing.conformance.unit import UNITS


@pytest.mark.parametrize("name", UNITS)
def test_a_function_keeps_to_its_formula_and_no_broken_one_does(name: str) -> None:
    function, unit = UNITS[name]
    assert unit.distance(function) < 1e-9
    for turn in unit.turns.values():
        assert unit.distance(turn(function)) > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_ours_is_taken_in_every_place(name: str) -> None:
    function, _ = UNITS[name]
    assert tried(name, function, name) is function
    rows = list(own_checks(name, function, name, quick=True))
    assert rows[0].number == "L0"
    expected = {"gae": 5, "rloo": 5, "ppo": 2, "value": 1, "hinge": 1, "dpo": 5, "ipo": 5}
    assert len(rows) == expected.get(name, len(rows))
    assert all(row.broken for row in rows)


@pytest.mark.parametrize("against", ["bradley_terry", "plackett_luce", "regression"])
def test_reward_losses_of_ones_own_pass_their_rows(against: str) -> None:
    rows = [found(check) for check in own_checks("x", UNITS[against][0], against, quick=True)]
    assert [row.passed for row in rows] == [True, True]


def test_a_group_baseline_that_counts_itself_is_seen_by_its_values_alone() -> None:
    """Its advantages are 0 at the optimum too, and learning ends there: only L0 tells."""

    def mean_of_all(reward_PG: Tensor) -> Tensor:
        return reward_PG - reward_PG.mean(-1, keepdim=True)

    unit, *optimum, _ = own_checks("x", mean_of_all, "rloo", quick=True)
    assert not found(unit).passed
    assert [found(check).passed for check in optimum] == [True] * 3


def test_an_advantage_that_forgets_the_values_is_seen_at_the_optimum() -> None:
    def returns(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, **_: float) -> Tensor:
        return (reward_BT * mask_BT).flip(-1).cumsum(-1).flip(-1) * mask_BT

    unit, optimum, *_ = own_checks("x", returns, "gae", quick=True)
    assert not found(unit).passed
    assert not found(optimum).passed


@pytest.mark.parametrize(
    ("against", "function", "said"),
    [
        ("rloo", lambda r: r.mean(-1), "gave (6,) for inputs of shapes (6, 4); needed: (6, 4)"),
        ("gae", lambda r, v, m: r, "needed: fn(reward_BT, value_BT, mask_BT, *, gamma, lam)"),
        ("ppo", lambda n, o, a, *, clip: (n - o) * a / a.mean(0), "another number when other rows"),
        ("plackett_luce", lambda s, r: None, "gave NoneType"),
        ("bradley_terry", lambda c, r: c[:, 0], "IndexError"),
    ],
)  # fmt: skip
def test_what_is_no_such_function_is_told(against: str, function: object, said: str) -> None:
    with pytest.raises(ValueError, match="x ") as caught:
        tried("x", function, against)
    assert said in str(caught.value)


def test_only_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    everything = list(checks(quick=False))
    assert {c.number for c in everything} == {"E", "L0", "L1", "L2", "L3", "L4"}
    ppo = list(selected(everything, ["ppo"]))
    assert {c.number for c in ppo} == {"L0", "L1", "L3", "L4"}
    assert all(c.algorithm.split(", ")[0] == "ppo" for c in ppo)
    assert len(list(selected(everything, []))) == len(everything)
    assert main(["conformance", "--list", "--only", "E"]) == 0
    shown = capsys.readouterr().out
    assert "Nash, cycle  E certificate" in shown
    assert "4 checks" in shown
    assert main(["conformance", "--only", "pop"]) == 1
    assert "no check is called pop; did you mean ppo?" in capsys.readouterr().err
    assert main(["conformance", "--against", "ppo"]) == 2
    assert main(["conformance", "--module", "a:b", "--peer", "trl"]) == 2


@pytest.mark.parametrize("columns", ["80", "100"])
def test_the_table_keeps_to_its_columns(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truing.console.width", lambda: int(columns))
    assert main(["conformance", "--only", "L0", "E"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    rows = [line for line in lines if line.endswith(" pass")]
    assert len(rows) == sum(check.number in ("E", "L0") for check in checks(quick=True))
    assert {len(line) for line in rows} == {int(columns) - 1}


# --- TRL ------------------------------------------------------------------------------------------


def test_trl_keeps_to_formulas_and_to_the_optimum() -> None:
    rows = [found(c) for c in PEERS["trl"](quick=True) if c.number in ("L0", "L1")]
    assert len(rows) == 12
    assert [row.check.algorithm for row in rows if not row.passed] == []


def test_what_is_left_out_of_trl_is_the_mean_alone() -> None:
    """The mean of what it gives is what it gives as a mean."""
    rows = list(draw("pairs of TRL", 4, 5))
    each = dpo_loss("sigmoid")(*rows, beta=0.5)
    single = [float(dpo_loss("sigmoid")(*(r[i : i + 1] for r in rows), beta=0.5)) for i in range(5)]
    assert each.tolist() == pytest.approx(single, abs=1e-12)
    assert module("trainer.dpo_trainer").DPOTrainer


def test_a_peer_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="pip install trl"):
        module("no_such_trainer")
    assert torch.get_default_dtype() == torch.float32
