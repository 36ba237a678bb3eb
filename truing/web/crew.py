"""The lead's pages about people: who they are, how they do, who is invited, who is on hold."""

import datetime
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from truing.data.ledger import Annotator, Campaign, Ledger, Member
from truing.data.ledger.campaigns import day_of
from truing.web.auth import ROLES, invite, text_field
from truing.web.figures import numbers_of
from truing.web.lead import Admin, Reviewer, lead_page, number_field
from truing.web.pages import Number, ledger_of

router = APIRouter(prefix="/lead/{campaign_id}")
MOST = 500  # links at once
FLAGS = {
    "side": "leans to one side",
    "agreement": "agrees less with others",
    "self-agreement": "repeats less of what was said before",
    "gold": "misses more known answers",
    "length": "leans to the longer response",
    "speed": "is twice as fast as others",
}


def _rows(request: Request, campaign: Campaign) -> list[dict[str, Any]]:
    """Each member with counts, time and figures; those with most trouble first."""
    ledger = ledger_of(request)
    numbers, today = numbers_of(request, campaign.id), day_of(ledger.now())
    counts = dict[int, dict[str, int]]()
    for row in ledger.tallies(campaign.id):
        mine = counts.setdefault(row["annotator_id"], dict.fromkeys(("done", "skipped", "ms"), 0))
        mine |= {"done": mine["done"] + row["done"], "skipped": mine["skipped"] + row["skipped"]}
        mine["ms"] += row["active_ms"]
        mine["today"] = mine.get("today", 0) + (row["done"] if row["day"] == today else 0)
    people = ledger.annotators(campaign.id)
    order = {number: place for place, number in enumerate(numbers.people)}
    return [
        {
            "person": person,
            "member": ledger.member(campaign.id, person.id),
            "profile": numbers.people.get(person.id),
            "done": 0,
            "skipped": 0,
            "ms": 0,
            "today": 0,
            **counts.get(person.id, {}),
        }
        for person in sorted(people, key=lambda p: (order.get(p.id, len(order)), p.id))
    ]


def _names(ledger: Ledger, me: Annotator, people: list[Annotator]) -> dict[int, str]:
    """Who people are: for admins. Reviewers work with pseudonyms."""
    if me.role != "admin":
        return {}
    known = ((p.id, ledger.identity(annotator_id=p.id)) for p in people)
    return {number: row["name"] or row["email"] for number, row in known if row}


@router.get("/people")
def people(request: Request, campaign_id: Number, me: Annotator = Reviewer) -> Response:
    """The table of annotators: time, agreement with others and oneself, sides, gold."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    rows = _rows(request, campaign)
    return lead_page(
        request,
        "people.html",
        campaign,
        tab="people",
        rows=rows,
        names=_names(ledger, me, [row["person"] for row in rows]),
        numbers=numbers_of(request, campaign_id),
        flags=FLAGS,
        roles=ROLES,
    )


@router.get("/people/{annotator_id}")
def one(
    request: Request, campaign_id: Number, annotator_id: Number, me: Annotator = Reviewer
) -> Response:
    """One person's figures with their intervals, and what may be done."""
    return _one_page(request, campaign_id, annotator_id, me)


def _one_page(
    request: Request, campaign_id: int, annotator_id: int, me: Annotator, **told: str
) -> Response:
    ledger = ledger_of(request)
    campaign, member = ledger.campaign(campaign_id), ledger.member(campaign_id, annotator_id)
    person = ledger.annotator(annotator_id)
    return lead_page(
        request,
        "person.html",
        campaign,
        tab="people",
        row=next(r for r in _rows(request, campaign) if r["person"].id == annotator_id),
        member=member,
        name=_names(ledger, me, [person]).get(annotator_id, ""),
        days=[r for r in ledger.tallies(campaign_id) if r["annotator_id"] == annotator_id][-14:],
        flags=FLAGS,
        **{"said": "", "link": "", **told},
    )


