"""The annotator's way to an item: campaigns, consent, warning, guideline, and looking back."""

import datetime
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from truing.data.ledger import (
    Annotator,
    Campaign,
    Document,
    Item,
    Judgement,
    Ledger,
    Member,
    visits,
)
from truing.feedback import assign
from truing.feedback.rules import Rules, rules_of
from truing.web import kinds, safe, serving
from truing.web.auth import Me
from truing.web.pages import Number, ledger_of, page

router = APIRouter()
LAST = 10  # decisions that can be opened again
OPEN = ("pilot", "open")
DONE = {
    "cap": "You have done all that one person may do here. Thank you.",
    "daily cap": "That was enough for one day. Come back tomorrow.",
    "expertise": "These items need people with another expertise.",
    "failed": "The screening did not go well enough to go on. Thank you for trying.",
    "no quiz items": "There are no screening items to begin with. Tell whoever leads this.",
    "no open items": "Nothing is left for you now. New items may come.",
    "closed": "This campaign takes no judgements just now.",
    "kind": "There are no pages for this kind of judgement yet.",
    "declined": "You chose not to take part. Nothing more is asked, and you can change your mind.",
}


class Part(NamedTuple):
    """Somebody's part in a campaign. ``tags``: what they may see besides what they know well."""

    campaign: Campaign
    rules: Rules
    member: Member
    accepted: dict[int, bool]
    papers: dict[str, Document]  # the latest of each kind
    practice: bool = False  # whether the campaign has items for practice

    @property
    def tags(self) -> frozenset[str]:
        warning = self.papers.get("warning")
        took = warning is None or self.accepted.get(warning.id, False)
        return frozenset({self.rules.warned_tag} if took and self.rules.warned_tag else ())

    @property
    def guideline(self) -> Document | None:
        return self.papers.get("guideline")


def part_of(ledger: Ledger, campaign_id: int, me: Annotator) -> Part:
    """LookupError for no member; 403 for a suspended one."""
    with ledger.reading() as c:
        member, campaign, practice = visits.standing(c, campaign_id, me.id)
        if member.state != "active":
            raise HTTPException(403, "Your part in this campaign is on hold. Ask whoever leads it.")
        papers, accepted = visits.papers(c, campaign_id, me.id)
    return Part(campaign, rules_of(campaign.config), member, accepted, papers, practice)


def gate(part: Part) -> Document | str | None:
    """What stands before the items: a paper to be read, or why there are none (a key of DONE)."""
    if part.campaign.kind not in kinds.KINDS:
        return "kind"
    if part.campaign.state not in OPEN:
        return "closed"
    for kind in ("consent", "warning", "guideline"):
        if (paper := part.papers.get(kind)) is None:
            continue
        if (said := part.accepted.get(paper.id)) is None:
            return paper
        # Who declined a warning about some items alone gets the others.
        if not said and (kind != "warning" or not part.rules.warned_tag):
            return "declined"
    return None


@router.get("/")
def home(request: Request, me: Annotator = Me) -> Response:
    """A person's campaigns, and how far each has come."""
    ledger = ledger_of(request)
    rows = list[dict[str, Any]]()
    for member in ledger.memberships(me.id):
        campaign = ledger.campaign(member.campaign_id)
        mine, all_ = ledger.progress(campaign.id, me.id), ledger.progress(campaign.id)
        rows.append({"campaign": campaign, "member": member, "mine": mine, "all": all_})
    if me.role != "annotator" and not rows:
        return RedirectResponse("/lead", 303)
    return page(request, "home.html", rows=rows, open=OPEN)


def paper_page(request: Request, part: Part, paper: Document) -> Response:
    """Consent, content warning or guideline: to be read before the next item."""
    before = [d for d in ledger_of(request).documents(part.campaign.id) if d.kind == paper.kind]
    read = [d for d in before if d.id in part.accepted and d.id != paper.id]
    return page(
        request,
        "paper.html",
        campaign=part.campaign,
        paper=paper,
        news=_news(read[-1].text, paper.text) if read else [],
        partial=bool(part.rules.warned_tag),
    )


def _news(old: str, new: str) -> list[str]:
    """Lines of the new text that the old one did not have."""
    told = difflib.ndiff(old.splitlines(), new.splitlines())
    return [line[2:].strip() for line in told if line.startswith("+ ") and line[2:].strip()]


def rest_page(request: Request, part: Part, reason: str) -> Response:
    ledger, me = ledger_of(request), request.state.me
    paper = next((p for p in part.papers.values() if part.accepted.get(p.id) is False), None)
    return page(
        request,
        "rest.html",
        campaign=part.campaign,
        message=DONE[reason],
        declined=paper if reason == "declined" else None,
        mine=ledger.progress(part.campaign.id, me.id),
    )


@router.post("/tasks/{campaign_id}/paper/{paper_id}")
def answer_paper(
    request: Request, campaign_id: Number, paper_id: Number, me: Annotator = Me
) -> Response:
    """Record that a paper was accepted or declined, with its version."""
    ledger = ledger_of(request)
    part = part_of(ledger, campaign_id, me)
    if paper_id not in {p.id for p in part.papers.values()}:
        raise LookupError(f"campaign {campaign_id} has no paper {paper_id} now")
    answer = request.state.form.get("answer")
    if answer not in ("accept", "decline", "again"):
        raise ValueError("answer is missing; needed: accept or decline")
    if answer == "again":
        for paper in part.papers.values():
            if paper.id == paper_id:
                return paper_page(request, part, paper)
    ledger.accept(me.id, paper_id, answer == "accept")
    return RedirectResponse(f"/tasks/{campaign_id}", 303)


