"""The REST API: campaigns, items, judgements, progress and people, for programs with a key.

Keys are made by admins (`/lead/keys`), end, can be withdrawn, and do what their owner may do. The
specification is at ``/openapi.json``. Numbers of responses are the ledger's; names and addresses of
people are not here.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from truing.data.ledger import Annotator, NewItem, NewResponse
from truing.data.ledger.columns import judgements_after, numbers_after
from truing.data.ledger.tables import written
from truing.feedback.rules import config_of, rules_of
from truing.web.auth import ROLES, require
from truing.web.figures import numbers_of
from truing.web.lead import NEXT
from truing.web.pages import Number, ledger_of

MOST = 1000  # rows of a page, and items of a request
BIG = 2**62


class Ascii(JSONResponse):
    """JSON that can hold any text that a model wrote, half characters included."""

    def render(self, content: Any) -> bytes:
        return written(content).encode("utf-8")


_BEARER = HTTPBearer(auto_error=False, description="A key that an admin made at /lead/keys.")
Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


def holder(request: Request, given: Given) -> Annotator:
    """Whose key it is. 401 for none or one that is over, 403 where the owner may not lead."""
    ledger = ledger_of(request)
    known = ledger.token("api", given.credentials) if given is not None else None
    if known is None or known["annotator_id"] is None:
        told = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "A key is needed: Authorization: Bearer ...", told)
    me = ledger.annotator(known["annotator_id"])
    request.state.me = me
    if me.role != ROLES[-1]:
        raise HTTPException(403, "The owner of this key is no admin.")
    return me


Holder = Annotated[Annotator, Depends(holder)]
SAYS: Any = {
    400: {"description": "What came cannot be used; the answer says what is needed."},
    401: {"description": "No key, or one that is over."},
    403: {"description": "The key's owner may not do this."},
    404: {"description": "There is no such thing."},
}
router = APIRouter(prefix="/api/v1", default_response_class=Ascii, responses=SAYS)
Kind = Literal["pairwise", "ranking", "rating", "thumbs", "steps", "demonstration", "edit"]
State = Literal["draft", "pilot", "open", "paused", "closed"]
After = Annotated[int, Query(ge=0, le=BIG, description="Only what comes after this.")]
Limit = Annotated[int, Query(ge=1, le=MOST, description="At most so many.")]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Short = Annotated[str, Field(max_length=300)]
# What fits into the database's numbers.
Number64 = Annotated[int, Field(ge=-(2**62), le=2**62)]


class Body(BaseModel):
    """What is sent: a field that there is not is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class CampaignIn(Body):
    name: Name
    kind: Kind = "pairwise"
    rules: dict[str, Any] = Field({}, description="As in docs/labelling.md: overlap, gold_share...")
    seed: int = Field(0, ge=0, le=2**31)


class StateIn(Body):
    state: State


class CampaignOut(BaseModel):
    id: int
    name: str
    kind: str
    state: str
    round: int
    seed: int
    rules: dict[str, Any]
    created_at: int = Field(description="Milliseconds since 1970, UTC.")


class ProgressOut(BaseModel):
    items: int
    slots: int = Field(description="Judgements wanted.")
    filled: int = Field(description="Of those wanted, how many came.")
    done: int = Field(description="All that came: late ones, re-tests, gold and the like too.")
    skipped: int
    active_ms: int
    today: int


class MessageIn(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=400_000)


TextIn = Annotated[str, Field(max_length=400_000)] | Annotated[list[MessageIn], Field(min_length=1)]


class ResponseIn(Body):
    content: TextIn
    model: Short = Field("", description="Kept for the lead, never shown.")
    run: Short = ""
    origin: dict[str, str | int | float | bool | None] = {}


class ItemIn(Body):
    prompt: TextIn
    responses: list[ResponseIn] = Field(max_length=64)
    domain: Annotated[str, Field(max_length=100)] = ""
    tags: list[Name] = Field([], max_length=50)
    score: float | None = Field(None, description="For active selection: the highest first.")
    external_id: Annotated[str, Field(max_length=200)] | None = None


