"""DPO from a file to a model: where it starts, where it goes, and beside which reference."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import tiny_network
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.layout import Tokens, padded
from truing.data.schema import Comparison
from truing.lineage import Parent
from truing.models.model import load_policy, logp, sequence_logps
from truing.settings import DpoConfig
from truing.stages import preference
from truing.stages.learner import Batch
from truing.stages.preference import RECIPES, Pair, Preference, encode_pairs, with_reference

Write = Callable[..., str]
Settings = Callable[..., Any]
ROWS = [{"prompt": f"p{i}", "chosen": " in the end", "rejected": f" er{'!' * i}"} for i in range(6)]
NAMES = {"chosen", "rejected", "margins", "accuracies"}


def test_it_starts_at_ln_2_and_widens_the_margin(
    tiny: Path, jsonl: Write, settings: Settings
) -> None:
    config = settings(
        DpoConfig, tiny, jsonl("rows", ROWS), max_steps=25, learning_rate=2e-3, logging_steps=1,
        eval_dataset_name=jsonl("held", ROWS[:2]), log_completions_steps=25,
    )  # fmt: skip
    run = preference.run(config)
    assert run is not None
    lines = [line for line in run.metrics() if "loss" in line]
    assert len(lines) == 25
    first, last = lines[0], lines[-1]
    # Policy equals reference: no margin, and no pair counts as won.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert {name for name in first if name.startswith("rewards/")} == {
        f"rewards/{n}" for n in NAMES
    }
    assert first.keys() >= {"logps/chosen", "logps/rejected", "grad_norm", "learning_rate", "epoch"}
    assert last["loss"] < 0.4
    assert last["rewards/margins"] > 0.5
    assert last["rewards/accuracies"] == 1
    margin = last["rewards/chosen"] - last["rewards/rejected"]
    assert margin == pytest.approx(last["rewards/margins"], abs=1e-4)
    assert run.info["summary"]["eval_rewards/accuracies"] == 1
    assert [(s["step"], s["prompt"]) for s in run.samples()] == [
        (0, "p0"), (0, "p1"), (25, "p0"), (25, "p1"),
    ]  # fmt: skip
    # What is logged is the exported model's: its own log-ratios on the held-out pairs.
    start, trained = load_policy(tiny), load_policy(run.path)
    encoder = Encoder(start.tokenizer)
    pairs = encode_pairs(load(config.eval_dataset_name, Comparison), encoder)
    chosen = [pair.chosen for pair in pairs]
    gain = config.beta * (sequence_logps(trained, chosen) - sequence_logps(start, chosen))
    assert run.info["summary"]["eval_rewards/chosen"] == pytest.approx(float(gain.mean()), abs=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_a_first_step_at_ln_2_whatever_is_trained(
    tiny: Path, jsonl: Write, settings: Settings, lora: bool
) -> None:
    config = settings(
        DpoConfig, tiny, jsonl("rows", ROWS), max_steps=1, learning_rate=1e-9, use_peft=lora
    )
    run = preference.run(config)
    assert run is not None
    (line,) = run.metrics()
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert line["grad_norm"] > 1e-3


def test_the_loss_by_hand(tiny: Path) -> None:
    policy = load_policy(tiny)
    tokens = [
        Tokens((1, 2), (3, 4)),
        Tokens((1, 2), (5,)),
        Tokens((6,), (7,)),
        Tokens((6,), (8, 9, 1)),
    ]
    own = logp(policy, padded(tokens)).sum(-1).tolist()
    # Log-ratios 2 and -1 for the first pair, 0 and 1 for the second.
    pairs = [
        Pair(tokens[0], tokens[1], own[0] - 2, own[1] + 1),
        Pair(tokens[2], tokens[3], own[2], own[3] - 1),
    ]
    objective = Preference(RECIPES["sigmoid"], {"beta": 0.5, "label_smoothing": 0.0})
    batch = objective.collate(pairs)
    assert objective.counts(batch) == {"pairs": 2}
    assert objective.length(pairs[0]) == 4
    loss, stats = objective.loss(policy, batch, {"pairs": torch.tensor(8.0)})
    # ln(1 + e^-1.5) = 0.2014133 and ln(1 + e^0.5) = 0.9740770, over a step of 8 pairs.
    assert float(loss.detach()) == pytest.approx((0.2014133 + 0.9740770) / 8, abs=1e-5)
    means = {name: float(total / count) for name, (total, count) in stats.items()}
    assert means == pytest.approx(
        {
            "rewards/chosen": 0.5 * (2 + 0) / 2,
            "rewards/rejected": 0.5 * (-1 + 1) / 2,
            "rewards/margins": 0.5 * (3 - 1) / 2,
            "rewards/accuracies": 0.5,
            "logps/chosen": (own[0] + own[2]) / 2,
            "logps/rejected": (own[1] + own[3]) / 2,
        },
        abs=1e-4,
    )


def test_a_tie_is_no_success(tiny: Path) -> None:
    policy, objective = (
        load_policy(tiny),
        Preference(RECIPES["sigmoid"], {"beta": 0.5, "label_smoothing": 0.0}),
    )
    batch = objective.collate([Pair(Tokens((1, 2), (3,)), Tokens((1, 2), (4, 5)))])
    own = logp(policy, batch.layout).sum(-1).detach()
    tie = Batch(batch.layout, {"reference": own.view(-1, 2)})
    loss, stats = objective.loss(policy, tie, {"pairs": torch.tensor(1.0)})
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert [float(x) for x in stats["rewards/accuracies"]] == [0.0, 1.0]


def test_pairs_that_are_left_out_are_counted(tiny: Path, jsonl: Write) -> None:
    rows = [
        {"prompt": "p", "chosen": "abcdef", "rejected": "abcxyz"},
        {"prompt": "p", "chosen": "abcdef", "rejected": "xyz"},
        {"prompt": "p" * 9, "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "same", "rejected": "same"},
    ]
    dataset = load(jsonl("rows", rows), Comparison)
    assert dataset.notes["chosen equals rejected: left out"] == 1
    encoder = Encoder(load_policy(tiny).tokenizer, max_length=4)
    pairs = encode_pairs(dataset, encoder)
    assert len(pairs) == 2
    assert encoder.counts == {
        "responses truncated": 4,  # three of six letters are three, EOS and one more
        "pairs equal after truncation, left out": 1,
        "prompts too long, left out": 1,
    }


def test_a_pair_whose_responses_are_dropped_is_counted_once(tiny: Path, jsonl: Write) -> None:
    pairs = ("much too", "too long"), ("a", "much too"), ("much too", "b"), ("a", "b")
    rows = [{"prompt": "p", "chosen": c, "rejected": r} for c, r in pairs]
    encoder = Encoder(load_policy(tiny).tokenizer, max_length=4, truncation_mode="drop")
    assert len(encode_pairs(load(jsonl("rows", rows), Comparison), encoder)) == 1
    assert encoder.counts == {"responses too long, left out": 3}


def test_reference_log_probs_are_those_of_the_reference(tiny: Path, jsonl: Write) -> None:
    policy = load_policy(tiny)
    pairs = encode_pairs(load(jsonl("rows", ROWS), Comparison), Encoder(policy.tokenizer))
    for pair in with_reference(pairs, policy, 2):
        wanted = logp(policy, padded([pair.chosen, pair.rejected])).sum(-1).tolist()
        assert [pair.ref_chosen, pair.ref_rejected] == pytest.approx(wanted, abs=1e-4)
    assert with_reference([], policy, 2) == []


def other(tiny: Path, folder: Path) -> Path:
    """Another model with the tokenizer of ``tiny``."""
    network = tiny_network()
    with torch.no_grad():
        network.lm_head.weight *= 0.5
    network.save_pretrained(folder)
    load_policy(tiny).tokenizer.save_pretrained(folder)
    return folder


def test_another_reference_is_a_parent_and_moves_the_start(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    reference = other(tiny, tmp_path / "reference")
    config = settings(
        DpoConfig, tiny, jsonl("rows", ROWS), max_steps=1, ref_model_name_or_path=str(reference)
    )
    run = preference.run(config)
    assert run is not None
    assert run.parents[2:] == [Parent.of("reference", reference)]
    (line,) = run.metrics()
    assert abs(line["rewards/chosen"]) > 0.01
    assert line["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_the_revision_is_the_policys_own(
    tiny: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = load_policy(tiny), []
    monkeypatch.setattr(
        preference, "load_policy", lambda name, loading: seen.append(loading) or policy
    )
    config = settings(DpoConfig, tiny, "d", ref_model_name_or_path=str(tiny), model_revision="v2")
    preference.reference_policy(config, policy)
    assert [loading.revision for loading in seen] == [None]


def test_a_reference_with_another_tokenizer_is_refused(
    tiny: Path, tiny_bos: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    config = settings(DpoConfig, tiny, jsonl("rows", ROWS), ref_model_name_or_path=str(tiny_bos))
    with pytest.raises(ValueError, match="the reference model's tokenizer differs"):
        preference.run(config)
    assert not (tmp_path / "run").exists()


def test_dry_run_and_watch(tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings) -> None:
    data = jsonl("rows", ROWS)
    assert preference.run(settings(DpoConfig, tiny, data, dry_run=True)).rows
    assert not (tmp_path / "run").exists()
    config = settings(DpoConfig, tiny, data, max_steps=4, log_completions_steps=2)
    run = preference.run(config, watch=lambda policy: {"weights": float(policy.version)})
    assert run is not None
    seen = [(line["step"], line["weights"]) for line in run.metrics() if "weights" in line]
    assert seen == [(0, 0.0), (2, 2.0), (4, 4.0)]
    assert run.samples() == []


def test_comparisons_that_are_none(tiny: Path, jsonl: Write, settings: Settings) -> None:
    same = jsonl("same", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    with pytest.raises(ValueError, match="chosen equals rejected"):
        preference.run(settings(DpoConfig, tiny, same))
    cut = jsonl("cut", [{"prompt": "p", "chosen": "aab", "rejected": "aac"}])
    with pytest.raises(ValueError, match=r"no row of .* can be used .*equal after truncation"):
        preference.run(settings(DpoConfig, tiny, cut, max_length=3))
    half = jsonl("half", [{"prompt": "p", "chosen": "a", "rejected": None}])
    with pytest.raises(ValueError, match="rejected"):
        preference.run(settings(DpoConfig, tiny, half))
