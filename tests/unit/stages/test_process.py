"""Process rewards: what solutions become, the loss on their steps, and the model at work."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.online import column, ran
from truing.cli import main
from truing.config import check
from truing.data.batch import Encoder
from truing.data.formats import Dataset, load
from truing.data.layout import Tokens, shared
from truing.data.schema import Steps
from truing.data.steps import StepEncoder
from truing.models.actor import ActorCritic
from truing.models.heads import (
    ProcessRewardModel,
    RewardModel,
    load_reward_model,
    load_value_model,
    of_kind,
    sequence_scores,
)
from truing.rewards import ModelReward, load_reward, score
from truing.run import Run
from truing.settings import RewardConfig
from truing.stages import reward
from truing.stages.learner import means
from truing.stages.process import Process, Solution, encode_steps, held_out_steps
from truing.stats.ratings import rate

Write = Callable[..., str]
Settings = Callable[..., Any]
# The rule: a step with "!" is wrong, whatever stands before it.
WORDS = ["the", "cat", "in", "on", "er", "here", "then", "and"]
ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"p{i}",
        "completions": [f" {WORDS[(i + k) % 8]}{'!' * ((i >> k) % 2)}" for k in range(1 + i % 3)],
        "labels": [(i >> k) % 2 == 0 for k in range(1 + i % 3)],
    }
    for i in range(24)
]
HELD_OUT: list[dict[str, Any]] = [row | {"prompt": f"q{i}"} for i, row in enumerate(ROWS[8:20])]
A = Solution(Tokens((1, 2), (10, 198, 11, 12, 198, 3)), (1, 4, 5), (True, False, True))
B = Solution(Tokens((4,), (13, 3)), (1,), (False,))
C = Solution(Tokens((1, 2), (10, 11, 198, 3)), (2, 3), (True, True))


def process_model(folder: Path, aggregation: str = "product") -> ProcessRewardModel:
    told = {"step_separator": "\n", "step_aggregation": aggregation}
    model = of_kind(load_reward_model(folder), "process", **told)
    assert isinstance(model, ProcessRewardModel)
    return model


def by_hand(model: ProcessRewardModel, row: Solution) -> list[float]:
    """Each step's log-odds, of a text that stops where the step does."""
    plain = RewardModel(model.network, model.tokenizer)
    cut = [row.tokens._replace(response=row.tokens.response[: end + 1]) for end in row.ends]
    return sequence_scores(plain, cut).tolist()


def slopes(model: Any, *losses: Any) -> list[Any]:
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def read(jsonl: Write, tiny: Path, *rows: dict[str, Any], **how: Any) -> tuple[Any, Any]:
    encoder = StepEncoder.of(Encoder(load_reward_model(tiny).tokenizer, **how), "\n")
    return encode_steps(load(jsonl("rows", list(rows)), Steps), encoder), encoder


@pytest.mark.parametrize("place", [None, shared])
def test_each_step_is_read_at_its_last_token(tiny: Path, place: Any) -> None:
    model, rows = process_model(tiny), [A, B, C]
    objective = Process(place) if place else Process()
    batch = objective.collate(rows)
    assert objective.counts(batch) == {"steps": 6.0}
    loss, stats = objective.loss(model, batch, {"steps": torch.tensor(6.0)})
    logits = [z for row in rows for z in by_hand(model, row)]
    labels = [label for row in rows for label in row.labels]
    # A mean over all steps: a solution of three counts for three.
    costs = [math.log1p(math.exp(-z if y else z)) for z, y in zip(logits, labels, strict=True)]
    assert float(loss.detach()) == pytest.approx(sum(costs) / 6, abs=1e-5)
    figures = means(stats)
    right = [(z > 0) == y for z, y in zip(logits, labels, strict=True)]
    assert figures["accuracy"] == pytest.approx(sum(right) / 6)
    assert figures["step_label"] == pytest.approx(4 / 6)
    mean = sum(1 / (1 + math.exp(-z)) for z in logits) / 6
    assert figures["step_probability"] == pytest.approx(mean, abs=1e-5)


