"""Supervised fine-tuning: maximise the likelihood of demonstrated responses."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from truing.algorithms.tokens import reduce_mean
from truing.data.batch import Encoder
from truing.data.formats import Dataset
from truing.data.layout import Tokens, padded
from truing.data.schema import Demonstration, unfinished
from truing.models.loading import Loading
from truing.models.model import load_policy, logp
from truing.run import Run
from truing.settings import SftConfig
from truing.stages import outlook, setup
from truing.stages.driving import fit
from truing.stages.learner import Batch, Place, Sums


class Imitation:
    """Negative log-likelihood per scored token, over all tokens of the optimiser step.

    ``place``: how rows are laid out.
    """

    def __init__(self, config: SftConfig, place: Place = padded) -> None:
        self.place = place
        self.score_prompt = not config.completion_only_loss

    def length(self, row: Tokens) -> int:
        return row.length

    def collate(self, rows: Sequence[Tokens]) -> Batch:
        return Batch(self.place(rows, score_prompt=self.score_prompt), {})

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"tokens": batch.layout.scored}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        logp_BT = logp(model, batch.layout)
        return -reduce_mean(logp_BT, totals["tokens"]), {}


def encode_rows(dataset: Dataset[Demonstration], encoder: Encoder) -> list[Tokens]:
    """Token rows; those left out are counted in ``encoder.counts``."""
    encoded = (
        next(encoder.encode_each(d.prompt, [d.completion], unfinished(d.provenance)), None)
        for d in dataset.rows
    )
    rows = [row for row in encoded if row is not None]
    kept = [row for row in rows if row.length > 1]
    if len(kept) < len(rows):  # nothing predicts the first token of all
        encoder.counts["rows of a single token, left out"] += len(rows) - len(kept)
    return kept


def run(config: SftConfig) -> Run | outlook.Outlook:
    """Train on demonstrations (docs/sft.md). Writes a run folder with ``model/`` in it.

    A dry run writes nothing and returns what would happen.
    """
    dataset, held_out = setup.datasets(config, Demonstration)
    policy = load_policy(config.model_name_or_path, Loading.of(config))
    encoder = setup.encoder(config, policy)
    rows = encode_rows(dataset, encoder)
    with setup.apart(encoder, "evaluation"):
        eval_rows = encode_rows(held_out, encoder) if held_out else []
    setup.adapt(config, policy)
    lengths = [row.length for row in rows]
    scored = [len(row.response) if config.completion_only_loss else row.length for row in rows]
    ahead = outlook.announce(config, policy, lengths, scored, encoder, dataset, held_out)
    if config.dry_run:
        return ahead
    with setup.opened(config, "sft", dataset, held_out, ahead.data) as (run, accelerator):
        prompts = [d.prompt for d in (held_out or dataset).rows]
        look = setup.looker(run, policy, encoder, prompts, config)
        figures = fit(
            run,
            accelerator,
            policy,
            rows,
            Imitation(config, policy.place),
            config,
            held_out=eval_rows,
            look=look,
        )
        return setup.close(run, accelerator, policy, encoder, figures, dataset.notes)
