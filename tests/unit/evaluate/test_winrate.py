"""`truing winrate` on tiny models: counts, intervals, draws and the file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import tiny_network
from truing.data.formats import load
from truing.data.schema import Prompt, Text
from truing.evaluate import winrate
from truing.models.checkpoint import export
from truing.models.heads import load_reward_model
from truing.models.model import load_policy
from truing.rewards import load_reward, score
from truing.settings_judging import WinrateConfig
from truing.stats.ratings import length_controlled_win_rate, win_rate

Write = Callable[..., str]
PROMPTS = [{"prompt": f"the {i}", "key": 30 - i} for i in range(24)]


@pytest.fixture
def short(tiny: Path, tmp_path: Path) -> Path:
    """A model that ends its answers at once."""
    network = tiny_network()
    with torch.no_grad():
        network.model.norm.weight.zero_()
        network.model.norm.weight[0] = 1.0
        network.lm_head.weight.zero_()
        network.model.embed_tokens.weight[:, 0] = 5.0
        network.lm_head.weight[268, 0] = 30.0
    network.save_pretrained(tmp_path / "short")
    load_policy(tiny).tokenizer.save_pretrained(tmp_path / "short")
    return tmp_path / "short"


def run(a: Path, b: Path, prompts: str, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"reward": "length", "max_completion_length": 12, "use_cpu": True}
    return winrate.run(
        WinrateConfig(run_a=str(a), run_b=str(b), prompts=prompts, **(settings | more))
    )


def test_the_longer_model_wins_by_length_and_loses_by_brevity(
    tiny: Path, short: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "figures.json"
    figures = run(tiny, short, jsonl("prompts", PROMPTS), output_file=str(out))
    rate = figures["win_rate"]
    assert (rate["value"], rate["n"]) == (1.0, 24)
    assert 0.8 < rate["low"] < rate["high"] == 1
    assert figures["mean_words"]["b"] == figures["mean_reward"]["b"] == 0
    assert figures["mean_words"]["a"] == figures["mean_reward"]["a"] > 0
    assert "win rate" in capsys.readouterr().out
    # The file has the figures and what they came from.
    saved = json.loads(out.read_text())
    rows = saved.pop("rows")
    assert saved == figures
    assert [row["prompt"] for row in rows] == [p["prompt"] for p in PROMPTS]
    assert all(row["reward_a"] == len(row["a"].split()) > row["reward_b"] == 0 for row in rows)
    turned = run(short, tiny, jsonl("prompts", PROMPTS))
    assert turned["win_rate"]["value"] == 0.0
    assert run(tiny, short, jsonl("prompts", PROMPTS), reward="brevity")["win_rate"]["value"] == 0


def test_a_model_against_itself_draws_other_numbers_and_ties_are_halves(
    tiny: Path, short: Path, jsonl: Write
) -> None:
    same = run(short, short, jsonl("prompts", PROMPTS), num_prompts=5)
    assert same["win_rate"]["value"] == 0.5
    assert same["win_rate"]["ties"] == same["win_rate"]["n"] == 5
    itself = run(tiny, tiny, jsonl("prompts", PROMPTS))["win_rate"]
    assert 0 < itself["ties"] < 24
    assert itself["low"] < 0.5 < itself["high"]


def test_samples_belong_to_the_prompts_keys(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    found: list[dict[str, str]] = []
    for number, rows in enumerate((PROMPTS, PROMPTS[::-1])):
        out = tmp_path / f"{number}.json"
        run(tiny, tiny, jsonl("prompts", rows), output_file=str(out), generation_batch_size=5)
        found.append(
            {r["prompt"]: r["a"] + "|" + r["b"] for r in json.loads(out.read_text())["rows"]}
        )
    assert found[0] == found[1]


def test_rows_of_one_prompt_are_one_cluster(
    tiny: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = jsonl("prompts", [{"prompt": f"the {i % 3}"} for i in range(24)]), "o.json"
    figures = run(
        tiny, tiny, prompts, reward="tests.judges:vowels", output_file=str(tmp_path / out)
    )
    rows = json.loads((tmp_path / out).read_text())["rows"]
    a, b = ([row[name] for row in rows] for name in ("reward_a", "reward_b"))
    wins = [0.5 + 0.5 * ((x > y) - (x < y)) for x, y in zip(a, b, strict=True)]
    words = [[len(row[side].split()) for row in rows] for side in ("a", "b")]
    for clusters, alike in (([i % 3 for i in range(24)], True), (list(range(24)), False)):
        wanted = (
            win_rate(a, b, cluster_N=clusters),
            length_controlled_win_rate(wins, words[0], words[1], clusters),
        )
        for name, rate in zip(("win_rate", "length_controlled_win_rate"), wanted, strict=True):
            assert (figures[name] == pytest.approx(rate._asdict())) == alike, (name, alike)
    shown = capsys.readouterr().out
    assert shown.split("prompts ")[1].split()[1] == "3"


def test_prompts_come_from_the_test_split(tiny: Path, tmp_path: Path, jsonl: Write) -> None:
    jsonl("train", PROMPTS)
    jsonl("test", PROMPTS[:5])
    figures = [
        run(tiny, tiny, str(tmp_path), **more) for more in ({}, {"dataset_test_split": "train"})
    ]
    assert [f["win_rate"]["n"] for f in figures] == [5, 24]
    # A file is read whole, whatever its name.
    assert run(tiny, tiny, str(tmp_path / "train.jsonl"))["win_rate"]["n"] == 24
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\].*one file dev"):
        run(tiny, tiny, str(tmp_path), dataset_test_split="dev")


def test_the_tokenizers_settings_are_the_policies_and_not_the_rewards(
    tiny: Path, tiny_chat: Path, tmp_path: Path, jsonl: Write
) -> None:
    """A base model without a template or an end token, judged by a model that has both."""
    base, scorer = tmp_path / "base", tmp_path / "reward"
    tokenizer = load_policy(tiny).tokenizer
    tokenizer.eos_token = None
    tiny_network().save_pretrained(base)
    tokenizer.save_pretrained(base)
    judge = str(export(load_reward_model(tiny_chat), scorer))
    chat = jsonl("chat", [{"prompt": [{"role": "user", "content": f"hi {i}"}]} for i in range(4)])
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        run(base, base, chat, reward=judge)
    with pytest.raises(ValueError, match="no chat template"):
        run(base, base, chat, reward=judge, eos_token="!")
    out, asked = tmp_path / "o.json", {"eos_token": "!", "chat_template": "plain"}
    run(base, base, chat, reward=judge, output_file=str(out), **asked)
    rows = json.loads(out.read_text())["rows"]
    prompts = [p.prompt for p in load(chat, Prompt).rows]
    scores = score(load_reward(judge), prompts, [row["a"] for row in rows])
    assert [row["reward_a"] for row in rows] == pytest.approx(scores)


def test_messages_are_kept_as_messages(tiny_chat: Path, tmp_path: Path, jsonl: Write) -> None:
    chat = [{"prompt": [{"role": "user", "content": f"hi {i}"}]} for i in range(3)]
    out = tmp_path / "o.json"
    run(tiny_chat, tiny_chat, jsonl("chat", chat), output_file=str(out))
    assert [row["prompt"] for row in json.loads(out.read_text())["rows"]] == [
        row["prompt"] for row in chat
    ]


def test_bad_input(
    tiny: Path, tmp_path: Path, jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = jsonl("prompts", PROMPTS)
    with pytest.raises(ValueError, match="unknown reward 'lengths'; did you mean 'length'"):
        run(tiny, tiny, prompts, reward="lengths")
    with pytest.raises(ValueError, match="holds no model"):
        run(tmp_path, tiny, prompts)
    with pytest.raises(ValueError, match="it holds no rows"):
        run(tiny, tiny, jsonl("empty", []))

    def broken(prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
        return [float("nan")] * len(completions)

    monkeypatch.setattr(winrate, "broken", broken, raising=False)
    with pytest.raises(ValueError, match="gave nan for completion 0"):
        run(tiny, tiny, prompts, reward="truing.evaluate.winrate:broken")
