"""Who is there: passwords, sessions, invitations, roles.

Sessions live in the ledger as hashes; a new one begins at each sign-in. Whoever tries passwords is
slowed down, by sign-in name and by address.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from truing.data.ledger import Annotator, Ledger, visits
from truing.web import csrf
from truing.web.pages import ledger_of, page

ROLES = ("annotator", "reviewer", "admin")  # each may do what those before it may
IDLE, ABSOLUTE, NOTED = 4 * 3600, 24 * 3600, 60  # seconds
SHORTEST, LONGEST = 10, 200  # signs of a password

router = APIRouter()
_HASHER = PasswordHasher()
_HASHING = threading.BoundedSemaphore(2)  # each takes 64 MB
_NOBODY = _HASHER.hash("nobody has this password")


class Unknown(Exception):
    """Nobody is signed in, and the page is not for everybody."""


class Throttle:
    """At most ``limit`` failures per key within ``seconds``, in this process."""

    def __init__(
        self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit, self.seconds, self.clock = limit, seconds, clock
        self._failures: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def wait(self, key: str) -> float:
        """Seconds until the key may try again; 0: now."""
        with self._lock:
            failures = self._failures.get(key, deque())
            while failures and failures[0] <= self.clock() - self.seconds:
                failures.popleft()
            full = len(failures) >= self.limit
            return failures[0] + self.seconds - self.clock() if full else 0.0

    def failed(self, key: str) -> None:
        with self._lock:
            if len(self._failures) > 10_000:
                # Somebody tries names by the thousand: the oldest are forgotten, the newest count.
                self._failures.pop(next(iter(self._failures)))
            self._failures.setdefault(key, deque(maxlen=self.limit)).append(self.clock())

    def forget(self, key: str) -> None:
        with self._lock:
            self._failures.pop(key, None)


def hashed(password: str) -> str:
    """Argon2id. Raises ValueError for a password too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise ValueError(
            f"the password has {len(password)} characters; needed: {SHORTEST} to {LONGEST}"
        )
    with _HASHING:
        return _HASHER.hash(password)


def fits(password: str, known: str | None) -> bool:
    """Whether it is the password. It takes the same time where nobody has one."""
    try:
        with _HASHING:
            return _HASHER.verify(known or _NOBODY, password) and known is not None
    except (Argon2Error, InvalidHashError):
        return False


# --- sessions -------------------------------------------------------------------------------------


def current(request: Request) -> Annotator | None:
    """Who is signed in; None for nobody, or where the session is over."""
    secret = request.cookies.get(csrf.cookie_name(request))
    ledger = ledger_of(request)
    if not secret:
        return None
    now = ledger.now()
    with ledger.reading() as c:
        found = visits.session(c, secret, now)
    if found is None:
        return None
    if now - found.created_at > 1000 * ABSOLUTE:
        ledger.end_token(found.id)
        return None
    if now - found.seen_at > 1000 * NOTED:
        ledger.touch_token(found.id, IDLE)
    request.state.me = found.me
    return found.me


def require(role: str) -> Callable[[Request], Annotator]:
    """A dependency for routes: the signed-in `Annotator`, who has at least this role. Without one,
    people are sent to sign in; for too low a role the answer is 403."""
    least = ROLES.index(role)

    def allowed(request: Request) -> Annotator:
        me = current(request)
        if me is None:
            raise Unknown
        if ROLES.index(me.role) < least:
            raise HTTPException(403, "This page is for people with another role.")
        return me

    return allowed


def begin_session(request: Request, annotator_id: int, to: str) -> Response:
    """Sign somebody in, by a session that did not exist before, and send them on."""
    ledger, name = ledger_of(request), csrf.cookie_name(request)
    old = request.cookies.get(name)
    if old and (session := ledger.token("session", old)):
        ledger.end_token(session["id"])
    response = RedirectResponse(to, 303)
    secret = ledger.issue_token("session", IDLE, annotator_id=annotator_id)
    csrf.set_cookie(request, response, name, secret)
    response.delete_cookie(csrf.VISIT)
    return response


def inside(path: Any) -> str:
    """A path of this server to go on to, whatever was asked for."""
    good = isinstance(path, str) and path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if good and path.isprintable() and "\\" not in path else "/"


def text_field(request: Request, name: str, most: int = 200_000) -> str:
    """A field of the form as text; empty if it did not come."""
    value = request.state.form.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"the field {name} holds a file or too long a text; needed: {most} signs")
    return value


# --- pages ----------------------------------------------------------------------------------------


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "/") -> Response:
    if current(request):
        return RedirectResponse(inside(next), 303)
    return page(request, "sign_in.html", next=inside(next), email="", problem="")


