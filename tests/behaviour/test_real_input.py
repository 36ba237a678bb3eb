"""The public commands on a real pretrained model and real text (skips where they are absent)."""

from pathlib import Path

import pytest

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
