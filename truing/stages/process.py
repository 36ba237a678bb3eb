"""What a process reward model learns from: solutions in tokens, and whether each step is right."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from truing.algorithms.process import step_cross_entropy
from truing.algorithms.tokens import reduce_mean
from truing.data.formats import Dataset
from truing.data.layout import Tokens, padded
from truing.data.schema import Steps
from truing.data.steps import StepEncoder, split_steps, step_ends
from truing.models import precision
from truing.models.heads import ProcessRewardModel
from truing.models.model import evaluating
from truing.stages.learner import Batch, Place, Sums, stat
from truing.stats.ratings import numbered, rate


class Solution(NamedTuple):
    """A solution in tokens; where in the response each step ends, and whether it is right."""

    tokens: Tokens
    ends: tuple[int, ...]
    labels: tuple[bool, ...]

    @property
    def responses(self) -> tuple[Tokens, ...]:
        return (self.tokens,)

    @property
    def asked(self) -> bool:
        """Whether it says anything about accuracy."""
        return True


class Process:
    """Cross-entropy of each step's correctness, averaged over all steps of the optimiser step."""

    def __init__(self, place: Place = padded) -> None:
        self.place = place

    def length(self, row: Solution) -> int:
        return row.tokens.length

    def collate(self, rows: Sequence[Solution]) -> Batch:
        most = max(len(row.ends) for row in rows)
        # How far from its end a response's step ends.
        before_BS, right_BS, mask_BS = torch.zeros(3, len(rows), most, dtype=torch.long)
        for b, row in enumerate(rows):
            last, size = len(row.tokens.response) - 1, len(row.ends)
            before_BS[b, :size] = torch.tensor([last - end for end in row.ends])
            right_BS[b, :size] = torch.tensor(row.labels)
            mask_BS[b, :size] = 1
        extra = {"before": before_BS, "right": right_BS, "mask": mask_BS.bool()}
        return Batch(self.place([row.tokens for row in rows]), extra)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"steps": float(batch.extra["mask"].sum())}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        mask_BS = batch.extra["mask"]
        logit_N = step_logits(model, batch)[mask_BS]
        right_N = batch.extra["right"][mask_BS].float()
        stats = {
            "accuracy": stat(agreeing(logit_N, right_N)),
            "step_probability": stat(logit_N.sigmoid()),
            "step_label": stat(right_N),
        }
        return reduce_mean(step_cross_entropy(logit_N, right_N), totals["steps"]), stats


def step_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The log-odds (B, S) of each step, of what stands behind its last token."""
    behind_B1 = batch.layout.mask_BT.sum(-1, keepdim=True)
    return cast(Tensor, model(batch.layout)).gather(1, behind_B1 - batch.extra["before"])


def agreeing(logit_N: Tensor, right_N: Tensor) -> Tensor:
    """1 where the likelier answer is the label, a half where both are as likely."""
    return 0.5 + 0.5 * logit_N.sign() * (2 * right_N - 1)


def encode_steps(dataset: Dataset[Steps], encoder: StepEncoder) -> list[Solution]:
    """Token solutions. What is left out is counted.

    Raises ValueError where a chat template makes other steps of them.
    """
    rows: list[Solution] = []
    for number, row in enumerate(dataset.rows):
        own = dataset.row_numbers[number] if dataset.row_numbers else number + 1
        # Where the prompt is messages, so is the first step; the others are its text's rest.
        texts = [t if isinstance(t, str) else t[-1].content for t in row.completions]
        texts = [text.removesuffix(encoder.separator) for text in texts]
        whole = encoder.separator.join(texts)
        if split_steps(whole, encoder.separator) != texts:
            encoder.counts["solutions with a blank step or the separator in one, left out"] += 1
            continue
        tokens = encoder.encode(row.prompt, whole)
        if tokens is None:
            continue
        ends, labels = step_ends(tokens.response, encoder.mark), row.labels
        if tokens.response[-1] != encoder.eos:  # cut: the last step that is whole is the last
            size = len(encoder.mark)
            ends = [e for e in ends if tokens.response[e + 1 - size : e + 1] == encoder.mark]
            encoder.counts["steps cut off, left out"] += len(labels) - len(ends)
            if not ends:
                encoder.counts["solutions without a whole step, left out"] += 1
                continue
            labels = labels[: len(ends)]
            tokens = tokens._replace(response=tokens.response[: ends[-1] + 1])
        if len(ends) != len(labels):
            raise ValueError(
                f"{dataset.name}, row {own}: {len(labels)} steps came, which the chat template "
                f"turns into {len(ends)}, for it writes the step_separator itself: choose another "
                "chat_template or step_separator"
            )
        rows.append(Solution(tokens, tuple(ends), labels))
    return rows


def held_out_steps(
    model: ProcessRewardModel, rows: Sequence[Solution], batch_size: int
) -> dict[str, float]:
    """Share of held-out steps that are rightly told right or wrong, its interval clustered by
    prompt, and the share that are right, which whoever always says so would reach."""
    objective, right, labels, prompts = Process(model.place), [], [], []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = objective.collate(part).to(model.device)
        with evaluating(model), precision.training():
            logit_BS = step_logits(model, batch)
        mask_BS = batch.extra["mask"]
        label_N = batch.extra["right"][mask_BS].float()
        right += agreeing(logit_BS[mask_BS], label_N).tolist()
        labels += label_N.tolist()
        prompts += [row.tokens.prompt for row in part for _ in row.ends]
    accuracy = rate(right, numbered(prompts))
    return {
        "eval_accuracy": accuracy.value,
        "eval_accuracy_low": accuracy.low,
        "eval_accuracy_high": accuracy.high,
        "eval_steps_right": sum(labels) / len(labels),
        "eval_labelled_steps": float(len(labels)),
    }
