"""What rankings become, and the losses on their scores, whatever is learnt from them."""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from truing.algorithms import bradley_terry
from truing.config import ConfigError
from truing.data.batch import Encoder
from truing.data.formats import DataError, load, save
from truing.data.layout import Tokens
from truing.data.schema import Ranking
from truing.models.heads import load_reward_model, of_kind, sequence_scores
from truing.models.model import load_policy
from truing.run import Run
from truing.settings import RewardConfig
from truing.stages import reward
from truing.stages.learner import means
from truing.stages.reward import check_prompts, held_out_accuracy
from truing.stages.scoring import RECIPES, Cost, Listed, Ranked, Rated, Score, encode_rankings

Write = Callable[..., str]
Settings = Callable[..., Any]
# Of different lengths, so that a batch of them is padded.
A, B, C, D = (Tokens((1, 2), (10 + i, *[20 + i] * i, 3)) for i in range(4))
E, F = (Tokens((9,), (10 + i, 3)) for i in range(2))
PAIR: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"}
FOUR = {"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [0, 1, 1, 2]}

# Two rankings of unequal size; the first has a tie.
ROWS: dict[str, list[Ranked]] = {
    "bradley_terry": [
        Ranked((A, B, C), ((0, 1), (0, 2)), ties=((1, 2),)),
        Ranked((E, F), ((0, 1),), probability=0.75),
        Ranked((B, D), (), ties=((0, 1),)),
    ],
    "plackett_luce": [
        Ranked((A, B, C, D), tuple(combinations(range(4), 2)), ranks=(0, 1, 2, 3)),
        Ranked((E, F), ((1, 0),), ranks=(1, 0)),
        Ranked((C, A, B), ((1, 0), (2, 0)), ties=((1, 2),), ranks=(2, 0, 0)),
    ],
    "regression": [
        Ranked((A, B, C), ((0, 1), (0, 2), (1, 2)), ratings=(2.0, 0.0, -1.0)),
        Ranked((E, F), ((1, 0),), ratings=(1.0, 3.0)),
        Ranked((D, B), (), ratings=(1.0, 1.0)),
    ],
    "cost": [
        Ranked((A, B), ((0, 1),), harmful=(False, True)),
        Ranked((E, F), ((0, 1),), harmful=(True, True)),
        Ranked((D, B), ((0, 1),), harmful=(False, False)),
    ],
}
OBJECTIVES: dict[str, Callable[[], Score]] = {
    "bradley_terry": lambda: Score(0.1, l2=0.3),
    "plackett_luce": lambda: Listed(0.1, l2=0.3),
    "regression": lambda: Rated(None),
    "cost": lambda: Cost(None, l2=0.3),
}
# The loss where all scores are 0, a mean over the rankings.
AT_ZERO = {
    "bradley_terry": math.log(2),
    # ln 4!, ln 2!, and two chosen from three: 2 ln 3.
    "plackett_luce": (math.log(24) + math.log(2) + 2 * math.log(3)) / 3,
    # Mean squares: (4 + 0 + 1) / 3, (1 + 9) / 2 and 1.
    "regression": (5 / 3 + 5 + 1) / 3,
    # The pair and both signs.
    "cost": 3 * math.log(2),
}


def read(jsonl: Write, tiny: Path, *rows: dict[str, Any], **how: Any) -> list[Ranked]:
    encoder = Encoder(load_policy(tiny).tokenizer)
    return encode_rankings(load(jsonl("rows", list(rows)), Ranking), encoder, **how)


# --- every loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_equal_scores_cost_what_the_formula_says(recipe: str, tiny: Path) -> None:
    model, objective = load_reward_model(tiny), OBJECTIVES[recipe]()
    torch.nn.init.zeros_(model.core.score.weight)
    batch = objective.collate(ROWS[recipe])
    totals = {name: torch.tensor(n) for name, n in objective.counts(batch).items()}
    assert totals == {"rankings": pytest.approx(len(ROWS[recipe]))}
    loss, _ = objective.loss(model, batch, totals)
    assert float(loss.detach()) == pytest.approx(AT_ZERO[recipe], abs=1e-6)


@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_each_response_is_read_once(recipe: str, tiny: Path) -> None:
    batch = OBJECTIVES[recipe]().collate(ROWS[recipe])
    assert batch.layout.ids_RC.shape[0] == sum(len(row.responses) for row in ROWS[recipe])


@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_figures_are_of_the_pairs_that_have_an_order(recipe: str, tiny: Path) -> None:
    model = of_kind(load_reward_model(tiny), "cost" if recipe == "cost" else "score")
    objective, rows = OBJECTIVES[recipe](), ROWS[recipe]
    _, stats = objective.loss(model, objective.collate(rows), {"rankings": torch.tensor(1.0)})
    right: list[float] = []
    margin: list[float] = []
    for row in rows:
        scores = sequence_scores(model, row.responses).tolist()
        apart = [scores[i] - scores[j] for i, j in row.pairs]
        if apart:
            right.append(sum(m > 0 for m in apart) / len(apart))
            margin.append(sum(apart) / len(apart))
    figures = means(stats)
    assert figures["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert figures["margin"] == pytest.approx(sum(margin) / len(margin), abs=1e-5)
    # The same rows held out give the same accuracy.
    assert held_out_accuracy(model, rows, 2)["eval_accuracy"] == pytest.approx(figures["accuracy"])


def test_every_recipe_is_tested_and_can_be_asked_for() -> None:
    kinds = RewardConfig.model_fields["loss_type"].annotation
    assert list(get_args(kinds)) == [*list(RECIPES)[:3], "process", "cost"]
    assert list(RECIPES) == list(OBJECTIVES)
    for name, recipe in RECIPES.items():
        assert type(OBJECTIVES[name]()) is recipe.objective


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss_type": "plackett_luce", "ties": "half"}, "half belongs to loss_type: bradley_t"),
        ({"ties": "breslow"}, "breslow belongs to loss_type: plackett_luce"),
        ({"loss_type": "regression", "ties": "breslow"}, "but it is regression"),
        ({"loss_type": "regression", "ties": "half"}, "but it is regression"),
        ({"step_aggregation": "min"}, "no effect without loss_type: process"),
        ({"step_separator": "#"}, "no effect without loss_type: process"),
        ({"loss_type": "process", "ties": "half"}, "but it is process"),
        ({"loss_type": "process", "reward_reference": "rows"}, "would move a zero"),
        ({"loss_type": "process", "center_rewards_coefficient": 0.1}, "would pull scores off"),
        ({"loss_type": "cost", "reward_reference": "rows"}, "would move a zero"),
        ({"loss_type": "cost", "center_rewards_coefficient": 0.1}, "would pull scores off"),
        ({"loss_type": "cost", "ties": "half"}, "but it is cost"),
        ({"loss_type": "process", "score_l2_coefficient": 0.1}, "would pull scores off"),
        ({"loss_type": "process", "step_separator": ""}, "step_separator"),
        ({"standardize_ratings": False}, "no effect without loss_type: regression"),
        (
            {"loss_type": "regression", "center_rewards_coefficient": 0.01},
            "center_rewards_coefficient would pull scores off",
        ),
        (
            {"loss_type": "regression", "score_l2_coefficient": 0.01},
            "score_l2_coefficient would pull scores off",
        ),
    ],
)
def test_settings_without_effect_are_refused(
    values: dict[str, Any], said: str, settings: Settings
) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(RewardConfig, "model", "rows", **values)


