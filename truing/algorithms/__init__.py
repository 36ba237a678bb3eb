"""Floor 0: the mathematics. Pure functions, tensors in and out; imports nothing else of ours."""

from truing.algorithms.advantages import (
    gae,
    leave_one_out,
    missing_eos,
    scale_to_unit,
    token_rewards,
    whiten,
)
from truing.algorithms.comparison import (
    bradley_terry,
    centering,
    ranked_pairs,
    score_l2,
    soft_bradley_terry,
    tied_pairs,
)
from truing.algorithms.controllers import KLController, Moments
from truing.algorithms.group import (
    batch_scaled,
    centred,
    flat_groups,
    group_scaled,
    overlong,
)
from truing.algorithms.policy import cispo, explained_variance, ppo_clip, value_clip
from truing.algorithms.preference import cdpo, dpo, hinge, ipo, robust_dpo
from truing.algorithms.process import step_cross_entropy, step_minimum, step_product
from truing.algorithms.ranking import plackett_luce
from truing.algorithms.rating import squared_error
from truing.algorithms.reference_free import cpo, log_odds_ratio, orpo, simpo
from truing.algorithms.tokens import (
    entropy,
    k1,
    k2,
    k3,
    reduce_mean,
    sequence_mean,
    sequence_sum,
    token_logp,
)

__all__ = [
    "KLController",
    "Moments",
    "batch_scaled",
    "bradley_terry",
    "cdpo",
    "centering",
    "centred",
    "cispo",
    "cpo",
    "dpo",
    "entropy",
    "explained_variance",
    "flat_groups",
    "gae",
    "group_scaled",
    "hinge",
    "ipo",
    "k1",
    "k2",
    "k3",
    "leave_one_out",
    "log_odds_ratio",
    "missing_eos",
    "orpo",
    "overlong",
    "plackett_luce",
    "ppo_clip",
    "ranked_pairs",
    "reduce_mean",
    "robust_dpo",
    "scale_to_unit",
    "score_l2",
    "sequence_mean",
    "sequence_sum",
    "simpo",
    "soft_bradley_terry",
    "squared_error",
    "step_cross_entropy",
    "step_minimum",
    "step_product",
    "tied_pairs",
    "token_logp",
    "token_rewards",
    "value_clip",
    "whiten",
]