@router.post("/people/{annotator_id}")
def act(
    request: Request, campaign_id: Number, annotator_id: Number, me: Annotator = Admin
) -> Response:
    """Put somebody on hold or take them back; set their judgements aside, so that the items go to
    others, or take those back; a link for a new password."""
    ledger, action = ledger_of(request), text_field(request, "action", 20)
    member = ledger.member(campaign_id, annotator_id)
    if action in ("suspend", "resume"):
        if annotator_id == me.id and action == "suspend":
            raise ValueError("you cannot put yourself on hold: another admin can")
        _hold(ledger, member, action == "suspend", me)
        said = "On hold: no new items come." if action == "suspend" else "May work again."
        return _one_page(request, campaign_id, annotator_id, me, said=said)
    if action in ("quarantine", "reinstate"):
        reason = text_field(request, "reason", 100).strip()
        if not reason:
            raise ValueError("a reason is missing: a word or two, which stay in the ledger")
        since = _since(text_field(request, "since", 20))
        n = ledger.quarantine(
            campaign_id,
            annotator_id,
            reason,
            since=since,
            actor=me.id,
            lift=action == "reinstate",
        )
        request.app.state.kept.forget(campaign_id)
        said = f"{n} set aside; their items go to others." if action == "quarantine" else ""
        said = said or f"{n} count again."
        return _one_page(request, campaign_id, annotator_id, me, said=said)
    if action == "password":
        if ledger.annotator(annotator_id).state != "active":
            raise ValueError("this person is suspended or erased: they cannot sign in")
        path = invite(ledger, annotator_id=annotator_id, days=2)
        return _one_page(request, campaign_id, annotator_id, me, link=_absolute(request, path))
    raise ValueError(f"action is {action!r}; needed: suspend, resume, quarantine or reinstate")


def _hold(ledger: Ledger, member: Member, hold: bool, me: Annotator) -> None:
    """Suspend a member, who loses what they hold; or take them back."""
    state = "suspended" if hold else "active"
    ledger.set_member(member.campaign_id, member.annotator_id, state=state, actor=me.id)
    for lease in ledger.leases(member.campaign_id, member.annotator_id) if hold else ():
        ledger.release(lease.id, member.annotator_id)


def _since(day: str) -> int:
    """The beginning of a UTC day, in milliseconds; 0 for none."""
    if not day:
        return 0
    try:
        begin = datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC)
        return max(0, int(1000 * begin.timestamp()))
    except (ValueError, OverflowError):
        raise ValueError(f"since is {day!r}; needed: a day, such as 2026-01-31") from None


# --- invitations ----------------------------------------------------------------------------------


def _absolute(request: Request, path: str) -> str:
    """A link as others can open it."""
    return f"{request.url.scheme}://{request.headers.get('host', '')}{path}"


@router.post("/invite")
def invitations(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    """Make links that work once: one for each address, or so many without; shown this once."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    role = text_field(request, "role", 20) or "annotator"
    days = number_field(request, "days", 1, 90, 14)
    count = number_field(request, "count", 0, MOST, 0)
    emails = [e.strip() for e in text_field(request, "emails", 200_000).splitlines() if e.strip()]
    if int(count) + len(emails) > MOST or any(len(e) > 320 for e in emails):
        raise HTTPException(400, f"Too many at once: make at most {MOST} links.")
    if not emails and count < 1:
        raise ValueError("nobody to invite: give addresses, or how many links")
    tags = tuple(t.strip() for t in text_field(request, "tags", 1000).split(",") if t.strip())
    links = [
        (
            email,
            _absolute(
                request,
                invite(
                    ledger, role=role, campaign_id=campaign_id, email=email, tags=tags, days=days
                ),
            ),
        )
        for email in [*dict.fromkeys(emails), *[""] * int(count)]
    ]
    return lead_page(
        request, "links.html", campaign, tab="people", links=links, days=int(days), role=role
    )


@router.post("/join")
def take_part(request: Request, campaign_id: Number, me: Annotator = Reviewer) -> Response:
    """Become a member oneself, to judge."""
    ledger_of(request).join(campaign_id, me.id, actor=me.id)
    return RedirectResponse("/", 303)
