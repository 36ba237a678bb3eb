"""The app: routes, what surrounds them, and how errors look. `truing serve` runs it."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles

from truing.data.ledger import Late, Ledger
from truing.web import annotate, api, auth, collecting, crew, judge, lead, results
from truing.web.csrf import guard
from truing.web.figures import Kept as KeptFigures
from truing.web.middleware import Fence
from truing.web.pages import STATIC, page

# One of each file of pages.
ROUTERS: tuple[APIRouter, ...] = (
    *(auth.router, annotate.router, judge.router),
    # Before the others of the lead, for "new" is no number of a campaign.
    *(collecting.router, lead.router, crew.router, results.router),
    *(api.router, api.specification),
)


def create_app(
    ledger: Ledger,
    *,
    secure: bool = False,
    workers: int = 1,
    routers: Sequence[APIRouter] = ROUTERS,
) -> FastAPI:
    """The labelling app over a ledger. ``secure``: browsers reach it by TLS, so cookies need it.
    ``workers``: how many such apps share the work, and the failed sign-ins that are allowed."""
    app = FastAPI(
        title="Truing",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # `api.specification` has it, for those who may see it
        dependencies=[Depends(guard)],
    )
    app.state.ledger, app.state.secure, app.state.kept = ledger, secure, KeptFigures()
    # By name: a person who mistypes. By address: many share one, and it stops lists of names.
    app.state.throttles = [auth.Throttle(max(1, most // workers), 900) for most in (5, 50)]
    for router in routers:
        # The specification is that of the REST API; pages are for people.
        app.include_router(router, include_in_schema=router.prefix.startswith("/api"))
    app.mount("/static", Kept(directory=STATIC))
    app.add_middleware(Fence, secure=secure)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


class Kept(StaticFiles):
    """Files whose address holds their hash: a browser need not ask for them again."""

    def file_response(self, *args: Any, **more: Any) -> Response:
        response = super().file_response(*args, **more)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


# --- how errors look ------------------------------------------------------------------------------


def told(request: Request, status: int, message: str, headers: Any = None) -> Response:
    """An error as a page, or as JSON for a script: ``{"detail": ...}``."""
    accepts = request.headers.get("accept", "")
    if request.url.path.startswith("/api/") or "application/json" in accepts:
        return JSONResponse({"detail": message}, status, headers)
    response = page(request, "error.html", status, code=status, message=message)
    response.headers.update(headers or {})
    return response


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    detail = str(error.detail)
    known = {404: "There is no such page.", 405: "This page takes no such request."}
    if type(error) is not HTTPException:
        detail = known.get(error.status_code, detail)
    return told(request, error.status_code, detail, error.headers)


def _unknown(request: Request, error: Exception) -> Response:
    if request.method == "GET" and "application/json" not in request.headers.get("accept", ""):
        return RedirectResponse(f"/sign-in?next={quote(request.url.path)}", 303)
    return told(request, 401, "You are signed out. Sign in; what you wrote is kept on this device.")


def _lookup(request: Request, error: Exception) -> Response:
    if type(error) is not LookupError:
        raise error  # a KeyError is a mistake of ours
    return told(request, 404, "There is no such thing here, or it is not yours.")


def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if request.url.path.startswith("/api/"):
        # Without what came: it need not be JSON.
        kept = [{k: e[k] for k in ("loc", "msg", "type")} for e in error.errors()]
        return JSONResponse({"detail": kept}, 422)
    return told(request, 404, "There is no such page.")


def _refused(request: Request, error: Exception) -> Response:
    return told(request, 409 if isinstance(error, Late) else 400, str(error))


def _down(request: Request, error: Exception) -> Response:
    message = "The ledger cannot be reached or written just now. What you sent is not recorded yet."
    return told(request, 503, message, {"Retry-After": "5"})


HANDLERS: dict[Any, Any] = {
    StarletteHTTPException: _http,
    auth.Unknown: _unknown,
    LookupError: _lookup,
    RequestValidationError: _validation,
    ValueError: _refused,
    OSError: _down,
}
