"""A reward model that learns ratings: how they are read, scaled, learnt and told from scores."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.layout import Tokens
from truing.data.schema import Ranking
from truing.models.model import load_policy
from truing.rewards import load_reward, score
from truing.run import Run
from truing.settings import RewardConfig
from truing.stages import reward
from truing.stages.scoring import Ranked, Scale, encode_rankings

Write = Callable[..., str]
Settings = Callable[..., Any]
A, B = (Tokens((1, 2), (10 + i, 3)) for i in range(2))
PAIR: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"}
FOUR = {"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [0, 1, 1, 2]}
RATED: dict[str, Any] = {"prompt": "p", "completions": ["a", "bcdefg", "c"], "scores": [1, 4, 4]}


def test_ratings_are_read_and_brought_to_one_scale(tiny: Path, jsonl: Write) -> None:
    pair = PAIR | {"scores": [3, 1], "margin": 2.0}
    # Said of ratings that were read as ranks: what is learnt are the ratings.
    ranked = {"prompt": "q", "completions": ["a", "b"], "ranks": [0, 1], "scores": [0, 2.5]}
    encoder = Encoder(load_policy(tiny).tokenizer, max_length=4, truncation_mode="drop")
    data = load(jsonl("rows", [RATED, pair, ranked]), Ranking)
    rows = encode_rankings(data, encoder, loss_type="regression")
    assert [row.ratings for row in rows] == [(1.0, 4.0), (3.0, 1.0), (0.0, 2.5)]
    assert [row.pairs for row in rows] == [((1, 0),), ((0, 1),), ((1, 0),)]
    assert encoder.counts == {
        "responses too long, left out": 1,
        "margins, which this loss does not use": 1,
    }
    scale = Scale.of(rows)
    assert scale.mean == pytest.approx(11.5 / 6)
    flat = [y for row in scale.standard(rows) for y in row.ratings]
    assert sum(flat) == pytest.approx(0, abs=1e-12)
    assert sum(y * y for y in flat) / 6 == pytest.approx(1)
    with pytest.raises(ValueError, match="all 2 ratings are 3, so there is nothing to learn"):
        Scale.of([Ranked((A, B), (), ratings=(3.0, 3.0))])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (FOUR, "row 2: no scores came: regression needs a column of them"),
        (PAIR, "row 2: no scores came"),
        (FOUR | {"scores": [1, 2]}, r"row 2: the scores \[1, 2\] came: .* each of the 4 answers"),
        (FOUR | {"scores": [1, 2, 3, "much"]}, "row 2: the scores .*'much'"),
        (FOUR | {"scores": [1, 2, 3, math.inf]}, "row 2: the scores .*inf"),
    ],
)
def test_rows_without_ratings_are_refused(
    row: dict[str, Any], said: str, tiny: Path, jsonl: Write
) -> None:
    encoder = Encoder(load_policy(tiny).tokenizer)
    with pytest.raises(ValueError, match=said):
        encode_rankings(load(jsonl("rows", [RATED, row]), Ranking), encoder, loss_type="regression")


@pytest.mark.parametrize("standard", [True, False])
def test_ratings_are_learnt(standard: bool, tiny: Path, jsonl: Write, settings: Settings) -> None:
    # The rule: 2 with "!", 1 without.
    words = ["the", "cat", "in", "on", "er", "here"]
    rows = [{"prompt": w, "completions": [f" {w}", f" {w}!"], "scores": [1.0, 2.0]} for w in words]
    config = settings(
        RewardConfig, tiny, jsonl("rows", rows[:4]), loss_type="regression", max_steps=80,
        standardize_ratings=standard, eval_dataset_name=jsonl("held", rows[4:]),
    )  # fmt: skip
    run = reward.run(config)
    assert isinstance(run, Run)
    losses = [float(line["loss"] or 0) for line in run.metrics() if "loss" in line]
    assert losses[-1] < 0.05 < 0.2 < losses[0]
    summary = run.info["summary"]
    assert summary["eval_accuracy"] == 1
    # From a score of the folder back to a rating: the zero was shifted, the scale was standardised.
    mean, std = summary.get("rating_mean", 0.0), summary.get("rating_std", 1.0)
    assert (mean, std) == ((1.5, 0.5) if standard else (0.0, 1.0))
    got = score(load_reward(str(run.path)), ["the", "the"], [" the", " the!"])
    ratings = [mean + std * (s + summary["reward_shift"]) for s in got]
    # Eighty steps leave a few hundredths.
    assert ratings == pytest.approx([1, 2], abs=0.2)
