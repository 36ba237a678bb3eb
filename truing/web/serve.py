"""`truing serve`: the labelling app on a port."""

import ipaddress
import logging
import os
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from truing import console
from truing.data.ledger import Ledger
from truing.settings_web import PROXIES, ServeConfig
from truing.web.app import create_app
from truing.web.auth import invite

# What worker processes are told, for they begin anew.
PLACE, SECURE, WORKERS = "TRUING_LEDGER", "TRUING_SECURE", "TRUING_WORKERS"


def run(config: ServeConfig) -> None:
    """Serve until Ctrl-C. Where the ledger has no admin yet, a one-time link for one is printed."""
    _check(config)
    secure = config.behind_tls or config.ssl_certfile is not None
    port = _port(config)
    address = f"http{'s' if config.ssl_certfile else ''}://{_shown(config.host)}:{port}"
    if not secure and not _loopback(config.host):
        console.say(
            f"[yellow]warning:[/yellow] {console.plain(config.host)} is open to others, and "
            "without TLS they can read passwords on the way. Give ssl_certfile and ssl_keyfile, or "
            "put a proxy with TLS in front and set behind_tls.",
            error=True,
        )
    with Ledger.open(config.ledger) as ledger:
        greet(ledger, address)
    told = {PLACE: config.ledger, SECURE: "1" if secure else "", WORKERS: str(config.workers)}
    os.environ |= told
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("truing.access").setLevel(logging.INFO)
    uvicorn.run(
        "truing.web.serve:app",
        factory=True,
        host=config.host,
        port=port,
        workers=config.workers,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        proxy_headers=config.behind_tls,
        forwarded_allow_ips=config.forwarded_allow_ips,
        access_log=False,
        server_header=False,
        log_level="warning",
        timeout_graceful_shutdown=5,
    )


def app() -> FastAPI:
    """The app of one worker process, over the ledger that `run` was told."""
    logging.getLogger("truing.access").setLevel(logging.INFO)
    secure, workers = bool(os.environ.get(SECURE)), int(os.environ.get(WORKERS, "1"))
    return create_app(Ledger.open(os.environ[PLACE]), secure=secure, workers=workers)


def greet(ledger: Ledger, address: str) -> None:
    """Say where the app is; and how the first admin gets in."""
    console.say(f"Truing is at [cyan]{console.plain(address)}[/cyan]   (Ctrl-C ends it)")
    admins = [a for a in ledger.annotators() if a.role == "admin" and a.state == "active"]
    if not any(ledger.identity(annotator_id=a.id) for a in admins):
        # Where there is one campaign to judge in, the first to come judges in it.
        ready = [campaign.id for campaign in ledger.campaigns() if campaign.state == "open"]
        joined = ready[0] if len(ready) == 1 else None
        link = address + invite(ledger, role="admin", campaign_id=joined, days=1)
        console.say(f"Nobody leads here yet. Open this once to begin: {console.plain(link)}")


def _check(config: ServeConfig) -> None:
    if (config.ssl_certfile is None) != (config.ssl_keyfile is None):
        raise ValueError("ssl_certfile and ssl_keyfile belong together: give both, or neither")
    if config.forwarded_allow_ips != PROXIES and not config.behind_tls:
        raise ValueError("forwarded_allow_ips has no effect without behind_tls: give both")
    for name in ("ssl_certfile", "ssl_keyfile"):
        file = getattr(config, name)
        if file is not None and not Path(file).is_file():
            raise ValueError(f"{name} is {file}, which is no file. Check the path")


def _port(config: ServeConfig) -> int:
    """The port to listen on. Raises ValueError where it is taken, or the host is not ours."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"{config.host}:{config.port} cannot be listened on ({error.strerror}): end what "
                "does, or give another port"
            ) from None
        return tried.getsockname()[1]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    """The host as a browser on this computer reaches it."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