def test_the_mean_square_of_each_rankings_scores_is_added(tiny: Path) -> None:
    model = load_reward_model(tiny)
    for recipe in ("bradley_terry", "plackett_luce"):
        rows, kind = ROWS[recipe], RECIPES[recipe].objective
        totals = {"rankings": torch.tensor(float(len(rows)))}
        plain, more = (
            float(objective.loss(model, objective.collate(rows), totals)[0].detach())
            for objective in (kind(None), kind(None, l2=0.5))
        )
        squares = [sequence_scores(model, row.responses).square().mean() for row in rows]
        wanted = 0.5 * float(torch.stack(squares).mean())
        assert more - plain == pytest.approx(wanted, abs=1e-5)
        assert wanted > 0.1


# --- ties and probabilities -----------------------------------------------------------------------


def test_ties_and_probabilities_by_hand(tiny: Path) -> None:
    model, rows = load_reward_model(tiny), ROWS["bradley_terry"]
    objective = Score(None)
    loss, _ = objective.loss(model, objective.collate(rows), {"rankings": torch.tensor(3.0)})
    a, b, c, d, e, f = sequence_scores(model, [A, B, C, D, E, F]).double()
    cost = lambda x, y: bradley_terry(x[None], y[None])[0]  # noqa: E731
    tie = lambda x, y: (cost(x, y) + cost(y, x)) / 2  # noqa: E731
    first = (cost(a, b) + cost(a, c) + tie(b, c)) / 3
    second = 0.75 * cost(e, f) + 0.25 * cost(f, e)
    assert float(loss.detach()) == pytest.approx(float(first + second + tie(b, d)) / 3, abs=1e-5)


