"""The public commands on a real pretrained model and real text (skips where they are absent)."""

from pathlib import Path

import pytest

from scripts.human_data import SETS, study
from scripts.real_input import KL_TARGET, TRAINED, loop

# A continuation may become this much odder, in bits per character under the original model.
ODDER = 0.35
# Nats per continuation that PPO may be from SFT while it gains, at a fixed coefficient.
FARTHEST = 5.0


@pytest.mark.slow
def test_a_story_model_becomes_cheerful_and_stays_fluent(shared_data: Path, tmp_path: Path) -> None:
    figures = loop(shared_data, tmp_path)
    odd = figures["bits_per_character"]
    for name in TRAINED:
        assert figures["sentiment_gain"][name]["low"] > 0
        assert odd[name]["value"] - odd["sft"]["value"] < ODDER
    assert 0 < figures["kl"]["ppo"] < FARTHEST
    assert abs(figures["kl"]["ppo_adaptive"] / KL_TARGET - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SETS))
def test_human_judgements_are_read_whole(name: str, shared_data: Path, tmp_path: Path) -> None:
    """Every row is trained on, held out or counted; of what such a small model makes of them
    nothing is asked."""
    found = study(shared_data, tmp_path, name)
    files = [tmp_path / name / f"{part}.jsonl" for part in ("train", "test")]
    parts = [len(file.read_text(encoding="utf-8").splitlines()) for file in files]
    assert found["read"]["rows"] == sum(parts)
    told = found["accuracy"]
    judges = [told[judge] for judge in ("reward", "longer wins", "bag of words")]
    assert len({each["n"] for each in judges}) == 1
    assert all(each["low"] <= each["value"] <= each["high"] for each in judges)
    assert told["simulated"] is False
    if name == "hh":  # a row is a pair
        left = told["counts"]["prompts too long for the reward model, left out"]
        assert parts[1] == judges[0]["n"] + left
