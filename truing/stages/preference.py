"""Direct preference optimisation and its kin: a policy from comparisons, no reward model.

A recipe is a row of `RECIPES`: a floor-0 loss, and what it is given. The reference's log-probs are
computed once, before the first step, from the starting policy itself unless another is named: one
model in memory, one pass over the data. A recipe without a reference computes none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing.algorithms import preference
from truing.algorithms.reference_free import cpo, log_odds_ratio, orpo, simpo
from truing.algorithms.tokens import reduce_mean
from truing.data.batch import Encoder, Tokens, padded
from truing.data.formats import Dataset
from truing.data.schema import Comparison, unfinished
from truing.lineage import Parent
from truing.models.loading import Loading
from truing.models.model import Policy, cells, load_policy, logp, sequence_logps
from truing.run import Run
from truing.settings import DpoConfig
from truing.settings_online import OnlineConfig
from truing.stages import outlook, setup
from truing.stages.driving import fit
from truing.stages.learner import Batch, Place, Sums, stat


class Recipe(NamedTuple):
    """A named algorithm: its loss on (chosen, rejected) log-ratios, each (N,), and what it needs.

    ``mean``: what it is given are means over the response's tokens, not sums. ``reference``:
    log-ratios to a reference; without one, plain log-probs. ``nll``: it takes the negative
    log-likelihood of the chosen response too, a mean over its tokens, and weighs it itself.
    ``figures``: what else is logged, from what the loss is given. The settings that it takes, with
    its paper's numbers, are in `truing.settings_preference.LOSSES`.
    """

    name: str
    loss: Callable[..., Tensor]
    mean: bool = False
    reference: bool = True
    nll: bool = False
    figures: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None


def odds(chosen_N: Tensor, rejected_N: Tensor) -> dict[str, Tensor]:
    """What TRL logs of ORPO, under its names: of the first the log sigmoid is meant."""
    log_odds_N = log_odds_ratio(chosen_N, rejected_N)
    return {"log_odds_ratio": F.logsigmoid(log_odds_N), "log_odds_chosen": log_odds_N}


RECIPES = {
    "sigmoid": Recipe("DPO, conservative DPO", preference.cdpo),
    "robust": Recipe("robust DPO", preference.robust_dpo),
    "ipo": Recipe("IPO", preference.ipo),
    "ipo_mean": Recipe("IPO per token", preference.ipo, mean=True),
    "hinge": Recipe("SLiC, RSO", preference.hinge),
    "simpo": Recipe("SimPO", simpo, mean=True, reference=False),
    "cpo": Recipe("CPO", cpo, reference=False, nll=True),
    "orpo": Recipe("ORPO", orpo, mean=True, reference=False, nll=True, figures=odds),
}


class Pair(NamedTuple):
    """A comparison in tokens, with the reference's log-probs of both responses; 0 without one."""

    chosen: Tokens
    rejected: Tokens
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0


class Preference:
    """A recipe's loss, averaged over all pairs of the optimiser step; ``place`` lays them out.

    ``options``: what the loss takes, by name, beta among them.
    """

    def __init__(self, recipe: Recipe, options: Mapping[str, float], place: Place = padded) -> None:
        self.recipe, self.options, self.place = recipe, options, place

    def length(self, row: Pair) -> int:
        return max(row.chosen.length, row.rejected.length)

    def collate(self, rows: Sequence[Pair]) -> Batch:
        layout = self.place([tokens for row in rows for tokens in row[:2]])
        reference = torch.tensor([[row.ref_chosen, row.ref_rejected] for row in rows])
        return Batch(layout, {"reference": reference})

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"pairs": len(batch.extra["reference"])}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        logp_N2 = logp(model, batch.layout).sum(-1).view(-1, 2)
        length_N2 = batch.layout.mask_BT.sum(-1).view(-1, 2)
        ratio_N2 = logp_N2 - batch.extra["reference"] if self.recipe.reference else logp_N2
        chosen_N, rejected_N = (ratio_N2 / length_N2 if self.recipe.mean else ratio_N2).unbind(-1)
        nll_N = (-logp_N2 / length_N2)[:, 0]
        more = {"nll_N": nll_N} if self.recipe.nll else {}
        loss_N = self.recipe.loss(chosen_N, rejected_N, **more, **self.options)
        beta = self.options["beta"]
        margin_N = beta * (chosen_N - rejected_N).detach()
        # A tie of implicit rewards is no success: at the start, policy equals reference, it is 0.
        stats = {
            "rewards/chosen": stat(beta * chosen_N),
            "rewards/rejected": stat(beta * rejected_N),
            "rewards/margins": stat(margin_N),
            "rewards/accuracies": stat((margin_N > 0).float()),
            "logps/chosen": stat(logp_N2[:, 0]),
            "logps/rejected": stat(logp_N2[:, 1]),
        }
        if self.recipe.nll:
            stats["nll_loss"] = stat(nll_N)
        if self.recipe.figures is not None:
            found = self.recipe.figures(chosen_N.detach(), rejected_N.detach())
            stats |= {name: stat(figure_N) for name, figure_N in found.items()}
        return reduce_mean(loss_N, totals["pairs"]), stats