# --- looking back ---------------------------------------------------------------------------------


def last(ledger: Ledger, campaign_id: int, me: Annotator) -> list[Judgement]:
    """A person's last decisions that can be opened again, the newest first."""
    said = [j for j in ledger.recent(campaign_id, me.id, 4 * LAST + 20) if j.assignment_id]
    # What was explained after the answer is no longer a judgement of one's own.
    return [j for j in serving.mains(said) if j.purpose in ("work", "gold")][:LAST]


@router.post("/tasks/{campaign_id}/undo")
def undo(request: Request, campaign_id: Number, me: Annotator = Me) -> Response:
    """Take back the last decision: the item is held again, the form as it was sent."""
    ledger = ledger_of(request)
    part = part_of(ledger, campaign_id, me)
    if not (decisions := last(ledger, campaign_id, me)):
        raise ValueError("there is nothing to undo yet")
    judgement = decisions[0]
    said = [
        j
        for j in ledger.recent(campaign_id, me.id, 20)
        if j.assignment_id == judgement.assignment_id
    ]
    seconds = 60 * part.rules.lease_minutes
    lease = ledger.undo(judgement.id, me.id, seconds)
    assert lease is not None
    kind = ledger.item(lease.item_id).kind
    ledger.save_draft(lease.id, me.id, kinds.filled(kind, said, lease.shown), seconds)
    return RedirectResponse(f"/judge/{lease.id}", 303)


@router.get("/tasks/{campaign_id}/history")
def history(request: Request, campaign_id: Number, me: Annotator = Me) -> Response:
    """The last decisions, and how the items went whose answer was known."""
    ledger = ledger_of(request)
    part = part_of(ledger, campaign_id, me)
    decisions = last(ledger, campaign_id, me)
    items = {item.id: item for item in ledger.items([j.item_id for j in decisions])}
    rows = [
        {
            "judgement": j,
            "said": summary(j, items[j.item_id].kind),
            "prompt": excerpt(items[j.item_id].prompt),
            "at": datetime.datetime.fromtimestamp(j.at / 1000, datetime.UTC),
        }
        for j in decisions
    ]
    return page(
        request,
        "history.html",
        campaign=part.campaign,
        rows=rows,
        checks=_checks(ledger, part, me),
        mine=ledger.progress(campaign_id, me.id),
    )


def _checks(ledger: Ledger, part: Part, me: Annotator) -> list[dict[str, Any]]:
    """Gold items far enough back: prompt, explanation, and whether the answer was the known one."""
    policy = part.rules.policy()
    if policy.gold_share == 0:
        return []
    recent = serving.pasts(ledger, part.campaign, me, policy.gold_delay + 100)
    due = set(assign.feedback_due(policy, recent))
    told = {j.item_id: j for j in ledger.recent(part.campaign.id, me.id, 600) if j.item_id in due}
    return [
        {
            "prompt": excerpt(item.prompt),
            "explanation": item.explanation or "",
            "right": right(item, told[item.id]),
        }
        for item in ledger.items(list(told))
        if told[item.id].kind == item.kind
    ]


def right(item: Item, judgement: Judgement) -> bool:
    """Whether a judgement says what the item's known answer says."""
    own: Sequence[int] = [response.id for response in item.responses]
    return kinds.KINDS[item.kind].right(judgement.value, expected_of(item), own)


def expected_of(item: Item) -> dict[str, Any]:
    """The known answer of an item (see `truing.web.kinds`); an import wraps it with its kind."""
    expected = dict(item.expected or {})
    return dict(expected["value"]) if "value" in expected else expected


def excerpt(prompt: Any, size: int = 160) -> str:
    """The beginning of a prompt's last turn, on one line."""
    turns = safe.turns(prompt)
    line = " ".join((turns[-1].raw if turns else "").split())
    return line if len(line) <= size else line[: size - 1] + "…"


def summary(judgement: Judgement, kind: str) -> str:
    """A decision in a few words: A much better; A > B = C; helpful 4, 2."""
    value, shown = judgement.value, list(judgement.shown)
    if judgement.kind == "skip":
        return f"skipped: {value['reason']}"
    if kind == "pairwise":
        if value["outcome"] != "better":
            return "tie" if value["outcome"] == "tie" else "both bad"
        much = "much " if value["strength"] == 2 else ""
        return f"{kinds.letter(shown.index(value['preferred']))} {much}better"
    form = kinds.filled(kind, [judgement], shown)
    if kind == "ranking":
        levels: dict[str, list[str]] = {}
        for i in range(len(shown)):
            levels.setdefault(form[f"rank-{i}"], []).append(kinds.letter(i))
        return " > ".join(" = ".join(levels[rank]) for rank in sorted(levels, key=int))
    if kind == "rating":
        return "; ".join(
            f"{aspect} " + ", ".join(form[f"aspect-{a}-{i}"] for i in range(len(shown)))
            for a, aspect in enumerate(value["aspects"])
        )
    if kind in kinds.TEXTS:
        return "written" if kind == "demonstration" else "improved"
    return ", ".join(form.values())
