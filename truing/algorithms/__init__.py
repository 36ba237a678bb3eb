"""Floor 0: the mathematics. Pure functions, tensors in and out; imports nothing else of ours."""

from truing.algorithms.advantages import (
    gae,
    leave_one_out,
    missing_eos,
    scale_to_unit,
    token_rewards,
    whiten,
)
from truing.algorithms.comparison import bradley_terry, centering, ranked_pairs
from truing.algorithms.controllers import KLController, Moments
from truing.algorithms.policy import explained_variance, ppo_clip, value_clip
from truing.algorithms.preference import dpo
from truing.algorithms.tokens import (
    entropy,
    k1,
    k2,
    k3,
    reduce_mean,
    sequence_sum,
    token_logp,
)

__all__ = [
    "KLController",
    "Moments",
    "bradley_terry",
    "centering",
    "dpo",
    "entropy",
    "explained_variance",
    "gae",
    "k1",
    "k2",
    "k3",
    "leave_one_out",
    "missing_eos",
    "ppo_clip",
    "ranked_pairs",
    "reduce_mean",
    "scale_to_unit",
    "sequence_sum",
    "token_logp",
    "token_rewards",
    "value_clip",
    "whiten",
]
