"""One item: how it is shown, and what becomes of the form that comes back."""

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from truing.data.ledger import Annotator, Answer, Item, Judgement, Late, Lease, Ledger
from truing.feedback import assign, pacing
from truing.web import kinds, safe, serving
from truing.web.annotate import (
    Part,
    excerpt,
    expected_of,
    gate,
    last,
    paper_page,
    part_of,
    rest_page,
    right,
    summary,
)
from truing.web.auth import Me, text_field
from truing.web.pages import Number, ledger_of, page

router = APIRouter()
NUDGED = 5  # answers between two looks at whether a break is due
DAY = 86_400_000  # milliseconds: more cannot have been spent on one item
DRAFT = 200_000  # characters


@router.get("/tasks/{campaign_id}")
def work(request: Request, campaign_id: Number, me: Annotator = Me) -> Response:
    """What is next for this person: a paper to read, an item, or nothing."""
    ledger = ledger_of(request)
    with ledger.sitting():
        part = part_of(ledger, campaign_id, me)
        before = gate(part)
        if isinstance(before, str):
            return rest_page(request, part, before)
        if before is not None:
            return paper_page(request, part, before)
        guideline = part.guideline
        found = serving.next_lease(
            ledger,
            part.campaign,
            part.rules,
            me,
            part.member,
            practice=part.practice,
            tags=part.tags,
            guideline_id=guideline.id if guideline else None,
        )
        if isinstance(found, assign.Rest):
            return rest_page(request, part, found.reason)
        return item_page(request, part, *found)


@router.get("/judge/{lease_id}")
def again(request: Request, lease_id: Number, me: Annotator = Me) -> Response:
    """One of the last decisions, opened again; or an item that is held."""
    ledger = ledger_of(request)
    lease = ledger.assignment(lease_id, me.id)
    part = part_of(ledger, lease.campaign_id, me)
    if lease.state == "done" and _decided(ledger, lease, me):
        return item_page(request, part, lease, ledger.item(lease.item_id))
    if lease.state == "leased" and gate(part) is None:
        return item_page(request, part, lease, ledger.item(lease.item_id))
    return RedirectResponse(f"/tasks/{lease.campaign_id}", 303)


def _decided(ledger: Ledger, lease: Lease, me: Annotator) -> bool:
    """Whether it is among the last decisions: an older one stays as it is."""
    return lease.id in {j.assignment_id for j in last(ledger, lease.campaign_id, me)}


# --- showing --------------------------------------------------------------------------------------


def masking(part: Part, item: Item) -> Callable[[str], safe.Masked]:
    """What blanks the names of a response's author, if the campaign wants it."""
    names = [r.model.rstrip("/").rpartition("/")[2] for r in item.responses if r.model]
    if not part.rules.mask:
        return lambda text: safe.Masked(text, {})
    return lambda text: safe.mask(text, names)


def editable(part: Part, item: Item, response: int) -> str | None:
    """A response's text as it stands to be edited; None where it has none of its own."""
    before = kinds.original(item, response)
    return None if before is None else safe.visible(masking(part, item)(before).text)


def panes(part: Part, item: Item, lease: Lease) -> list[dict[str, Any]]:
    """The responses in the order shown, by letter; nothing about who or what wrote them."""
    mask, content = masking(part, item), {r.id: r.content for r in item.responses}
    made = list[dict[str, Any]]()
    for place, response in enumerate(lease.shown):
        steps = kinds.steps_of(item, response) if item.kind == "steps" else []
        made.append(
            {
                "letter": kinds.letter(place),
                "turns": safe.turns(content[response], lambda t: mask(t).text, "assistant"),
                "text": editable(part, item, response),
                "steps": [safe.markdown(mask(step).text) for step in steps],
            }
        )
    return made


