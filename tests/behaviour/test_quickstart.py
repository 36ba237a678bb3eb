"""The quickstart as a whole: a small one in every run, the real one with its bounds when slow."""

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.bounds import violations
from truing.config import from_yaml
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.schema import Comparison
from truing.keys import generator
from truing.models.model import load_policy
from truing.quickstart import loop, training
from truing.quickstart.plan import Plan
from truing.rewards import ModelReward
from truing.run import Run
from truing.settings import QuickstartConfig
from truing.settings_online import PpoConfig
from truing.stages import online
from truing.stats.ratings import WinRate, win_rate
from truing.worlds import measuring
from truing.worlds.gold import gold
from truing.worlds.replies import FAULT_RATE
from truing.worlds.service import cases

SMALL = Plan(
    demonstrations=64,
    ranked=24,
    samples=3,
    held_out_pairs=16,
    prompts=16,
    best_of=2,
    watched=4,
    rollouts=1,
    unbraked=1,
)


def go(folder: Path, plan: Plan | None = None, **settings: Any) -> dict[str, Any]:
    """Run the quickstart and read its summary.json."""
    page = loop.run(QuickstartConfig(output_dir=str(folder), **settings), plan)
    assert page.is_file()
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def go_small(folder: Path, **settings: Any) -> dict[str, Any]:
    """A small quickstart, with shorter replies, fewer of them in a rollout, and fewer questions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "LONGEST", 48)
        patch.setattr(measuring, "QUESTIONS", 20)
        fewer = {"gradient_accumulation_steps": 2, "response_length": 48}
        patch.setattr(training, "ROLLOUTS", training.ROLLOUTS | fewer)
        return go(folder, SMALL, **settings)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small quickstart with the panel's own labels."""
    folder = tmp_path_factory.mktemp("quickstart") / "small"
    go_small(folder)
    return folder


@pytest.mark.xdist_group("small quickstart")
def test_a_small_quickstart_writes_everything_and_repeats_itself(
    small: Path, tmp_path: Path
) -> None:
    first = json.loads((small / "summary.json").read_text(encoding="utf-8"))
    for key in ("reward_accuracy", "win_rate", "kl", "length", "seconds", "peak_mb", "versions"):
        assert first[key], key
    assert first["seed"] == 0
    assert first["simulated"] is True
    for contest in ("dpo_vs_sft", "ppo_vs_sft"):
        assert {"value", "low", "high", "n"} <= first["win_rate"][contest].keys()
    assert first["overoptimisation"]["stop"] in (0, 1)
    assert "at least 500 prompts" in violations(first)
    assert {"value", "low", "high", "ceiling"} <= first["reward_accuracy"].keys()
    assert 0 < first["seconds"]["sft"] < first["seconds"]["total"]
    for stage in ("sft", "reward", "dpo", "ppo", "ppo_without_kl"):
        assert Run.open(small / stage).info["status"] == "finished"
    rows = load(small / "comparisons.jsonl", Comparison)
    assert len(rows) > 40
    assert all(row.provenance.simulated for row in rows)
    page = (small / "report.html").read_text(encoding="utf-8")
    assert "simulated" in page.lower()
    second = go_small(tmp_path / "second")
    for costs in (first, second):
        for key in ("seconds", "seconds_per_step", "peak_mb"):
            del costs[key]
    assert first == second


@pytest.mark.xdist_group("small quickstart")
def test_a_lowered_type_of_fact_is_a_violation(small: Path) -> None:
    figures = json.loads((small / "summary.json").read_text(encoding="utf-8"))
    figures["facts"]["ppo"]["all"]["item"]["lowered"] = True
    assert "ppo: facts not lowered, all, item" in violations(figures)


