"""Other runs in a report: all that can be read, and none that would stop it."""

import json
from pathlib import Path

import pytest

from truing.quickstart.account import other_seeds
from truing.settings import QuickstartConfig


def figures(seed: int, labels: str = "as the annotators gave them") -> str:
    rate = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 40}
    found = {
        "seed": seed,
        "setup": {"labels": labels},
        "win_rate": {"dpo_vs_sft": rate},
        "reward_accuracy": rate,
        "seconds": {"total": 5.0},
    }
    return json.dumps(found)


def test_neighbours_are_listed_and_no_control_or_damage_among_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "quickstart-b": figures(2),
        "quickstart-a": figures(1),
        "quickstart-same": figures(0),
        "quickstart-shuffled": figures(3, "shuffled"),
        "quickstart-old": '{"seed": 4}',
        "quickstart-half": '{"seed": ',
        "other": figures(9),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text, encoding="utf-8")
    mine = tmp_path / "quickstart"
    found = other_seeds(mine, QuickstartConfig(output_dir=str(mine)))
    assert [run.seed for run in found] == [1, 2]
    assert found[0].win_rates["dpo_vs_sft"] == (0.7, 0.6, 0.8, 40)
    said = "".join(capsys.readouterr().out.split())
    assert said.count("isleftout") == 2
    assert "quickstart-old" in said
    assert "quickstart-half" in said
    control = QuickstartConfig(output_dir=str(mine), labels="shuffled")
    assert other_seeds(mine, control) == []
