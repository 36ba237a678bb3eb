"""What every page is drawn with: the templates, and `page`, which hands them what all need."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import Path as PathNumber
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from truing.data.ledger import Annotator, Ledger
from truing.web import csrf, safe

# A number in an address: 404 for one that the ledger could not hold.
Number = Annotated[int, PathNumber(ge=0, le=2**62)]
STATIC = Path(__file__).parent / "static"


@cache
def static(name: str) -> str:
    """The address of a file in static/, with its content's hash: a browser may keep it for good."""
    return f"/static/{name}?v={hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def minutes(milliseconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 20 min."""
    seconds = round(milliseconds / 1000)
    if seconds < 90:
        return f"{seconds} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


# A name that a template uses and nobody gave is an error, not an empty place.
TEMPLATES = Environment(
    loader=PackageLoader("truing.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,  # which would ask the disk about each template of each page
)
TEMPLATES.globals |= {"static": static}
TEMPLATES.filters |= {"markdown": safe.markdown, "visible": safe.visible, "minutes": minutes}


def ledger_of(request: Request) -> Ledger:
    return request.app.state.ledger


def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Draw a template. It sees ``csrf`` (the token that every form has as its field ``csrf``),
    ``me`` (the signed-in `Annotator`, or None), ``path``, ``beyond`` (the address says that what
    was sent last came late, see `judge`), and the context."""
    me: Annotator | None = getattr(request.state, "me", None)
    told = {"me": me, "path": request.url.path, "csrf": csrf.token(request), **context}
    told |= {"beyond": "beyond" in request.query_params}
    response = HTMLResponse(TEMPLATES.get_template(template).render(told), status)
    csrf.remember(request, response)
    return response
