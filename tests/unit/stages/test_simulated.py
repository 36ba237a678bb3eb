"""A simulated judgement stays marked: in the run that learns from it, and in all its model says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing.data.formats import SIMULATED, load
from truing.data.schema import Comparison
from truing.evaluate import reward_bench, winrate
from truing.feedback import collect
from truing.settings import RewardConfig
from truing.settings_judging import CompareConfig, RewardBenchConfig, WinrateConfig
from truing.stages import reward

Write = Callable[..., str]


@pytest.mark.parametrize("simulated", [True, False])
def test_the_mark_is_carried_on(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Callable[..., Any], simulated: bool
) -> None:
    mark = {"simulated": True} if simulated else {}
    rows = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no", **mark} for i in range(4)]
    pairs = jsonl("pairs", rows)
    run = reward.run(settings(RewardConfig, tiny, pairs, max_steps=2))
    assert run is not None
    assert run.info["summary"].get(SIMULATED) == (4 if simulated else None)

    told = tmp_path / "bench.json"
    bench = RewardBenchConfig(
        reward=str(run.path), dataset_name=pairs, output_file=str(told), use_cpu=True
    )
    reward_bench.run(bench)
    assert json.loads(told.read_text(encoding="utf-8"))["simulated"] is simulated

    samples = jsonl("samples", [{"prompt": "p", "completion": c} for c in ("a", "b b", "c d e")])
    made = CompareConfig(
        samples=samples,
        reward=str(run.path),
        output_file=str(tmp_path / "made.jsonl"),
        use_cpu=True,
    )
    for row in load(collect.compare(made), Comparison).rows:
        assert (row.provenance.source, row.provenance.simulated) == ("ai", simulated)

    contest = WinrateConfig(
        run_a=str(tiny), run_b=str(tiny), prompts=pairs, reward=str(run.path),
        max_completion_length=4, use_cpu=True,
    )  # fmt: skip
    assert winrate.run(contest)["simulated"] is simulated
    assert winrate.run(contest.model_copy(update={"reward": "length"}))["simulated"] is False
