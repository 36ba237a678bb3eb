"""A ledger on each database: an SQLite file, and a PostgreSQL server of the tests' own."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests import postgres
from tests.ledgers import Clock, Team
from truing.data.ledger import Ledger

_numbers = count()


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    made = postgres.server()
    yield made
    made.close()


@pytest.fixture(scope="session")
def template(server: postgres.Server) -> str:
    """A database with the ledger's tables, to be copied."""
    Ledger.open(server.create("template_ledger")).close()
    return "template_ledger"


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new ledger may be opened, on each database."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    template = request.getfixturevalue("template")
    server: postgres.Server = request.getfixturevalue("server")
    return server.create(f"ledger_{next(_numbers)}", template)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(place: str, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(place, clock=clock) as made:
        yield made


@pytest.fixture
def team(ledger: Ledger) -> Callable[..., Team]:
    return lambda **how: Team(ledger, **how)
