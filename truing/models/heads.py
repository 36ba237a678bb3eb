"""Models that give numbers instead of tokens: the reward model, and the value model made of one.

It is transformers' sequence-classification model with one label, so a reward model of another
library loads here and ours loads there. The score is read at the last token of the response. The
shift that gives reference responses a mean of 0 is kept in the config (``reward_shift``), hence in
the checkpoint: a reader that does not know it sees the same ranking.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from truing.data.batch import Layout, Tokens
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
        row_B, column_B = layout.last_B2.unbind(-1)
        return self.read(self.hidden(layout)[row_B, column_B])

    def read(self, hidden: Tensor) -> Tensor:
        """The shifted scores of hidden states. The head's format may be finer than the body's."""
        head = self.core.score
        return head(hidden.to(head.weight.dtype)).squeeze(-1).float() - self.shift


class ValueModel(RewardModel):
    """Values (B, T): what is still to come, foreseen where each scored token is decided."""

    def forward(self, layout: Layout) -> Tensor:
        value_BT = self.read(self.hidden(layout)[layout.row_BT, layout.column_BT])
        return value_BT.masked_fill(~layout.mask_BT, 0.0)


def sequence_scores(model: RewardModel, rows: Sequence[Tokens], batch_size: int = 32) -> Tensor:
    """Scores (N,) of whole sequences, on the CPU, in the order of ``rows``; no gradients."""
    return measure(model, rows, batch_size, model)


def load_reward_model(
    source: Path | str, loading: Loading | None = None, *, trained: bool = False
) -> RewardModel:
    """Load a reward model, or give a causal language model a new scalar head.

    A new head is drawn from N(0, 1/(H+1)) as in Stiennon et al. 2020 (arXiv:2009.01325), from a
    fixed seed. Raises ValueError for a classifier of more than one label, and for a model that
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
        draw = torch.Generator().manual_seed(0)
        width = head.in_features
        weight = torch.randn(1, width, generator=draw) / (width + 1) ** 0.5
        cast(Tensor, head.weight.data).copy_(weight)
    # Other readers score the last token that is not padding; were EOS the padding, they would miss
    # the end of a response. Without one they refuse a batch instead.
    if network.config.pad_token_id is None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        network.config.pad_token_id = tokenizer.pad_token_id
    prepare(network, loading)
    model = RewardModel(network.to(loading.device), tokenizer)
    model.fresh = bool(new)
    return model


def load_value_model(source: Path | str, loading: Loading | None = None) -> ValueModel:
    """A value function from a reward model, which foresees its own score, or from a causal language
    model, which foresees nothing yet: a new head is 0."""
    scorer = load_reward_model(source, loading)
    model = ValueModel(scorer.network, scorer.tokenizer)
    if scorer.fresh:
        nn.init.zeros_(model.core.score.weight)
    return model


class _quiet_about_new_head:
    """transformers warns that the head is new; that is the purpose here."""

    def __enter__(self) -> None:
        self.before = logging.get_verbosity()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        logging.set_verbosity(self.before)