def test_micro_batches_change_no_gradient(tiny: Path) -> None:
    model, objective, rows = process_model(tiny), Process(), [A, B, C]
    totals = {"steps": torch.tensor(6.0)}
    whole = slopes(model, objective.loss(model, objective.collate(rows), totals)[0])
    losses = [objective.loss(model, objective.collate([row]), totals)[0] for row in reversed(rows)]
    for one, other in zip(whole, slopes(model, *losses), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    own = [objective.loss(model, objective.collate([row]), {"steps": torch.tensor(2.0)})[0]
           for row in rows]  # fmt: skip
    pairs = zip(whole, slopes(model, *own), strict=True)
    assert any((one - other).abs().max() > 1e-3 for one, other in pairs)


@pytest.mark.parametrize(("aggregation", "of"), [("product", sum), ("min", min)])
def test_the_score_of_a_solution_is_of_its_steps(
    tiny: Path, aggregation: str, of: Callable[..., float]
) -> None:
    model = process_model(tiny, aggregation)
    (newline,) = model.mark
    rows = [
        row._replace(tokens=row.tokens._replace(response=tuple(
            newline if i == 198 else i for i in row.tokens.response)))
        for row in (A, B, C)
    ]  # fmt: skip
    wanted = [of(-math.log1p(math.exp(-z)) for z in by_hand(model, row)) for row in rows]
    found = sequence_scores(model, [row.tokens for row in rows], 2)
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    # A prompt of no tokens: nothing predicts the first one.
    alone = Solution(Tokens((), rows[0].tokens.response), A.ends, A.labels)
    wanted = of(-math.log1p(math.exp(-z)) for z in by_hand(model, alone))
    assert sequence_scores(model, [alone.tokens]).item() == pytest.approx(wanted, abs=1e-5)


# --- rows -----------------------------------------------------------------------------------------


def test_solutions_become_tokens(tiny: Path, jsonl: Write) -> None:
    rows, encoder = read(
        jsonl, tiny,
        {"prompt": "p", "completions": [" a", "b c"], "labels": [True, False]},
        {"prompt": "p", "completions": [" a\n", "b c\n"], "labels": [1, 0]},
        {"prompt": "p", "completions": ["a\nb", "c"], "labels": [True, False]},
        {"prompt": "p", "completions": ["a", " "], "labels": [True, False]},
    )  # fmt: skip
    # A separator at the end of a step is the one that follows it.
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert encoder.decode(rows[0].tokens.response) == " a\nb c"
    assert rows[0].labels == (True, False)
    assert len(rows[0].ends) == 2
    assert encoder.counts == {"solutions with a blank step or the separator in one, left out": 2}


def test_a_step_that_is_cut_is_not_learnt_from(tiny: Path, jsonl: Write) -> None:
    solution = {"prompt": "p", "completions": ["xy", "zw", "uv"], "labels": [True, True, False]}
    for room, steps in ((9, 3), (8, 2), (6, 2), (5, 1), (3, 1)):
        rows, encoder = read(jsonl, tiny, solution, max_length=1 + room)
        assert [row.labels for row in rows] == [(True, True, False)[:steps]]
        assert len(rows[0].ends) == steps
        assert rows[0].ends[-1] == len(rows[0].tokens.response) - 1
        assert encoder.counts.get("steps cut off, left out", 0) == 3 - steps
    rows, encoder = read(jsonl, tiny, solution, max_length=3)
    assert rows == []
    assert encoder.counts["solutions without a whole step, left out"] == 1
    rows, encoder = read(jsonl, tiny, solution, max_length=6, truncation_mode="drop")
    assert rows == []
    assert encoder.counts == {"responses too long, left out": 1}


def test_messages_and_templates(tiny_chat: Path, tmp_path: Path, jsonl: Write) -> None:
    solution = {
        "prompt": [{"role": "user", "content": "hi"}],
        "completions": ["a", "b"],
        "labels": [True, False],
    }
    rows, _ = read(jsonl, tiny_chat, solution)
    assert [len(row.ends) for row in rows] == [2]
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\\n.' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    with pytest.raises(ValueError, match="2 steps came, which the chat template turns into 3"):
        read(jsonl, tiny_chat, solution, template=str(template))


# --- the stage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("process")
    files = {"rows": ROWS, "held": HELD_OUT}
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model_name_or_path": str(tiny),
        "use_cpu": True,
        "report_to": "none",
        "dataset_name": str(folder / "rows.jsonl"),
        "eval_dataset_name": str(folder / "held.jsonl"),
        "loss_type": "process",
        "step_aggregation": "min",
        "learning_rate": 1e-2,
        "max_steps": 40,
        "logging_steps": 1,
        "num_completions_to_print": 1,
        "log_completions_steps": 40,
    }
    run = reward.run(check(RewardConfig, values))
    assert isinstance(run, Run)
    return run


def test_it_learns_which_steps_are_wrong(trained: Run) -> None:
    losses, summary = column(trained, "loss"), trained.info["summary"]
    assert losses[-1] < 0.1 < 0.5 < losses[0]
    # By chance it would be about a half.
    assert summary["eval_accuracy_low"] < summary["eval_accuracy"] <= summary["eval_accuracy_high"]
    assert summary["eval_accuracy"] > 0.9
    assert summary["eval_accuracy_low"] > 0.6
    steps: list[bool] = [label for row in HELD_OUT for label in row["labels"]]
    assert summary["eval_labelled_steps"] == len(steps)
    assert summary["eval_steps_right"] == pytest.approx(sum(steps) / len(steps))
    # Nothing was shifted: 0 is a solution that is right for certain.
    assert "reward_shift" not in summary
    assert trained.samples()[-1]["scores"][0] <= 0


