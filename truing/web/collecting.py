"""The lead's pages on which a campaign is made, and gets its items."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from truing.config import ConfigError
from truing.data.ledger import Annotator, Campaign, Ledger, NewItem, NewResponse
from truing.data.ledger.columns import purposes
from truing.feedback.campaigns import take_in
from truing.feedback.rules import config_of
from truing.settings_collect import CollectImportConfig
from truing.web.auth import text_field
from truing.web.kinds import KINDS
from truing.web.lead import Admin, lead_page, number_field
from truing.web.pages import Number, ledger_of, page

router = APIRouter(prefix="/lead")
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
ASKED = {
    "pairwise": "Compare two responses",
    "ranking": "Rank several",
    "rating": "Rate on named aspects",
    "thumbs": "Thumb up or down",
    "steps": "Judge each step of a solution",
    "edit": "Improve a response",
    "demonstration": "Write a response",
}
FOR = {
    "work": "to be judged",
    "practice": "practice: explained after the answer",
    "screening": "screening: asked first",
    "gold": "gold: mixed in, with a known answer",
}


def _upload(request: Request, name: str) -> UploadFile | None:
    given = request.state.form.get(name)
    return given if isinstance(given, UploadFile) and given.filename else None


@contextmanager
def _kept(request: Request, *names: tuple[str, str]) -> Iterator[list[Path]]:
    """Uploaded files in a folder of their own, under the names of the second part, or their own."""
    with tempfile.TemporaryDirectory() as folder:
        paths = list[Path]()
        for i, (field, called) in enumerate(names):
            upload = _upload(request, field)
            if upload is None:
                raise ValueError(f"a file is missing ({field}); needed: {', '.join(ENDINGS)}")
            own = Path(str(upload.filename).replace("\\", "/")).name
            ending = next((e for e in ENDINGS if own.lower().endswith(e)), None)
            if ending is None:
                raise ValueError(f"{own[:80]!r} came; needed: a file {', '.join(ENDINGS)}")
            stem = re.sub(r"[^\w.+ -]", "-", called or own[: -len(ending)])[:80].strip(". ")
            path = Path(folder) / str(i) / f"{stem or 'file'}{ending}"
            path.parent.mkdir()
            with path.open("wb") as file:
                while chunk := upload.file.read(2**20):
                    file.write(chunk)
            paths.append(path)
        try:
            yield paths
        except ValueError as error:  # without the folder, which is gone by then
            told = re.sub(re.escape(folder) + r"/\d/", "", str(error))
            raise ValueError(told) from None


def import_files(
    request: Request, ledger: Ledger, campaign: Campaign, purpose: str, judgements: bool
) -> list[str]:
    """Take in the form's file, or its two files of samples; what to tell of it, line by line."""
    two = _upload(request, "second") is not None
    names = [("file", text_field(request, "name_a", 80) if two else "")]
    names += [("second", text_field(request, "name_b", 80))] if two else []
    lines = list[str]()
    with _kept(request, *names) as paths:
        config = CollectImportConfig(
            ledger="-",
            campaign=campaign.name,
            dataset_name=str(paths[0]),
            against=str(paths[1]) if two else None,
            responses=int(number_field(request, "responses", 1, 64, 2)),
            purpose=purpose,  # type: ignore[arg-type]
            judgements=judgements or purpose != "work",
        )
        counts = take_in(ledger, campaign, config, lines.append)
        lines = [re.sub(r"/?\S*/\d/(?=[^/]+$)", "", line) for line in lines]
    return [*(f"{what}: {n}" for what, n in counts.items()), *lines]


# --- a new campaign -------------------------------------------------------------------------------


@router.get("/new")
def new(request: Request, me: Annotator = Admin) -> Response:
    return _new_page(request)


def _new_page(request: Request, status: int = 200, problem: str = "") -> Response:
    form = {k: v for k, v in request.state.form.items() if isinstance(v, str)}
    return page(request, "lead/new.html", status, asked=ASKED, problem=problem, form=form)


@router.post("/new")
def create(request: Request, me: Annotator = Admin) -> Response:
    """Make a campaign, a draft, and take its items in. If they cannot be read there is none."""
    ledger, kind = ledger_of(request), text_field(request, "kind", 20)
    name = text_field(request, "name", 100).strip()
    try:
        if not name or kind not in KINDS:
            raise ValueError("a name and a kind are needed")
        if any(campaign.name == name for campaign in ledger.campaigns()):
            raise ValueError(f"there is a campaign {name!r} already: give another name")
        config = _config(request, kind)
        files = _upload(request, "file") is not None or _upload(request, "second") is not None
        if files:
            _rehearse(request, name, kind, config)
        campaign = ledger.create_campaign(name, kind, config=config, actor=me.id)
        told = import_files(request, ledger, campaign, "work", False) if files else []
    except ValueError as error:
        return _new_page(request, 400, str(error))
    return _items_page(request, campaign, told or ["The campaign is made. It has no items yet."])


