"""The reward model: learnt from rankings (`truing.stages.scoring`), so that references score 0, or
from steps (`truing.stages.process`), which have a zero of their own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.markup import escape

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import SIMULATED, DataError, Dataset, load
from truing.data.layout import Tokens
from truing.data.schema import Demonstration, Ranking, Steps
from truing.data.steps import StepEncoder
from truing.lineage import Parent
from truing.models.heads import (
    ProcessRewardModel,
    RewardModel,
    load_reward_model,
    of_kind,
    sequence_scores,
)
from truing.models.loading import Loading
from truing.models.model import cells
from truing.run import Run
from truing.settings import RewardConfig
from truing.stages import outlook, setup
from truing.stages.driving import fit
from truing.stages.learner import Objective
from truing.stages.process import Process, Solution, encode_steps, held_out_steps
from truing.stages.scoring import RECIPES, Ranked, Scale, encode_rankings
from truing.stats.ratings import numbered, rate

# Reference responses read for the shift: the mean is then known to 1 / sqrt(1000) of their spread.
REFERENCES = 1000


def run(config: RewardConfig) -> Run | outlook.Outlook:
    """Train on comparisons or rankings (docs/reward.md). Writes a run folder with ``model/``.

    A dry run writes nothing and returns what would happen.
    """
    kind: Any = Steps if config.loss_type == "process" else Ranking
    dataset, held_out = setup.datasets(config, kind)
    model = beginning(config)
    encoder = setup.encoder(config, model)
    if isinstance(model, ProcessRewardModel):
        encoder = StepEncoder.of(encoder, config.step_separator)
    rows: list[Any] = encoded(dataset, encoder, config)
    with setup.apart(encoder, "evaluation"):
        eval_rows: list[Any] = encoded(held_out, encoder, config) if held_out else []
    check_prompts(eval_rows)
    told: dict[str, float] = {}
    if config.loss_type == "regression" and config.standardize_ratings and rows:
        scale = Scale.of(rows)
        rows, eval_rows = scale.standard(rows), scale.standard(eval_rows)
        told = {"rating_mean": scale.mean, "rating_std": scale.std}
    zero = Zero.of(config, dataset, encoder)
    setup.adapt(config, model)
    lengths = [cells(row.responses, model) for row in rows]
    scored = [0] * len(lengths)
    ahead = outlook.announce(config, model, lengths, scored, encoder, dataset, held_out)
    if config.dry_run:
        return ahead
    opened = setup.opened(config, "reward", dataset, held_out, ahead.data, zero.parents)
    with opened as (run, accelerator):
        figures: dict[str, Any] = fit(
            run,
            accelerator,
            model,
            rows,
            objective(config, model),
            config,
            held_out=eval_rows,
            look=_looker(run, model, eval_rows or rows, encoder, config),
        )
        size = config.per_device_eval_batch_size
        # Scores carry the shift of the model that training started from, if it had one.
        model.simulated = model.simulated or SIMULATED in dataset.noted
        figures |= zero.set(model, size) | told
        if eval_rows and isinstance(model, ProcessRewardModel):
            figures |= held_out_steps(model, eval_rows, size)
        elif eval_rows:
            figures |= held_out_accuracy(model, eval_rows, size)
            figures |= held_out_signs(model, eval_rows, size)
        return setup.close(run, accelerator, model, encoder, figures, dataset.notes)


def beginning(config: RewardConfig) -> RewardModel:
    """The model that training starts from, as one of the kind that it becomes."""
    model = load_reward_model(config.model_name_or_path, Loading.of(config), seed=config.seed)
    if config.loss_type == "process":
        told = {"step_separator": config.step_separator}
        return of_kind(model, "process", step_aggregation=config.step_aggregation, **told)
    return of_kind(model, "cost" if config.loss_type == "cost" else "score")


def encoded(dataset: Dataset[Any], encoder: Encoder, config: RewardConfig) -> list[Any]:
    """The rows of a dataset in tokens, as the loss takes them."""
    if isinstance(encoder, StepEncoder):
        return encode_steps(dataset, encoder)
    return encode_rankings(dataset, encoder, loss_type=config.loss_type, ties=config.ties)


def objective(config: RewardConfig, model: RewardModel) -> Objective[Any]:
    """The loss that is asked for."""
    if config.loss_type == "process":
        return Process(model.place)
    recipe = RECIPES[config.loss_type].objective
    return recipe(config.center_rewards_coefficient, model.place, l2=config.score_l2_coefficient)


class Zero(NamedTuple):
    """Where zero is: the mean score of some responses, which ``name`` and ``parents`` tell of; or,
    without a name, where the loss has put it."""

    anchors: Sequence[Tokens] = ()
    name: str = ""
    parents: Sequence[Parent] = ()

    @classmethod
    def of(cls, config: RewardConfig, dataset: Dataset[Any], encoder: Encoder) -> "Zero":
        if config.loss_type in ("process", "cost"):
            return cls()
        reference = reference_responses(config, dataset)
        with setup.apart(encoder, "reference"):
            anchors = encode_reference(reference, encoder)
        return cls(anchors, reference.name, reference.parents)

    def set(self, model: RewardModel, batch_size: int) -> dict[str, Any]:
        """Shift the model's scores, and say so; what is to be told of it."""
        if not self.name:
            return {}
        model.shift += float(sequence_scores(model, self.anchors, batch_size).mean())
        console.say(
            f"mean reward of {len(self.anchors)} {self.name}: {model.shift:.3f}, now shifted to 0"
        )
        return {"reward_shift": model.shift, "reward_reference": self.name}


