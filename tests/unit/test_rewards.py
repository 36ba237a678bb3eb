"""Rewards by one protocol: rules, functions and models, whose numbers are checked."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from truing.data.schema import Message, Text
from truing.models.checkpoint import export
from truing.models.heads import load_reward_model, of_kind, sequence_scores
from truing.rewards import RULES, ModelReward, load_cost, load_reward, score

PROMPTS, TEXTS = ["the", "a cat"], [" in the end", " b"]


def scorer(model: Path, folder: Path) -> str:
    """A reward model on the body of a language model, exported."""
    return str(export(load_reward_model(model), folder / model.name))


def test_the_rules() -> None:
    texts = ["one two  three", "", "uno"]
    assert RULES["length"](["p"] * 3, texts) == [3, 0, 1]
    assert RULES["brevity"](["p"] * 3, texts) == [-3, 0, -1]
    assert load_reward("length") is RULES["length"]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown reward 'lenght'; did you mean 'length'\? Give"):
        load_reward("lenght")
    with pytest.raises(ValueError, match=r"unknown reward 'xyz'\. Give the folder of a reward run"):
        load_reward("xyz")


def test_a_folder_that_is_not_there_may_be_a_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str, *_: Any, trained: bool) -> Any:
        asked.append(name)
        raise OSError("no such model\nand much more")

    monkeypatch.setattr("truing.rewards.load_reward_model", load)
    with pytest.raises(ValueError, match=r"unknown reward 'runs/rewrd': .*no such model\). Give"):
        load_reward("runs/rewrd")
    assert asked == ["runs/rewrd"]


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_reward.py").write_text(
        "LEVEL = 3\n\ndef vowels(prompts, completions):\n"
        "    return [sum(sign in 'aeiou' for sign in text) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    reward = load_reward("own_reward:vowels")
    assert score(reward, PROMPTS, TEXTS) == [3.0, 0.0]
    for name, reason in (
        ("own_reward:consonants", "consonants"),
        ("no_such_module:f", "No module named"),
        ("own_reward:LEVEL", "cannot be called"),
    ):
        with pytest.raises(ValueError, match=f"cannot load the reward {name} .*{reason}"):
            load_reward(name)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1.0], "returned 1 numbers for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 numbers for 2 completions"),
        ([1.0, None], r"gave None for completion 1 \(' b'\)"),
        ([math.nan, 1.0], r"gave nan for completion 0 \(' in the end'\)"),
        ([1.0, -math.inf], "gave -inf for completion 1"),
        (["1", 1.0], "gave '1' for completion 0"),
        (torch.zeros(2, 3), r"gave tensor\(\[0., 0., 0.\]\) for completion 0"),
        (None, "returned None for 2 completions: it must return a list"),
        (0.5, "returned 0.5 for 2 completions: it must return a list"),
    ],
)
def test_bad_numbers_are_refused_by_row(numbers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(lambda prompts, completions: numbers, PROMPTS, TEXTS)


def test_numbers_of_any_kind_become_floats() -> None:
    for numbers in (np.array([1, 2]), torch.tensor([1.0, 2.0]), (True, 2)):
        got = score(lambda prompts, completions, n=numbers: n, PROMPTS, TEXTS)
        assert got == [1.0, 2.0]
        assert {type(x) for x in got} == {float}


def test_a_model_scores_texts_with_its_own_tokenizer(
    tiny: Path, tiny_bos: Path, tmp_path: Path
) -> None:
    lengths: list[int] = []
    for body in (tiny, tiny_bos):
        folder = scorer(body, tmp_path)
        reward = load_reward(folder)
        assert isinstance(reward, ModelReward)
        got = score(reward, PROMPTS, TEXTS)
        encoded = [reward.encoder.encode(p, c) for p, c in zip(PROMPTS, TEXTS, strict=True)]
        rows = [row for row in encoded if row is not None]
        assert [row.response[-1] for row in rows] == [reward.encoder.eos] * 2
        model = load_reward_model(folder)
        assert got == pytest.approx(sequence_scores(model, rows).tolist(), abs=1e-5)
        model.shift = 2.0
        assert score(ModelReward(model), PROMPTS, TEXTS) == pytest.approx([x - 2 for x in got])
        lengths.append(rows[0].length)
    assert lengths[0] != lengths[1]  # one text, two tokenizers


def test_a_language_model_is_no_reward(tiny: Path) -> None:
    with pytest.raises(ValueError, match="is a language model, whose scores would be random"):
        load_reward(str(tiny))


def test_messages_need_a_template_of_the_reward_model(
    tiny: Path, tiny_chat: Path, tmp_path: Path
) -> None:
    chat: Sequence[Text] = [(Message("user", "hi"),)]
    assert len(score(load_reward(scorer(tiny_chat, tmp_path)), chat, ["yes"])) == 1
    with pytest.raises(ValueError, match="no chat template"):
        score(load_reward(scorer(tiny, tmp_path)), chat, ["yes"])


def test_what_does_not_fit_the_context_is_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = load_reward(scorer(tiny, tmp_path))
    assert isinstance(reward, ModelReward)
    assert (reward.reads("x" * 159), reward.reads("x" * 160)) == (True, False)
    with pytest.raises(ValueError, match="prompt 1 leaves no room in the reward model's context"):
        reward(["a", "x" * 160], ["b", "c"])
    assert len(reward(["a", "b"], ["x" * 200, "c"])) == 2
    shown = capsys.readouterr().out
    assert "completions cut to the reward model's context of 160 tokens: 1" in shown
    reward(["a"], ["b"])
    assert not capsys.readouterr().out


def test_a_cost_model_is_asked_for_costs(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        kind: str(export(of_kind(load_reward_model(tiny), kind), tmp_path / kind))
        for kind in ("cost", "score")
    }
    asked = ["p", "q"], [" the inn", " a bell"]
    costs, rewards = load_cost(places["cost"])(*asked), load_reward(places["cost"])(*asked)
    assert costs == [-r for r in rewards]
    assert all(costs)
    with pytest.raises(ValueError, match="is a reward model, of which more is better"):
        load_cost(places["score"])
    assert load_cost("length")(*asked) == load_reward("length")(*asked)
    capsys.readouterr()
    # A classifier of another library, whose config knows nothing of this.
    other = str(export(load_reward_model(tiny), tmp_path / "other"))
    assert load_cost(other)(*asked) == load_reward(other)(*asked)
    assert "taken for the cost" in " ".join(capsys.readouterr().out.split())
