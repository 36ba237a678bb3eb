"""A ledger on each database: an SQLite file, and a PostgreSQL server of the tests' own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests import postgres
from tests.ledgers import Clock, Team
from truing.data.ledger import Ledger, chain
from truing.data.ledger.tables import LEDGER, metadata


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    made = postgres.server()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared(server: postgres.Server) -> str:
    """One database for all tests, emptied for each: to make one takes seconds."""
    url = server.create("shared")
    Ledger.open(url).close()
    return url


def emptied(url: str) -> str:
    with Ledger.open(url) as ledger, ledger.writing() as c:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        c.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        chain.begin(c, LEDGER)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new ledger may be opened, on each database."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    return emptied(request.getfixturevalue("shared"))


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
