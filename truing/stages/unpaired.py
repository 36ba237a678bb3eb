"""Kahneman-Tversky optimisation: a policy from thumbs up and down, no pairs, no reward model.

Each row has a partner of another prompt, drawn once, whose response behind its own prompt tells how
far the policy has moved whatever it is asked. The mean of that over an optimiser step is one number
for all its micro-batches and devices, measured before the first of them.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from truing import console
from truing.algorithms.tokens import reduce_mean
from truing.algorithms.unpaired import kto, kto_baseline
from truing.data.batch import Encoder
from truing.data.formats import Dataset
from truing.data.layout import Tokens, padded
from truing.data.schema import Label, unfinished
from truing.keys import generator
from truing.models.loading import Loading
from truing.models.model import load_policy, logp
from truing.run import Run
from truing.settings import KtoConfig
from truing.stages import outlook, setup
from truing.stages.driving import fit
from truing.stages.learner import Batch, Place, Sums, stat
from truing.stages.preference import reference_policy
from truing.stages.reference import Shelf, check_cache, with_reference
from truing.stages.trainer import rows_per_step

# Where the weights of the two labels, times how many there are, should stand to each other
# (Ethayarajh et al. 2024, section 4.2).
RANGE = (1.0, 4 / 3)


class Thumb(NamedTuple):
    """A judged response in tokens, its prompt with another prompt's response, and the reference's
    log-probs of both."""

    answer: Tokens
    desirable: bool
    mismatched: Tokens
    ref_answer: float = 0.0
    ref_mismatched: float = 0.0

    @property
    def responses(self) -> tuple[Tokens, ...]:
        return self.answer, self.mismatched

    def beside(self, reference: Sequence[float]) -> "Thumb":
        return Thumb(self.answer, self.desirable, self.mismatched, *reference)


class Unpaired:
    """KTO, averaged over all rows of the optimiser step; ``place`` lays them out.

    ``options``: what `kto` takes, by name.
    """

    def __init__(self, options: Mapping[str, float], place: Place = padded) -> None:
        self.options, self.place = options, place

    def length(self, row: Thumb) -> int:
        return max(row.answer.length, row.mismatched.length)

    def collate(self, rows: Sequence[Thumb]) -> Batch:
        extra = {
            "desirable": torch.tensor([row.desirable for row in rows]),
            "reference": torch.tensor([row.ref_answer for row in rows]),
            "ref_mismatched": torch.tensor([row.ref_mismatched for row in rows]),
        }
        return Batch(self.place([row.answer for row in rows]), extra, rows)

    def counts(self, batch: Batch) -> dict[str, float]:
        up = int(batch.extra["desirable"].sum())
        return {"rows": len(batch.rows), "up": up, "down": len(batch.rows) - up}

    def measured(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        reference_N = batch.extra["ref_mismatched"]
        layout = self.place([row.mismatched for row in batch.rows]).to(reference_N.device)
        return {"mismatched": float((logp(model, layout).sum(-1) - reference_N).sum())}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        up_N = batch.extra["desirable"]
        logp_N = logp(model, batch.layout).sum(-1)
        ratio_N = logp_N - batch.extra["reference"]
        baseline = kto_baseline(totals["mismatched"], totals["rows"])
        loss_N = kto(ratio_N, up_N, baseline, **self.options)
        share = torch.ones_like(loss_N) / totals["rows"]
        reward_N, good_N, bad_N = (
            self.options["beta"] * ratio_N.detach(),
            up_N.float(),
            (~up_N).float(),
        )
        stats = {
            "rewards/chosen": stat(reward_N, good_N),
            "rewards/rejected": stat(reward_N, bad_N),
            "logps/chosen": stat(logp_N, good_N),
            "logps/rejected": stat(logp_N, bad_N),
            "kl": stat(torch.full_like(share, float(baseline)), share),
        }
        if totals["up"] and totals["down"]:
            # The difference of two means over the step: this micro-batch's part of both.
            margin = (reward_N * (good_N / totals["up"] - bad_N / totals["down"])).sum()
            stats["rewards/margins"] = (margin, share.sum())
        return reduce_mean(loss_N, totals["rows"]), stats


def encode_thumbs(dataset: Dataset[Label], encoder: Encoder, seed: int) -> list[Thumb]:
    """Token rows with their partners; what is left out or cut is counted.

    Raises ValueError where all rows have one prompt.
    """
    answers: list[tuple[Tokens, bool]] = []
    for row in dataset.rows:
        cut = unfinished(row.provenance)
        tokens = next(encoder.encode_each(row.prompt, [row.completion], cut), None)
        if tokens is not None:
            answers.append((tokens, row.label))
    thumbs: list[Thumb] = []
    partners = mismatched([tokens.prompt for tokens, _ in answers], seed, dataset.name)
    for (tokens, label), partner in zip(answers, partners, strict=True):
        other = Tokens(tokens.prompt, answers[partner][0].response)
        if encoder.max_length is not None and other.length > encoder.max_length:
            encoder.counts["mismatched responses truncated (they only set the baseline)"] += 1
            room = encoder.max_length - len(tokens.prompt)
            other = Tokens(tokens.prompt, other.response[:room])
        thumbs.append(Thumb(tokens, label, other))
    return thumbs


def mismatched(prompts: Sequence[tuple[int, ...]], seed: int, name: str) -> list[int]:
    """For each row one of another prompt: a permutation, wherever no prompt has more than half.

    Keyed by the seed, and the same whatever order the rows come in later. Raises ValueError for a
    single prompt.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in map(int, generator(seed, "mismatched").permutation(len(prompts))):
        groups.setdefault(prompts[row], []).append(row)
    if len(groups) == 1:
        raise ValueError(
            f"all rows of {name} that can be used have one prompt: KTO's baseline is measured on "
            "responses to other prompts, so give rows of two prompts or more"
        )
    # In a row by prompts, the largest first, a step of its size leads out of any of them.
    most = max(map(len, groups.values()), default=0)
    order = list(chain.from_iterable(sorted(groups.values(), key=len, reverse=True)))
    partners = [0] * len(order)
    for place, row in enumerate(order):
        other = order[(place + most) % len(order)]
        if prompts[other] == prompts[row]:
            other = order[most + place % (len(order) - most)]
        partners[row] = other
    return partners


