"""The lead's pages about what was judged: agreement, disagreements, who wins, files to train on."""

import secrets
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.background import BackgroundTask

from truing.data.ledger import Annotator, Answer, Item, Judgement, Lease, Ledger, Member, Told
from truing.data.ledger.campaigns import day_of
from truing.feedback import assign
from truing.feedback.export import Export
from truing.feedback.rules import rules_of
from truing.settings_collect import CollectExportConfig
from truing.web import kinds, safe
from truing.web.annotate import Part, excerpt, summary
from truing.web.auth import text_field
from truing.web.figures import numbers_of
from truing.web.judge import panes
from truing.web.lead import Admin, Reviewer, lead_page, number_field
from truing.web.pages import Number, ledger_of

router = APIRouter(prefix="/lead/{campaign_id}")
SHOWN = 50  # disagreements on one page
# What each kind of campaign is exported as, and what trains on it.
MADE_OF = {
    "comparison": ("Pairs", "reward, dpo"),
    "ranking": ("Rankings", "reward"),
    "label": ("Thumbs", "kto"),
    "steps": ("Steps", "reward of steps"),
    "demonstration": ("Responses that people wrote or improved", "sft"),
}
FITS = {
    "pairwise": ("comparison", "demonstration"),
    "ranking": ("ranking", "comparison"),
    "rating": ("ranking", "comparison"),
    "thumbs": ("label",),
    "steps": ("steps",),
    "edit": ("demonstration", "comparison"),
    "demonstration": ("demonstration",),
}


@router.get("/agreement")
def agreement(
    request: Request, campaign_id: Number, round: int | None = None, me: Annotator = Reviewer
) -> Response:
    """How far people agree, on what they do not, and (for admins) which system wins."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    numbers = numbers_of(request, campaign_id, round)
    apart = {int(each.item): each for each in numbers.disputes[:SHOWN]}
    rows = [
        {"item": item, "dispute": apart[item.id], "prompt": excerpt(item.prompt)}
        for item in ledger.items(list(apart))
    ]
    rows.sort(key=lambda row: list(apart).index(row["item"].id))
    return lead_page(
        request,
        "agreement.html",
        campaign,
        tab="agreement",
        numbers=numbers,
        round=round,
        rows=rows,
        names={person.id: person.pseudonym for person in ledger.annotators()},
    )


# --- decide what people disagree on ---------------------------------------------------------------


def _case(request: Request, campaign_id: int, item_id: int) -> tuple[Part, Item, Lease]:
    """An item as its lead sees it: sides drawn for them too, and no names of models."""
    ledger, me = ledger_of(request), request.state.me
    campaign, item = ledger.campaign(campaign_id), ledger.item(item_id)
    if item.campaign_id != campaign_id or item.kind not in kinds.KINDS:
        raise LookupError(f"campaign {campaign_id} has no item {item_id} to decide")
    rules, ids = rules_of(campaign.config), [r.id for r in item.responses]
    order = assign.side_order(rules.policy(campaign.seed), me.pseudonym, item_id, len(ids))
    member = Member(campaign_id, me.id, "active", {}, 0)
    shown = [ids[i] for i in order]
    lease = Lease(
        *(0, campaign_id, item_id, me.id, 0, "leased", "", shown, None, False, 0, 0, None)
    )
    return Part(campaign, rules, member, {}, {}), item, lease


def _votes(ledger: Ledger, item: Item, lease: Lease) -> list[dict[str, str]]:
    """What others said, in the letters that the lead sees, under pseudonyms."""
    names = {person.id: person.pseudonym for person in ledger.annotators()}
    said = ledger.judgements(item.id)
    why = {(j.annotator_id, j.assignment_id): j.text or "" for j in said if j.kind == "critique"}

    def told(j: Judgement) -> dict[str, str]:
        words = {
            "author": names[j.annotator_id],
            "why": why.get((j.annotator_id, j.assignment_id), ""),
        }
        note = "decision" if j.purpose == "adjudication" else "asked again" if j.retest else ""
        said = summary(replace(j, shown=lease.shown), item.kind)
        return words | {"said": said, "note": note}

    return [told(j) for j in said if j.kind == item.kind]


@router.get("/decide/{item_id}")
def case(
    request: Request, campaign_id: Number, item_id: Number, me: Annotator = Reviewer
) -> Response:
    """An item with what was said of it, and the form for one's own decision."""
    part, item, lease = _case(request, campaign_id, item_id)
    return lead_page(
        request,
        "decide.html",
        part.campaign,
        tab="agreement",
        item=item,
        kind=item.kind,
        ask=kinds.KINDS[item.kind].ask,
        rules=part.rules,
        prompt=safe.turns(item.prompt),
        panes=panes(part, item, lease),
        draft=dict[str, Any](),
        votes=_votes(ledger_of(request), item, lease),
        token=secrets.token_hex(16),
    )


