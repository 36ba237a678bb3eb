"""The reward model from a file to a scorer: pairs of rankings, the zero, and what is learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from truing.algorithms import bradley_terry
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.layout import Tokens
from truing.data.schema import Demonstration, Ranking
from truing.lineage import Parent
from truing.models.heads import load_reward_model, sequence_scores
from truing.models.model import load_policy
from truing.rewards import load_reward, score
from truing.settings import RewardConfig, SftConfig
from truing.stages import reward, sft
from truing.stages.reward import check_prompts, held_out_accuracy
from truing.stages.scoring import Ranked, Score, encode_rankings
from truing.stats.ratings import rate

Write = Callable[..., str]
Settings = Callable[..., Any]
# The rule: an answer with "!" wins.
PAIRS = [
    {"prompt": f"p{i}", "chosen": f" {w}!", "rejected": f" {w}"}
    for i, w in enumerate(["the", "cat", "in", "on", "a b", "er", "here", "then"])
]
HELD_OUT = [{"prompt": f"q{i}", "chosen": f" re{i}!", "rejected": f" re{i}"} for i in range(8)]
REFERENCE = [{"prompt": "x", "completion": " and"}, {"prompt": "y", "completion": " or!"}]


def mean_score(folder: Path, rows: list[dict[str, str]], answer: str = "completion") -> float:
    scores = score(load_reward(str(folder)), [r["prompt"] for r in rows], [r[answer] for r in rows])
    return sum(scores) / len(scores)


def test_it_learns_an_easy_rule(tiny: Path, jsonl: Write, settings: Settings) -> None:
    config = settings(
        RewardConfig, tiny, jsonl("rows", PAIRS), eval_dataset_name=jsonl("held", HELD_OUT),
        max_steps=40, log_completions_steps=20, num_completions_to_print=1,
        center_rewards_coefficient=0.01,
    )  # fmt: skip
    run = reward.run(config)
    assert run is not None
    lines = [line for line in run.metrics() if "loss" in line]
    assert lines[0].keys() >= {"accuracy", "margin", "mean_reward", "grad_norm", "learning_rate"}
    assert lines[-1]["loss"] < 0.1 < lines[0]["loss"]
    assert lines[-1]["accuracy"] == 1
    summary = run.info["summary"]
    assert summary["eval_accuracy"] == 1
    assert 0.5 < summary["eval_accuracy_low"] < summary["eval_accuracy_high"] == 1
    assert summary["eval_pairs"] == 8
    looks = run.samples()
    assert [look["step"] for look in looks] == [0, 20, 40]
    assert looks[0]["completions"] == [" re0!", " re0"]
    assert looks[-1]["scores"][0] > looks[-1]["scores"][1]
    # The folder is a reward for every other command.
    better, worse = score(load_reward(str(run.path)), ["new", "new"], [" well!", " well"])
    assert better > worse


# --- the zero -------------------------------------------------------------------------------------


def test_without_anything_else_chosen_responses_score_zero(
    tiny: Path, jsonl: Write, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reward.run(settings(RewardConfig, tiny, jsonl("rows", PAIRS), max_steps=5))
    assert run is not None
    assert run.info["summary"]["reward_shift"] != 0
    assert mean_score(run.path, PAIRS, "chosen") == pytest.approx(0, abs=1e-5)
    assert "chosen responses (no SFT parent and no reward_reference)" in capsys.readouterr().out
    # It goes on from there, and the zero is set anew.
    config = settings(
        RewardConfig, run.path, jsonl("rows", PAIRS), max_steps=5,
        output_dir=str(run.path.parent / "two"),
    )  # fmt: skip
    again = reward.run(config)
    assert again is not None
    assert mean_score(again.path, PAIRS, "chosen") == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_named_references_score_zero(
    tiny: Path, jsonl: Write, settings: Settings, lora: bool
) -> None:
    named = jsonl("reference", REFERENCE)
    config = settings(
        RewardConfig, tiny, jsonl("rows", PAIRS), max_steps=5, reward_reference=named, use_peft=lora
    )
    run = reward.run(config)
    assert run is not None
    assert mean_score(run.path, REFERENCE) == pytest.approx(0, abs=1e-5)
    assert abs(mean_score(run.path, PAIRS, "chosen")) > 0.01
    assert run.parents[-1] == load(named, Demonstration).parent("reference responses")
    assert run.info["summary"]["reward_reference"] == f"responses of {named}"


def test_the_demonstrations_of_an_sft_parent_score_zero(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    shown = jsonl("shown", REFERENCE)
    parent = sft.run(settings(SftConfig, tiny, shown, max_steps=1, output_dir=str(tmp_path / "s")))
    assert parent is not None
    config = settings(RewardConfig, parent.path, jsonl("rows", PAIRS), max_steps=5)
    run = reward.run(config)
    assert run is not None
    assert mean_score(run.path, REFERENCE) == pytest.approx(0, abs=1e-5)
    assert run.info["summary"]["reward_reference"] == "demonstrations of the parent SFT run"
    assert [p.role for p in run.parents] == ["policy", "dataset", "reference responses"]
    assert run.parents[0] == Parent.of("policy", parent.path)
    # They have gone since: said, with the way out, before anything is trained.
    Path(shown).unlink()
    config = settings(
        RewardConfig, parent.path, jsonl("rows", PAIRS), output_dir=str(tmp_path / "t")
    )
    with pytest.raises(ValueError, match=r"cannot be read .* name prompt/completion rows"):
        reward.run(config)


def test_references_that_do_not_fit_are_refused_before_training(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    named = jsonl("reference", [{"prompt": "x" * 300, "completion": "y"}])
    config = settings(RewardConfig, tiny, jsonl("rows", PAIRS), reward_reference=named)
    with pytest.raises(ValueError, match=r"no responses of .* can be used .* would have no zero"):
        reward.run(config)
    assert not (tmp_path / "run").exists()


# --- rankings -------------------------------------------------------------------------------------

A, B, C, D = (Tokens((1, 2), (10 + i, 20 + i, 3)) for i in range(4))
THREE = Ranked((A, B, C), ((0, 1), (0, 2), (1, 2)))
TWO = Ranked((D, A), ((0, 1),), 0.5)


def slopes(model: Any, loss: Any) -> list[Any]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_each_response_is_read_once_and_each_ranking_weighs_one(tiny: Path) -> None:
    model = load_reward_model(tiny)
    objective = Score(None)
    batch = objective.collate([THREE, TWO])
    assert batch.layout.ids_RC.shape[0] == 5  # 3 + 2 responses, although they form 4 pairs
    assert objective.counts(batch) == {"rankings": pytest.approx(2.0)}
    assert objective.length(THREE) == 5
    loss, stats = objective.loss(model, batch, {"rankings": torch.tensor(2.0)})
    grouped = slopes(model, loss)
    # By hand, every pair on its own: the mean over the pairs of a ranking, then over rankings.
    parts = []
    for row in (THREE, TWO):
        pairs = []
        for i, j in row.pairs:
            c, r = model(
                objective.collate([Ranked((row.responses[i], row.responses[j]), ((0, 1),))]).layout
            )
            pairs.append(bradley_terry(c[None], r[None], torch.tensor([row.margin]))[0])
        parts.append(torch.stack(pairs).mean())
    wanted = torch.stack(parts).mean()
    torch.testing.assert_close(loss.detach(), wanted.detach(), atol=1e-6, rtol=0)
    for one, other in zip(grouped, slopes(model, wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    # Figures weigh as the loss does.
    a, b, c, d, e = sequence_scores(model, [A, B, C, D, A]).tolist()
    margin = ((a - b) + (a - c) + (b - c)) / 3 + (d - e)
    total, count = stats["margin"]
    assert float(total / count) == pytest.approx(margin / 2, abs=1e-5)


def test_a_tie_of_scores_is_half_right_and_centering_is_added(tiny: Path) -> None:
    model = load_reward_model(tiny)
    twins = Ranked((A, A), ((0, 1),))
    for center in (None, 0.3):
        loss, stats = Score(center).loss(
            model, Score(center).collate([twins]), {"rankings": torch.tensor(1.0)}
        )
        own = float(sequence_scores(model, [A]))
        wanted = 0.6931472 + (center or 0) * (2 * own) ** 2
        assert float(loss.detach()) == pytest.approx(wanted, abs=1e-5)
        assert [float(x) for x in stats["accuracy"]] == [0.5, 1.0]


def test_rankings_become_pairs(tiny: Path, jsonl: Write) -> None:
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 0, 1]},
        {"prompt": "p", "completions": ["abcdef", "abcxyz", "z"], "ranks": [0, 1, 2]},
        {"prompt": "p", "completions": ["abcdef", "abcxyz"], "ranks": [0, 1]},
        {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0]},
        {"prompt": "far too long", "completions": ["a", "b", "c"], "ranks": [0, 1, 2]},
    ]
    encoder = Encoder(load_policy(tiny).tokenizer, max_length=4)
    found = encode_rankings(load(jsonl("rows", rows), Ranking), encoder)
    assert [row.pairs for row in found] == [((1, 0), (1, 2)), ((0, 2), (1, 2))]
    assert [len(row.responses) for row in found] == [3, 3]
    assert encoder.counts == {
        "responses truncated": 4,
        "pairs equal after truncation, left out": 2,
        "rankings without a pair, left out": 2,
        "prompts too long, left out": 1,
    }


def test_a_response_that_is_left_out_takes_its_pairs_along(tiny: Path, jsonl: Write) -> None:
    ranking = {"prompt": "p", "completions": ["much too long", "a", "b"], "ranks": [0, 1, 2]}
    encoder = Encoder(load_policy(tiny).tokenizer, max_length=4, truncation_mode="drop")
    (row,) = encode_rankings(load(jsonl("rows", [ranking]), Ranking), encoder)
    assert [encoder.decode(t.response) for t in row.responses] == ["a", "b"]
    assert row.pairs == ((0, 1),)
    assert encoder.counts == {"responses too long, left out": 1}


def test_margins_of_pairs_and_of_rankings(tiny: Path, jsonl: Write) -> None:
    encoder = Encoder(load_policy(tiny).tokenizer)
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = encode_rankings(load(jsonl("pairs", [pair | {"margin": 1.5}, pair]), Ranking), encoder)
    assert [row.margin for row in rows] == [1.5, 0.0]
    ranking = {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1], "margin": "much"}
    with pytest.raises(ValueError, match="a ranking with the margin 'much' came"):
        encode_rankings(load(jsonl("rankings", [ranking]), Ranking), encoder)


def test_accuracy_on_held_out_pairs(tiny: Path) -> None:
    model = load_reward_model(tiny)
    rows: list[Ranked] = []
    for prompt in ((1, 2), (9,)):
        one, other = (tokens._replace(prompt=prompt) for tokens in (A, B))
        a, b = sequence_scores(model, [one, other]).tolist()
        high, low = (one, other) if a > b else (other, one)
        rows += [Ranked((high, low), ((0, 1),))] * 3 + [Ranked((low, high), ((0, 1),))]
    found = held_out_accuracy(model, rows, 2)
    assert found["eval_accuracy"] == 0.75
    assert found["eval_pairs"] == 8
    # Eight rows of two prompts say what two prompts say.
    wanted = rate([1.0, 1.0, 1.0, 0.0] * 2, [0] * 4 + [1] * 4)
    ends = found["eval_accuracy_low"], found["eval_accuracy_high"]
    assert ends == pytest.approx((wanted.low, wanted.high))
    assert ends != pytest.approx(rate([1.0, 1.0, 1.0, 0.0] * 2)[1:3])
    with pytest.raises(ValueError, match="the 4 rows to evaluate on all have the same prompt"):
        check_prompts(rows[:4])
    check_prompts(rows)
    check_prompts(rows[:1])


def test_the_final_accuracy_is_the_loops(tiny: Path, jsonl: Write, settings: Settings) -> None:
    # Six pairs of one prompt and one of the other: by pairs it would be another number.
    held = [
        {"prompt": "p", "completions": [" the", " cat", " in", " on"], "ranks": [0, 1, 2, 3]},
        {"prompt": "q", "completions": [" a", " b"], "ranks": [0, 1]},
    ]
    config = settings(
        RewardConfig, tiny, jsonl("rows", PAIRS), max_steps=2,
        eval_dataset_name=jsonl("held", held),
    )  # fmt: skip
    run = reward.run(config)
    assert run is not None
    (by_loop,) = [line["eval_accuracy"] for line in run.metrics() if "eval_accuracy" in line]
    assert run.info["summary"]["eval_accuracy"] == pytest.approx(by_loop, abs=1e-6)
    assert run.info["summary"]["eval_pairs"] == 7
    by_pair = {(6 * a + b) / 7 for a in (i / 6 for i in range(1, 6)) for b in (0, 1)}
    assert min(abs(by_loop - other) for other in by_pair) > 1e-3


def test_dry_run_and_errors(tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings) -> None:
    assert reward.run(settings(RewardConfig, tiny, jsonl("rows", PAIRS), dry_run=True)).rows
    equal = jsonl("equal", [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0]}])
    with pytest.raises(ValueError, match=r"no row of .*rankings without a pair, left out: 1"):
        reward.run(settings(RewardConfig, tiny, equal))
    assert not (tmp_path / "run").exists()


def test_lora_trains_adapters_and_the_head(tiny: Path, jsonl: Write, settings: Settings) -> None:
    config = settings(
        RewardConfig, tiny, jsonl("rows", PAIRS), max_steps=30, use_peft=True, lora_dropout=0.1
    )
    run = reward.run(config)
    assert run is not None
    losses = [line["loss"] for line in run.metrics()]
    assert losses[-1] < losses[0] / 2
    start, trained = load_reward_model(tiny), load_reward_model(run.path)
    assert not torch.equal(start.core.score.weight, trained.core.score.weight)
    frozen = start.core.model.embed_tokens.weight
    assert torch.equal(frozen, trained.core.model.embed_tokens.weight)
