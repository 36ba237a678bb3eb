"""The lead's pages: campaigns, how one gets on, its texts."""

import datetime
import math
import secrets
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from truing.data.ledger import Annotator, Campaign, Ledger
from truing.data.ledger.campaigns import STATES, day_of
from truing.data.ledger.columns import filled, keys, purposes
from truing.feedback.rules import rules_of
from truing.web.auth import require, text_field
from truing.web.figures import DAYS, outlook, per_day
from truing.web.pages import Number, ledger_of, page

router = APIRouter(prefix="/lead")
Reviewer, Admin = Depends(require("reviewer")), Depends(require("admin"))
# What may follow a state, and what the button says.
NEXT = {
    "draft": {"pilot": "Begin the pilot", "open": "Open"},
    "pilot": {"open": "End the pilot and open", "paused": "Pause"},
    "open": {"paused": "Pause", "closed": "Close"},
    "paused": {"pilot": "Go on as a pilot", "open": "Open", "closed": "Close"},
    "closed": {"open": "Open again"},
}
PAPERS = {
    "guideline": "What people are asked to look at, with examples. Markdown.",
    "consent": "What people agree to before they begin: purpose, pay, data, how to leave.",
    "warning": "What upsetting things may come. Who declines gets nothing, or other items.",
}
KEY_DAYS = 365


def number_field(request: Request, name: str, least: float, most: float, start: float) -> float:
    """A number of a form or a query; ``start`` if it is empty. ValueError for others."""
    given = request.state.form.get(name, request.query_params.get(name, ""))
    if not isinstance(given, str) or not given.strip():
        return start
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ValueError(f"{name} is {given[:40]!r}; needed: a number from {least:g} to {most:g}")
    return value


def lead_page(request: Request, template: str, campaign: Campaign, **context: Any) -> Response:
    """A page of one campaign, with its tabs."""
    return page(request, f"lead/{template}", campaign=campaign, next=NEXT, **context)


@router.get("")
def campaigns(request: Request, me: Annotator = Reviewer) -> Response:
    """All campaigns, the newest first."""
    ledger = ledger_of(request)
    with ledger.reading() as c:
        rows = [
            {
                "campaign": campaign,
                "all": ledger.progress(campaign.id),
                "filled": filled(c, campaign.id),
            }
            for campaign in reversed(ledger.campaigns())
        ]
    return page(request, "lead/campaigns.html", rows=rows)


# --- keys of the API ------------------------------------------------------------------------------


def _keys_page(request: Request, secret: str = "") -> Response:
    ledger = ledger_of(request)
    with ledger.reading() as c:
        rows = [
            {**row, "by": ledger.annotator(row["annotator_id"]).pseudonym}
            for row in keys(c, ledger.now())
        ]
    for row in rows:
        row |= {"from": day_of(row["created_at"]), "to": day_of(row["expires_at"])}
    return page(request, "lead/keys.html", rows=rows, secret=secret, days=KEY_DAYS)


@router.get("/keys")
def keys_page(request: Request, me: Annotator = Admin) -> Response:
    return _keys_page(request)


@router.post("/keys")
def change_keys(request: Request, me: Annotator = Admin) -> Response:
    """Make a key, shown this once; or withdraw one."""
    ledger = ledger_of(request)
    if ended := text_field(request, "end", 20):
        with ledger.reading() as c:
            known = {str(row["id"]): row["id"] for row in keys(c, ledger.now())}
        if ended not in known:
            raise LookupError(f"there is no key {ended}")
        ledger.end_token(known[ended])
        return RedirectResponse("/lead/keys", 303)
    name = text_field(request, "name", 100).strip()
    if not name:
        raise ValueError("a name is missing: say what the key is for")
    days = number_field(request, "days", 1, 3650, KEY_DAYS)
    secret = ledger.issue_token("api", 86400 * days, annotator_id=me.id, data={"name": name})
    return _keys_page(request, secret)


# --- one campaign ---------------------------------------------------------------------------------


def _progress(ledger: Ledger, campaign: Campaign) -> dict[str, Any]:
    """What the live part of the page shows."""
    names = {person.id: person for person in ledger.annotators(campaign.id)}
    today, tallies = day_of(ledger.now()), ledger.tallies(campaign.id)
    people = dict[int, dict[str, Any]]()
    for row in tallies:
        if (who := row["annotator_id"]) in names:
            mine = people.setdefault(who, {"name": names[who].pseudonym, "done": 0, "today": 0})
            mine["done"] += row["done"]
            mine["today"] += row["done"] if row["day"] == today else 0
    days = [*per_day(tallies, today), sum(p["today"] for p in people.values())]
    with ledger.reading() as c:
        came = filled(c, campaign.id)
    end, most = datetime.date.fromisoformat(today), max(*days, 1)
    return {
        "all": ledger.progress(campaign.id),
        "filled": came,
        "people": sorted(people.values(), key=lambda p: (-p["today"], -p["done"]))[:8],
        "waiting": sum(not q.answers for q in ledger.questions(campaign.id)),
        "clock": datetime.datetime.fromtimestamp(ledger.now() / 1000, datetime.UTC),
        "days": [
            {"day": end - datetime.timedelta(len(days) - 1 - i), "n": n, "share": n / most}
            for i, n in enumerate(days)
        ],
    }


