"""`truing sample` and `truing compare`: what the files hold, and whom they name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from truing.data.formats import load
from truing.data.schema import Comparison, Demonstration, Message, Text, unfinished
from truing.feedback import collect
from truing.feedback.best import best
from truing.models.checkpoint import export
from truing.models.heads import load_reward_model
from truing.settings_judging import BestConfig, CompareConfig, SampleConfig

Write = Callable[..., str]


def config(model: Path, prompts: str, out: Path, **more: Any) -> SampleConfig:
    return SampleConfig(
        model_name_or_path=str(model),
        prompts=prompts,
        output_file=str(out),
        max_completion_length=6,
        use_cpu=True,
        **more,
    )


def test_samples_say_who_wrote_them(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    prompts = jsonl("prompts", [{"prompt": "the cat"}, {"prompt": "a b"}, {"prompt": "c"}])
    settings = config(tiny, prompts, tmp_path / "o.jsonl", num_generations=2, num_prompts=2)
    out = collect.sample(settings)
    rows = load(out, Demonstration).rows
    assert [r.prompt for r in rows] == ["the cat", "the cat", "a b", "a b"]
    for number, row in enumerate(rows):
        assert row.provenance.source == "model"
        assert row.provenance.author == str(tiny)
        assert row.provenance.extra["sample"] == number % 2
        assert row.provenance.extra["finish_reason"] in ("stop", "length")
        assert isinstance(row.completion, str)
    # The same again is the same file; other settings are another one.
    again = config(tiny, prompts, tmp_path / "p.jsonl", num_generations=2, num_prompts=2)
    assert collect.sample(again).read_bytes() == out.read_bytes()
    seeded = config(tiny, prompts, tmp_path / "q.jsonl", num_generations=2, num_prompts=2, seed=1)
    assert collect.sample(seeded).read_bytes() != out.read_bytes()


def test_a_prompt_with_a_key_keeps_its_samples(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    whole = [{"prompt": p, "key": k} for p, k in (("the cat", 7), ("a b", 3), ("c", 5))]
    one = collect.sample(config(tiny, jsonl("whole", whole), tmp_path / "1.jsonl"))
    two = collect.sample(config(tiny, jsonl("part", whole[1:]), tmp_path / "2.jsonl"))
    assert load(one, Demonstration).rows[1:] == load(two, Demonstration).rows


def test_sampling_of_messages(tiny: Path, tiny_chat: Path, tmp_path: Path, jsonl: Write) -> None:
    prompts = jsonl("chat", [{"prompt": [{"role": "user", "content": "hi"}]}])
    (row,) = load(collect.sample(config(tiny_chat, prompts, tmp_path / "o.jsonl")), Demonstration)
    assert row.prompt == (Message("user", "hi"),)
    with pytest.raises(ValueError, match="no chat template"):
        collect.sample(config(tiny, prompts, tmp_path / "p.jsonl"))
    assert not (tmp_path / "p.jsonl").exists()
    collect.sample(config(tiny, prompts, tmp_path / "p.jsonl", chat_template="plain"))


def test_prompts_come_from_the_train_split(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    for name, texts in (("train", ["a"]), ("test", ["b", "c"])):
        jsonl(name, [{"prompt": text} for text in texts])
    out = tmp_path / "out" / "o.jsonl"
    rows = load(collect.sample(config(tiny, str(tmp_path), out)), Demonstration).rows
    assert [row.prompt for row in rows] == ["a"]
    asked = config(tiny, str(tmp_path), out, dataset_train_split="test")
    assert [row.prompt for row in load(collect.sample(asked), Demonstration).rows] == ["b", "c"]
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\].*one file dev"):
        collect.sample(config(tiny, str(tmp_path), out, dataset_train_split="dev"))


# --- comparisons ----------------------------------------------------------------------------------

SAMPLES = [
    {"prompt": "p", "completion": "one"},
    {"prompt": "q", "completion": "x y"},
    {"prompt": "p", "completion": "one two three"},
    {"prompt": "p", "completion": "uno"},
    {"prompt": "q", "completion": "z z"},
    {"prompt": "r", "completion": "alone"},
]


def compare(samples: str, out: Path, **more: Any) -> tuple[Comparison, ...]:
    settings = CompareConfig(samples=samples, output_file=str(out), use_cpu=True, **more)
    return load(collect.compare(settings), Comparison).rows


def test_the_best_is_compared_with_the_worst(
    tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = compare(jsonl("samples", SAMPLES), tmp_path / "o.jsonl", reward="length")
    assert (row.prompt, row.chosen, row.rejected) == ("p", "one two three", "uno")
    assert (row.provenance.source, row.provenance.author) == ("verifier", "length")
    assert row.provenance.extra["scores"] == [3.0, 1.0]
    # q: equal scores; r: a completion has nobody but itself.
    shown = capsys.readouterr().out
    assert "left out, equal scores or texts" in shown
    assert shown.split("equal scores or texts")[1].split()[1] == "2"


def test_each_is_compared_with_each(tmp_path: Path, jsonl: Write) -> None:
    rows = compare(jsonl("samples", SAMPLES), tmp_path / "o.jsonl", reward="brevity", pairs="all")
    assert [(r.chosen, r.rejected) for r in rows] == [
        ("one", "one two three"),
        ("uno", "one two three"),
    ]


def test_pairs_that_the_reward_is_sure_of(
    tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lengths 1, 3 and 5: sigmoid(2) is 0.88, sigmoid(4) 0.98; with a temperature of 2 the first is
    0.73."""
    texts = ("a", "a b c", "a b c d e", "e d c b a")
    rows = jsonl("samples", [{"prompt": "p", "completion": text} for text in texts])

    def kept(**more: Any) -> list[tuple[int, int]]:
        made = compare(rows, tmp_path / "o.jsonl", reward="length", pairs="reward_gap", **more)
        return sorted((len(str(r.chosen)), len(str(r.rejected))) for r in made)

    # In signs: 1, 5, 9 and 9.
    assert kept() == [(5, 1), (9, 1), (9, 1), (9, 5), (9, 5)]
    assert "left out, below gap_threshold" in capsys.readouterr().out
    assert kept(gap_temperature=2.0) == [(9, 1), (9, 1)]
    shown = capsys.readouterr().out
    assert shown.split("below gap_threshold")[1].split()[1] == "3"
    assert shown.split("equal scores or texts")[1].split()[1] == "1"
    assert kept(gap_threshold=0.9) == [(9, 1), (9, 1)]
    with pytest.raises(ValueError, match=r"none of 5 pairs .* is clear enough .*gap_threshold"):
        kept(gap_threshold=0.99)
    for name in ("gap_threshold", "gap_temperature"):
        with pytest.raises(ValueError, match=f"{name} has no effect without pairs: reward_gap"):
            compare(rows, tmp_path / "o.jsonl", reward="length", **{name: 0.9})
    with pytest.raises(ValueError, match="gap_threshold"):
        kept(gap_threshold=0.4)


