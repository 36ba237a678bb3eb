"""Floor 0: the mathematics. Pure functions, tensors in and out; imports nothing else of ours."""

from truing.algorithms.comparison import bradley_terry, centering, ranked_pairs
from truing.algorithms.preference import dpo
from truing.algorithms.tokens import k1, k3, reduce_mean, sequence_sum, token_logp

__all__ = [
    "bradley_terry",
    "centering",
    "dpo",
    "k1",
    "k3",
    "ranked_pairs",
    "reduce_mean",
    "sequence_sum",
    "token_logp",
]
