"""The doctor before a training: each mistake with what triggers it and what must not; what batch
numbers mean; and a real plan of each kind, tried."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from truing.cli import main
from truing.doctor.ahead import STAGES
from truing.doctor.history import ONLINE_STAGES
from truing.doctor.mistakes import MISTAKES, mistakes
from truing.doctor.plan import Plan, Trial, batches, duration, span
from truing.stages.outlook import Outlook

DATA = {
    "rows": 1000,
    "repeated_rows": 3,
    "evaluation_rows": 100,
    "evaluation_prompts_trained_on": 0,
    "evaluation_rows_trained_on": 0,
}


def plan(stage: str, *, ahead: dict[str, Any] | None = None, **settings: Any) -> Plan:
    """A plan with nothing to say of it, but for what is changed."""
    of = STAGES[stage][0]
    reward = {"reward": ["r"]} if stage in ONLINE_STAGES else {}
    healthy = {"missing_eos_penalty": 1.0, "output_dir": "o", **reward}
    known = {name: field.default for name, field in of.model_fields.items()}
    given = {k: v for k, v in healthy.items() if k in known}
    facts: dict[str, Any] = {
        "steps": 500, "rows": 1000, "tokens_per_step": 4000.0, "parameters": 500_000_000,
        "trainable": 500_000_000, "memory": {"policy": 100.0, "activations": 300.0},
        "data": DATA, "notes": {},
    }  # fmt: skip
    made = Outlook(**{**facts, **(ahead or {})})
    return Plan(stage, {**known, **given, **settings}, known, made, have_mb=10_000.0)


def data(**changed: Any) -> dict[str, Any]:
    return {"data": {**DATA, **changed}}


LEARNED = ("runs/reward",)
FROM_SFT = {"stage": "sft", "data": {"row_tokens": {"longest": 200}}}
# For each mistake: plans that have it, and near misses.
CASES: dict[str, tuple[list[Plan], list[Plan]]] = {
    "kl_off": (
        [
            replace(plan("ppo", kl_coef=0.0), learnt=LEARNED),
            replace(plan("grpo", kl_loss_coef=0.0), learnt=LEARNED),
        ],
        [
            plan("ppo", kl_coef=0.0),
            replace(plan("ppo", kl_coef=1e-4), learnt=LEARNED),
            replace(plan("grpo", kl_loss_coef=1e-4), learnt=LEARNED),
        ],
    ),
    "not_supervised": (
        [replace(plan("dpo"), origin={"stage": "reward"})],
        [replace(plan("sft"), origin={"stage": "reward"}), replace(plan("dpo"), origin=FROM_SFT)],
    ),
    "reference": (
        [replace(plan(s), origin={"stage": "dpo"}) for s in ("dpo", *ONLINE_STAGES)],
        [
            replace(plan("dpo", ref_model_name_or_path="runs/sft"), origin={"stage": "dpo"}),
            replace(plan("dpo", loss_type="orpo"), origin={"stage": "dpo"}),
            replace(plan("sft"), origin={"stage": "dpo"}),
            replace(plan("dpo"), origin=FROM_SFT),
        ],
    ),
    "learning_rate": (
        [
            plan("dpo", learning_rate=2.1e-5),
            plan("dpo", learning_rate=4.9e-8),
            plan("sft", learning_rate=0.0),
            plan("dpo", use_peft=True, learning_rate=4e-7),
        ],
        [
            plan("dpo", learning_rate=1.9e-5),
            plan("dpo", learning_rate=5.1e-8),
            plan("dpo", use_peft=True, learning_rate=1.9e-4),
        ],
    ),
    "warm_up": (
        [plan("sft", warmup_steps=500), plan("sft", warmup_ratio=1.0)],
        [plan("sft", warmup_steps=499), plan("sft")],
    ),
    "few_steps": (
        [
            plan("sft", ahead={"steps": 9}),
            plan("ppo", num_mini_batches=1, num_ppo_epochs=4, ahead={"steps": 2}),
        ],
        [
            plan("sft", ahead={"steps": 10}),
            plan("ppo", num_mini_batches=1, num_ppo_epochs=4, ahead={"steps": 3}),
        ],
    ),
    "epochs": (
        [plan("reward", num_train_epochs=2.0)],
        [plan("reward", num_train_epochs=1.0), plan("sft", num_train_epochs=3.0)],
    ),
    "response_length": (
        [replace(plan("ppo", response_length=201), origin=FROM_SFT)],
        [
            replace(plan("ppo", response_length=200), origin=FROM_SFT),
            plan("ppo", response_length=201),
        ],
    ),
    "missing_eos": (
        [plan("ppo", missing_eos_penalty=None)],
        [plan("ppo", missing_eos_penalty=0.5), plan("dpo")],
    ),
    "padding": ([replace(plan("sft"), pad_is_end=True)], [plan("sft")]),
    "memory": (
        [replace(plan("sft"), have_mb=440.0), replace(plan("sft"), have_mb=300.0)],
        [replace(plan("sft"), have_mb=450.0), replace(plan("sft"), have_mb=0.0)],
    ),
    "no_checkpoint": ([plan("sft", save_steps=0)], [plan("sft", save_steps=100)]),
    "nothing_held_out": (
        [plan("dpo", ahead={"data": {"rows": 1000, "repeated_rows": 0}})],
        [plan("dpo"), plan("ppo", ahead={"data": {"rows": 1000, "repeated_rows": 0}})],
    ),
    "leakage": (
        [plan("reward", ahead=data(evaluation_prompts_trained_on=1))],
        [plan("reward", ahead=data(evaluation_prompts_trained_on=0))],
    ),
    "cut": (
        [
            plan("sft", ahead={"notes": {"responses truncated": 51}}),
            plan("sft", ahead={"notes": {"prompts too long, left out": 51}}),
        ],
        [
            plan("sft", ahead={"notes": {"responses truncated": 50}}),
            plan("sft", ahead={"notes": {"evaluation: responses truncated": 99}}),
        ],
    ),
    "repeats": (
        [plan("sft", ahead=data(repeated_rows=51))],
        [plan("sft", ahead=data(repeated_rows=50))],
    ),
    "one_sided": (
        [plan("dpo", ahead=data(chosen_longer=0.71)), plan("dpo", ahead=data(chosen_longer=0.29))],
        [plan("dpo", ahead=data(chosen_longer=0.69)), plan("dpo", ahead=data(chosen_longer=0.31))],
    ),
    "one_label": (
        [plan("dpo", ahead=data(labels_true=0.95))],
        [plan("dpo", ahead=data(labels_true=0.5))],
    ),
    "simulated": (
        [plan("dpo", ahead=data(simulated=0.01))],
        [plan("dpo", ahead=data())],
    ),
}


def names(of: Plan) -> list[str]:
    return [finding.rule for finding in mistakes(of)]


@pytest.mark.parametrize("rule", MISTAKES)
def test_a_mistake_is_seen_and_a_near_miss_is_not(rule: str) -> None:
    wrong, right = CASES[rule]
    for of in wrong:
        assert rule in names(of)
    for of in right:
        assert rule not in names(of)


@pytest.mark.parametrize("stage", STAGES)
def test_of_a_healthy_plan_there_is_nothing_to_say(stage: str) -> None:
    assert set(CASES) == set(MISTAKES)
    assert names(plan(stage)) == []


def test_every_finding_says_what_was_seen_why_and_what_to_do() -> None:
    order = ("fault", "warning", "notice", "expected")
    for wrong, _ in CASES.values():
        for of in wrong:
            found = mistakes(of)
            assert all(f.seen and f.why and f.todo for f in found)
            levels = [order.index(f.level) for f in found]
            assert levels == sorted(levels)


def test_a_small_model_bears_a_high_rate() -> None:
    small = plan("dpo", learning_rate=1e-3, ahead={"parameters": 1_000_000})
    assert mistakes(small)[0].level == "notice"
    assert mistakes(plan("dpo", learning_rate=1e-3))[0].level == "warning"


def test_more_memory_than_there_is_is_a_fault() -> None:
    assert [f.level for f in mistakes(replace(plan("sft"), have_mb=440.0))] == ["warning"]
    (found,) = mistakes(replace(plan("sft"), have_mb=300.0))
    assert found.level == "fault"
    assert "gradient_checkpointing" in found.todo  # for activations, of which there are most


def test_how_the_batch_numbers_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    told = batches(plan("sft", per_device_train_batch_size=4, gradient_accumulation_steps=8))
    assert told["rows of an optimiser step"] == "4 x 8 x 1 = 32"
    monkeypatch.setenv("WORLD_SIZE", "2")
    of = plan(
        "rloo", per_device_train_batch_size=8, gradient_accumulation_steps=4, num_generations=4,
        num_mini_batches=2, num_ppo_epochs=3,
    )  # fmt: skip
    text = " ".join(f"{name}: {value}" for name, value in batches(of).items())
    for part in (
        "8 x 4 x 2 = 64", "64 / 4 (num_generations) = 16", "64 / 2 (num_mini_batches) = 32",
        "at once: 8 on a device", "2 x 3 (num_ppo_epochs) = 6",
        "500, of 32,000 responses to 1,000 prompts",
    ):  # fmt: skip
        assert part in text


def test_durations() -> None:
    told = duration(replace(plan("sft"), trial=Trial(2.0, 900.0, 3000.0)))
    assert told["all steps"] == "about 16.7 minutes"
    assert told["tokens per second"] == "2,000"
    assert told["peak of the trial on the GPU"] == "3.0 GB"
    assert "not tried" in duration(plan("sft"))["time"]
    assert [span(s) for s in (90, 7199, 7200, 200_000)] == [
        *("90 seconds", "120.0 minutes", "2.0 hours", "2.3 days")
    ]


Write = Callable[[str, list[dict[str, Any]]], str]
ROWS = [{"prompt": f"Q{i}?", "completion": "an answer"} for i in range(12)]
PAIRS = [{"prompt": f"Q{i}?", "chosen": "good one", "rejected": "bad"} for i in range(12)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_real_plan_is_tried_and_leaves_nothing_behind(
    stage: str, tiny: Path, jsonl: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ROWS if stage in ("sft", *ONLINE_STAGES) else PAIRS
    online = ["--reward", "length", "--response-length", "5"]
    before = sorted(p.name for p in tmp_path.iterdir())
    data = jsonl("rows", rows)
    line = ["doctor", stage, "--output-dir", str(tmp_path / "run")]
    line += ["--model-name-or-path", str(tiny), "--dataset-name", data, "--use-cpu"]
    line += ["--per-device-train-batch-size", "4", *(online if stage in ONLINE_STAGES else [])]
    line += ["--num-generations", "4"] if stage == "grpo" else []
    line += ["--trial-steps", "1"]
    assert main(line) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "Data",
        "Outlook",
        "memory, activations (MB)",
        "Batches",
        "a step, tried",
        "rules",
    ):
        assert part in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({*before, Path(data).name})


def test_settings_are_checked_as_in_the_training(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["doctor", "dpo", "--output-dir", str(tmp_path / "run"), "--model-name-or-path"]
    assert main([*line, str(tiny), "--dataset-name", str(tmp_path / "none.jsonl")]) == 1
    assert "there is no such file" in capsys.readouterr().err
    assert main([*line, str(tiny), "--bta", "0.1"]) == 2
    assert "--beta" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err


def test_the_page_lists_every_mistake_with_its_levels() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    table = text[text.index("## Before a training") : text.index("## On a run")]
    told = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", table, re.MULTILINE))
    assert list(told) == list(MISTAKES)
    for rule, (wrong, _) in CASES.items():
        seen = {f.level for of in wrong for f in mistakes(of) if f.rule == rule}
        assert all(level in told[rule] for level in seen), rule
