"""Faults: a process killed, a database restarted, a full disk. Nothing acknowledged is lost."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, select, text, update

from tests import postgres
from tests.ledgers import TIE, Team, counts_are_true, emptied, told
from truing.data.ledger import Ledger, NewItem, NewResponse, Taken, store
from truing.data.ledger.tables import streams

ROOT = Path(__file__).resolve().parents[4]
# Several threads judge, and say aloud what was acknowledged.
WORKER = """
import sys, threading
from tests.ledgers import TIE
from truing.data.ledger import Ledger, Taken
ledger, campaign = Ledger.open(sys.argv[1]), int(sys.argv[2])
people, word = [a.id for a in ledger.annotators()], threading.Lock()
def judge(person, turn):
    while candidates := ledger.candidates(campaign, person, limit=4):
        try:
            lease = ledger.lease(candidates[turn % len(candidates)].item_id, person,
                                 candidates[turn % len(candidates)].response_ids)
        except Taken:
            continue
        token = f"{sys.argv[3]}-{person}-{lease.id}"
        ledger.submit(lease.id, person, [TIE], token=token)
        with word:
            print(token, flush=True)
for turn, person in enumerate(people):
    threading.Thread(target=judge, args=(person, turn)).start()
"""


def test_what_was_acknowledged_survives_a_killed_process(place: str) -> None:
    with Ledger.open(place) as ledger:
        made = Team(ledger, items=200, people=4, wanted=2)
    acknowledged = list[str]()
    for turn in range(3):
        command = [sys.executable, "-c", WORKER, place, str(made.id), f"t{turn}"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                acknowledged.append(line.strip())
                if len(acknowledged) >= 20 * (turn + 1):
                    os.kill(worker.pid, signal.SIGKILL)
                    break
            acknowledged += [x for x in worker.stdout.read().split("\n") if x.startswith("t")]
    with Ledger.open(place) as ledger:
        there = told(ledger)
        assert len(acknowledged) >= 60
        assert set(acknowledged) <= there.keys()
        assert set(there.values()) == {1}
        counts_are_true(ledger, made.id)


def test_a_database_that_restarts_loses_nothing(own_server: postgres.Server) -> None:
    with Ledger.open(own_server.create("restarted")) as ledger:
        made = Team(ledger, items=400, people=3)
        acknowledged, stop = list[str](), threading.Event()

        def judge(person: int) -> None:
            while not stop.is_set():
                try:
                    first = ledger.candidates(made.id, person, limit=8)[person % 3]
                    lease = ledger.lease(first.item_id, person, first.response_ids)
                    token = f"{person}-{lease.id}"
                    ledger.submit(lease.id, person, [TIE], token=token)
                except (ConnectionError, Taken, IndexError):
                    continue
                acknowledged.append(token)

        people = [threading.Thread(target=judge, args=(person,)) for person in made.people]
        for thread in people:
            thread.start()
        for mode in ("fast", "immediate"):
            before = len(acknowledged)
            while len(acknowledged) < before + 10:
                stop.wait(0.05)
            own_server.stop(mode)
            own_server.start()
        before = len(acknowledged)
        while len(acknowledged) < before + 10:
            stop.wait(0.05)
        stop.set()
        for thread in people:
            thread.join()
        there = told(ledger)
        assert set(acknowledged) <= there.keys()
        assert set(there.values()) == {1}
        counts_are_true(ledger, made.id)


@pytest.fixture
def far(shared: str) -> Iterator[Ledger]:
    """A ledger on PostgreSQL."""
    with Ledger.open(emptied(shared)) as ledger:
        yield ledger


def test_a_connection_is_asked_whether_it_stands_once_it_was_idle(
    far: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ping = list[object](), far.engine.dialect.do_ping
    monkeypatch.setattr(far.engine.dialect, "do_ping", lambda c: asked.append(c) or ping(c))

    def backend() -> int:
        with far.reading() as c:
            return c.execute(text("SELECT pg_backend_pid()")).scalar_one()

    assert backend() == backend()  # the one used last comes first
    assert asked == []
    monkeypatch.setattr(store, "IDLE", 0.0)
    before = backend()
    assert len(asked) == 1
    with Ledger.open(far.engine.url.render_as_string(hide_password=False)) as other:
        with other.reading() as c:
            c.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": before})
        while True:
            with other.reading() as c:
                query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
                if c.execute(query, {"pid": before}).scalar() == 0:
                    break
    assert backend() != before
    assert len(asked) == 2


def test_reading_begins_no_transaction_and_writing_does(far: Ledger) -> None:
    def state(c: Connection) -> str:
        c.execute(text("SELECT 1"))
        return c.connection.dbapi_connection.info.transaction_status.name  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

    with far.reading() as c:
        assert state(c) == "IDLE"
        assert c.execute(text("SHOW jit")).scalar() == "off"
    with far.reading(snapshot=True) as c:
        assert state(c) == "INTRANS"
        assert c.execute(text("SHOW transaction_isolation")).scalar() == "repeatable read"
    with far.writing() as c:
        assert state(c) == "INTRANS"
        c.execute(update(streams).values(filled=9))
        c.rollback()
    with far.reading() as c:
        assert c.scalar(select(streams.c.filled)) == 0


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        made = Team(ledger, items=3)
        made.judge()
        limit = {"pages": 0}

        @event.listens_for(ledger.engine, "begin")
        def _(connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit['pages'] or 2**30}")

        with ledger.reading() as c:
            limit["pages"] = c.execute(text("PRAGMA page_count")).scalar()
        long = (NewResponse("x" * 100_000), NewResponse("y" * 100_000))
        with pytest.raises(OSError, match="make room there; nothing is half written"):
            ledger.add_items(made.id, [NewItem("long", long)])
        assert ledger.verify() == []
        assert ledger.progress(made.id).items == 3
        limit["pages"] = 0
        ledger.add_items(made.id, [NewItem("long", long)])
        made.judge()
        assert ledger.progress(made.id).items == 4
        counts_are_true(ledger, made.id)
