"""Around every request: headers that fence a page in, a limit on what may be sent, a log line."""

import logging
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("truing.access")
BODY = 2**21  # bytes of a form; files of a lead may be larger
UPLOADS = ("/lead/", "/api/")
UPLOAD = 2**28

# No script, style, picture or connection but from this server; no plug-in, frame or foreign form.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# What lets somebody in must not stand in a log.
SECRET = re.compile(r"(/invitation/)[^/?\s]+")


FAILED = b"Something went wrong here. What you sent may not be recorded; what you wrote is kept."


class TooLarge(Exception):
    """More came than a form may hold."""


class Fence:
    """ASGI middleware: headers on every answer (an answer's own win), 413 for too large a body, and
    one line per request in the log ``truing.access``: client, pseudonym, method, path, status,
    milliseconds. Texts, names and queries are not logged."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self.app = app
        self.headers = dict(HEADERS)
        if secure:
            self.headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        start, status, came, started = time.perf_counter(), 500, 0, False
        most = UPLOAD if scope["path"].startswith(UPLOADS) else BODY

        async def fenced(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                own = {name.lower() for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in self.headers.items()]
                message["headers"] = [*message["headers"], *(m for m in more if m[0] not in own)]
            await send(message)

        async def limited() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > most:
                raise TooLarge
            return message

        try:
            await self.app(scope, limited, fenced)
        except TooLarge:
            await fenced({"type": "http.response.start", "status": 413, "headers": []})
            await send({"type": "http.response.body", "body": b"Too much came at once."})
        except Exception:
            if not started:
                await fenced({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": FAILED})
            raise
        finally:
            LOG.info(line(scope, status, 1000 * (time.perf_counter() - start)))


def line(scope: Scope, status: int, ms: float) -> str:
    """A request's line in the log."""
    who: Any = scope["state"].get("me")
    path = SECRET.sub(r"\1…", str(scope["path"]))
    client = (scope.get("client") or ("-",))[0]
    return (
        " ".join(
            (client, who.pseudonym if who else "-", scope["method"], repr(path)[1:-1], str(status))
        )
        + f" {ms:.0f} ms"
    )
