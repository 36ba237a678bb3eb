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
    parts = [
        sum(1 for _ in (tmp_path / name / f"{part}.jsonl").open(encoding="utf-8"))
        for part in ("train", "test")
    ]
    assert found["read"]["rows"] == sum(parts)