def item_page(request: Request, part: Part, lease: Lease, item: Item) -> Response:
    ledger, me, campaign = ledger_of(request), request.state.me, part.campaign
    draft: Mapping[str, Any] = lease.draft or {}
    if lease.state == "done":
        draft = kinds.filled(item.kind, _said(ledger, lease), lease.shown)
    mine = ledger.progress(campaign.id, me.id)
    answered = mine.done + mine.skipped
    return page(
        request,
        "judge.html",
        campaign=campaign,
        rules=part.rules,
        lease=lease,
        reopened=lease.state == "done",
        kind=item.kind,
        ask=kinds.KINDS[item.kind].ask,
        # Only these two are told apart; gold and re-tests look like any other item.
        stage=item.purpose if item.purpose in ("practice", "screening") else "",
        prompt=safe.turns(item.prompt),
        panes=panes(part, item, lease),
        draft=draft,
        token=secrets.token_hex(16),
        skips=kinds.SKIPS,
        flags=kinds.FLAGS,
        guideline=part.guideline,
        mine=mine,
        share=min(mine.filled / mine.slots, 1.0) if mine.slots else 0.0,
        nudge=_nudge(ledger, part, me) if answered and answered % NUDGED == 0 else "",
        undoable=bool(answered),
    )


def _nudge(ledger: Ledger, part: Part, me: Annotator) -> str:
    recent = serving.pasts(ledger, part.campaign, me, 200)
    return pacing.nudge(recent, minutes=part.rules.break_minutes)


def _said(ledger: Ledger, lease: Lease) -> list[Judgement]:
    return [j for j in ledger.judgements(lease.item_id) if j.assignment_id == lease.id]


@router.get("/tasks/{campaign_id}/questions")
def questions(request: Request, campaign_id: Number, me: Annotator = Me) -> Response:
    """What this person asked, and what others asked that was answered: a part of the drawer, got
    when it is opened, so that an item does not wait for it."""
    ledger = ledger_of(request)
    part = part_of(ledger, campaign_id, me)
    found = [
        {"text": q.judgement.text or "", "answers": [a.text or "" for a in q.answers]}
        for q in ledger.questions(part.campaign.id)
        if q.answers or q.judgement.annotator_id == me.id
    ]
    return page(request, "questions.html", questions=found[-20:])


# --- what comes back ------------------------------------------------------------------------------


def _fields(request: Request) -> dict[str, str]:
    return {k: v for k, v in request.state.form.items() if isinstance(v, str)}