def test_it_works_wherever_a_reward_does(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    judge = load_reward(str(trained.path))
    assert isinstance(judge, ModelReward)
    assert isinstance(judge.model, ProcessRewardModel)
    assert judge.model.separator == "\n"
    texts = [" the\n cat\n in", " the\n cat!\n in", " the", " cat!"]
    good, bad, one, wrong = score(judge, ["new"] * 4, texts)
    assert bad < math.log(0.5) < good < 0
    assert wrong < math.log(0.5) < one < 0
    # The encoding is that of the training.
    held = Steps("new", (" the", " cat!", " in"), (True, False, True))
    (row,) = encode_steps(Dataset((held,), "x"), judge.encoder)  # pyright: ignore
    assert judge.encoder.encode("new", texts[1]) == row.tokens
    assert bad == pytest.approx(min(-math.log1p(math.exp(-z)) for z in by_hand(judge.model, row)))
    folder = trained.path.parent
    pairs = "".join(
        json.dumps({"prompt": f"n{i}", "chosen": texts[0], "rejected": texts[1]}) + "\n"
        for i in range(3)
    )
    (folder / "pairs.jsonl").write_text(pairs, encoding="utf-8")
    words = [str(trained.path), "--dataset-name", str(folder / "pairs.jsonl"), "--use-cpu"]
    assert main(["reward-bench", *words]) == 0
    assert "1.000" in capsys.readouterr().out
    samples = "".join(json.dumps({"prompt": "n", "completion": t}) + "\n" for t in texts)
    (folder / "samples.jsonl").write_text(samples, encoding="utf-8")
    words = ["--samples", str(folder / "samples.jsonl"), "--reward", str(trained.path)]
    words += ["--output-file", str(folder / "out.jsonl"), "--use-cpu"]
    assert main(["compare", *words]) == 0
    (line,) = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert "!" not in json.loads(line)["chosen"]


def test_ppo_learns_from_it(trained: Run, make: Callable[..., Any]) -> None:
    run = ran(make("ppo", reward=str(trained.path), response_length=12))
    assert all(x < 0 for x in column(run, "objective/scores"))
    # Its log-odds are no score, so a critic made of it knows nothing yet.
    critic = load_value_model(trained.path)
    assert not isinstance(critic, ProcessRewardModel | ActorCritic)
    assert critic.core.score.weight.abs().max() == 0


def test_training_goes_on_from_one_kind_to_another(
    trained: Run, tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    pairs = jsonl("pairs", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    plain = reward.run(settings(RewardConfig, trained.path, pairs, max_steps=1))
    assert isinstance(plain, Run)
    model = load_reward_model(plain.path)
    assert type(model) is RewardModel
    assert model.shift != 0
    config = settings(
        RewardConfig, plain.path, jsonl("rows", ROWS), max_steps=1, loss_type="process",
        step_separator=";", use_peft=True, output_dir=str(tmp_path / "again"),
    )  # fmt: skip
    again = reward.run(config)
    assert isinstance(again, Run)
    model = load_reward_model(again.path)
    assert isinstance(model, ProcessRewardModel)
    assert (model.separator, model.core.config.step_aggregation, model.shift) == (";", "product", 0)


def test_the_interval_is_of_prompts(tiny: Path) -> None:
    model, rows = process_model(tiny), [A, C, A, B]
    labels = [label for row in rows for label in row.labels]
    logits = [z for row in rows for z in by_hand(model, row)]
    right = [float((z > 0) == y) for z, y in zip(logits, labels, strict=True)]
    wanted = rate(right, [0] * 8 + [1])
    found = held_out_steps(model, rows, 3)
    assert found["eval_accuracy"] == wanted.value
    assert found["eval_accuracy_low"] == pytest.approx(wanted.low)
    assert found["eval_accuracy_high"] == pytest.approx(wanted.high)


def test_bad_rows_are_refused(tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings) -> None:
    def tried(*rows: dict[str, Any]) -> Any:
        return reward.run(settings(RewardConfig, tiny, jsonl("r", list(rows)), loss_type="process"))

    with pytest.raises(ValueError, match="prompt"):
        tried({"prompt": "p", "chosen": "a", "rejected": "b"})
    with pytest.raises(ValueError, match="a list of 2 labels"):
        tried({"prompt": "p", "completions": ["a", "b"], "labels": [True]})
    with pytest.raises(ValueError, match=r"no row of .* the separator in one, left out: 1"):
        tried({"prompt": "p", "completions": ["a\nb"], "labels": [True]})
    same = [{"prompt": "p", "completions": ["a"], "labels": [True]}] * 2
    config = settings(
        RewardConfig,
        tiny,
        jsonl("r", same),
        loss_type="process",
        eval_dataset_name=jsonl("s", same),
    )
    with pytest.raises(ValueError, match="the 2 rows to evaluate on all have the same prompt"):
        reward.run(config)
    assert not (tmp_path / "run").exists()