@router.post("/decide/{item_id}")
def decide(
    request: Request, campaign_id: Number, item_id: Number, me: Annotator = Reviewer
) -> Response:
    """Record a decision, which exports take in place of the votes."""
    part, item, lease = _case(request, campaign_id, item_id)
    form = {k: v for k, v in request.state.form.items() if isinstance(v, str)}
    if item.kind in kinds.TEXTS:
        raise ValueError("texts that people wrote are not decided between")
    value = kinds.KINDS[item.kind].read(form, lease.shown, item, part.rules)
    said = [Answer(item.kind, value)]  # type: ignore[arg-type]
    if why := text_field(request, "why", 20_000).strip():
        said.append(Answer("critique", {"response": None}, why))
    token = text_field(request, "token", 64) or secrets.token_hex(16)
    told = Told(item_id, me.id, tuple(said), token, shown=tuple(lease.shown))
    ledger_of(request).record(campaign_id, [told], purpose="adjudication")
    request.app.state.kept.forget(campaign_id)
    return RedirectResponse(f"/lead/{campaign_id}/agreement", 303)


# --- files to train on ----------------------------------------------------------------------------


@router.get("/export")
def export_page(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    before = [row for row in ledger.exports() if row["campaign_id"] == campaign_id]
    return lead_page(
        request,
        "export.html",
        campaign,
        tab="export",
        before=before[::-1][:20],
        made_of=MADE_OF,
        fits=FITS.get(campaign.kind, tuple(MADE_OF)),
        day_of=day_of,
    )


@router.post("/export")
def export(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    """The files and their data card, as one archive."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    split_by = ["prompt", "annotator"] if "by_annotator" in request.state.form else ["prompt"]
    folder = Path(tempfile.mkdtemp())
    try:
        config = CollectExportConfig(
            ledger="-",
            campaign=campaign.name,
            output_dir=str(folder / "export"),
            kind=text_field(request, "kind", 20),  # type: ignore[arg-type]
            format=text_field(request, "format", 20) or "jsonl",  # type: ignore[arg-type]
            rows=text_field(request, "rows", 20) or "annotator",  # type: ignore[arg-type]
            ties="half" if "ties" in request.state.form else "leave_out",
            aspect=text_field(request, "aspect", 100) or None,
            test_share=number_field(request, "test_share", 0, 90, 0) / 100,
            split_by=split_by,  # type: ignore[arg-type]
        )
        name = "".join(c if c.isalnum() else "-" for c in campaign.name)[:60]
        known = f"download of {day_of(ledger.now())} by {me.pseudonym}"
        Export(ledger, campaign, config).write(folder / "export", known)
        archive = shutil.make_archive(str(folder / "archive"), "zip", folder / "export")
    except BaseException:
        shutil.rmtree(folder)
        raise
    away = BackgroundTask(shutil.rmtree, folder)
    return FileResponse(
        archive, media_type="application/zip", filename=f"{name}.zip", background=away
    )
