"""Several rewards as one: in judging, in learning, and members that differ by their seed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.judges import vowels
from tests.online import column, ran, reward_model
from truing.cli import main
from truing.config import ConfigError, check
from truing.data.formats import load
from truing.data.schema import Comparison
from truing.models.heads import load_reward_model
from truing.rewards import Ensemble, combined, load_reward, models_of, score, simulated
from truing.run import Run
from truing.settings import RewardConfig
from truing.settings_judging import CompareConfig, RewardBenchConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import reward

Write = Callable[..., str]
VOWELS = "tests.judges:vowels"
TEXTS = ["a e i", "x y", "one two three four"]


def test_scores_are_put_together() -> None:
    members = {"length": load_reward("length"), VOWELS: vowels}
    long, many = score(members["length"], TEXTS, TEXTS), score(vowels, TEXTS, TEXTS)
    wanted = {
        "sum": [a + b for a, b in zip(long, many, strict=True)],
        "mean": [(a + b) / 2 for a, b in zip(long, many, strict=True)],
        "worst": [min(pair) for pair in zip(long, many, strict=True)],
        # Of two numbers the population variance is a quarter of the squared difference.
        "uncertainty": [
            (a + b) / 2 - 0.5 * (a - b) ** 2 / 4 for a, b in zip(long, many, strict=True)
        ],
    }
    for how, values in wanted.items():
        ensemble = Ensemble(members, how, 0.5)
        assert score(ensemble, TEXTS, TEXTS) == pytest.approx(values)
        apart = [abs(a - b) / 2 for a, b in zip(long, many, strict=True)]
        assert ensemble.stds == pytest.approx(apart)
        assert combined([long, many], how, 0.5) == pytest.approx(values)
    assert models_of(ensemble) == []  # pyright: ignore[reportPossiblyUnboundVariable]


def test_a_member_that_fails_is_named() -> None:
    mine: Any = lambda prompts, completions: [1.0]  # noqa: E731
    ensemble = Ensemble({"length": load_reward("length"), "mine": mine}, "mean")
    with pytest.raises(ValueError, match="mine: the reward returned 1 numbers for 3 completions"):
        score(ensemble, TEXTS, TEXTS)


def test_an_ensemble_with_a_simulated_member_is_simulated(tiny: Path, tmp_path: Path) -> None:
    one = load_reward(str(reward_model(tiny, tmp_path / "a")))
    other = load_reward(str(reward_model(tiny, tmp_path / "b", reward_simulated=True)))
    assert not simulated(Ensemble({"a": one, "v": vowels}, "mean"))
    assert simulated(Ensemble({"a": one, "b": other}, "mean"))


def test_comparisons_tell_how_far_the_members_were_apart(tmp_path: Path, jsonl: Write) -> None:
    samples = jsonl("samples", [{"prompt": "p", "completion": text} for text in TEXTS])
    out = tmp_path / "out.jsonl"
    words = ["compare", "--samples", samples, "--reward", "length", VOWELS, "--ensemble", "worst"]
    assert main([*words, "--output-file", str(out), "--use-cpu"]) == 0
    (row,) = load(out, Comparison).rows
    # Words 3, 2, 4 and vowels 3, 0, 7: the worse of both are 3, 0, 4.
    assert (row.chosen, row.rejected) == (TEXTS[2], TEXTS[1])
    assert row.provenance.author == f"length, {VOWELS}"
    told = row.provenance.extra
    assert told["scores"] == [4.0, 0.0]
    assert told["ensemble_std"] == [1.5, 1.0]


def test_reward_bench_takes_several(
    tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"p{i}", "chosen": TEXTS[2], "rejected": TEXTS[1]} for i in range(3)]
    words = ["reward-bench", "length", VOWELS, "--dataset-name", jsonl("rows", rows)]
    words += ["--ensemble", "uncertainty", "--uncertainty-coef", "0.1", "--use-cpu"]
    assert main([*words, "--output-file", str(tmp_path / "out.json")]) == 0
    assert "members apart by (mean std)" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert figures["reward"]["value"] == 1
    assert figures["ensemble_std"] == pytest.approx(1.25)
    assert main([*words[:2], "length", *words[3:]]) == 1
    assert "one of them twice" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_learning_from_the_worst(kind: str, make: Callable[..., Any]) -> None:
    run = ran(make(kind, reward=["length", VOWELS], ensemble="worst"))
    scores = column(run, "objective/scores")
    each = [column(run, f"rewards/{name}/mean") for name in ("length", VOWELS)]
    for value, *means in zip(scores, *each, strict=True):
        assert value <= min(means)
    assert all(x > 0 for x in column(run, "rewards/ensemble_std/mean"))


SETTINGS: dict[str, dict[str, Any]] = {
    "ensemble: worst is of two rewards": {"reward": "length", "ensemble": "worst"},
    "need each other, but ensemble is uncertainty": {"ensemble": "uncertainty"},
    "need each other, but ensemble is mean": {"ensemble": "mean", "uncertainty_coef": 0.1},
    "uncertainty_coef": {"ensemble": "uncertainty", "uncertainty_coef": -1.0},
}


@pytest.mark.parametrize("said", SETTINGS)
@pytest.mark.parametrize("config", [PpoConfig, RlooConfig, CompareConfig, RewardBenchConfig])
def test_settings_without_effect_are_refused(config: Any, said: str) -> None:
    needed = {n: "x" for n, info in config.model_fields.items() if info.is_required()}
    with pytest.raises(ConfigError, match=said):
        check(config, needed | {"reward": ["length", VOWELS]} | SETTINGS[said])


def test_weights_are_of_the_sum() -> None:
    needed = {n: "x" for n, info in PpoConfig.model_fields.items() if info.is_required()}
    several = {"reward": ["length", VOWELS], "reward_weights": [1, 2], "ensemble": "mean"}
    with pytest.raises(ConfigError, match="reward_weights belong to ensemble: sum"):
        check(PpoConfig, needed | several)


# --- members --------------------------------------------------------------------------------------


def test_members_differ_in_head_and_order_alone(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    rows = jsonl("rows", [{"prompt": f"p{i}", "chosen": f" {i}!", "rejected": f" {i}"}
                          for i in range(16)])  # fmt: skip
    heads = [load_reward_model(tiny, seed=seed) for seed in (0, 0, 1)]
    first, same, other = (model.core.score.weight for model in heads)
    assert torch.equal(first, same)
    assert float((first - other).detach().abs().mean()) > 0.1
    bodies = [model.core.model.embed_tokens.weight for model in heads]
    assert torch.equal(bodies[0], bodies[2])
    losses: dict[str, list[float]] = {}
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        values = {"model_name_or_path": str(tiny), "dataset_name": rows, "seed": seed,
                  "use_cpu": True, "report_to": "none", "logging_steps": 1, "max_steps": 3,
                  "per_device_train_batch_size": 4, "output_dir": str(tmp_path / name)}  # fmt: skip
        run = reward.run(check(RewardConfig, values))
        assert isinstance(run, Run)
        losses[name] = column(run, "loss")
    assert losses["a"] == losses["again"]
    assert losses["a"] != losses["b"]
    members = {name: load_reward(str(tmp_path / name)) for name in ("a", "b")}
    ensemble = Ensemble(members, "uncertainty", 0.5)
    found = score(ensemble, ["p"] * 3, TEXTS)
    assert min(ensemble.stds) > 0
    assert all(x < sum(s) / 2 for x, *s in zip(
        found, *(score(m, ["p"] * 3, TEXTS) for m in members.values()), strict=True))  # fmt: skip
