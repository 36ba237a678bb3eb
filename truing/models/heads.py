"""Models that give numbers instead of tokens: reward models, and the value model made of one.

It is transformers' sequence-classification model with one label, so a reward model of another
library loads here and ours loads there. The score is read at the last token of the response. The
shift that gives reference responses a mean of 0 is kept in the config (``reward_shift``), hence in
the checkpoint: a reader that does not know it sees the same ranking. ``reward_kind`` says what else
a score may be: of the steps of a response, or a cost, whose sign has a meaning.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from truing.algorithms.process import step_minimum, step_product
from truing.data.layout import Layout, Tokens
from truing.data.steps import separator_ids, step_ends
from truing.models.loading import (
    Loading,
    load_tokenizer,
    prepare,
    reading,
    refuse_missing,
    refuse_other_tokenizer,
    resolve,
)
from truing.models.model import Model, measure


class RewardModel(Model):
    """Scores (B,) of whole sequences, ``score - shift``. ``fresh``: its head was never trained."""

    fresh = False

    @property
    def shift(self) -> float:
        """Mean raw score of the reference responses, subtracted from every score."""
        return float(getattr(self.core.config, "reward_shift", 0.0))

    @shift.setter
    def shift(self, value: float) -> None:
        self.core.config.reward_shift = float(value)

    @property
    def simulated(self) -> bool:
        """Whether any judgement that it learnt from was simulated."""
        return bool(getattr(self.core.config, "reward_simulated", False))

    @simulated.setter
    def simulated(self, value: bool) -> None:
        self.core.config.reward_simulated = value

    def forward(self, layout: Layout) -> Tensor:
        return self.read(self.states(layout, ends=True).at(*layout.last_B2.unbind(-1)))

    def scores(self, layout: Layout) -> Tensor:
        """What the model says as a reward (B,)."""
        return self(layout)

    def read(self, hidden: Tensor) -> Tensor:
        """The shifted scores of hidden states. The head's format may be finer than the body's."""
        head = self.core.score
        return head(hidden.to(head.weight.dtype)).squeeze(-1).float() - self.shift


# The score of a solution from its steps' logits and mask (B, S), by its name.
AGGREGATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": step_product,
    "min": step_minimum,
}


class ProcessRewardModel(RewardModel):
    """Log-odds (B, T + 1) that what was read so far is right: in front of each of T scored tokens,
    and behind the last. As a reward it is one log-probability for each solution."""

    @cached_property
    def mark(self) -> tuple[int, ...]:
        """The separator of steps, in ids."""
        return separator_ids(self.tokenizer, self.separator)

    @property
    def separator(self) -> str:
        return str(self.core.config.step_separator)

    def forward(self, layout: Layout) -> Tensor:
        count_B1 = layout.mask_BT.sum(-1, keepdim=True)
        column_BU = nn.functional.pad(layout.column_BT, (0, 1))
        column_BU = column_BU.scatter(1, count_B1, layout.last_B2[:, 1:])
        return self.read(self.states(layout).at(layout.last_B2[:, :1], column_BU))

    def scores(self, layout: Layout) -> Tensor:
        rows = zip(layout.target_BT.cpu(), layout.mask_BT.cpu(), strict=True)
        ends = [step_ends(ids_T[mask_T].tolist(), self.mark) for ids_T, mask_T in rows]
        most = max(map(len, ends))
        # Behind token t, the next one being t + 1.
        places = [[end + 1 for end in own] + [-1] * (most - len(own)) for own in ends]
        place_BS = torch.tensor(places, device=layout.mask_BT.device)
        logit_BS = self(layout).gather(1, place_BS.clamp(min=0))
        return AGGREGATIONS[self.core.config.step_aggregation](logit_BS, place_BS >= 0)


class CostModel(RewardModel):
    """Costs (B,) of whole sequences: above 0 is harmful. As a reward it is minus its cost."""

    def scores(self, layout: Layout) -> Tensor:
        return -self(layout)


class ValueModel(RewardModel):
    """Values (B, T): what is still to come, foreseen where each scored token is decided."""

    def forward(self, layout: Layout) -> Tensor:
        row_N, column_N = layout.picked_4N[1:3]
        return layout.spread(self.read(self.states(layout).at(row_N, column_N)))


def sequence_scores(model: RewardModel, rows: Sequence[Tokens], batch_size: int = 32) -> Tensor:
    """Scores (N,) of whole sequences, on the CPU, in the order of ``rows``; no gradients."""
    return measure(model, rows, batch_size, model.scores)


# What a score may be, and the class that gives it. The mean score of references is no zero of the
# others: theirs has a meaning.
KINDS: dict[str, type[RewardModel]] = {
    "score": RewardModel,
    "process": ProcessRewardModel,
    "cost": CostModel,
}


def of_kind(model: RewardModel, kind: str, **told: str) -> RewardModel:
    """The same network as a reward model of another kind, whose config says so; ``told``: what
    else it says. The zero is anew where it has a meaning."""
    config = model.core.config
    config.reward_kind = kind
    for name, value in told.items():
        setattr(config, name, value)
    made = KINDS[kind](model.network, model.tokenizer)
    made.fresh = model.fresh
    if kind != "score":
        made.shift = 0.0
    return made


def load_reward_model(
    source: Path | str, loading: Loading | None = None, *, trained: bool = False, seed: int = 0
) -> RewardModel:
    """Load a reward model, or give a causal language model a new scalar head.

    A new head is drawn from N(0, 1/(H+1)) as in Stiennon et al. 2020 (arXiv:2009.01325), by
    ``seed``. Raises ValueError for a classifier of more than one label, and for a model that
    would need a new head where a ``trained`` one is asked for.
    """
    loading = loading or Loading()
    place = resolve(source)
    tokenizer = load_tokenizer(place, loading)
    with _quiet_about_new_head(), reading(source):
        network, report = AutoModelForSequenceClassification.from_pretrained(
            place,
            num_labels=1,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **loading.options(),
        )
    head = getattr(network, "score", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(network).__name__} has no linear 'score' head: use a decoder-only model"
        )
    if report["mismatched_keys"]:
        names = sorted(key[0] for key in report["mismatched_keys"])
        raise ValueError(
            f"{source} has weights of another shape than a model with one score needs: {names}; a "
            "classifier of several labels cannot become a reward model"
        )
    refuse_other_tokenizer(source, network, tokenizer)
    new = {str(key) for key in report["missing_keys"]}
    refuse_missing(source, new - {"score.weight"})
    if new and trained:
        raise ValueError(
            f"{source} is a language model, whose scores would be random: name the folder of a "
            "reward run, or make one with `truing reward`"
        )
    if new:
        draw = torch.Generator().manual_seed(seed)
        width = head.in_features
        weight = torch.randn(1, width, generator=draw) / (width + 1) ** 0.5
        cast(Tensor, head.weight.data).copy_(weight)
    # Other readers score the last token that is not padding; were EOS the padding, they would miss
    # the end of a response. Without one they refuse a batch instead.
    if network.config.pad_token_id is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        network.config.pad_token_id = tokenizer.pad_token_id
    prepare(network, loading)
    kind = KINDS[getattr(network.config, "reward_kind", "score")]
    model = kind(network.to(loading.device), tokenizer)
    model.fresh = bool(new)
    return model


def load_value_model(source: Path | str, loading: Loading | None = None) -> ValueModel:
    """A value function from a reward model, which foresees its own score, or from a causal language
    model, which foresees nothing yet: a new head is 0."""
    return as_value_model(load_reward_model(source, loading))


def as_value_model(scorer: RewardModel) -> ValueModel:
    """The same network as a value function, its head as `load_value_model` says."""
    model = ValueModel(scorer.network, scorer.tokenizer)
    # Log-odds of steps are no score: what is foreseen would be another thing.
    if scorer.fresh or isinstance(scorer, ProcessRewardModel):
        nn.init.zeros_(model.core.score.weight)
    elif isinstance(scorer, CostModel):
        model.core.score.weight.data.neg_()
    return model


class _quiet_about_new_head:
    """transformers warns that the head is new; that is the purpose here."""

    def __enter__(self) -> None:
        self.before = logging.get_verbosity()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        logging.set_verbosity(self.before)
