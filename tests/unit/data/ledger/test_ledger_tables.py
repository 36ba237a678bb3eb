"""The tables and their migrations, and how a ledger is opened."""

import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text, update

from tests import postgres
from tests.ledgers import TIE, Team
from truing.data.ledger import Ledger, Told, migrate, store
from truing.data.ledger.tables import LEDGER, annotators, metadata, streams

REVISIONS = migrate.revisions()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where there is nothing yet."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    server: postgres.Server = request.getfixturevalue("server")
    return server.create(f"empty_{time.monotonic_ns()}")


def differences(ledger: Ledger) -> list[object]:
    with ledger.reading() as c:
        return list(compare_metadata(MigrationContext.configure(c), metadata))


def test_an_empty_database_gets_the_tables(empty: str) -> None:
    for _ in range(2):
        with Ledger.open(empty) as ledger:
            assert differences(ledger) == []
            assert [head.name for head in ledger.heads()] == ["people"]


def test_an_old_ledger_is_brought_up_with_what_is_in_it(empty: str) -> None:
    row = {"pseudonym": "p-1", "source": "human", "role": "admin", "state": "active"}
    row |= {"simulated": False, "tags": ["law"], "external_id": None, "created_at": 1}
    for old in REVISIONS[:-1]:
        with Ledger.unchecked(empty) as ledger:
            ledger.write(lambda c, old=old: migrate.upgrade(c, old))
            if old == REVISIONS[0]:
                ledger.write(lambda c: c.execute(insert(annotators), row))
            # What came last changes rows, no tables.
            assert (differences(ledger) == []) == (old == REVISIONS[-2])
        with pytest.raises(ValueError, match=f"version {old}.*truing ledger upgrade"):
            Ledger.open(empty)
    with Ledger.unchecked(empty) as ledger:
        assert ledger.bring_up() == (REVISIONS[-2], REVISIONS[-1])
        assert ledger.bring_up() == (REVISIONS[-1], REVISIONS[-1])
    with Ledger.open(empty) as ledger:
        assert differences(ledger) == []
        assert ledger.annotators()[0].tags == ["law"]


def test_slots_that_were_counted_too_often_are_counted_again(empty: str) -> None:
    with Ledger.open(empty) as ledger:
        made, none = Team(ledger, items=3), ledger.create_campaign("none yet", "pairwise").id
        for who in made.people:
            for item in (1, 2):
                told = Told(item, who, (TIE,), f"{item}", shown=(2 * item - 1, 2 * item))
                ledger.record(made.id, [told])
        with ledger.writing() as c:
            c.execute(update(streams).values(filled=7))
            c.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    with Ledger.unchecked(empty) as ledger:
        assert ledger.bring_up() == ("0002", REVISIONS[-1])
    with Ledger.open(empty) as ledger, ledger.reading() as c:
        counts = {row.id: row.filled for row in c.execute(select(streams))}
        assert counts == {LEDGER: 7, made.id: 2, none: 0}


def test_what_is_no_ledger_or_a_newer_one_is_refused(empty: str) -> None:
    with Ledger.unchecked(empty) as other, other.writing() as c:
        c.execute(text("CREATE TABLE mine (x INTEGER)"))
    with pytest.raises(ValueError, match=r"tables of something else \(mine\)"):
        Ledger.open(empty)
    with Ledger.unchecked(empty) as other, other.writing() as c:
        c.execute(text("DROP TABLE mine"))
    with Ledger.open(empty) as ledger, ledger.writing() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="made by a newer truing"):
        Ledger.open(empty)
    with Ledger.unchecked(empty) as ledger, pytest.raises(ValueError, match="update truing"):
        ledger.bring_up()


def test_a_new_column_would_be_missed(empty: str) -> None:
    with Ledger.open(empty) as ledger:
        with ledger.writing() as c:
            c.execute(text("ALTER TABLE items DROP COLUMN external_id"))
        assert differences(ledger) != []


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("/tmp/a.db", "sqlite:////tmp/a.db"),
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
    ],
)
def test_places(place: str, url: str) -> None:
    assert store.url_of(place) == url


def test_other_databases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the ledger is mysql://.*Choose one"):
        Ledger.open("mysql://u@h/d")


def test_a_database_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ConnectionError, match="does not answer"):
        Ledger.open("postgresql://nobody@127.0.0.1:9/nothing")


def test_the_clock_does_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = store.Clock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    after = clock()
    assert 0 <= after - before < 60_000
    assert store.Clock()() < 60_000


def test_sqlite_is_set_up_to_keep_what_was_acknowledged(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        found = {}
        for durable in (True, False):
            with ledger.writing(durable=durable) as c:
                found[durable] = c.execute(text("PRAGMA synchronous")).scalar()
        with ledger.reading() as c:
            for name in ("journal_mode", "foreign_keys", "secure_delete"):
                found[name] = c.execute(text(f"PRAGMA {name}")).scalar()
    expected = {True: 2, False: 1, "journal_mode": "wal", "foreign_keys": 1, "secure_delete": 1}
    assert found == expected


def test_a_refused_transaction_leaves_nothing(empty: str) -> None:
    with Ledger.open(empty) as ledger:
        row = {"pseudonym": "p-1", "source": "human", "role": "admin", "state": "active"}
        row |= {"simulated": False, "tags": [], "external_id": None, "created_at": 1}

        def fail(c: Connection) -> None:
            c.execute(insert(annotators), row)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ledger.write(fail)
        with ledger.reading() as c:
            assert c.execute(select(annotators)).all() == []
