"""A world of token counts: a gold reward that saturates, and proxies that think it is linear.

A text is 16 tokens out of 24, drawn one by one from a reference. Gold likes (or dislikes) the first
two of each token, and dislikes more of the same: ``sum_k a_k min(c_k, 2) - 0.6 max(0, c_k - 2)^2``.
A proxy is linear in the counts and learnt from comparisons, so it cannot know that, and the more it
is optimised the further it leaves what it has seen. For a proxy ``w`` the best policy at a price
``1 / strength`` of the KL is known: each token by ``p_k exp(strength w_k) / Z``.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from truing.algorithms import bradley_terry
from truing.conformance.spaces import ROUGHLY, least
from truing.keys import generator

TOKENS, LENGTH, POOL = 24, 16, 2**16
Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """One draw of likes and reference. ``saturates``: whether gold does."""

    seed: int
    saturates: bool = True

    @cached_property
    def likes_V(self) -> Array:
        return generator(self.seed, "counts likes").normal(size=TOKENS)

    @cached_property
    def reference_V(self) -> Array:
        weight_V = np.exp(0.5 * generator(self.seed, "counts reference").normal(size=TOKENS))
        return weight_V / weight_V.sum()

    def worth(self, count: Array) -> Array:
        """Gold of each token's count (..., V), before it is summed over tokens."""
        if not self.saturates:
            return self.likes_V * count
        return self.likes_V * np.minimum(count, 2) - 0.6 * np.maximum(count - 2, 0) ** 2

    def texts(self, count: int, *key: int) -> Array:
        """Counts (count, V) of texts from the reference."""
        random = generator(self.seed, "counts texts", *key)
        return random.multinomial(LENGTH, self.reference_V, size=count).astype(float)

    @cached_property
    def pool_NV(self) -> Array:
        return self.texts(POOL)

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of gold under the reference."""
        gold_N = self.worth(self.pool_NV).sum(-1)
        return float(gold_N.mean()), float(gold_N.std())

    def gold(self, counts_NV: Array) -> Array:
        """Gold of texts, in standard deviations from the reference's mean."""
        mean, deviation = self.scale
        return (self.worth(counts_NV).sum(-1) - mean) / deviation

    def expected_gold(self, policy_V: Array) -> float:
        """The same on average over a policy that draws token by token: exact, by binomials."""
        mean, deviation = self.scale
        count_C1 = np.arange(LENGTH + 1.0)[:, None]
        chance_CV = binom.pmf(count_C1, LENGTH, policy_V)
        worth = (chance_CV * self.worth(np.broadcast_to(count_C1, chance_CV.shape))).sum()
        return float((worth - mean) / deviation)

    def tilted(self, proxy_V: Array, strength: float) -> tuple[Array, float]:
        """The best policy for a proxy at the price ``1 / strength``, and its KL, nats per text."""
        logit_V = np.log(self.reference_V) + strength * proxy_V
        policy_V = np.exp(logit_V - logit_V.max())
        policy_V /= policy_V.sum()
        moved_V = np.log(np.maximum(policy_V, 1e-300) / self.reference_V)
        return policy_V, LENGTH * float(policy_V @ moved_V)

    def at_distance(self, proxy_V: Array, kl: float, *, sign: int = 1) -> Array:
        """The policy at this KL on a proxy's way."""
        low, high = 0.0, 1000.0
        for _ in range(100):
            middle = (low + high) / 2
            if self.tilted(sign * proxy_V, middle)[1] < kl:
                low = middle
            else:
                high = middle
        return self.tilted(sign * proxy_V, low)[0]

    def proxy(
        self, labels: int, *, noise: float = 0.0, member: int | None = None, real: bool = True
    ) -> Array:
        """Weights (V,) from so many comparisons by Bradley-Terry on gold, a share ``noise`` of them
        turned round. ``member``: of the labels drawn with replacement, as one of an ensemble. Not
        ``real``: labels by lot."""
        random = generator(self.seed, "counts labels", labels)
        one_NV, other_NV = self.texts(labels, labels, 0), self.texts(labels, labels, 1)
        gap_N = self.gold(one_NV) - self.gold(other_NV) if real else np.zeros(labels)
        won_N = random.random(labels) < 1 / (1 + np.exp(-gap_N))
        won_N = won_N ^ (random.random(labels) < noise)
        apart_NV = np.where(won_N[:, None], one_NV - other_NV, other_NV - one_NV)
        if member is not None:
            again = generator(self.seed, "counts member", labels, member)
            apart_NV = apart_NV[again.integers(labels, size=labels)]
        apart = torch.from_numpy(apart_NV)

        def loss(weight_V: Tensor) -> Tensor:
            score_N = apart @ weight_V
            # A normal prior of deviation 1 keeps weights finite where labels could be parted.
            prior = weight_V.square().sum() / (2 * labels)
            return bradley_terry(score_N, torch.zeros_like(score_N)).mean() + prior

        return least(loss, torch.zeros(TOKENS, dtype=torch.float64), ROUGHLY).numpy()
