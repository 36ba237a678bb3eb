"""`truing reward-bench`: a reward beside baselines that need none."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from truing.data.schema import Comparison, Message, Ranking, Text
from truing.evaluate import reward_bench
from truing.evaluate.reward_bench import bag_of_words, length_margins, pairs_of, plain
from truing.models.checkpoint import export
from truing.models.heads import load_reward_model
from truing.settings_judging import RewardBenchConfig

Write = Callable[..., str]
PAIRS = [
    {"prompt": "p", "chosen": "one two", "rejected": "one"},
    {"prompt": "q", "chosen": "one", "rejected": "one two three"},
    {"prompt": "r", "chosen": "one two three", "rejected": "x"},
    {"prompt": "s", "chosen": "ab", "rejected": "cd"},
]


def run(data: str, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"reward": "brevity", "use_cpu": True}
    return reward_bench.run(RewardBenchConfig(dataset_name=data, **(settings | more)))


def test_length_and_brevity_by_hand(
    tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "o.json"
    figures = run(jsonl("test", PAIRS), output_file=str(out))
    # Longer wins twice, loses once and ties once: (2 + 1/2) / 4; brevity is its mirror.
    assert figures["longer wins"]["value"] == 0.625
    assert figures["reward"]["value"] == 0.375
    assert figures["reward"]["n"] == 4
    assert figures["reward"]["low"] < 0.375 < figures["reward"]["high"]
    assert figures["longer wins"]["high"] == pytest.approx(1 - figures["reward"]["low"])
    assert figures.keys() == {"reward", "longer wins", "counts", "simulated"}
    assert (figures["counts"], figures["simulated"]) == ({}, False)
    assert json.loads(out.read_text()) == figures
    assert "on 4 pairs" in capsys.readouterr().out


def test_pairs_of_one_ranking_are_one_cluster(jsonl: Write) -> None:
    rankings = [
        {"prompt": f"p{i}", "completions": ["a b c", "a b", "a"], "ranks": [0, 1, 1]}
        for i in range(6)
    ]
    rows = pairs_of([Ranking("p", ("a", "b", "c"), (1, 0, 1)), Ranking("q", ("d", "e"), (0, 1))])
    assert [(c.chosen, c.rejected) for c in rows[0]] == [("b", "a"), ("b", "c"), ("d", "e")]
    assert rows[1] == [0, 0, 1]
    found = run(jsonl("rankings", rankings), reward="length")["reward"]
    assert (found["value"], found["n"]) == (1.0, 12)
    # Twelve pairs of six prompts say less than twelve prompts would.
    alone = [{"prompt": f"p{i}", "completions": ["a b", "a"], "ranks": [0, 1]} for i in range(12)]
    assert found["low"] < run(jsonl("alone", alone), reward="length")["reward"]["low"]


def test_rows_of_one_prompt_are_one_cluster(jsonl: Write) -> None:
    pair = {"chosen": "a b", "rejected": "a"}
    rows = [Ranking(p, ("a", "b"), (0, 1)) for p in ("p", "q", "p")]
    assert pairs_of(rows)[1] == [0, 1, 0]
    twice = run(jsonl("twice", [{"prompt": f"p{i % 6}", **pair} for i in range(12)]))
    alone = run(jsonl("alone", [{"prompt": f"p{i}", **pair} for i in range(12)]))
    assert twice["reward"]["value"] == alone["reward"]["value"]
    assert twice["reward"]["high"] > alone["reward"]["high"]


def test_a_bag_of_words_finds_the_word_that_decides() -> None:
    words = ["cat", "dog", "sun", "sea", "hat"]
    train = [
        Comparison("", f"{w} please {v}", f"{w} {v} now") for w in words for v in words if w != v
    ]
    test = [Comparison("", "some please", "some now"), Comparison("", "NOW!", "zebra")]
    good, bad = bag_of_words(train, test)
    assert good > 1
    assert bad < -0.5
    # Words never seen say nothing, and neither does their order.
    assert bag_of_words(train, [Comparison("", "zebra", "yak")]) == [0.0]
    assert bag_of_words(train, [Comparison("", "please cat", "cat please")]) == pytest.approx([0.0])


def test_the_baselines_never_see_the_prompt(jsonl: Write) -> None:
    train = jsonl(
        "train", [{"prompt": str(i), "chosen": "yes", "rejected": "no"} for i in range(8)]
    )
    test = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(4)]
    figures = run(jsonl("test", test), train_dataset_name=train)
    assert figures["bag of words"]["value"] == 1.0
    assert figures["longer wins"]["value"] == 0.5


def test_messages_count_by_their_words() -> None:
    talk = (Message("user", "a b"), Message("assistant", "c"))
    assert plain(talk) == "a b\nc"
    assert length_margins([Comparison("p", talk, "x")]) == [2.0]


def test_a_reward_model_and_prompts_that_it_cannot_read(
    tiny: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(export(load_reward_model(tiny), tmp_path / "reward"))
    data = jsonl("test", [*PAIRS, {"prompt": "x" * 200, "chosen": "a", "rejected": "b"}])
    figures = run(data, reward=folder)
    assert figures["reward"]["n"] == 4
    assert figures["counts"] == {"prompts too long for the reward model, left out": 1}
    assert "prompts too long for the reward model, left out: 1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="every prompt fills the reward model's context"):
        run(jsonl("long", [{"prompt": "x" * 200, "chosen": "a", "rejected": "b"}]), reward=folder)


def test_what_was_left_out_or_cut_is_in_the_file(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    model = load_reward_model(tiny)
    model.simulated = True
    folder, out = str(export(model, tmp_path / "reward")), tmp_path / "o.json"
    rankings = [
        {"prompt": "p", "completions": ["x" * 200, "a", "b"], "ranks": [0, 1, 2]},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [0, 1]},
        {"prompt": "y" * 200, "completions": ["a", "b", "c"], "ranks": [0, 1, 2]},
        {"prompt": "r", "completions": ["a", "a"], "ranks": [0, 1]},
        {"prompt": "s", "completions": ["a", "b"], "ranks": [0, 0]},
    ]
    run(jsonl("test", rankings), reward=folder, output_file=str(out))
    told = json.loads(out.read_text())
    # The rows are as people made them, but who judges them learnt from a simulation. The long
    # response is cut once, though it is in two pairs; a row is left out once.
    assert told["simulated"] is True
    assert told["counts"] == {
        "all answers equal: left out": 1,
        "prompts too long for the reward model, left out": 1,
        "rankings without a pair, left out": 1,
        "responses cut to the reward model's context": 1,
    }


def test_the_tokenizers_settings_are_the_reward_models(
    tiny: Path, tmp_path: Path, jsonl: Write
) -> None:
    folder = str(export(load_reward_model(tiny), tmp_path / "reward"))
    chat = [{**pair, "prompt": [{"role": "user", "content": pair["prompt"]}]} for pair in PAIRS]
    data = jsonl("chat", chat)
    with pytest.raises(ValueError, match="no chat template"):
        run(data, reward=folder)
    plain_one, other = (run(data, reward=folder, chat_template=t) for t in ("plain", "hh"))
    assert plain_one["reward"]["n"] == other["reward"]["n"] == 4
    with pytest.raises(ValueError, match="eos_token '<end>' is not in the vocabulary"):
        run(data, reward=folder, eos_token="<end>")
    with pytest.raises(ValueError, match="chat_template has no effect: the reward brevity is no m"):
        run(data, chat_template="plain")


def test_every_response_is_scored_beside_its_prompt(
    jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Text, str]] = []

    def gold(prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        wins = {(p["prompt"], p["chosen"]) for p in PAIRS}
        return [float(pair in wins) for pair in zip(prompts, completions, strict=True)]

    monkeypatch.setattr(reward_bench, "gold", gold, raising=False)
    figures = run(jsonl("test", PAIRS), reward="truing.evaluate.reward_bench:gold")
    assert figures["reward"]["value"] == 1.0
    assert len(seen) == len(set(seen))
    assert set(seen) == {(p["prompt"], p[side]) for p in PAIRS for side in ("chosen", "rejected")}


def test_a_split_of_a_folder(tmp_path: Path, jsonl: Write) -> None:
    jsonl("train", PAIRS[:1])
    jsonl("test", PAIRS)
    assert run(str(tmp_path))["reward"]["n"] == 4
    with pytest.raises(ValueError, match="one file dev"):
        run(str(tmp_path), dataset_test_split="dev")