class ItemsIn(Body):
    items: list[ItemIn] = Field(min_length=1, max_length=MOST)


class Added(BaseModel):
    added: int


class ResponseOut(BaseModel):
    id: int
    content: Any
    model: str
    run: str


class ItemOut(BaseModel):
    id: int
    kind: str
    purpose: str
    domain: str
    tags: list[str]
    prompt: Any
    responses: list[ResponseOut]
    wanted: int
    done: int


class JudgementOut(BaseModel):
    id: int
    seq: int = Field(description="Place in the campaign's chain; give it as `after`.")
    item_id: int
    annotator: str = Field(description="A pseudonym.")
    kind: str
    purpose: str
    value: dict[str, Any]
    text: Any
    shown: list[int] = Field(description="Responses in the order shown.")
    retest: int
    active_ms: int
    round: int
    source: str
    simulated: bool
    status: str = Field(description="current, superseded, undone or quarantined.")
    at: int


class ShareOut(BaseModel):
    value: float
    low: float
    high: float
    n: int


class PersonOut(BaseModel):
    annotator: str
    state: str
    done: int
    skipped: int
    active_ms: int
    agreement: ShareOut | None
    self_agreement: ShareOut | None
    first_shown: ShareOut | None
    gold: ShareOut | None
    flags: list[str]


class AgreementOut(BaseModel):
    judgements: int
    same_side: ShareOut | None
    alpha: ShareOut | None
    reason: str
    disagreements: list[int] = Field(description="Items, the furthest apart first.")
    wins: list[dict[str, Any]]


def _campaign(campaign: Any) -> CampaignOut:
    rules = rules_of(campaign.config).model_dump(mode="json")
    own = {name: getattr(campaign, name) for name in CampaignOut.model_fields if name != "rules"}
    return CampaignOut(**own, rules=rules)


def _share(x: Any) -> ShareOut | None:
    return None if x is None else ShareOut(value=x.value, low=x.low, high=x.high, n=x.n)


@router.get("/campaigns")
def campaigns(request: Request, me: Holder) -> list[CampaignOut]:
    return [_campaign(campaign) for campaign in ledger_of(request).campaigns()]


@router.post("/campaigns", status_code=201)
def create(request: Request, me: Holder, body: CampaignIn) -> CampaignOut:
    """A new campaign, a draft."""
    config = config_of(body.kind, body.rules)
    made = ledger_of(request).create_campaign(
        body.name, body.kind, config=config, seed=body.seed, actor=me.id
    )
    return _campaign(made)


@router.get("/campaigns/{campaign_id}")
def campaign(request: Request, me: Holder, campaign_id: Number) -> CampaignOut:
    return _campaign(ledger_of(request).campaign(campaign_id))


@router.post("/campaigns/{campaign_id}/state")
def change_state(request: Request, me: Holder, campaign_id: Number, body: StateIn) -> CampaignOut:
    """Begin a pilot, open, pause, close. The end of a pilot begins a round."""
    ledger = ledger_of(request)
    before = ledger.campaign(campaign_id)
    if body.state not in NEXT[before.state]:
        wanted = ", ".join(NEXT[before.state])
        raise ValueError(f"a campaign that is {before.state} can become: {wanted}")
    ends = (before.state, body.state) == ("pilot", "open")
    round_ = before.round + 1 if ends else None
    return _campaign(ledger.set_campaign(campaign_id, state=body.state, round=round_, actor=me.id))


@router.get("/campaigns/{campaign_id}/progress")
def progress(request: Request, me: Holder, campaign_id: Number) -> ProgressOut:
    ledger = ledger_of(request)
    told = ledger.progress(ledger.campaign(campaign_id).id)
    return ProgressOut(**{name: getattr(told, name) for name in ProgressOut.model_fields})


