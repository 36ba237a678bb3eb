"""Direct preference optimisation and its kin: a policy from comparisons, no reward model.

A recipe is a row of `RECIPES`: a floor-0 loss, and what it is given. The reference's log-probs are
computed once, before the first step (`truing.stages.reference`), from the starting policy itself
unless another is named: one model in memory, one pass over the data. A recipe without a
reference computes none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truing.algorithms import preference
from truing.algorithms.ranking import plackett_luce
from truing.algorithms.reference_free import cpo, log_odds_ratio, orpo, simpo
from truing.algorithms.tokens import reduce_mean
from truing.data.batch import Encoder
from truing.data.formats import Dataset
from truing.data.layout import Tokens, padded
from truing.data.schema import Comparison, Ranking, unfinished
from truing.lineage import Parent
from truing.models.loading import Loading
from truing.models.model import Policy, cells, load_policy, logp
from truing.run import Run
from truing.settings import DpoConfig, KtoConfig
from truing.settings_online import OnlineConfig
from truing.stages import outlook, setup
from truing.stages.driving import fit
from truing.stages.learner import Batch, Objective, Place, Sums, stat
from truing.stages.reference import Shelf, check_cache, with_reference
from truing.stages.scoring import Judged, Pairs, as_a_whole


class Recipe(NamedTuple):
    """A named algorithm: its loss on (chosen, rejected) log-ratios, each (N,), and what it needs.

    ``mean``: what it is given are means over the response's tokens, not sums. ``reference``:
    log-ratios to a reference; without one, plain log-probs. ``nll``: it takes the negative
    log-likelihood of the chosen response too, a mean over its tokens, and weighs it itself.
    ``figures``: what else is logged, from what the loss is given. ``ranked``: it learns from whole
    rankings, and its loss takes (ratios, ranks, mask), each (P, K). The settings that it takes,
    with its paper's numbers, are in `truing.settings_preference.LOSSES`.
    """

    name: str
    loss: Callable[..., Tensor]
    mean: bool = False
    reference: bool = True
    nll: bool = False
    figures: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    ranked: bool = False


def odds(chosen_N: Tensor, rejected_N: Tensor) -> dict[str, Tensor]:
    """What TRL logs of ORPO, under its names: of the first the log sigmoid is meant."""
    log_odds_N = log_odds_ratio(chosen_N, rejected_N)
    return {"log_odds_ratio": F.logsigmoid(log_odds_N), "log_odds_chosen": log_odds_N}


def listed(ratio_PK: Tensor, rank_PK: Tensor, mask_PK: Tensor, *, beta: float) -> Tensor:
    """Plackett-Luce on implicit rewards (Rafailov et al. 2023, appendix A.3)."""
    return plackett_luce(beta * ratio_PK, rank_PK, mask_PK)


RECIPES = {
    "sigmoid": Recipe("DPO, conservative DPO", preference.cdpo),
    "robust": Recipe("robust DPO", preference.robust_dpo),
    "ipo": Recipe("IPO", preference.ipo),
    "ipo_mean": Recipe("IPO per token", preference.ipo, mean=True),
    "hinge": Recipe("SLiC, RSO", preference.hinge),
    "simpo": Recipe("SimPO", simpo, mean=True, reference=False),
    "cpo": Recipe("CPO", cpo, reference=False, nll=True),
    "orpo": Recipe("ORPO", orpo, mean=True, reference=False, nll=True, figures=odds),
    "plackett_luce": Recipe("DPO on whole rankings", listed, ranked=True),
}


class Pair(NamedTuple):
    """A comparison in tokens, with the reference's log-probs of both responses; 0 without one."""

    chosen: Tokens
    rejected: Tokens
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0

    @property
    def responses(self) -> tuple[Tokens, ...]:
        return self.chosen, self.rejected

    def beside(self, reference: Sequence[float]) -> "Pair":
        return Pair(self.chosen, self.rejected, *reference)


class Order(NamedTuple):
    """A ranking in tokens, rank 0 the best; its (better, worse) pairs, of which figures are told;
    and the reference's log-probs of all responses."""

    responses: tuple[Tokens, ...]
    ranks: tuple[int, ...]
    pairs: Pairs
    reference: tuple[float, ...] = ()

    def beside(self, reference: Sequence[float]) -> "Order":
        return self._replace(reference=tuple(reference))


class Preference:
    """A recipe's loss, averaged over all pairs of the optimiser step; ``place`` lays them out.

    ``options``: what the loss takes, by name, beta among them. ``imitation``: the weight of the
    chosen response's NLL beside it, a mean over its tokens (alpha of Pang et al. 2024,
    arXiv:2404.19733, eq. 1).
    """

    def __init__(
        self,
        recipe: Recipe,
        options: Mapping[str, float],
        place: Place = padded,
        imitation: float = 0.0,
    ) -> None:
        self.recipe, self.options, self.place = recipe, options, place
        self.imitation = imitation

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
        if self.imitation:
            loss_N = loss_N + self.imitation * nll_N
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
        if self.recipe.nll or self.imitation:
            stats["nll_loss"] = stat(nll_N)
        if self.recipe.figures is not None:
            found = self.recipe.figures(chosen_N.detach(), rejected_N.detach())
            stats |= {name: stat(figure_N) for name, figure_N in found.items()}
        return reduce_mean(loss_N, totals["pairs"]), stats