class Reference(NamedTuple):
    """Responses whose mean score becomes 0, what to call them, and where they came from."""

    rows: Sequence[Demonstration]
    name: str
    parents: Sequence[Parent] = ()


def reference_responses(config: RewardConfig, dataset: Dataset[Ranking]) -> Reference:
    """The rows of ``reward_reference``, else the parent SFT's demonstrations, else chosen ones."""
    parent = Path(config.model_name_or_path)
    if config.reward_reference is not None:
        rows = load(config.reward_reference, Demonstration)
        name = f"responses of {rows.name}"
    elif (parent / "run.json").is_file() and Run.open(parent).info["stage"] == "sft":
        settings = yaml.safe_load((parent / "config.yaml").read_text(encoding="utf-8"))
        source, split = settings["dataset_name"], settings["dataset_train_split"]
        try:
            rows = load(source, Demonstration, split=split)
        except DataError as error:
            raise ValueError(
                f"the demonstrations of {parent}, which would set the zero of the reward, cannot "
                f"be read ({error}): name prompt/completion rows in reward_reference"
            ) from error
        name = "demonstrations of the parent SFT run"
    else:
        best = [
            Demonstration(r.prompt, r.completions[r.ranks.index(min(r.ranks))])
            for r in dataset.rows[:REFERENCES]
        ]
        return Reference(best, "chosen responses (no SFT parent and no reward_reference)")
    return Reference(rows.rows[:REFERENCES], name, [rows.parent("reference responses")])


def encode_reference(reference: Reference, encoder: Encoder) -> list[Tokens]:
    """Token rows of the reference responses. Raises ValueError when none of them fits."""
    encoded = (encoder.encode(d.prompt, d.completion) for d in reference.rows)
    if rows := [tokens for tokens in encoded if tokens is not None]:
        return rows
    raise ValueError(
        f"no {reference.name} can be used ({encoder.told}), so the reward would have no "
        "zero: raise max_length, or name shorter rows in reward_reference"
    )


def check_prompts(rows: Sequence[Ranked | Solution]) -> None:
    """Raise ValueError for held-out rows of which no interval could be told, before training."""
    asked = [row for row in rows if row.asked]
    if len(asked) > 1 and len({row.responses[0].prompt for row in asked}) == 1:
        raise ValueError(
            f"the {len(asked)} rows to evaluate on all have the same prompt, and an interval needs "
            "two: hold out rows of more prompts, or none"
        )


def held_out_accuracy(
    model: RewardModel, rows: Sequence[Ranked], batch_size: int
) -> dict[str, float]:
    """Share of held-out pairs in the right order, ties a half, interval clustered by prompt.

    All pairs of a ranking share a weight of 1, as in the loop's own accuracy and loss. Answers that
    were judged equal have no right order; where there are no others, nothing is told.
    """
    rows = [row for row in rows if row.asked]
    if not rows:
        return {}
    flat = [tokens for row in rows for tokens in row.responses]
    scores = sequence_scores(model, flat, batch_size).numpy()
    right: list[float] = []
    start = 0
    for row in rows:
        margins = [float(scores[start + i] - scores[start + j]) for i, j in row.pairs]
        right.append(sum(0.5 + 0.5 * ((m > 0) - (m < 0)) for m in margins) / len(margins))
        start += len(row.responses)
    accuracy = rate(right, numbered(row.responses[0].prompt for row in rows))
    return {
        "eval_accuracy": accuracy.value,
        "eval_accuracy_low": accuracy.low,
        "eval_accuracy_high": accuracy.high,
        "eval_pairs": float(sum(len(row.pairs) for row in rows)),
    }


def held_out_signs(model: RewardModel, rows: Sequence[Ranked], batch_size: int) -> dict[str, float]:
    """Share of held-out responses whose cost is above 0 as they are harmful, or not; its interval
    clustered by prompt. Nothing for another model."""
    flat = [
        (tokens, harm)
        for row in rows
        if row.harmful
        for tokens, harm in zip(row.responses, row.harmful, strict=True)
    ]
    if not flat:
        return {}
    scores = sequence_scores(model, [tokens for tokens, _ in flat], batch_size).tolist()
    right = [float((score < 0) == harm) for score, (_, harm) in zip(scores, flat, strict=True)]
    found = rate(right, numbered(tokens.prompt for tokens, _ in flat))
    return {
        "eval_accuracy_sign": found.value,
        "eval_accuracy_sign_low": found.low,
        "eval_accuracy_sign_high": found.high,
    }


def _looker(
    run: Run,
    model: RewardModel,
    rows: Sequence[Ranked | Solution],
    encoder: Encoder,
    config: RewardConfig,
) -> Callable[[], dict[str, float]]:
    """A function that scores the same few rankings, prints the scores and keeps them."""

    def look() -> dict[str, float]:
        lines: list[dict[str, Any]] = []
        for row in rows[: config.num_completions_to_print]:
            texts = [encoder.decode(t.response) for t in row.responses]
            scores = sequence_scores(model, row.responses).tolist()
            prompt = encoder.decode(row.responses[0].prompt)
            lines.append({"prompt": prompt, "completions": texts, "scores": scores})
            if run.writes:
                for text, score in zip(texts, scores, strict=True):
                    console.say(f"[dim]step {model.version}[/dim] {score:+.2f} {escape(text[:80])}")
        run.log_samples(model.version, lines)
        return {}

    return look
