"""What a policy learns from lessons: one loss for all recipes, put together from named pieces.

An action is a token or a whole response; a surrogate weighs its log-prob by its advantage; a
reduction says what each token weighs in the step. A KL, an entropy bonus and a value loss are added
where they are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from truing.algorithms.policy import Surrogate, ppo_clip, value_clip
from truing.algorithms.tokens import k2, k3, reduce_mean, sequence_mean, sequence_sum
from truing.data.layout import Tokens, padded
from truing.models.actor import ActorCritic
from truing.stages.learner import Batch, Place, Sums, stat

# --- actions: (a quantity of tokens (B, T), mask) -> of actions, (B, T) or (B, 1) -----------------
PerAction = Callable[[Tensor, Tensor], Tensor]


def each_token(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return x_BT.masked_fill(~mask_BT, 0.0)


def total(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return sequence_sum(x_BT, mask_BT)[:, None]


def average(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return sequence_mean(x_BT, mask_BT)[:, None]


class Level(NamedTuple):
    """What an action is: how its log-prob comes from those of tokens, and how its weight does."""

    logp: PerAction
    weight: PerAction


TOKEN = Level(each_token, each_token)
# The mean log-prob of a response has a gradient 1 / length of the sum's, so its weight is the sum.
SEQUENCE = Level(average, total)
RESPONSE = Level(total, average)
LEVELS = {"token": TOKEN, "sequence": SEQUENCE}

# --- reductions: (mask, counted over the step, longest response) -> weight of each token (B, T) ---
Reduction = Callable[[Tensor, Mapping[str, Tensor], int], Tensor]


def over_tokens(mask_BT: Tensor, totals: Mapping[str, Tensor], longest: int) -> Tensor:
    """Mean over all tokens: a long response weighs more."""
    return mask_BT / totals["tokens"]


def over_responses(mask_BT: Tensor, totals: Mapping[str, Tensor], longest: int) -> Tensor:
    """Sum over the tokens of a response, mean over responses: the policy gradient as it is."""
    return mask_BT / totals["responses"]


def within_responses(mask_BT: Tensor, totals: Mapping[str, Tensor], longest: int) -> Tensor:
    """Mean over the tokens of each response, then over responses: each weighs the same."""
    return mask_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1) / totals["responses"]


def over_length(mask_BT: Tensor, totals: Mapping[str, Tensor], longest: int) -> Tensor:
    """Sum over the tokens of a response by the longest that there may be: no length counts."""
    return mask_BT / longest / totals["responses"]


# --- the KL in the loss: each token's, or the whole response's ------------------------------------
KL_TERMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Level]] = {
    "k3": (k3, TOKEN),
    "k2": (k2, RESPONSE),
}


class Recipe(NamedTuple):
    """A named algorithm. ``advantage``: of an experience, as truing/stages/estimate.py has them;
    ``level``: None where importance_sampling_level says it."""

    name: str
    advantage: Callable[..., Tensor]
    reduction: Reduction
    level: Level | None = TOKEN
    surrogate: Callable[..., Surrogate] = ppo_clip
    critic: bool = False


class Lesson(NamedTuple):
    """What a policy gradient learns from one response: of each token the log-probs (the policy's
    and the reference's), value and return; the advantage of each, or (1,) of the whole response;
    and whether it counts: one that does not is read, and teaches nothing."""

    tokens: Tokens
    logp_T: Tensor
    ref_logp_T: Tensor
    advantage_T: Tensor
    value_T: Tensor
    return_T: Tensor
    counts: bool = True


class Taught:
    """How lessons become a micro-batch: answers to one prompt side by side, which is read once
    where ``place`` can."""

    def __init__(self, config: Any, place: Place = padded) -> None:
        self.config, self.place = config, place

    def length(self, row: Lesson) -> int:
        return row.tokens.length

    def family(self, row: Lesson) -> tuple[int, ...]:
        return row.tokens.prompt

    def collate(self, rows: Sequence[Lesson]) -> Batch:
        columns = {
            name: pad_sequence([getattr(row, name) for row in rows], batch_first=True).float()
            for name in ("logp_T", "ref_logp_T", "advantage_T", "value_T", "return_T")
        }
        layout = self.place([row.tokens for row in rows])
        counts_B = layout.mask_BT.new_tensor([row.counts for row in rows])
        return Batch(layout, columns | {"mask_BT": layout.mask_BT & counts_B[:, None]})

    def counts(self, batch: Batch) -> dict[str, float]:
        mask_BT = batch.extra["mask_BT"]
        return {"tokens": float(mask_BT.sum()), "responses": float(mask_BT.any(-1).sum())}

    def value_loss(
        self, value_BT: Tensor, given: Mapping[str, Tensor], tokens: Tensor
    ) -> tuple[Tensor, Sums]:
        """The critic's: its mean over the tokens of the step, weighted."""
        mask_BT, config = given["mask_BT"], self.config
        old_values, targets = given["value_T"], given["return_T"]
        critic = value_clip(value_BT, old_values, targets, clip=config.cliprange_value)
        return config.vf_coef * reduce_mean(each_token(critic.loss, mask_BT), tokens), {
            "loss/value_avg": stat(critic.loss, on=mask_BT),
            "val/clipfrac_avg": stat(critic.clipped.float(), on=mask_BT),
        }


class Foresight(Taught):
    """The value loss of a critic that shares nothing with the policy: a pass by itself, so what one
    of them leaves for its backward pass is gone before the other begins."""

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        assert isinstance(model, ActorCritic)
        value_BT = model.value(batch.layout)
        return self.value_loss(value_BT, batch.extra, totals["tokens"].clamp(min=1))


class Reinforcement(Taught):
    """The surrogate of a recipe, weighted over the optimiser step, and what is added to it.

    ``foresee``: whether the critic's loss is among that, or has its own `Foresight`.
    """

    def __init__(
        self, config: Any, recipe: Recipe, place: Place = padded, *, foresee: bool = True
    ) -> None:
        super().__init__(config, place)
        self.recipe, self.foresee = recipe, foresee
        self.level = recipe.level or LEVELS[config.importance_sampling_level]

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        config, given, mask_BT = self.config, batch.extra, batch.extra["mask_BT"]
        # A step in which no response counts has a loss of 0.
        totals = {name: count.clamp(min=1) for name, count in totals.items()}
        figures = model(batch.layout, config.temperature, foresee=self.foresee)
        weight_BT = self.recipe.reduction(mask_BT, totals, config.response_length)
        policy, stats = self.surrogate(figures.logp, weight_BT, given)
        kl, more = self.kl(figures.logp, weight_BT, given)
        loss, every_BT = policy + kl, batch.layout.mask_BT
        gap_BT = (figures.logp - given["logp_T"]).abs()
        stats |= more | {
            "policy/approxkl_avg": stat(k2(figures.logp, given["logp_T"]), on=every_BT),
            "policy/entropy_avg": stat(figures.entropy, on=every_BT),
            "sampling/logp_difference": stat(gap_BT, on=every_BT),
        }
        if config.entropy_coef:
            bonus = reduce_mean(each_token(figures.entropy, mask_BT), totals["tokens"])
            loss = loss - config.entropy_coef * bonus
        if figures.value is not None:
            worth, more = self.value_loss(figures.value, given, totals["tokens"])
            loss, stats = loss + worth, stats | more
        return loss, stats

    def surrogate(
        self, logp_BT: Tensor, weight_BT: Tensor, given: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        """The surrogate of all actions."""
        mask_BT = given["mask_BT"]
        new, old = (self.level.logp(x, mask_BT) for x in (logp_BT, given["logp_T"]))
        weight = self.level.weight(weight_BT, mask_BT)
        on = weight > 0
        advantage = given["advantage_T"].expand_as(new)
        found = self.recipe.surrogate(new, old, advantage, **self.config.clips)
        return (weight * found.loss).masked_fill(~on, 0.0).sum(), {
            "loss/policy_avg": stat(found.loss, on=on),
            "policy/clipfrac_avg": stat(found.clipped.float(), on=on),
            "val/ratio": stat(found.ratio, on=on),
        }

    def kl(
        self, logp_BT: Tensor, weight_BT: Tensor, given: Mapping[str, Tensor]
    ) -> tuple[Tensor | float, Sums]:
        """The KL of the loss, if there is one."""
        coefficient, mask_BT = self.config.kl_loss_coef, given["mask_BT"]
        if not coefficient:
            return 0.0, {}
        estimate, level = KL_TERMS[self.config.kl_loss_estimator]
        found = estimate(*(level.logp(x, mask_BT) for x in (logp_BT, given["ref_logp_T"])))
        weight = level.weight(weight_BT, mask_BT)
        return coefficient * (weight * found).sum(), {"loss/kl_avg": stat(found, on=weight > 0)}


class Pretraining:
    """PPO-ptx: the negative log-likelihood per token of other rows, weighted."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def length(self, row: Tokens) -> int:
        return row.length

    def collate(self, rows: Sequence[Tokens]) -> Batch:
        return Batch(padded(rows), {})

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"tokens": batch.layout.scored}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        # At temperature 1: it is the language model that must not forget.
        logp_BT = model(batch.layout, foresee=False).logp
        loss = -reduce_mean(logp_BT, totals["tokens"])
        return self.coefficient * loss, {"loss/ptx_avg": stat(-logp_BT, on=batch.layout.mask_BT)}