# --- the best -------------------------------------------------------------------------------------


def test_the_best_of_each_prompt(
    tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = ("stop", "stop", "length", "stop", "stop", "stop")
    rows = [
        {**row, "provenance": {"source": "model", "author": "m", "extra": {"finish_reason": end}}}
        for row, end in zip(SAMPLES, ends, strict=True)
    ]
    settings = BestConfig(
        samples=jsonl("samples", rows), reward="length", output_file=str(tmp_path / "b.jsonl")
    )
    found = load(best(settings), Demonstration).rows
    # q: equal scores, the first; r has a single completion.
    assert [(d.prompt, d.completion) for d in found] == [("p", "one two three"), ("q", "x y")]
    who = found[0].provenance
    assert (who.source, who.author, who.simulated) == ("verifier", "length", False)
    assert who.extra == {
        "n": 3, "score": 3.0, "scores": [1.0, 3.0, 1.0], "sampled_from": "m",
        "finish_reason": "length",
    }  # fmt: skip
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for line in (
        "prompts 3", "demonstrations 2", "n, completions per prompt 2 to 3",
        "left out, a single completion 1", "of equal scores, the first taken 1", "that were cut 1",
        "mean score of the best 2.5",
    ):  # fmt: skip
        assert line in shown
    # What was cut teaches no end.
    assert unfinished(who) == {0}
    alone = settings.model_copy(update={"samples": jsonl("alone", SAMPLES[3:])})
    with pytest.raises(ValueError, match=r"every prompt .* has a single completion"):
        best(alone)
    with pytest.raises(ValueError, match="jsonl"):
        best(settings.model_copy(update={"output_file": str(tmp_path / "b.txt")}))


def test_the_best_by_a_model_of_simulated_judgements_is_marked(
    tiny: Path, tmp_path: Path, jsonl: Write
) -> None:
    model = load_reward_model(tiny)
    model.simulated = True
    folder = str(export(model, tmp_path / "reward"))
    settings = BestConfig(
        samples=jsonl("samples", SAMPLES), reward=folder, use_cpu=True,
        output_file=str(tmp_path / "b.jsonl"),
    )  # fmt: skip
    for row in load(best(settings), Demonstration).rows:
        assert row.provenance.source == "ai"
        assert row.provenance.simulated
        assert max(row.provenance.extra["scores"]) == row.provenance.extra["score"]


def test_a_reward_that_tells_nothing_apart_is_said(tmp_path: Path, jsonl: Write) -> None:
    with pytest.raises(ValueError, match=r"tells no two completions of a prompt in .* apart"):
        compare(jsonl("samples", SAMPLES[1::3]), tmp_path / "o.jsonl", reward="length")
    assert not (tmp_path / "o.jsonl").exists()


def test_the_tokenizers_settings_are_the_reward_models(
    tiny: Path, tmp_path: Path, jsonl: Write
) -> None:
    folder = str(export(load_reward_model(tiny), tmp_path / "reward"))
    prompt = [{"role": "user", "content": "hi"}]
    samples = jsonl("samples", [{"prompt": prompt, "completion": c} for c in ("yes", "no no")])
    with pytest.raises(ValueError, match="no chat template"):
        compare(samples, tmp_path / "o.jsonl", reward=folder)
    scores = [
        compare(samples, tmp_path / "o.jsonl", reward=folder, **more)[0].provenance.extra["scores"]
        for more in (
            {"chat_template": "plain"},
            {"chat_template": "hh"},
            {"chat_template": "plain", "eos_token": "!"},
        )
    ]
    assert scores[0] != scores[1]
    assert scores[0] != scores[2]
    for idle in ({"eos_token": "!"}, {"pad_token": "?"}, {"chat_template": "hh"}):
        with pytest.raises(ValueError, match="has no effect: the reward length is no model"):
            compare(samples, tmp_path / "p.jsonl", reward="length", **idle)
    assert not (tmp_path / "p.jsonl").exists()


def test_a_reward_of_ones_own_sees_prompts_and_texts(
    tmp_path: Path, jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Text, str]] = []

    def late(prompts: Sequence[Text], completions: Sequence[str]) -> list[int]:
        seen.extend(zip(prompts, completions, strict=True))
        return list(range(len(prompts)))

    monkeypatch.setattr(collect, "late", late, raising=False)
    rows = compare(
        jsonl("samples", SAMPLES), tmp_path / "o.jsonl", reward="truing.feedback.collect:late"
    )
    assert seen == [(r["prompt"], r["completion"]) for r in SAMPLES]
    assert [(r.chosen, r.rejected) for r in rows] == [("uno", "one"), ("z z", "x y")]