def test_rows_that_only_tie_have_no_accuracy(tiny: Path) -> None:
    model, row = load_reward_model(tiny), Ranked((A, B), (), ties=((0, 1),))
    objective = Score(None)
    _, stats = objective.loss(model, objective.collate([row]), {"rankings": torch.tensor(1.0)})
    assert means(stats).keys() == {"mean_reward"}
    assert held_out_accuracy(model, [row, row], 2) == {}
    check_prompts([row, row])  # nothing is told that would need an interval


def test_ties_form_no_pair_or_one_of_label_a_half(tiny: Path, jsonl: Write) -> None:
    (row,) = read(jsonl, tiny, FOUR | {"margin": 2.0})
    assert (len(row.pairs), row.ties) == (5, ())
    (row,) = read(jsonl, tiny, FOUR | {"margin": 2.0}, ties="half")
    assert (len(row.pairs), row.ties) == (5, ((1, 2),))
    # A margin is what the better is ahead by, so a tie has none.
    extra = Score(None).collate([row]).extra
    assert extra["margin"].tolist() == [2.0] * 5 + [0.0]
    assert extra["label"].tolist() == [1.0] * 5 + [0.5]
    assert extra["weight"].tolist() == pytest.approx([1 / 6] * 6)
    assert extra["ordered"].tolist() == pytest.approx([1 / 5] * 5 + [0.0])
    equal = {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0]}
    assert read(jsonl, tiny, equal) == []
    (row,) = read(jsonl, tiny, equal, ties="half")
    assert (row.pairs, row.ties) == ((), ((0, 1),))


def test_probabilities_of_pairs(tiny: Path, jsonl: Write, tmp_path: Path) -> None:
    told = [PAIR | {"chosen_probability": p} for p in (0.75, 1, 0.5, None)]
    rows = read(jsonl, tiny, *told)
    assert [row.probability for row in rows] == [0.75, 1.0, 0.5, 1.0]
    # Either is as likely to win: a tie that someone wrote down, whatever `ties` says.
    assert [row.pairs for row in rows] == [((0, 1),), ((0, 1),), (), ((0, 1),)]
    assert [row.ties for row in rows] == [(), (), ((0, 1),), ()]
    # Rankings that were written from such pairs are read as the same.
    again = save(load(jsonl("rows", told), Ranking), tmp_path / "again.jsonl")
    encoder = Encoder(load_policy(tiny).tokenizer)
    assert encode_rankings(load(again, Ranking), encoder) == rows


@pytest.mark.parametrize("told", [0.25, 1.5, "much", True, math.nan])
def test_a_probability_out_of_range_is_refused_with_its_row(told: Any, jsonl: Write) -> None:
    rows = jsonl("rows", [PAIR, PAIR | {"chosen_probability": told}])
    with pytest.raises(DataError, match=r"row 2, field 'chosen_probability': .* from 0.5"):
        load(rows, Ranking)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (FOUR | {"chosen_probability": 0.7}, r"row 2: .* beside the ranks \[0, 1, 1, 2\]"),
        (
            {**FOUR, "completions": ["a", "b"], "ranks": [0, 0], "chosen_probability": 0.7},
            r"row 2: .* beside the ranks \[0, 0\]",
        ),
        (PAIR | {"chosen_probability": 0.7, "margin": 1}, "row 2: a margin and a chosen_prob"),
        (
            PAIR | {"provenance": {"extra": {"chosen_probability": 0.2}}},
            "row 2: the chosen_probability 0.2 came: it must be from 0.5 to 1",
        ),
    ],
)
def test_probabilities_that_mean_nothing_are_refused(
    row: dict[str, Any], said: str, tiny: Path, jsonl: Write
) -> None:
    with pytest.raises(ValueError, match=said):
        read(jsonl, tiny, PAIR, row)


