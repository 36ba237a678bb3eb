"""The annotator's pages."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from truing.data.ledger import Annotator
from truing.web.auth import Me
from truing.web.pages import ledger_of, page

router = APIRouter()


@router.get("/")
def home(request: Request, me: Annotator = Me) -> Response:
    """A person's campaigns."""
    ledger = ledger_of(request)
    mine = [ledger.campaign(member.campaign_id) for member in ledger.memberships(me.id)]
    return page(request, "home.html", campaigns=mine)