def check_labels(rows: Sequence[Thumb], config: KtoConfig, name: str) -> None:
    """Raise ValueError for one kind of label only; say how the weights stand to each other."""
    up = sum(row.desirable for row in rows)
    down = len(rows) - up
    if rows and not (up and down):
        kind, other = ("true", "false") if up else ("false", "true")
        raise ValueError(
            f"all {len(rows)} rows of {name} have the label {kind}: KTO needs both, for one "
            f"alone tells nothing apart; add rows with the label {other}"
        )
    if rows_per_step(config, int(os.environ.get("WORLD_SIZE", "1"))) < 2:
        raise ValueError(
            "a step of one row came: KTO's baseline is a mean over the rows of a step; raise "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )
    if rows:
        ratio = config.desirable_weight * up / (config.undesirable_weight * down)
        console.say(f"{up} rows with thumbs up, {down} down: their weights are as {ratio:.2f} to 1")
        if not RANGE[0] - 1e-9 <= ratio <= RANGE[1] + 1e-9:
            low, high = (bound * config.undesirable_weight * down / up for bound in RANGE)
            console.say(
                "[yellow]the authors recommend from 1 to 4/3: with these rows a desirable_weight "
                f"from {low:.3g} to {high:.3g}[/yellow]"
            )


def run(config: KtoConfig) -> Run | outlook.Outlook:
    """Train on labels (docs/kto.md). Writes a run folder with ``model/`` in it.

    A dry run writes nothing and returns what would happen.
    """
    check_cache(config)
    dataset, held_out = setup.datasets(config, Label)
    policy = load_policy(config.model_name_or_path, Loading.of(config))
    encoder = setup.encoder(config, policy)
    rows = encode_thumbs(dataset, encoder, config.seed)
    with setup.apart(encoder, "evaluation"):
        eval_rows = encode_thumbs(held_out, encoder, config.seed) if held_out else []
    check_labels(rows, config, dataset.name)
    setup.adapt(config, policy)
    lengths = [row.answer.length for row in rows]
    scored = [len(row.answer.response) for row in rows]
    ahead = outlook.announce(config, policy, lengths, scored, encoder, dataset, held_out)
    if config.dry_run:
        return ahead
    reference, parents = reference_policy(config, policy)
    with setup.opened(config, "kto", dataset, held_out, ahead.data, parents) as (run, accelerator):
        for model in (policy, reference):
            model.to(accelerator.device)
        size, shelf = config.per_device_eval_batch_size, Shelf.of(run, config, reference)
        rows = with_reference(rows, reference, size, shelf)
        eval_rows = with_reference(eval_rows, reference, size, shelf)
        del model, reference
        prompts = [row.prompt for row in (held_out or dataset).rows]
        figures = fit(
            run,
            accelerator,
            policy,
            rows,
            Unpaired(config.loss_options, policy.place),
            config,
            held_out=eval_rows,
            look=setup.looker(run, policy, encoder, prompts, config),
        )
        figures |= shelf.figures()
        return setup.close(run, accelerator, policy, encoder, figures, dataset.notes)