def test_pairs_that_tie_are_learnt_to_equal_scores(
    tiny: Path, jsonl: Write, settings: Settings
) -> None:
    words = ["the", "cat", "in", "on"]
    rows = [{"prompt": w, "completions": [" a", " b"], "ranks": [0, 0]} for w in words]
    held = [PAIR, PAIR | {"prompt": "q"}]
    config = settings(
        RewardConfig, tiny, jsonl("rows", rows), ties="half", max_steps=30,
        eval_dataset_name=jsonl("held", held),
    )  # fmt: skip
    run = reward.run(config)
    assert isinstance(run, Run)
    lines = [line for line in run.metrics() if "loss" in line]
    assert lines[-1]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert "accuracy" not in lines[-1]
    assert run.info["summary"]["eval_pairs"] == 2
    # Left out, as by default, there is nothing to learn from.
    with pytest.raises(ValueError, match="rankings without a pair, left out: 4"):
        reward.run(settings(RewardConfig, tiny, jsonl("rows", rows), output_dir="none"))


# --- rankings as a whole --------------------------------------------------------------------------


def test_a_ranking_of_two_costs_what_its_pair_does(tiny: Path) -> None:
    model, totals = load_reward_model(tiny), {"rankings": torch.tensor(2.0)}
    rows = [Ranked((A, B), ((0, 1),), ranks=(0, 1)), Ranked((F, E), ((1, 0),), ranks=(1, 0))]
    for center in (None, 0.3):
        one, other = (
            objective.loss(model, objective.collate(rows), totals)[0]
            for objective in (Score(center), Listed(center))
        )
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_rankings_as_a_whole(tiny: Path, jsonl: Write) -> None:
    encoder = Encoder(load_policy(tiny).tokenizer, max_length=4)
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 0, 1]},
        # Two that are equal in what is left of them are at two places: no order of theirs.
        {"prompt": "p", "completions": ["abcdef", "z", "abcxyz", "y"], "ranks": [0, 1, 2, 3]},
        {"prompt": "p", "completions": ["abcdef", "abcxyz", "y"], "ranks": [0, 1, 2]},
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [0, 1, 1]},
        {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0]},
        PAIR | {"margin": 1.0},
        PAIR | {"chosen_probability": 0.75},
    ]
    data = load(jsonl("rows", rows), Ranking)
    found = encode_rankings(data, encoder, loss_type="plackett_luce")
    assert [row.ranks for row in found] == [(2, 0, 1), (1, 3), (0, 1), (0, 1)]
    assert [row.pairs for row in found[:2]] == [((1, 0), (1, 2), (2, 0)), ((0, 1),)]
    assert {(row.margin, row.probability) for row in found} == {(0.0, 1.0)}
    assert encoder.counts == {
        "responses truncated": 4,
        "answers equal after truncation, left out": 4,
        "rankings without a pair, left out": 1,
        "rankings with ties, left out": 2,
        "margins, which this loss does not use": 1,
        "chosen probabilities, which this loss does not use": 1,
    }
    found = encode_rankings(data, encoder, loss_type="plackett_luce", ties="breslow")
    assert [(row.ranks, row.ties) for row in found[2:4]] == [
        ((0, 1, 1), ((1, 2),)),
        ((0, 0), ((0, 1),)),
    ]


def test_whole_rankings_are_learnt(tiny: Path, jsonl: Write, settings: Settings) -> None:
    # The rule: the more "!", the better.
    def ranking(prompt: str, word: str, k: int) -> dict[str, Any]:
        texts = [f" {word}{'!' * i}" for i in range(k)]
        return {"prompt": prompt, "completions": texts, "ranks": list(range(k))[::-1]}

    words = ["the", "cat", "in", "on"]
    rows = [ranking(w, w, 2 + i % 3) for i, w in enumerate(words)]
    held = [ranking("q", "re", 3), ranking("r", "er", 3)]
    config = settings(
        RewardConfig, tiny, jsonl("rows", rows), loss_type="plackett_luce", max_steps=60,
        eval_dataset_name=jsonl("held", held),
    )  # fmt: skip
    run = reward.run(config)
    assert isinstance(run, Run)
    losses = [float(line["loss"] or 0) for line in run.metrics() if "loss" in line]
    assert losses[-1] < 0.2 < 1 < losses[0]
    assert run.info["summary"]["eval_accuracy"] > 0.8
    assert run.info["summary"]["eval_pairs"] == 6