def _rehearse(request: Request, name: str, kind: str, config: dict[str, Any]) -> None:
    """Take the files into a ledger that is thrown away: what cannot be read leaves no trace."""
    with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder) / "try") as trial:
        campaign = trial.create_campaign(name, kind, config=config)
        told = import_files(request, trial, campaign, "work", False)
        if not trial.item_numbers(campaign.id):
            raise ValueError("no item can be made of the files. " + "; ".join(told))
    for field in ("file", "second"):
        if upload := _upload(request, field):
            upload.file.seek(0)


def _config(request: Request, kind: str) -> dict[str, Any]:
    """The rules that the form holds. Raises ConfigError for some that do not go together."""
    more = text_field(request, "rules", 10_000)
    try:
        told: Any = yaml.safe_load(more) if more.strip() else {}
    except yaml.YAMLError:
        told = None
    if not isinstance(told, dict):
        raise ConfigError("the other rules are no YAML of names and values, such as cap: 200")
    shares = {"retest_share": 0.05, "gold_share": 0.0}
    chosen: dict[str, Any] = {
        "overlap": int(number_field(request, "overlap", 1, 1000, 1)),
        **{k: number_field(request, k, 0, 100, 100 * v) / 100 for k, v in shares.items()},
        "critique": text_field(request, "critique", 20) or "optional",
        "edit": "edit" in request.state.form,
    }
    if kind == "rating":
        aspects = re.split(r"[,\n]", text_field(request, "aspects", 1000))
        chosen["aspects"] = [a.strip() for a in aspects if a.strip()] or ["helpful"]
    return config_of(kind, chosen | told)


# --- items ----------------------------------------------------------------------------------------


def _items_page(
    request: Request, campaign: Campaign, told: list[str], status: int = 200, problem: str = ""
) -> Response:
    with ledger_of(request).reading() as c:
        there = purposes(c, campaign.id)
    made = lead_page(
        request,
        "items.html",
        campaign,
        tab="items",
        there=there,
        told=told,
        problem=problem,
        purposes=FOR,
        asked=ASKED,
    )
    made.status_code = status
    return made


@router.get("/{campaign_id}/items")
def items(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    return _items_page(request, ledger_of(request).campaign(campaign_id), [])


@router.post("/{campaign_id}/items")
def add_items(request: Request, campaign_id: Number, me: Annotator = Admin) -> Response:
    """Take in a file, or two runs' samples; or one practice item that is typed in."""
    ledger = ledger_of(request)
    campaign = ledger.campaign(campaign_id)
    try:
        purpose = text_field(request, "purpose", 20) or "work"
        if purpose not in FOR:
            raise ValueError(f"purpose is {purpose!r}; needed: one of {', '.join(FOR)}")
        if "prompt" in request.state.form:
            ledger.add_items(campaign_id, [_typed(request, campaign, purpose)], actor=me.id)
            told = ["items added: 1"]
        else:
            said = "judgements" in request.state.form
            told = import_files(request, ledger, campaign, purpose, said)
    except ValueError as error:
        return _items_page(request, campaign, [], 400, str(error))
    return _items_page(request, campaign, told)


def _typed(request: Request, campaign: Campaign, purpose: str) -> NewItem:
    """A pair with the right answer and why it is right."""
    if campaign.kind != "pairwise" or purpose == "work":
        raise ValueError("only practice, screening and gold items of pairs are typed in here")
    names = ("prompt", "first", "other", "explanation")
    prompt, first, other, why = (text_field(request, n, 50_000).strip() for n in names)
    if not (prompt and first and other) or first == other:
        raise ValueError("needed: a prompt and two different responses")
    right = text_field(request, "right", 20)
    known = {"first": ("better", 0), "tie": ("tie", None), "both_bad": ("both_bad", None)}
    if right not in known:
        raise ValueError(f"the right answer is {right!r}; needed: one of {', '.join(known)}")
    outcome, place = known[right]
    value = {"outcome": outcome, "preferred": place, "strength": None}
    expected = {"kind": "pairwise", "value": value}
    both = NewResponse(first), NewResponse(other)
    return NewItem(prompt, both, purpose=purpose, expected=expected, explanation=why or None)