class Orders(Preference):
    """The same for a recipe on whole rankings, averaged over those of the step."""

    def length(self, row: Order) -> int:
        return max(tokens.length for tokens in row.responses)

    def collate(self, rows: Sequence[Order]) -> Batch:
        most, start = max(len(row.responses) for row in rows), 0
        place_PK, rank_PK, mask_PK = torch.zeros(3, len(rows), most, dtype=torch.long)
        pairs: list[tuple[int, int, float]] = []
        for p, row in enumerate(rows):
            k = len(row.responses)
            place_PK[p, :k] = torch.arange(start, start + k)
            rank_PK[p, :k] = torch.tensor(row.ranks)
            mask_PK[p, :k] = 1
            pairs += [(start + i, start + j, 1 / len(row.pairs)) for i, j in row.pairs]
            start += k
        better, worse, weight = zip(*pairs, strict=True) if pairs else ((), (), ())
        extra = {
            "place": place_PK,
            "rank": rank_PK,
            "mask": mask_PK,
            "better": torch.tensor(better, dtype=torch.long),
            "worse": torch.tensor(worse, dtype=torch.long),
            "weight": torch.tensor(weight),
            "reference": torch.tensor([logp for row in rows for logp in row.reference]),
        }
        return Batch(self.place([tokens for row in rows for tokens in row.responses]), extra)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"rankings": len(batch.extra["rank"])}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        extra = batch.extra
        logp_B = logp(model, batch.layout).sum(-1)
        ratio_B = logp_B - extra["reference"]
        loss_P = self.recipe.loss(
            ratio_B[extra["place"]], extra["rank"], extra["mask"], **self.options
        )
        reward_B, weight_N = self.options["beta"] * ratio_B.detach(), extra["weight"]
        better_N, worse_N = reward_B[extra["better"]], reward_B[extra["worse"]]
        stats = {
            "rewards/chosen": stat(better_N, weight_N),
            "rewards/rejected": stat(worse_N, weight_N),
            "rewards/margins": stat(better_N - worse_N, weight_N),
            "rewards/accuracies": stat((better_N > worse_N).float(), weight_N),
            "logps/chosen": stat(logp_B[extra["better"]], weight_N),
            "logps/rejected": stat(logp_B[extra["worse"]], weight_N),
        }
        return reduce_mean(loss_P, totals["rankings"]), stats


def encode_orders(dataset: Dataset[Ranking], encoder: Encoder, ties: str) -> list[Order]:
    """Token rankings, as the reward model takes them; what is left out is counted."""
    orders: list[Order] = []
    for row in dataset.rows:
        cut = unfinished(row.provenance)
        encoded = list(encoder.encode_each(row.prompt, row.completions, cut))
        places = tuple(i for i, tokens in enumerate(encoded) if tokens is not None)
        if not encoded:
            continue
        kept = tuple((t, r) for t, r in zip(encoded, row.ranks, strict=True) if t is not None)
        judged = Judged(row, dataset.name, kept, places)
        if made := as_a_whole(judged, encoder.counts, ties):
            orders.append(Order(made.responses, made.ranks, made.pairs))
    return orders


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


def encoded(dataset: Dataset[Any], encoder: Encoder, config: DpoConfig) -> Sequence[Any]:
    """The rows in tokens, as the recipe takes them."""
    if RECIPES[config.loss_type].ranked:
        return encode_orders(dataset, encoder, config.ties or "drop")
    return encode_pairs(dataset, encoder)


def run(config: DpoConfig, *, watch: setup.Watch | None = None) -> Run | outlook.Outlook:
    """Train on comparisons or rankings (docs/dpo.md). Writes a run folder with ``model/`` in it.

    ``watch`` measures the policy every ``log_completions_steps`` in place of the printed samples.
    A dry run writes nothing and returns what would happen.
    """
    recipe, counts = RECIPES[config.loss_type], dict[str, int]()
    check_cache(config)
    dataset, held_out = setup.datasets(config, Ranking if recipe.ranked else Comparison)
    policy = load_policy(config.model_name_or_path, Loading.of(config))
    encoder = setup.encoder(config, policy)
    rows = encoded(dataset, encoder, config)
    with setup.apart(encoder, "evaluation"):
        eval_rows = encoded(held_out, encoder, config) if held_out else []
    setup.adapt(config, policy)
    lengths = [cells(row.responses, policy) for row in rows]
    scored = [sum(len(tokens.response) for tokens in row.responses) for row in rows]
    ahead = outlook.announce(config, policy, lengths, scored, encoder, dataset, held_out)
    if config.dry_run:
        return ahead
    reference, parents = reference_policy(config, policy) if recipe.reference else (None, [])
    with setup.opened(config, "dpo", dataset, held_out, ahead.data, parents) as (run, accelerator):
        policy.to(accelerator.device)
        if reference is not None:
            reference.to(accelerator.device)
            size, shelf = config.per_device_eval_batch_size, Shelf.of(run, config, reference)
            rows = with_reference(rows, reference, size, shelf)
            eval_rows = with_reference(eval_rows, reference, size, shelf)
            counts = shelf.figures()
        del reference
        prompts = [row.prompt for row in (held_out or dataset).rows]
        kind = Orders if recipe.ranked else Preference
        objective: Objective[Any] = kind(
            recipe, config.loss_options, policy.place, config.rpo_alpha or 0.0
        )
        look = setup.looker(run, policy, encoder, prompts, config)
        figures = fit(
            run,
            accelerator,
            policy,
            rows,
            objective,
            config,
            held_out=eval_rows,
            look=look if watch is None else lambda: watch(policy),
        )
        return setup.close(run, accelerator, policy, encoder, figures | counts, dataset.notes)


def reference_policy(
    config: DpoConfig | KtoConfig | OnlineConfig, policy: Policy
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
