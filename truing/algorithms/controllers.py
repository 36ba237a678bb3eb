"""Small states that outlive a batch: the KL coefficient and running moments. Plain numbers.

Each is a value that never changes: ``after(...)`` gives the next one. ``_asdict()`` is what to
save, and the class called with it what to load.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


class KLController(NamedTuple):
    """The KL coefficient, fixed (``target`` None) or drawn towards a KL of ``target`` nats.

    Formula: ``beta <- beta (1 + e n / horizon)``, ``e = clip(KL / target - 1, -0.2, 0.2)``.
    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2.
    KL is per response, summed over its tokens; n and ``horizon`` count episodes, so a batch of 512
    at a horizon of 10,000 moves beta by 1 % at most.
    """

    coef: float
    target: float | None = None
    horizon: float = 10_000.0

    def after(self, kl: float, episodes: int) -> "KLController":
        """The controller once ``episodes`` with a mean of ``kl`` nats have been seen.

        Raises ValueError for a KL that is no finite number, and for a target or horizon that is
        not positive.
        """
        if self.target is None:
            return self
        if not (self.target > 0 and self.horizon > 0 and math.isfinite(kl)):
            raise ValueError(
                f"target and horizon must be positive and the KL finite, got {self.target}, "
                f"{self.horizon} and {kl}"
            )
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return self._replace(coef=self.coef * (1 + error * episodes / self.horizon))


class Lagrange(NamedTuple):
    """The price of a constraint, ``E cost <= threshold``: it rises while the constraint is broken.

    Formula: ``ln lambda <- ln lambda + lr lambda (cost - threshold)``, and never above ``most``.
    What is learnt from is then ``(r - lambda c - beta KL) / (1 + lambda)``: the division keeps the
    size of a step, and moves no optimum. Where both have settled, the policy is the best of those
    that keep the constraint, or lambda is near 0 and it costs nothing.
    Source: Dai et al. 2023 (Safe RLHF, arXiv:2310.12773), section 3.3 and its appendix.
    Differs: they keep the KL penalty whole, half of it in the reward and half in minus the cost, so
    that a higher price ties the policy to the reference more than the problem says; here all of it
    is divided.
    """

    coef: float = 1.0
    threshold: float = 0.0
    lr: float = 0.01
    most: float | None = None

    def after(self, cost: float) -> "Lagrange":
        """The price once a mean ``cost`` has been seen.

        Raises ValueError for a cost that is no finite number, and for a coef, lr or ``most`` that
        is not positive.
        """
        most = math.inf if self.most is None else self.most
        if not (self.coef > 0 and self.lr > 0 and most > 0 and math.isfinite(cost)):
            raise ValueError(
                f"lambda, its rate and its bound must be positive and the cost finite, got "
                f"{self.coef}, {self.lr}, {self.most} and {cost}"
            )
        step = self.lr * self.coef * (cost - self.threshold)
        # One step of e is far already; more would leave the range of numbers.
        return self._replace(coef=min(self.coef * math.exp(min(step, 1.0)), most))

    def combined(self, reward: Number, cost: Number) -> Number:
        """What a response is paid: ``(r - lambda c) / (1 + lambda)``, of numbers or tensors."""
        return (reward - self.coef * cost) / (1 + self.coef)


class Moments(NamedTuple):
    """How many numbers were seen, their mean and their sum of squared deviations.

    Source: Chan, Golub and LeVeque 1979, the pairwise update: exact, whatever the batches.
    """

    seen: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, values: Sequence[float]) -> "Moments":
        """The moments with ``values`` too. Raises ValueError for one that is no finite number: it
        would never leave the mean again."""
        if not all(math.isfinite(x) for x in values):
            wrong = [x for x in values if not math.isfinite(x)]
            raise ValueError(f"the numbers {wrong[:5]} came: each must be finite")
        if not values:
            return self
        mean = math.fsum(values) / len(values)
        squares = math.fsum((x - mean) ** 2 for x in values)
        seen, gap = self.seen + len(values), mean - self.mean
        return Moments(
            seen,
            self.mean + gap * len(values) / seen,
            self.squares + squares + gap**2 * self.seen * len(values) / seen,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation (population); 1 while all numbers are equal, so one may divide."""
        return math.sqrt(self.squares / self.seen) if self.squares > 0 else 1.0