@pytest.mark.xdist_group("small quickstart")
def test_flipped_labels_turn_every_comparison_round(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enough(*_: object) -> None:
        raise InterruptedError("what follows the labels is not asked about")

    # The supervised model knows no labels: it is the one that the small quickstart made.
    monkeypatch.setattr(training, "imitate", lambda *_: load_policy(small / "sft"))
    monkeypatch.setattr(training, "learn_reward", enough)
    with pytest.raises(InterruptedError):
        go_small(tmp_path / "flipped", labels="flipped")
    kept = load(small / "comparisons.jsonl", Comparison)
    turned = load(tmp_path / "flipped" / "comparisons.jsonl", Comparison)
    assert [(c.chosen, c.rejected) for c in turned] == [(c.rejected, c.chosen) for c in kept]


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(ValueError, match="not empty"):
        loop.run(QuickstartConfig(output_dir=str(tmp_path)))
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "keep me"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real quickstart with seed 0, which several bounds are read from."""
    folder = tmp_path_factory.mktemp("quickstart") / "seed0"
    go(folder)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("seed 0")
def test_the_bounds_hold_at_seed_0(real: Path) -> None:
    assert violations(json.loads((real / "summary.json").read_text(encoding="utf-8"))) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_bounds_hold_at_other_seeds(tmp_path: Path, seed: int) -> None:
    assert violations(go(tmp_path / "run", seed=seed)) == []


@pytest.mark.slow
@pytest.mark.xdist_group("seed 0")
def test_there_is_something_to_gain(real: Path) -> None:
    """Gold's best of 16 beats one sample nearly always, and every fault is there to be removed."""
    policy = load_policy(real / "sft")
    shown = cases(200, seed=11, split="heldout")
    encoder = Encoder(policy.tokenizer)
    one = measuring.sampled(policy, shown, seed=1, stream="one")
    many = measuring.sampled(policy, shown, seed=1, stream="many", samples=16)
    wins = 0.0
    for case, (single,), group in zip(shown, one, many, strict=True):
        alone = measuring.reply(case, encoder, single).gold
        best = max(measuring.reply(case, encoder, t).gold for t in group)
        wins += (best > alone) + 0.5 * (best == alone)
    assert wins / len(shown) >= 0.85


@pytest.mark.slow
@pytest.mark.xdist_group("seed 0")
def test_each_fault_stands_in_5_to_40_percent_of_supervised_samples(real: Path) -> None:
    policy = load_policy(real / "sft")
    shown = cases(600, seed=12, split="train")
    encoder = Encoder(policy.tokenizer)
    done = measuring.sampled(policy, shown, seed=1, stream="faults")
    found = [
        gold(c, encoder.decode(t.response_ids), finished=t.finish == "stop").faults
        for c, (t,) in zip(shown, done, strict=True)
    ]
    stance = {"conceding": "mistaken", "unsafe": "unsafe"}
    for fault in FAULT_RATE:
        among = [
            f for f, c in zip(found, shown, strict=True) if c.stance == stance.get(fault, c.stance)
        ]
        assert 0.05 <= sum(fault in f for f in among) / len(among) <= 0.40, fault


@pytest.mark.slow
def test_shuffled_labels_gain_nothing(tmp_path: Path) -> None:
    rates = go(tmp_path / "run", labels="shuffled")["win_rate"]
    assert rates["dpo_vs_sft"]["low"] < 0.5
    # PPO goes after what the reward model made of such labels, to the KL that it is given: that is
    # no gain, and may cost a little.
    assert rates["ppo_vs_sft"]["low"] < 0.5


@pytest.mark.slow
@pytest.mark.xdist_group("seed 0")
def test_a_shuffled_reward_changes_nothing(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward model's scores of each rollout, dealt out anew: nothing tells good from bad."""
    honest, calls = ModelReward.__call__, count()

    def dealt(self: ModelReward, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        scores = honest(self, prompts, completions)
        order = generator(0, "dealt", next(calls)).permutation(len(scores))
        return [scores[i] for i in order]

    monkeypatch.setattr(ModelReward, "__call__", dealt)
    rate = reinforced(real, tmp_path)
    assert rate.low < 0.5 < rate.high, rate


@pytest.mark.slow
@pytest.mark.xdist_group("seed 0")
def test_a_flipped_reward_makes_gold_fall(real: Path, tmp_path: Path) -> None:
    assert reinforced(real, tmp_path, reward_weights=[-1.0]).high < 0.5


def reinforced(real: Path, folder: Path, **changed: Any) -> WinRate:
    """How often, by gold, the quickstart's PPO beats SFT with the reward alone: no best replies
    are mixed in."""
    changed |= {"output_dir": str(folder / "ppo"), "log_completions_steps": 0}
    changed |= {"ptx_coef": 0.0, "ptx_dataset_name": None}
    run = online.run(from_yaml(PpoConfig, real / "ppo" / "config.yaml", changed))
    assert run is not None
    plan = Plan()
    start, ppo = (
        measuring.system(load_policy(folder), plan.evaluated(), name=name, label=name, seed=0)
        for name, folder in (("sft", real / "sft"), ("ppo", run.path))
    )
    golds = [[reply.gold for reply in system.replies] for system in (ppo, start)]
    return win_rate(golds[0], golds[1])


@pytest.mark.slow
def test_flipped_labels_make_gold_fall(tmp_path: Path) -> None:
    rates = go(tmp_path / "run", labels="flipped")["win_rate"]
    assert rates["dpo_vs_sft"]["high"] < 0.5
    assert rates["ppo_vs_sft"]["high"] < 0.5


@pytest.mark.slow
@pytest.mark.xdist_group("seed 0")
def test_the_same_seed_gives_the_same_numbers(real: Path, tmp_path: Path) -> None:
    first = json.loads((real / "summary.json").read_text(encoding="utf-8"))
    second = go(tmp_path / "run")
    for key in first.keys() - {"seconds", "seconds_per_step", "peak_mb"}:
        assert first[key] == second[key], key