def encode_pairs(dataset: Dataset[Comparison], encoder: Encoder) -> list[Pair]:
    """Token pairs; a pair that is left out, or equal after truncation, is counted."""
    pairs: list[Pair] = []
    for row in dataset.rows:
        # The first that does not fit leaves out the pair, which is counted once.
        answers, cut = (row.chosen, row.rejected), unfinished(row.provenance)
        both = encoder.encode_each(row.prompt, answers, cut)
        chosen = next(both, None)
        rejected = next(both, None) if chosen else None
        if chosen is None or rejected is None:
            continue
        if chosen == rejected:
            encoder.counts["pairs equal after truncation, left out"] += 1
            continue
        if row.margin is not None:
            encoder.counts["margins, which this loss does not use"] += 1
        pairs.append(Pair(chosen, rejected))
    return pairs


def with_reference(pairs: Sequence[Pair], reference: Policy, batch_size: int) -> list[Pair]:
    """The pairs with the reference policy's log-probs filled in."""
    flat = [tokens for pair in pairs for tokens in pair[:2]]
    logps = sequence_logps(reference, flat, 2 * batch_size).view(-1, 2).tolist()
    return [
        pair._replace(ref_chosen=c, ref_rejected=r)
        for pair, (c, r) in zip(pairs, logps, strict=True)
    ]


def run(config: DpoConfig, *, watch: setup.Watch | None = None) -> Run | outlook.Outlook:
    """Train on comparisons (docs/dpo.md). Writes a run folder with ``model/`` in it.

    ``watch`` measures the policy every ``log_completions_steps`` in place of the printed samples.
    A dry run writes nothing and returns what would happen.
    """
    dataset, held_out = setup.datasets(config, Comparison)
    policy = load_policy(config.model_name_or_path, Loading.of(config))
    encoder = setup.encoder(config, policy)
    pairs = encode_pairs(dataset, encoder)
    with setup.apart(encoder, "evaluation"):
        eval_pairs = encode_pairs(held_out, encoder) if held_out else []
    setup.adapt(config, policy)
    lengths = [cells(pair[:2], policy) for pair in pairs]
    scored = [len(pair.chosen.response) + len(pair.rejected.response) for pair in pairs]
    ahead = outlook.announce(config, policy, lengths, scored, encoder, dataset, held_out)
    if config.dry_run:
        return ahead
    recipe = RECIPES[config.loss_type]
    reference, parents = reference_policy(config, policy) if recipe.reference else (None, [])
    with setup.opened(config, "dpo", dataset, held_out, ahead.data, parents) as (run, accelerator):
        policy.to(accelerator.device)
        if reference is not None:
            reference.to(accelerator.device)
            size = config.per_device_eval_batch_size
            pairs = with_reference(pairs, reference, size)
            eval_pairs = with_reference(eval_pairs, reference, size)
        del reference
        prompts = [c.prompt for c in (held_out or dataset).rows]
        look = setup.looker(run, policy, encoder, prompts, config)
        figures = fit(
            run,
            accelerator,
            policy,
            pairs,
            Preference(recipe, config.loss_options, policy.place),
            config,
            held_out=eval_pairs,
            look=look if watch is None else lambda: watch(policy),
        )
        return setup.close(run, accelerator, policy, encoder, figures, dataset.notes)


def reference_policy(
    config: DpoConfig | OnlineConfig, policy: Policy
) -> tuple[Policy, list[Parent]]:
    """The policy to stay near, and the parents it adds: by default ``policy`` as it starts.

    Raises ValueError for a reference with another tokenizer or too short a context.
    """
    name = config.ref_model_name_or_path
    if name is None:
        return policy, []
    # model_revision is about the model that training starts from.
    reference = load_policy(name, replace(Loading.of(config), revision=None))
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ValueError(
            "the reference model's tokenizer differs from the policy's, so their log-probs cannot "
            "be compared: use a reference with the same tokenizer"
        )
    setup.check_context(f"the reference model {name}", reference, policy, config, "another one")
    return reference, [Parent.of("reference", name)]
