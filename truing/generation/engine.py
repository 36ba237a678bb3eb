"""What sampling takes and gives: the `Engine` protocol, `Sampling`, and `Trajectory`. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. ``max_completion_length`` in tokens, EOS included.

    Temperature 0 is greedy. A ``top_p`` below 1 draws from the smallest set of tokens that holds
    that much probability; the recorded log-probs stay those of the untruncated distribution, so
    such trajectories are marked by their sampling record and are no fit for policy gradients.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_completion_length: int = 64
    seed: int = 0
    stream: str = "sample"

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_completion_length < 1:
            raise ValueError(
                "sampling needs temperature >= 0, 0 < top_p <= 1 and max_completion_length >= 1, "
                f"got {self}"
            )


class Request(NamedTuple):
    """A prompt to be continued. (``prompt_key``, ``sample``) names its random numbers."""

    prompt_ids: tuple[int, ...]
    prompt_key: int
    sample: int = 0


@dataclass(frozen=True)
class Trajectory:
    """One sampled episode, with all that a trainer needs to learn from it later.

    ids: prompt and everything after it. roles: for each token 0 context (prompt, or what a tool
    or user said), 1 sampled by the policy. logps: behaviour log-prob of each sampled token at the
    sampling temperature, in order. turns: (start, end) of each stretch the policy spoke. version:
    the policy's weight version.
    """

    prompt_key: int
    sample: int
    ids: tuple[int, ...]
    roles: tuple[int, ...]
    logps: tuple[float, ...]
    turns: tuple[tuple[int, int], ...]
    finish: Finish
    version: int
    sampling: Sampling

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.ids[: self.turns[0][0]]

    @property
    def response_ids(self) -> tuple[int, ...]:
        """Tokens of the last turn, a closing EOS included."""
        start, end = self.turns[-1]
        return self.ids[start:end]


@dataclass
class Counts:
    """What an engine did, in all its calls. ``path``: by which way the model was run last, "llama"
    (fast, for the Llama family) or "transformers". Tokens: read of prompts, spared because a prompt
    was read already, and fed back one a step. ``replayed``: steps in the shapes of a graph, which a
    GPU records; ``whole``: steps that were one call, on a CPU."""

    path: str = ""
    prompt_tokens: int = 0
    prefix_tokens_saved: int = 0
    steps: int = 0
    tokens: int = 0
    slots_refilled: int = 0
    replayed: int = 0
    whole: int = 0


class Engine(Protocol):
    """Anything that continues prompts: the live policy, or a server."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Trajectory]:
        """One trajectory for each request, in the order of the requests."""
        ...
