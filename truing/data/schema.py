"""The records that the loop passes on: texts, demonstrations, judgements, and where they came from.

A ``Text`` is either a plain string or a list of chat messages. The columns users read and write are
TRL's (``prompt``, ``completion``, ``chosen``, ``rejected``, ``label``, ``completions``, ``ranks``);
`truing.data.formats` maps files to these records and back. Torch is not needed here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]
Source = Literal["human", "ai", "verifier", "model", "unknown"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Text = str | tuple[Message, ...]


@dataclass(frozen=True)
class Provenance:
    """Who or what made a judgement, and under which circumstances.

    ``order`` is the order in which the responses were shown (indices into the record's own order);
    ``simulated`` is true for every judgement that no person and no real judge made.
    """

    source: Source = "unknown"
    author: str = ""
    simulated: bool = False
    guideline: str = ""
    round: int = 0
    order: tuple[int, ...] = ()
    time: str = ""
    extra: dict[str, object] = field(default_factory=dict)


def unfinished(provenance: Provenance) -> frozenset[int]:
    """Which responses of a record (by number) were cut when they were sampled.

    Told by ``finish_reason`` in the provenance, as `truing sample` and OpenAI's servers name it:
    "stop" or "length", or a list of them in the order of the responses. Whatever is not "length"
    is taken as whole.
    """
    told = provenance.extra.get("finish_reason")
    reasons: Sequence[object] = told if isinstance(told, list | tuple) else (told,)
    return frozenset(i for i, reason in enumerate(reasons) if reason == "length")


@dataclass(frozen=True)
class Prompt:
    """A prompt alone: rows for sampling and evaluation. ``key`` is its number for random keys."""

    prompt: Text
    key: int = 0


@dataclass(frozen=True)
class Demonstration:
    """A prompt with one response to imitate (``prompt``, ``completion``, or ``messages``)."""

    prompt: Text
    completion: Text
    provenance: Provenance = Provenance()


@dataclass(frozen=True)
class Comparison:
    """Two responses, the first preferred (``prompt``, ``chosen``, ``rejected``, ``margin``)."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None = None
    provenance: Provenance = Provenance()

    def swap(self) -> "Comparison":
        """The opposite judgement."""
        provenance, told = self.provenance, self.provenance.extra.get("finish_reason")
        if isinstance(told, list | tuple):
            turned = {**provenance.extra, "finish_reason": list(reversed(told))}
            provenance = replace(provenance, extra=turned)
        return Comparison(self.prompt, self.rejected, self.chosen, self.margin, provenance)


@dataclass(frozen=True)
class Ranking:
    """K responses with ranks, 0 the best, equal ranks for ties (``completions``, ``ranks``)."""

    prompt: Text
    completions: tuple[Text, ...]
    ranks: tuple[int, ...]
    provenance: Provenance = Provenance()


@dataclass(frozen=True)
class Label:
    """One response with a thumb up or down (``prompt``, ``completion``, ``label``)."""

    prompt: Text
    completion: Text
    label: bool
    provenance: Provenance = Provenance()


@dataclass(frozen=True)
class Steps:
    """A solution in steps, each right or wrong (``prompt``, ``completions``, ``labels``)."""

    prompt: Text
    completions: tuple[Text, ...]
    labels: tuple[bool, ...]
    provenance: Provenance = Provenance()


Record = Prompt | Demonstration | Comparison | Ranking | Label | Steps

KINDS: dict[str, type[Record]] = {
    kind.__name__.lower(): kind
    for kind in (Prompt, Demonstration, Comparison, Ranking, Label, Steps)
}
