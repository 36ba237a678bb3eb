"""Cost models: pairs and signs, a zero that stays, and what a cost is as a reward."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.online import column, ran
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.schema import Ranking
from truing.models.heads import (
    CostModel,
    load_reward_model,
    load_value_model,
    of_kind,
    sequence_scores,
)
from truing.models.model import load_policy
from truing.rewards import load_reward, score
from truing.run import Run
from truing.settings import RewardConfig
from truing.stages import reward
from truing.stages.reward import held_out_signs
from truing.stages.scoring import Ranked, encode_rankings
from truing.stats.ratings import rate

Write = Callable[..., str]
Settings = Callable[..., Any]
WORDS = ["the", "cat", "in", "on", "er", "here", "then", "and"]
# The rule: "!" is harmful and "!!" is worse; without one nothing is, and "?" is no better.
ROWS = [
    {"prompt": f"p{i}", "chosen": f" {w}{a}", "rejected": f" {w}{b}", "chosen_safe": "!" not in a,
     "rejected_safe": "!" not in b}
    for i, w in enumerate(WORDS)
    for a, b in (("", "!"), ("!", "!!"), ("", "?"))
]  # fmt: skip


def read(jsonl: Write, tiny: Path, *rows: dict[str, Any], **how: Any) -> Any:
    encoder = Encoder(load_policy(tiny).tokenizer, **how)
    data = load(jsonl("rows", list(rows)), Ranking)
    return encode_rankings(data, encoder, loss_type="cost"), encoder


def test_a_pair_costs_what_the_formula_says(tiny: Path, jsonl: Write, settings: Settings) -> None:
    """-ln s(c_worse - c_safer) - ln s(+-c) of both; a mean over the pairs, micro-batches or not."""
    model = of_kind(load_reward_model(tiny), "cost")
    config = settings(RewardConfig, tiny, "rows", loss_type="cost", score_l2_coefficient=0.1)
    rows, _ = read(jsonl, tiny, *ROWS[:3])
    objective = reward.objective(config, model)
    totals = {"rankings": torch.tensor(3.0)}
    loss, stats = objective.loss(model, objective.collate(rows), totals)
    wanted, right = 0.0, []
    log_sigmoid = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    for row in rows:
        safer, worse = (-sequence_scores(model, row.responses)).tolist()
        wanted -= log_sigmoid(worse - safer)
        for cost, harm in zip((safer, worse), row.harmful, strict=True):
            wanted -= log_sigmoid(cost if harm else -cost)
            right.append((cost > 0) == harm)
        wanted += 0.1 * (safer**2 + worse**2) / 2
    assert float(loss.detach()) == pytest.approx(wanted / 3, abs=1e-5)
    assert float(stats["accuracy_sign"][0]) == sum(right)
    assert stats.keys() == {"accuracy", "margin", "mean_cost", "accuracy_sign"}
    parts = [objective.loss(model, objective.collate([row]), totals)[0] for row in rows]
    assert float(torch.stack(parts).sum().detach()) == pytest.approx(wanted / 3, abs=1e-5)


def test_it_learns_what_is_harmful_and_keeps_its_zero(
    tiny: Path, jsonl: Write, settings: Settings, make: Callable[..., Any], tmp_path: Path
) -> None:
    rows = jsonl("rows", ROWS)
    run = reward.run(
        settings(
            RewardConfig, tiny, rows, loss_type="cost", max_steps=60, eval_dataset_name=rows,
            log_completions_steps=60, num_completions_to_print=1,
        )
    )  # fmt: skip
    assert isinstance(run, Run)
    assert column(run, "loss")[-1] < 1 < column(run, "loss")[0]
    summary = run.info["summary"]
    assert summary["eval_accuracy_sign"] > 0.9
    assert summary["eval_accuracy_sign_low"] < summary["eval_accuracy_sign"]
    assert "reward_shift" not in summary
    model = load_reward_model(run.path)
    assert isinstance(model, CostModel)
    assert (model.core.config.reward_kind, model.shift) == ("cost", 0)
    # As a reward it is minus its cost: below 0 for what is harmful.
    safe, harmful, worse = score(
        load_reward(str(run.path)), ["p0"] * 3, [" the", " the!", " the!!"]
    )
    assert worse < harmful < 0 < safe
    # A critic foresees the reward, not the cost.
    critic = load_value_model(run.path)
    assert torch.equal(critic.core.score.weight, -model.core.score.weight)
    online = ran(make("ppo", reward=str(run.path), output_dir=str(tmp_path / "ppo")))
    assert len(column(online, "objective/scores")) == 2
    # Learning a reward from it begins anew: higher is better again.
    plain = reward.run(settings(RewardConfig, run.path, rows, max_steps=1,
                                output_dir=str(tmp_path / "plain")))  # fmt: skip
    assert isinstance(plain, Run)
    assert not isinstance(load_reward_model(plain.path), CostModel)


def test_the_interval_of_signs_is_of_prompts(tiny: Path, jsonl: Write) -> None:
    model = of_kind(load_reward_model(tiny), "cost")
    rows, _ = read(jsonl, tiny, *ROWS)
    costs = [-x for row in rows for x in sequence_scores(model, row.responses).tolist()]
    harm = [h for row in rows for h in row.harmful]
    right = [float((c > 0) == h) for c, h in zip(costs, harm, strict=True)]
    wanted = rate(right, [i // 6 for i in range(48)])
    found = held_out_signs(model, rows, 5)
    assert list(found.values()) == pytest.approx(list(wanted[:3]))
    assert held_out_signs(model, [Ranked(rows[0].responses, ((0, 1),))], 5) == {}


def test_rows_without_a_pair_are_left_out(tiny: Path, jsonl: Write) -> None:
    long = {**ROWS[0], "rejected": "x" * 30}
    rows, encoder = read(jsonl, tiny, ROWS[0], long, max_length=12, truncation_mode="drop")
    assert len(rows) == 1
    assert rows[0].harmful == (False, True)
    assert encoder.counts["rankings without a pair, left out"] == 1
    rows, encoder = read(jsonl, tiny, {**ROWS[0], "margin": 2.0})
    assert encoder.counts["margins, which this loss does not use"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen_safe": None}, "a cost model needs pairs, and of each answer true or false"),
        ({"rejected_safe": "yes"}, "a cost model needs pairs, and of each answer true or false"),
        ({"chosen_safe": False, "rejected_safe": True}, "chosen must be the safer one"),
    ],
)
def test_bad_rows_are_refused(
    change: dict[str, Any], said: str, tiny: Path, jsonl: Write, settings: Settings
) -> None:
    rows = jsonl("rows", [ROWS[0], ROWS[1] | change])
    with pytest.raises(ValueError, match=f"row 2: .*{said}"):
        reward.run(settings(RewardConfig, tiny, rows, loss_type="cost"))


def test_rankings_are_refused(tiny: Path, jsonl: Write, settings: Settings) -> None:
    rows = jsonl("rows", [{"prompt": "p", "completions": ["a", "b", "c"], "ranks": [0, 1, 2]}])
    with pytest.raises(ValueError, match="came with 3 answers: a cost model needs pairs"):
        reward.run(settings(RewardConfig, tiny, rows, loss_type="cost"))
