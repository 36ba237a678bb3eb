"""A ledger on each database: an SQLite file, and the tests' own PostgreSQL server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ledgers import Clock, Team, emptied
from truing.data.ledger import Ledger


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