def _timing(form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Active milliseconds, and what they were measured from; nonsense is no reason to lose work."""
    try:
        active = min(max(int(float(form.get("active_ms", "0") or 0)), 0), DAY)
        timing: Any = json.loads(form.get("timing", "") or "{}")
    except (ValueError, OverflowError, RecursionError):
        return 0, {"unreadable": True}
    known = ("shown_ms", "hidden_ms", "idle_ms", "first_ms", "resent")
    good = isinstance(timing, dict)
    kept = {k: timing[k] for k in known if good and type(timing.get(k)) in (int, bool)}
    return active, {k: v for k, v in kept.items() if abs(v) <= DAY}


def _went(request: Request, to: str, message: str = "") -> Response:
    """On to a page; for the script, where to go (or, without, what to say)."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"next": to, "message": message})
    return RedirectResponse(to, 303)


@router.post("/judge/{lease_id}")
def judge(request: Request, lease_id: Number, me: Annotator = Me) -> Response:
    """Record a judgement, a skip, a flag or a question (the field ``action``). Sent twice with the
    same token it counts once."""
    ledger, form = ledger_of(request), _fields(request)
    with ledger.sitting():
        lease = ledger.assignment(lease_id, me.id)
        part, item = part_of(ledger, lease.campaign_id, me), ledger.item(lease.item_id)
    action, to = form.get("action", "judge"), f"/tasks/{lease.campaign_id}"
    token = text_field(request, "token", 60)
    active, timing = _timing(form)
    if not token:
        raise ValueError("the form came without its token: reload the page")
    if action in ("flag", "question"):
        text = form.get("text", "").strip()
        said = kinds.reason_of(form, "flag") if action == "flag" else [Answer("question", {}, text)]
        ledger.submit(lease.id, me.id, said, token=token, active_ms=0)
        told = "Flagged. You can go on judging." if action == "flag" else "Sent to the lead."
        return _went(request, f"/judge/{lease.id}", told)
    if action == "skip":
        said = kinds.reason_of(form, "skip")
    elif action == "judge":
        texts = [editable(part, item, response) for response in lease.shown]
        restore = _restorer(part, item, lease)
        said = kinds.answers_of(form, lease, item, part.rules, texts, restore)
    else:
        raise ValueError(f"action is {action[:40]!r}; needed: judge, skip, flag or question")
    if form.get("reopened"):
        _correct(ledger, lease, me, said, token, active)
        return _went(request, f"/tasks/{lease.campaign_id}/history")
    recorded = ledger.submit(lease.id, me.id, said, token=token, active_ms=active, timing=timing)
    if item.purpose == "practice" and action == "judge":
        return _went(request, f"/judge/{lease.id}/explained")
    if item.purpose == "screening":
        passed = action == "judge" and right(item, recorded[0])
        to = _quizzed(ledger, part, me, item, passed) or to
    if recorded[0].late and ledger.item(item.id).done > item.wanted:
        to += "?beyond"  # others had judged it meanwhile; the next page says so
    return _went(request, to)


def _restorer(part: Part, item: Item, lease: Lease) -> Callable[[int, str], str]:
    """What gives an edited text back the names that were blanked in it. Hidden signs that were
    written out go: nobody wrote them on purpose."""
    mask = masking(part, item)

    def restore(place: int, text: str) -> str:
        before = kinds.original(item, lease.shown[place]) or ""
        return safe.unmask(safe.WRITTEN_OUT.sub("", text), mask(before).names)

    return restore


def _correct(
    ledger: Ledger, lease: Lease, me: Annotator, said: list[Answer], token: str, active: int
) -> None:
    """Replace what was said of an item by what is said now; what is the same stays."""
    if not _decided(ledger, lease, me):
        raise Late("this decision was undone, or lies too far back to be changed")
    before = {_about(j): j for j in _said(ledger, lease) if j.kind not in ("flag", "question")}
    now = {_about(answer): answer for answer in said}
    if gone := before.keys() - now.keys():
        kind = sorted(gone)[0][0]
        raise ValueError(
            f"the {kind} is missing now, and cannot be taken back alone: undo the decision instead"
        )
    for place, (about, answer) in enumerate(now.items()):
        old = before.get(about)
        own = token if place == 0 else f"{token}-{place}"
        if old is None:
            ledger.submit(lease.id, me.id, [answer], token=own, active_ms=0)
        elif (old.value, old.text) != (answer.value, answer.text):
            spent = active if place == 0 else 0
            ledger.correct(old.id, me.id, answer, token=own, active_ms=spent)


def _about(said: Answer | Judgement) -> tuple[str, int]:
    """What is said at most once of an item: its kind, and the response for edits."""
    return said.kind, said.value.get("response") or 0 if said.kind == "edit" else 0


# --- practice and screening -----------------------------------------------------------------------


def _quizzed(ledger: Ledger, part: Part, me: Annotator, item: Item, passed: bool) -> str:
    """Note how a screening item went; after the last, where all of them are explained."""

    def noted(known: Mapping[str, Any]) -> dict[str, Any]:
        results = known.get("quiz", {})
        return {**known, "quiz": results | {str(item.id): results.get(str(item.id), passed)}}

    member = ledger.set_member(part.campaign.id, me.id, progress=noted)
    ended = len(member.progress["quiz"]) >= part.rules.quiz_size
    return f"/tasks/{part.campaign.id}/screening" if ended else ""


@router.get("/judge/{lease_id}/explained")
def explained(request: Request, lease_id: Number, me: Annotator = Me) -> Response:
    """A practice item after the answer: what was said, what is right, and why."""
    ledger = ledger_of(request)
    lease = ledger.assignment(lease_id, me.id)
    part, item = part_of(ledger, lease.campaign_id, me), ledger.item(lease.item_id)
    said = [j for j in _said(ledger, lease) if j.kind == item.kind]
    if item.purpose != "practice" or not said:
        return RedirectResponse(f"/tasks/{lease.campaign_id}", 303)
    return page(
        request,
        "explained.html",
        campaign=part.campaign,
        prompt=safe.turns(item.prompt),
        panes=panes(part, item, lease),
        kind=item.kind,
        right=right(item, said[0]),
        said=summary(said[0], item.kind),
        known=_known(item, lease),
        explanation=item.explanation or "",
    )


def _known(item: Item, lease: Lease) -> str:
    """The right answer in the words of `summary`, by the letters that this person saw."""
    expected = expected_of(item)
    own = [r.id for r in item.responses]
    if item.kind == "pairwise":
        if expected.get("outcome", "better") != "better":
            return str(expected["outcome"]).replace("_", " ")
        return f"{kinds.letter(list(lease.shown).index(own[expected['preferred']]))} better"
    if item.kind in kinds.TEXTS:
        return ""
    places = [own.index(response) for response in lease.shown]
    if item.kind == "ranking":
        levels: dict[int, list[str]] = {}
        for i, place in enumerate(places):
            levels.setdefault(expected["ranks"][place], []).append(kinds.letter(i))
        return " > ".join(" = ".join(levels[rank]) for rank in sorted(levels))
    if item.kind == "rating":
        return "; ".join(
            f"{aspect} " + ", ".join(str(scores[place]) for place in places)
            for aspect, scores in expected["aspects"].items()
        )
    if item.kind == "thumbs":
        return ", ".join("up" if expected["labels"][place] else "down" for place in places)
    names = {label: name for name, label in kinds.STEP.items()}
    return ", ".join(names[label] for label in expected["labels"])


@router.get("/tasks/{campaign_id}/screening")
def screening(request: Request, campaign_id: Number, me: Annotator = Me) -> Response:
    """How the screening went, told at its end, with reasons."""
    ledger = ledger_of(request)
    part = part_of(ledger, campaign_id, me)
    policy, results = part.rules.policy(), dict(part.member.progress.get("quiz", {}))
    answered, rights = serving.quiz(part.member, policy)
    if policy.quiz_size == 0 or answered < policy.quiz_size:
        return RedirectResponse(f"/tasks/{campaign_id}", 303)
    rows = [
        {
            "prompt": excerpt(item.prompt),
            "right": results[str(item.id)],
            "explanation": item.explanation or "",
        }
        for item in ledger.items([int(number) for number in results])
    ]
    return page(
        request,
        "screening.html",
        campaign=part.campaign,
        rows=rows,
        rights=rights,
        answered=answered,
        needed=policy.quiz_pass,
        passed=rights >= policy.quiz_pass,
    )


# --- while somebody works -------------------------------------------------------------------------


@router.post("/judge/{lease_id}/draft")
def draft(request: Request, lease_id: Number, me: Annotator = Me) -> Response:
    """Keep what was begun, and hold the item for longer."""
    ledger = ledger_of(request)
    lease = ledger.assignment(lease_id, me.id)
    part = part_of(ledger, lease.campaign_id, me)
    begun = {k: v for k, v in _fields(request).items() if k not in ("csrf", "token", "timing")}
    if sum(map(len, begun.values())) > DRAFT:
        raise ValueError(f"the draft has more than {DRAFT} characters: shorten it")
    held = ledger.save_draft(lease.id, me.id, begun, 60 * part.rules.lease_minutes)
    return JSONResponse({"expires_at": held.expires_at})


@router.post("/judge/{lease_id}/release")
def release(request: Request, lease_id: Number, me: Annotator = Me) -> Response:
    """Give an item back, for somebody else or for later."""
    ledger = ledger_of(request)
    ledger.assignment(lease_id, me.id)
    ledger.release(lease_id, me.id)
    return RedirectResponse("/", 303)
