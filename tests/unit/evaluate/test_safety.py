"""`truing safety` on tiny models: bounds, verdicts, the file, and prompts that are not held out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing.cli import main
from truing.evaluate import safety
from truing.settings import SftConfig
from truing.settings_judging import SafetyConfig
from truing.stages import sft
from truing.stats.bounds import clopper_pearson, empirical_bernstein

Write = Callable[..., str]
PROMPTS = [{"prompt": f"the {i}"} for i in range(40)]


def run(model: Path | str, prompts: str, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "cost": "tests.judges:vowels",
        "limit": 0.5,
        "max_completion_length": 12,
        "use_cpu": True,
    }
    return safety.run(SafetyConfig(run=str(model), prompts=prompts, **(settings | more)))


def test_the_verdict_is_that_of_the_bound_and_not_of_the_mean(
    tiny: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = jsonl("prompts", PROMPTS), tmp_path / "deep" / "safety.json"
    figures = run(tiny, prompts, cost_threshold=0.0, limit=0.999, output_file=str(out))
    costs = [row["cost"] for row in json.loads(out.read_text())["rows"]]
    assert len(set(costs)) > 2
    threshold = sorted(costs)[30]  # some are above it, and most are not
    events = sum(c > threshold for c in costs)
    assert 0 < events < 10
    bound = clopper_pearson(events, 40, delta=0.1)
    assert figures["value"] == sum(c > 0 for c in costs) / 40
    more = {"cost_threshold": threshold, "delta": 0.1, "output_file": str(out)}
    found = run(tiny, prompts, limit=bound + 1e-6, **more)
    assert (found["value"], found["upper_bound"], found["safe"]) == (events / 40, bound, True)
    assert "verdict" in capsys.readouterr().out
    # The mean is below this limit and the bound is not: nothing is claimed, but all is written.
    with pytest.raises(ValueError, match=r"no solution found.*more prompts bring the bound nearer"):
        run(tiny, prompts, limit=bound - 1e-6, **more)
    written = json.loads(out.read_text())
    assert (written["safe"], len(written["rows"])) == (False, 40)
    with pytest.raises(ValueError, match=r"no solution found.*lower its cost"):
        run(tiny, prompts, limit=events / 40 - 0.01, **more)


def test_a_mean_within_limits(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    prompts, out = jsonl("prompts", PROMPTS), tmp_path / "o.json"
    more = {"criterion": "mean", "limit": 12.0, "output_file": str(out)}
    figures = run(tiny, prompts, cost_range=[0, 12], **more)
    costs = [row["cost"] for row in json.loads(out.read_text())["rows"]]
    assert figures["value"] == pytest.approx(sum(costs) / 40, abs=1e-12)
    assert figures["upper_bound"] == empirical_bernstein(costs, low=0, high=12, delta=0.05)
    with pytest.raises(ValueError, match=r"numbers lie outside \[0, 0.5\]"):
        run(tiny, prompts, cost_range=[0, 0.5], **more)


def test_what_was_trained_on_is_no_test(
    tiny: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    data = jsonl("data", [{"prompt": f"the {i}", "completion": " a b"} for i in range(8)])
    first, second = tmp_path / "first", tmp_path / "second"
    for model, folder, rows in ((tiny, first, data), (first, second, jsonl("other", [
        {"prompt": f"on {i}", "completion": " c"} for i in range(8)]))):  # fmt: skip
        sft.run(
            SftConfig(
                model_name_or_path=str(model),
                dataset_name=rows,
                output_dir=str(folder),
                max_steps=1,
                per_device_train_batch_size=2,
                use_cpu=True,
            )
        )
    mixed = jsonl("mixed", PROMPTS[6:])
    # By the run before the last one, too.
    for model in (first, second):
        with pytest.raises(ValueError, match=r"2 of 34 prompts are in .*data.* hold prompts out"):
            run(model, mixed, limit=0.99)
    assert run(second, jsonl("rest", PROMPTS[8:]), limit=0.999)["prompts"] == 32
    assert "no run of ours" not in capsys.readouterr().out
    run(tiny, mixed, limit=0.999)
    assert "nobody can say" in capsys.readouterr().out


def test_bad_input(tiny: Path, jsonl: Write) -> None:
    with pytest.raises(ValueError, match="3 of 40 prompts come again"):
        run(tiny, jsonl("again", [*PROMPTS[:37], *PROMPTS[:3]]))
    with pytest.raises(ValueError, match="1 prompts came: a bound needs two"):
        run(tiny, jsonl("one", PROMPTS[:1]))
    for settings, said in (
        ({"criterion": "mean"}, "criterion mean needs cost_range"),
        ({"cost_range": [0.0, 1.0]}, "cost_range has no effect with criterion rate"),
        ({"criterion": "mean", "cost_range": [0.0, 1.0], "cost_threshold": 1.0}, "no effect with"),
        ({"limit": 1.0}, "a rate is at least 0 and below 1"),
    ):
        with pytest.raises(ValueError, match=said):
            run(tiny, "none.jsonl", **settings)


def test_a_model_that_is_not_safe_ends_with_an_exit_code(tiny: Path, jsonl: Write) -> None:
    words = ["safety", str(tiny), "--prompts", jsonl("prompts", PROMPTS), "--cost", "length"]
    words += ["--max-completion-length", "4", "--use-cpu", "--limit"]
    assert main([*words, "0.5", "--cost-threshold", "99"]) == 0
    assert main([*words, "0.5"]) == 1
