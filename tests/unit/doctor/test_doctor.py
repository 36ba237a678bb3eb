"""The doctor on real runs: what it says of a healthy one, a sick one, and how it says it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.histories import made, ramp
from truing.config import check
from truing.doctor import run as doctor
from truing.doctor.rules import asked
from truing.settings import DpoConfig, RewardConfig, SftConfig
from truing.stages import preference, reward, sft

PAIRS = [
    {"prompt": f"p{i}", "chosen": "on the inn", "rejected": "a bell", "simulated": True}
    for i in range(6)
]
ROWS = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]
START = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "max_steps": 12}
Write = Callable[[str, Any], str]


class Asked(NamedTuple):
    run: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A run of each stage that learns from a dataset, and DPO from another reference."""
    out = tmp_path_factory.mktemp("runs")
    for name, rows in (("rows", ROWS), ("pairs", PAIRS)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(kind: Any, name: str, data: str, **more: Any) -> Any:
        places = {"output_dir": str(out / name), "dataset_name": str(out / f"{data}.jsonl")}
        return check(kind, START | places | {"model_name_or_path": str(tiny)} | more)

    sft.run(config(SftConfig, "sft", "rows", learning_rate=1e-3))
    reward.run(config(RewardConfig, "reward", "pairs", max_steps=3))
    preference.run(config(DpoConfig, "dpo", "pairs", learning_rate=1e-4))
    other: dict[str, Any] = {"ref_model_name_or_path": str(out / "sft"), "max_steps": 1}
    preference.run(config(DpoConfig, "far", "pairs", **other))
    return out


def levels(place: Path) -> dict[str, str]:
    return {finding.rule: finding.level for finding in doctor.examine(place)}


def test_a_healthy_run_has_no_fault(runs: Path) -> None:
    found = levels(runs / "dpo")
    assert found["dpo_start"] == "expected"
    assert found["simulated"] == "notice"
    assert not {"fault", "warning"} & set(found.values())
    seen = {finding.rule: finding.seen for finding in doctor.examine(runs / "dpo")}
    assert "starts at 0.6931" in seen["dpo_start"]
    assert levels(runs / "sft") == {}
    # Its reward model starts from no SFT run.
    assert levels(runs / "reward") == {"simulated": "notice", "reward_zero": "notice"}


def test_another_reference_is_told(runs: Path) -> None:
    assert levels(runs / "far")["dpo_start"] == "notice"


def test_a_loss_that_starts_elsewhere_is_a_fault(runs: Path) -> None:
    """The same run, had its policy not been its reference."""
    lines = (runs / "dpo" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    place = runs / "dpo" / "metrics.jsonl"
    place.write_text("\n".join([json.dumps(row | {"loss": 0.75}), *lines[1:]]) + "\n")
    found = levels(runs / "dpo")
    place.write_text("\n".join(lines) + "\n")
    assert found["dpo_start"] == "fault"


def test_what_is_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run(Asked(str(runs / "dpo")))
    told = capsys.readouterr().out
    assert f"dpo run {runs / 'dpo'}: finished, 12 of about 12 steps, 12 lines" in told
    assert "notice (good to know)" in told
    assert "expected (looks odd, but is as it should be)" in told
    assert "fault" not in told
    assert told.index("simulated") < told.index("dpo_start step 1\n    seen  The loss starts")
    assert re.search(r"\n {5}why .*\n {6}do  Nothing\.\n", told)
    count = len(asked("dpo"))
    said = len(doctor.examine(runs / "dpo"))
    assert f"expected; {count - said} of {count} rules had nothing to say" in told


def test_a_run_with_nothing_to_say_names_the_rules(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor.run(Asked(str(runs / "sft")))
    told = capsys.readouterr().out
    assert told.rstrip().endswith(f"nothing to say; asked were {', '.join(asked('sft'))}")


def test_a_report_counts_and_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    history = made("ppo", {"objective/kl": ramp(0.5, 3)}, outcome="failed", error="[red]x[/red]")
    found = doctor.report("[b]", history)
    told = capsys.readouterr().out
    assert [finding.rule for finding in found] == ["failed", "kl_start"]
    assert "ppo run [b]: failed, 20 steps" in told
    assert "[red]x[/red]" in told
    assert "kl_start step 1\n" in told
    assert "2 faults; " in told


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        doctor.run(Asked(str(tmp_path)))
