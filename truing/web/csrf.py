"""Forms that only our own pages can send: a token derived from the visitor's secret cookie.

The cookie is the session's, or before sign-in one of the visit; another site can make a browser
send it along but can read neither it nor a page of ours. As sign-in changes the cookie, a form from
before it is void after it.
"""

import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from starlette.datastructures import FormData

SAFE = ("GET", "HEAD", "OPTIONS")
VISIT = "truing_visit"
FIELDS = 400  # of a form


def secure(request: Request) -> bool:
    return bool(request.app.state.secure)


def cookie_name(request: Request) -> str:
    """The session's cookie. With TLS its name forbids other hosts of the domain to set it."""
    return "__Host-truing" if secure(request) else "truing"


def set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """A cookie for the length of the browser's session, which no script can read."""
    response.set_cookie(
        name, value, httponly=True, samesite="lax", secure=secure(request), path="/"
    )


def _secret(request: Request) -> str:
    cookies = request.cookies
    known = cookies.get(cookie_name(request)) or cookies.get(VISIT)
    if known is None:
        known = getattr(request.state, "visit", None) or secrets.token_urlsafe(32)
        request.state.visit = known
    return known


def derived(secret: str) -> str:
    """The token that belongs to a cookie."""
    return hmac.new(secret.encode(), b"csrf", hashlib.sha256).hexdigest()


def token(request: Request) -> str:
    """For a form's hidden field ``csrf``, or the header X-CSRF-Token."""
    return derived(_secret(request))


def remember(request: Request, response: Response) -> None:
    """Give a visitor without a cookie the one that the page's forms were made for."""
    if visit := getattr(request.state, "visit", None):
        set_cookie(request, response, VISIT, visit)


async def guard(request: Request) -> AsyncIterator[None]:
    """For all routes: read a form into ``request.state.form`` (its files are closed once the
    answer is made), and refuse one from elsewhere.

    Routes below /api/ are left out; they go by a token in a header, never by the cookie.
    """
    request.state.form = FormData()
    if request.method in SAFE or request.url.path.startswith("/api/"):
        yield
        return
    # Pages that send no referrer have the origin "null"; newer browsers say whence a form comes.
    origin, site = request.headers.get("origin", "null"), request.headers.get("sec-fetch-site")
    foreign = origin != "null" and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or site not in (None, "same-origin", "none"):
        raise HTTPException(403, "This form came from another site, so nothing was done.")
    form = await request.form(max_files=4, max_fields=FIELDS, max_part_size=2**26)
    request.state.form = form
    try:
        _check(request)
        yield
    finally:
        await form.close()


def _check(request: Request) -> None:
    """Raises HTTPException (403) for a form without the token that belongs to the cookie."""
    given = request.headers.get("x-csrf-token") or request.state.form.get("csrf")
    cookie = request.cookies.get(cookie_name(request)) or request.cookies.get(VISIT) or ""
    good = isinstance(given, str) and hmac.compare_digest(given.encode(), derived(cookie).encode())
    if not cookie or not good:
        raise HTTPException(
            403, "This page was too old, or opened before you signed in. Reload it and try again."
        )
