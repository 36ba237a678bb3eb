"""The reward model: Bradley-Terry on all pairs of a ranking, shifted so that references score 0.

A comparison is a ranking of two. Each response is read once, whatever the number of pairs it is in,
and all pairs of a prompt share a weight of 1 (InstructGPT, arXiv:2203.02155, section 3.5).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.markup import escape
from torch import Tensor, nn

from truing import console
from truing.algorithms.comparison import bradley_terry, centering, ranked_pairs
from truing.algorithms.tokens import reduce_mean
from truing.data.batch import Encoder, Tokens, padded
from truing.data.formats import SIMULATED, DataError, Dataset, load
from truing.data.schema import Demonstration, Ranking
from truing.lineage import Parent
from truing.models.heads import RewardModel, load_reward_model, sequence_scores
from truing.models.loading import Loading
from truing.models.model import cells
from truing.run import Run
from truing.settings import RewardConfig
from truing.stages import outlook, setup
from truing.stages.driving import fit
from truing.stages.learner import Batch, Place, Sums, stat
from truing.stats.ratings import numbered, rate

# Reference responses read for the shift: the mean is then known to 1 / sqrt(1000) of their spread.
REFERENCES = 1000


class Ranked(NamedTuple):
    """The responses to one prompt in tokens, their (better, worse) pairs, and a margin for each."""

    responses: tuple[Tokens, ...]
    pairs: tuple[tuple[int, int], ...]
    margin: float = 0.0


class Score:
    """Bradley-Terry over the pairs of each ranking, averaged over the rankings of the step."""

    def __init__(self, center: float | None, place: Place = padded) -> None:
        self.center, self.place = center or 0.0, place

    def length(self, row: Ranked) -> int:
        return max(tokens.length for tokens in row.responses)

    def collate(self, rows: Sequence[Ranked]) -> Batch:
        flat: list[Tokens] = []
        better: list[int] = []
        worse: list[int] = []
        weight: list[float] = []
        margin: list[float] = []
        for row in rows:
            better += [len(flat) + i for i, _ in row.pairs]
            worse += [len(flat) + j for _, j in row.pairs]
            weight += [1 / len(row.pairs)] * len(row.pairs)
            margin += [row.margin] * len(row.pairs)
            flat += row.responses
        extra = {
            "better": torch.tensor(better),
            "worse": torch.tensor(worse),
            "weight": torch.tensor(weight),
            "margin": torch.tensor(margin),
        }
        return Batch(self.place(flat), extra)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"rankings": float(batch.extra["weight"].sum())}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        score_B = model(batch.layout)
        extra = batch.extra
        better_N, worse_N = score_B[extra["better"]], score_B[extra["worse"]]
        loss_N = bradley_terry(better_N, worse_N, extra["margin"])
        if self.center:
            loss_N = loss_N + self.center * centering(better_N, worse_N)
        difference_N = better_N - worse_N
        right_N = (difference_N > 0).float() + 0.5 * (difference_N == 0).float()
        stats = {
            "accuracy": stat(right_N, extra["weight"]),
            "margin": stat(difference_N, extra["weight"]),
            "mean_reward": stat(score_B),
        }
        return reduce_mean(loss_N * extra["weight"], totals["rankings"]), stats


def encode_rankings(dataset: Dataset[Ranking], encoder: Encoder) -> list[Ranked]:
    """Token rankings; a response that is left out, or a ranking without a pair, is counted."""
    rows: list[Ranked] = []
    for ranking in dataset.rows:
        encoded = list(encoder.encode_each(ranking.prompt, ranking.completions))
        if not encoded:
            continue
        kept = [(t, r) for t, r in zip(encoded, ranking.ranks, strict=True) if t is not None]
        ranked = ranked_pairs([r for _, r in kept])
        pairs = [(i, j) for i, j in ranked if kept[i][0] != kept[j][0]]
        if len(pairs) < len(ranked):
            encoder.counts["pairs equal after truncation, left out"] += len(ranked) - len(pairs)
        if not pairs:
            encoder.counts["rankings without a pair, left out"] += 1
            continue
        margin = ranking.provenance.extra.get("margin", 0.0)
        if not isinstance(margin, int | float) or not math.isfinite(margin):
            raise ValueError(
                f"a ranking with the margin {margin!r} came: it must be a finite number, by which "
                "the better scores should differ from the worse; mend the column or drop it"
            )
        rows.append(Ranked(tuple(t for t, _ in kept), tuple(pairs), float(margin)))
    return rows


def run(config: RewardConfig) -> Run | outlook.Outlook:
    """Train on comparisons or rankings (docs/reward.md). Writes a run folder with ``model/``.

    A dry run writes nothing and returns what would happen.
    """
    dataset, held_out = setup.datasets(config, Ranking)
    model = load_reward_model(config.model_name_or_path, Loading.of(config))
    encoder = setup.encoder(config, model)
    rows = encode_rankings(dataset, encoder)
    with setup.apart(encoder, "evaluation"):
        eval_rows = encode_rankings(held_out, encoder) if held_out else []
    check_prompts(eval_rows)
    reference = reference_responses(config, dataset)
    with setup.apart(encoder, "reference"):
        anchors = encode_reference(reference, encoder)
    setup.adapt(config, model)
    lengths = [cells(row.responses, model) for row in rows]
    scored = [0] * len(lengths)
    ahead = outlook.announce(config, model, lengths, scored, encoder, dataset, held_out)
    if config.dry_run:
        return ahead
    opened = setup.opened(config, "reward", dataset, held_out, ahead.data, reference.parents)
    with opened as (run, accelerator):
        figures: dict[str, Any] = fit(
            run,
            accelerator,
            model,
            rows,
            Score(config.center_rewards_coefficient, model.place),
            config,
            held_out=eval_rows,
            look=_looker(run, model, eval_rows or rows, encoder, config),
        )
        size = config.per_device_eval_batch_size
        # Scores carry the shift of the model that training started from, if it had one.
        model.simulated = model.simulated or SIMULATED in dataset.noted
        model.shift += float(sequence_scores(model, anchors, size).mean())
        console.say(
            f"mean reward of {len(anchors)} {reference.name}: {model.shift:.3f}, now shifted to 0"
        )
        figures |= {"reward_shift": model.shift, "reward_reference": reference.name}
        if eval_rows:
            figures |= held_out_accuracy(model, eval_rows, size)
        return setup.close(run, accelerator, model, encoder, figures, dataset.notes)


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


def check_prompts(rows: Sequence[Ranked]) -> None:
    """Raise ValueError for held-out rows of which no interval could be told, before training."""
    if len(rows) > 1 and len({row.responses[0].prompt for row in rows}) == 1:
        raise ValueError(
            f"the {len(rows)} rows to evaluate on all have the same prompt, and an interval needs "
            "two: hold out rows of more prompts, or none"
        )


def held_out_accuracy(
    model: RewardModel, rows: Sequence[Ranked], batch_size: int
) -> dict[str, float]:
    """Share of held-out pairs in the right order, ties a half, interval clustered by prompt.

    All pairs of a ranking share a weight of 1, as in the loop's own accuracy and loss.
    """
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


def _looker(
    run: Run, model: RewardModel, rows: Sequence[Ranked], encoder: Encoder, config: RewardConfig
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