@router.post("/sign-in")
def sign_in(request: Request) -> Response:
    email = text_field(request, "email", 320).strip().lower()
    password, to = text_field(request, "password", 1000), inside(text_field(request, "next", 2000))
    throttles: list[Throttle] = request.app.state.throttles
    keys = email, request.client.host if request.client else "-"
    if wait := max(t.wait(key) for t, key in zip(throttles, keys, strict=True)):
        problem = f"Too many attempts. Try again in {max(1, round(wait / 60))} min."
        made = page(request, "sign_in.html", 429, next=to, email=email, problem=problem)
        made.headers["Retry-After"] = str(int(wait) + 1)
        return made
    ledger = ledger_of(request)
    known = ledger.identity(email=email) if email else None
    if fits(password, known["password_hash"] if known else None) and known is not None:
        annotator_id = known["annotator_id"]
        if ledger.annotator(annotator_id).state == "active":
            throttles[0].forget(email)
            return begin_session(request, annotator_id, to)
    for throttle, key in zip(throttles, keys, strict=True):
        throttle.failed(key)
    problem = "This name and password do not fit together."
    return page(request, "sign_in.html", 401, next=to, email=email, problem=problem)


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    ledger, name = ledger_of(request), csrf.cookie_name(request)
    if session := ledger.token("session", request.cookies.get(name, "")):
        ledger.end_token(session["id"])
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(name, path="/", secure=csrf.secure(request), httponly=True)
    return response


def _invitation(request: Request, secret: str) -> Any:
    """What an invitation says, or 404."""
    if (told := ledger_of(request).token("invitation", secret)) is None:
        raise HTTPException(
            404, "This invitation was used, is over, or never was. Ask for a new one."
        )
    return told


def _welcome(request: Request, told: Any, status: int = 200, **filled: str) -> Response:
    ledger, campaign = ledger_of(request), told["campaign_id"]
    known = {"email": told["data"].get("email", ""), "name": "", "problem": "", **filled}
    return page(
        request,
        "invitation.html",
        status,
        campaign=None if campaign is None else ledger.campaign(campaign).name,
        renewal=told["annotator_id"] is not None,
        shortest=SHORTEST,
        **known,
    )


@router.get("/invitation/{secret}")
def invitation(request: Request, secret: str) -> Response:
    told = _invitation(request, secret)
    current(request)
    return _welcome(request, told)


@router.post("/invitation/{secret}")
def accept_invitation(request: Request, secret: str) -> Response:
    """Use an invitation: make an account, join with the one signed in, or set a new password.

    ``data`` of the token: ``role``, ``tags``; ``campaign_id``: what to join; ``annotator_id``:
    whose password is set anew.
    """
    told, ledger, me = _invitation(request, secret), ledger_of(request), current(request)
    email, name = text_field(request, "email", 320).strip(), text_field(request, "name", 200)
    joins = me is not None and told["annotator_id"] is None and told["campaign_id"] is not None
    filled = {"email": email, "name": name}
    try:
        password = "" if joins else hashed(text_field(request, "password", 1000))
        if not joins and told["annotator_id"] is None:
            if not email:
                raise ValueError("a sign-in name is needed: your email address, or any other word")
            if ledger.identity(email=email) is not None:
                raise ValueError(
                    f"{email} has an account already: sign in first, then open the link"
                )
    except ValueError as error:
        return _welcome(request, told, 400, problem=str(error), **filled)
    if not ledger.end_token(told["id"]):
        return _invitation(request, secret)  # somebody used it in this moment: 404
    if joins and me is not None:
        annotator_id = me.id
    elif told["annotator_id"] is not None:
        annotator_id = told["annotator_id"]
        ledger.set_password(annotator_id, password)
    else:
        annotator_id = _account(ledger, told, email, name, password)
    if told["campaign_id"] is not None:
        ledger.join(told["campaign_id"], annotator_id)
    return begin_session(request, annotator_id, "/")


def _account(ledger: Ledger, told: Any, email: str, name: str, password: str) -> int:
    made = ledger.add_annotator(
        name=name,
        email=email,
        password_hash=password,
        role=told["data"].get("role", "annotator"),
        tags=told["data"].get("tags", ()),
    )
    return made.id


def invite(
    ledger: Ledger,
    *,
    role: str = "annotator",
    campaign_id: int | None = None,
    annotator_id: int | None = None,
    email: str = "",
    tags: tuple[str, ...] = (),
    days: float = 14,
) -> str:
    """The path of a new one-time link. ``annotator_id``: it sets this person's password anew."""
    if role not in ROLES:
        raise ValueError(f"role is {role!r}; needed: one of {', '.join(ROLES)}. Choose one")
    data = {"role": role, "email": email, "tags": list(tags)}
    secret = ledger.issue_token(
        "invitation",
        86400 * days,
        annotator_id=annotator_id,
        campaign_id=campaign_id,
        data=data,
    )
    return f"/invitation/{secret}"


Me = Depends(require("annotator"))
