"""A response in the making."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from truing.generation.engine import Request, Sampling, Trajectory


@dataclass
class Response:
    """``limit``: most tokens it may have. ``draws``: a uniform number for each of them."""

    request: Request
    limit: int
    draws: Any
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.request.prompt_ids

    @property
    def uniform(self) -> float:
        """The number behind the next token."""
        return self.draws[len(self.ids)]

    def add(self, token: int, logp: float) -> None:
        self.ids.append(token)
        self.logps.append(logp)

    def ended(self, stops: Collection[int]) -> bool:
        return self.ids[-1] in stops or len(self.ids) == self.limit

    def trajectory(self, stops: Collection[int], version: int, sampling: Sampling) -> Trajectory:
        start = len(self.prompt)
        return Trajectory(
            prompt_key=self.request.prompt_key,
            sample=self.request.sample,
            ids=(*self.prompt, *self.ids),
            roles=(0,) * start + (1,) * len(self.ids),
            logps=tuple(self.logps),
            turns=((start, start + len(self.ids)),),
            finish="stop" if self.ids and self.ids[-1] in stops else "length",
            version=version,
            sampling=sampling,
        )