@router.get("/{campaign_id}")
def overview(request: Request, campaign_id: Number, me: Annotator = Reviewer) -> Response:
    """How far it is, who works, when it will be done and what that costs."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    rules = rules_of(campaign.config)
    hourly = number_field(request, "hourly", 0, 1e6, 0)
    each = number_field(request, "each", 0, 1e6, 0)
    today = day_of(ledger.now())
    told, seconds = outlook(ledger, campaign_id, rules, today, hourly, each)
    with ledger.reading() as c:
        there = purposes(c, campaign_id)
    ends = [_date(today, days) for days in (told.days, told.soonest, told.latest)] if told else []
    return lead_page(
        request,
        "overview.html",
        campaign,
        tab="",
        rules=rules,
        forecast=told,
        ends=ends,
        seconds=seconds,
        hourly=hourly,
        each=each,
        days_counted=DAYS,
        there=there,
        papers={paper.kind: paper for paper in ledger.documents(campaign_id)},
        members=len(ledger.annotators(campaign_id)),
        **_progress(ledger, campaign),
    )


def _date(today: str, days: float) -> str:
    """The day that lies so many days ahead; empty if it may never come."""
    if not days < 36_500:
        return ""
    return (datetime.date.fromisoformat(today) + datetime.timedelta(math.ceil(days))).isoformat()


@router.get("/{campaign_id}/progress")
def progress(request: Request, campaign_id: Number, me: Annotator = Reviewer) -> Response:
    """The live part of the page by itself; its script asks for it every few seconds."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    return lead_page(request, "live.html", campaign, **_progress(ledger, campaign))


@router.post("/{campaign_id}/state")
def change_state(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    """Begin, pause, close. The end of a pilot begins a round, so that its judgements stay apart."""
    ledger, state = ledger_of(request), text_field(request, "state", 20)
    campaign = ledger.campaign(campaign_id)
    if state not in STATES or state not in NEXT[campaign.state]:
        wanted = ", ".join(NEXT[campaign.state])
        raise ValueError(f"a campaign that is {campaign.state} can become: {wanted}")
    ends = state == "open" and campaign.state == "pilot"
    round_ = campaign.round + 1 if ends else None
    ledger.set_campaign(campaign_id, state=state, round=round_, actor=me.id)
    return RedirectResponse(f"/lead/{campaign_id}", 303)


# --- guideline, consent, warning ------------------------------------------------------------------


@router.get("/{campaign_id}/texts")
def texts(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    versions = ledger.documents(campaign_id)
    rows = [
        {
            "kind": kind,
            "about": about,
            "versions": [paper for paper in reversed(versions) if paper.kind == kind],
        }
        for kind, about in PAPERS.items()
    ]
    return lead_page(request, "texts.html", campaign, tab="texts", rows=rows, day_of=day_of)


@router.post("/{campaign_id}/texts")
def add_text(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    """A new version of a text; people read it before their next item."""
    kind, text = text_field(request, "kind", 20), text_field(request, "text", 100_000)
    if kind not in PAPERS:
        raise ValueError(f"kind is {kind!r}; needed: one of {', '.join(PAPERS)}")
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise ValueError(f"the {kind} is empty: write it first")
    ledger_of(request).add_document(campaign_id, kind, text + "\n", actor=me.id)
    return RedirectResponse(f"/lead/{campaign_id}/texts", 303)


# --- questions ------------------------------------------------------------------------------------


@router.get("/{campaign_id}/questions")
def questions(request: Request, campaign_id: Number, me: Annotator = Reviewer) -> Response:
    """What people asked, what still waits first."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    names = {person.id: person.pseudonym for person in ledger.annotators()}
    asked = sorted(ledger.questions(campaign_id), key=lambda q: (bool(q.answers), -q.judgement.id))
    return lead_page(
        request,
        "questions.html",
        campaign,
        tab="questions",
        asked=asked,
        names=names,
        token=secrets.token_hex(12),
        day_of=day_of,
    )


@router.post("/{campaign_id}/questions/{question_id}")
def answer(
    request: Request, campaign_id: Number, question_id: Number, me: Annotator = Reviewer
) -> Response:
    """Answer one, for all members to read."""
    ledger = ledger_of(request)
    if question_id not in {q.judgement.id for q in ledger.questions(campaign_id)}:
        raise LookupError(f"campaign {campaign_id} has no question {question_id}")
    text = text_field(request, "text", 20_000).strip()
    if not text:
        raise ValueError("the answer is empty: write it first")
    token = text_field(request, "token", 64)
    ledger.answer(question_id, text, me.id, token=token or secrets.token_hex(12))
    return RedirectResponse(f"/lead/{campaign_id}/questions", 303)
