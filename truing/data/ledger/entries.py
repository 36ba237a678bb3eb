"""What the ledger takes and gives: frozen records of plain data, and its two refusals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Filling = Literal[
    "pairwise", "ranking", "rating", "thumbs", "steps", "spans", "demonstration", "edit"
]
Kind = Literal[Filling, "critique", "flag", "skip", "question", "answer"]
Purpose = Literal["work", "gold", "practice", "screening"]
Json = dict[str, Any]


class Taken(ValueError):
    """The item has no free slot, or this person had it already: take another candidate."""


class Late(ValueError):
    """The assignment is over (undone elsewhere, skipped, judged) and takes no more."""


@dataclass(frozen=True)
class Annotator:
    """Who judges, by pseudonym. ``role``: annotator, reviewer, admin; ``state``: active, suspended,
    erased; ``source``: human, ai, verifier; ``tags``: what they are expert in."""

    id: int
    pseudonym: str
    source: str
    role: str
    state: str
    simulated: bool
    tags: list[str]
    external_id: str | None
    created_at: int


@dataclass(frozen=True)
class Campaign:
    """A collection of items judged in one way. ``kind``: what fills an item's slot; ``state``:
    draft, pilot, open, paused, closed; ``config``: plain data for the policy and the pages."""

    id: int
    name: str
    kind: str
    state: str
    seed: int
    round: int
    config: Json
    external_id: str | None
    created_at: int


@dataclass(frozen=True)
class Document:
    """A version of a text that people are shown: kind guideline, consent or warning."""

    id: int
    campaign_id: int
    kind: str
    version: int
    text: str
    at: int


@dataclass(frozen=True)
class Member:
    """A person's part in a campaign. ``progress`` is the pages' own (practice, screening)."""

    campaign_id: int
    annotator_id: int
    state: str
    progress: Json
    joined_at: int


@dataclass(frozen=True)
class NewResponse:
    """A response to add: a text, messages, or ``{"steps": [...]}``; ``origin`` holds sampling,
    seed, finish_reason. ``model`` and ``run`` are kept for the lead and never shown."""

    content: Any
    model: str = ""
    run: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class NewItem:
    """An item to add.

    ``prompt``: a text or messages. ``wanted``: how many judgements (slots). ``control``: whether it
    is of the control arm, which stands in line least held first, then by ``key`` (None: by chance,
    from the campaign's seed); the others stand in line by ``score``, the highest first. ``kind``:
    the campaign's if empty. ``expected`` and ``explanation`` are of gold, practice and screening
    items: ``{"kind": ..., "value": ...}`` as an `Answer`'s, naming responses by their place in
    ``responses``, from 0. The order of ``responses`` is not the order shown.
    """

    prompt: Any
    responses: tuple[NewResponse, ...]
    kind: str = ""
    purpose: str = "work"
    domain: str = ""
    tags: tuple[str, ...] = ()
    wanted: int = 1
    score: float | None = None
    control: bool = True
    key: float | None = None
    expected: Json | None = None
    explanation: str | None = None
    external_id: str | None = None


@dataclass(frozen=True)
class Response:
    """A response as stored. Pages show ``content`` alone."""

    id: int
    content: Any
    model: str
    run: str
    origin: Json


@dataclass(frozen=True)
class Item:
    """An item with its texts; ``responses`` stand in the order of the file they came from."""

    id: int
    campaign_id: int
    kind: str
    purpose: str
    domain: str
    tags: list[str]
    prompt: Any
    responses: tuple[Response, ...]
    score: float | None
    control: bool
    expected: Json | None
    explanation: str | None
    wanted: int
    load: int
    done: int


@dataclass(frozen=True)
class Candidate:
    """What a policy needs to choose the next item, without texts. ``load``: slots held, of which
    ``done`` are judged; ``key``: the place in line (of the active arm, minus the score)."""

    item_id: int
    kind: str
    purpose: str
    domain: str
    tags: list[str]
    score: float | None
    control: bool
    wanted: int
    load: int
    done: int
    key: float
    response_ids: tuple[int, ...]


@dataclass(frozen=True)
class Lease:
    """An assignment. ``shown``: response ids in the order shown; ``state``: leased, done, skipped,
    expired, released; ``arm``: by which the policy chose it; ``slot``: whether it takes one of the
    item's slots (re-tests do not)."""

    id: int
    campaign_id: int
    item_id: int
    annotator_id: int
    retest: int
    state: str
    arm: str
    shown: list[int]
    guideline_id: int | None
    slot: bool
    leased_at: int
    expires_at: int
    draft: Json | None


@dataclass(frozen=True)
class Answer:
    """One thing said of an item, to be submitted. ``value`` and ``text`` by kind:

    - pairwise: ``{"outcome": "better" | "tie" | "both_bad", "preferred": id | None,
      "strength": 1 | 2 | None}`` (2: much better)
    - ranking: ``{"responses": [ids], "ranks": [0, 1, 1]}``, 0 the best, equal for ties
    - rating: ``{"responses": [ids], "aspects": {"helpful": [4, 2], ...}}``
    - thumbs: ``{"responses": [ids], "labels": [true, ...]}``
    - steps: ``{"response": id, "labels": [1, 0, -1, ...]}``, one of each step up to the last judged
    - spans: ``{"spans": [{"response": id, "start": 3, "end": 9, "label": "...", "severity": 1}]}``
    - critique: ``{"response": id | None}`` and the text
    - edit: ``{"response": id}`` and the whole new text
    - demonstration: ``{}`` and a response written from nothing
    - flag, skip: ``{"reason": "..."}``, and a text if there is more to say
    - question: ``{}`` and the text, for the lead
    - answer: ``{"question": the judgement's id}`` and the text, by the lead (`Ledger.answer`)
    """

    kind: Kind
    value: Json = field(default_factory=dict[str, Any])
    text: str | None = None


@dataclass(frozen=True)
class Told:
    """Judgements made elsewhere, to be recorded as they are: by an import, a judge, a verifier, a
    simulation, or a lead who decides. ``answers`` are one submission; ``shown`` is empty where the
    order is not known; ``token``: unique for each submission of an annotator."""

    item_id: int
    annotator_id: int
    answers: tuple[Answer, ...]
    token: str
    arm: str = ""
    shown: tuple[int, ...] = ()
    retest: int = 0
    guideline_id: int | None = None
    active_ms: int = 0
    timing: Mapping[str, Any] = field(default_factory=dict[str, Any])
    at: int | None = None


@dataclass(frozen=True)
class Judgement:
    """What was said, as stored. ``status``: current, superseded (``supersedes`` of a later one
    names it), undone, quarantined. ``text`` is None where there was none or it was erased."""

    id: int
    campaign_id: int
    seq: int
    item_id: int
    annotator_id: int
    assignment_id: int | None
    kind: str
    purpose: str
    arm: str
    value: Json
    text: str | None
    shown: list[int]
    retest: int
    guideline_id: int | None
    active_ms: int
    timing: Json
    round: int
    source: str
    simulated: bool
    late: bool
    supersedes: int | None
    at: int
    status: str


class Decided(NamedTuple):
    """A judgement as the policy needs it: when, of what and by which arm, not what was said."""

    id: int
    assignment_id: int | None
    item_id: int
    kind: str
    purpose: str
    arm: str
    retest: int
    shown: list[int]
    active_ms: int
    at: int


@dataclass(frozen=True)
class Question:
    """A question to the lead, with the answers given to it (oldest first)."""

    judgement: Judgement
    answers: tuple[Judgement, ...]


@dataclass(frozen=True)
class Progress:
    """How far a campaign, or one person in it, has come. Of a person ``items`` and ``slots`` are
    the campaign's, of which ``filled`` are. ``today``: those of this UTC day."""

    items: int
    slots: int
    done: int
    skipped: int
    active_ms: int
    today: int
    today_skipped: int
    filled: int