@router.post("/campaigns/{campaign_id}/items", status_code=201)
def add_items(request: Request, me: Holder, campaign_id: Number, body: ItemsIn) -> Added:
    """Add items to be judged; all of them or none."""
    ledger = ledger_of(request)
    found = ledger.campaign(campaign_id)
    overlap = rules_of(found.config).overlap

    def plain(text: Any) -> Any:
        return text if isinstance(text, str) else [message.model_dump() for message in text]

    new = [
        NewItem(
            plain(item.prompt),
            tuple(NewResponse(plain(r.content), r.model, r.run, r.origin) for r in item.responses),
            domain=item.domain,
            tags=tuple(item.tags),
            wanted=overlap,
            score=item.score,
            control=item.score is None,
            external_id=item.external_id,
        )
        for item in body.items
    ]
    return Added(added=ledger.add_items(campaign_id, new, actor=me.id, batch=MOST))


@router.get("/campaigns/{campaign_id}/items")
def items(
    request: Request, me: Holder, campaign_id: Number, after: After = 0, limit: Limit = 100
) -> list[ItemOut]:
    """Items by number. The last one's number is the `after` of the next page."""
    ledger = ledger_of(request)
    with ledger.reading() as c:
        numbers = numbers_after(c, ledger.campaign(campaign_id).id, after, limit)
    return [ItemOut.model_validate(item, from_attributes=True) for item in ledger.items(numbers)]


@router.get("/campaigns/{campaign_id}/judgements")
def judgements(
    request: Request, me: Holder, campaign_id: Number, after: After = 0, limit: Limit = 100
) -> list[JudgementOut]:
    """Everything said, in the order of the chain, with what became of it."""
    ledger = ledger_of(request)
    names = {person.id: person.pseudonym for person in ledger.annotators()}
    with ledger.reading() as c:
        rows = judgements_after(c, ledger.campaign(campaign_id).id, after, limit)
    return [JudgementOut(annotator=names[row["annotator_id"]], **row) for row in rows]


@router.get("/campaigns/{campaign_id}/annotators")
def annotators(request: Request, me: Holder, campaign_id: Number) -> list[PersonOut]:
    """Who judged, by pseudonym, with figures as on the lead's page."""
    ledger = ledger_of(request)
    found = ledger.campaign(campaign_id)
    profiles = numbers_of(request, found.id).people
    counts = dict[int, dict[str, int]]()
    for row in ledger.tallies(found.id):
        mine = counts.setdefault(row["annotator_id"], {})
        for name in ("done", "skipped", "active_ms"):
            mine[name] = mine.get(name, 0) + row[name]
    people = list[PersonOut]()
    for person in ledger.annotators(found.id):
        profile = profiles.get(person.id)
        shares = ("agreement", "self_agreement", "first_shown", "gold")
        figures = {n: _share(getattr(profile.figures, n)) if profile else None for n in shares}
        told = {"done": 0, "skipped": 0, "active_ms": 0} | counts.get(person.id, {})
        state = ledger.member(found.id, person.id).state
        flags = list(profile.flags) if profile else []
        said = {"annotator": person.pseudonym, "state": state, "flags": flags}
        people.append(PersonOut.model_validate({**said, **told, **figures}))
    return people


@router.get("/campaigns/{campaign_id}/agreement")
def agreement(request: Request, me: Holder, campaign_id: Number) -> AgreementOut:
    """How far people agree, on what they do not, and how often systems beat each other."""
    numbers = numbers_of(request, ledger_of(request).campaign(campaign_id).id)
    known = numbers.alpha is not None and not numbers.alpha.reason
    return AgreementOut(
        judgements=numbers.n,
        same_side=_share(numbers.percent),
        alpha=_share(numbers.alpha) if known else None,
        reason=numbers.reason,
        disagreements=[int(each.item) for each in numbers.disputes[:MOST]],
        wins=[{"a": w.a, "b": w.b, **w.rate._asdict()} for w in numbers.wins],
    )


# --- the specification ----------------------------------------------------------------------------

specification = APIRouter()


@specification.get("/openapi.json")
def openapi(request: Request, given: Given) -> Response:
    """What there is, for signed-in admins and for keys."""
    if given is None:
        require(ROLES[-1])(request)
    else:
        holder(request, given)
    make: Callable[[], dict[str, Any]] = request.app.openapi
    return Ascii(make())
