"""Faults beneath the real server: killed, its database restarted, its disk full, two at once.
Whatever was acknowledged is there, and once."""

import http.client
import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.feedback import Person, serving
from tests import postgres
from tests.ledgers import counts_are_true, told
from tests.web.house import campaign
from truing.data.ledger import Campaign, Ledger

DOWN = ": 503 "  # and no other refusal
GONE = (OSError, http.client.HTTPException)


class Crowd:
    """People who judge a campaign over HTTP, and remember what they were told is recorded. What
    they heard nothing of they send again, with the same token."""

    def __init__(self, ledger: Ledger, made: Campaign, people: int) -> None:
        self.campaign = made.id
        who = [ledger.add_annotator().id for _ in range(people)]
        for person in who:
            ledger.join(made.id, person)
        self.secrets = [ledger.issue_token("session", 86400, annotator_id=n) for n in who]
        self.pending: list[tuple[str, str] | None] = [None] * people
        self.acknowledged, self.refused = list[str](), list[str]()
        self.stop = threading.Event()

    def judge(self, port: int, place: int, patient: bool) -> None:
        """One of them, until all stop; the ``patient`` go on where they get no answer."""
        with Person(port, self.campaign, self.secrets[place]) as person:
            while not self.stop.is_set():
                try:
                    lease, token = self.pending[place] or person.next()
                    self.pending[place] = lease, token
                    person.submit(lease, token)
                except GONE:
                    person.connection.close()
                    if not patient:
                        return
                    self.stop.wait(0.05)
                except RuntimeError as error:  # an answer that is no page
                    self.refused.append(str(error))
                    self.stop.wait(0.05)
                else:
                    self.pending[place] = None
                    self.acknowledged.append(token)

    def work(self, port: int, patient: bool, then: Callable[[], None]) -> None:
        """Let all judge while ``then`` is done."""
        self.stop.clear()
        threads = [
            threading.Thread(target=self.judge, args=(port, place, patient))
            for place in range(len(self.secrets))
        ]
        for thread in threads:
            thread.start()
        try:
            then()
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def more(self, count: int) -> None:
        """Wait until so many more judgements were acknowledged."""
        wanted = len(self.acknowledged) + count
        for _ in range(2400):
            if len(self.acknowledged) >= wanted:
                return
            self.stop.wait(0.05)
        raise AssertionError(f"{len(self.acknowledged)} of {wanted}: {self.refused[-3:]}")

    def check(self, ledger: Ledger) -> None:
        there = told(ledger)
        assert set(self.acknowledged) <= there.keys()
        assert len(set(self.acknowledged)) == len(self.acknowledged)
        assert set(there.values()) == {1}
        counts_are_true(ledger, self.campaign)


def gathered(place: str, people: int, items: int, wanted: int) -> Crowd:
    with Ledger.open(place) as ledger:
        made = campaign(ledger, items=items, overlap=wanted, critique="off", edit=False)
        return Crowd(ledger, made, people)


@pytest.mark.slow
def test_a_server_killed_twenty_times_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.sqlite")
    crowd = gathered(place, people=50, items=400, wanted=10)
    for turn in range(20):
        with serving(place, 1) as (process, port):

            def kill(turn: int = turn, process: int = process) -> None:
                crowd.more(12 + turn % 5)
                os.kill(process, signal.SIGKILL)

            crowd.work(port, False, kill)
    assert len(crowd.acknowledged) >= 20 * 12
    assert crowd.refused == []
    with serving(place, 1) as (_, port):  # what was on its way is sent again
        crowd.work(port, True, lambda: crowd.more(20))
    with Ledger.open(place) as ledger:
        crowd.check(ledger)


def at_once(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of several pieces of work that begin together."""
    gate = threading.Barrier(len(work))

    def begin(each: Callable[[], Any]) -> Any:
        gate.wait()
        return each()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(begin, work))


def two_at_once(port: int, number: int, secrets: Sequence[str]) -> None:
    """Two ask for the one slot of a campaign; who gets it sends the same form three times, twice by
    connections of its own at the same moment, as when an answer was lost."""
    with ExitStack() as stack:

        def somebody(secret: str) -> Person:
            return stack.enter_context(Person(port, number, secret))

        def ask(person: Person) -> tuple[str, str] | str:
            try:
                return person.next()
            except RuntimeError as error:
                return str(error)

        people = [somebody(secret) for secret in secrets]
        came = at_once([partial(ask, person) for person in people])
        (lost,) = [c for c in came if isinstance(c, str)]
        assert "Nothing is left" in lost
        (place,) = [i for i, c in enumerate(came) if not isinstance(c, str)]
        again = [people[place], somebody(secrets[place])]
        at_once([partial(person.submit, *came[place]) for person in again])
        people[place].submit(*came[place])


def test_two_at_once_get_one_slot_and_one_judgement(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.sqlite")
    with Ledger.open(place) as ledger:
        made = [campaign(ledger, items=1, name=f"c{i}", edit=False) for i in range(6)]
        two = [ledger.add_annotator().id for _ in range(2)]
        for person in two:
            for each in made:
                ledger.join(each.id, person)
        secrets = [ledger.issue_token("session", 86400, annotator_id=n) for n in two]
    with serving(place, 1) as (_, port):
        for each in made:
            two_at_once(port, each.id, secrets)
    with Ledger.open(place) as ledger:
        for each in made:
            assert ledger.progress(each.id).done == 1
        assert set(told(ledger).values()) == {1}
        assert sum(told(ledger).values()) == len(made)


def test_the_server_outlives_its_database(own_server: postgres.Server) -> None:
    place = own_server.create("beneath")
    crowd = gathered(place, people=4, items=300, wanted=4)
    with serving(place, 1) as (process, port):

        def restart() -> None:
            for mode in ("fast", "immediate"):
                crowd.more(10)
                own_server.stop(mode)
                before = len(crowd.refused)
                while len(crowd.refused) == before:
                    crowd.stop.wait(0.05)
                own_server.start()
            crowd.more(10)
            os.kill(process, 0)  # it is the same one still

        crowd.work(port, True, restart)
    assert all(DOWN in said for said in crowd.refused), crowd.refused
    with Ledger.open(place) as ledger:
        crowd.check(ledger)


def test_a_full_disk_is_told_and_costs_nothing_acknowledged(tmp_path: Path) -> None:
    place = tmp_path / "ledger.sqlite"
    crowd = gathered(str(place), people=3, items=400, wanted=3)
    with serving(str(place), 1) as (process, port):

        def fill() -> None:
            crowd.more(5)
            # The server may write no file further than this: to it the disk is full.
            log = place.with_name("ledger.sqlite-wal")
            most = max(log.stat().st_size, place.stat().st_size) + 50_000
            resource.prlimit(process, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            while len(crowd.refused) < 5:
                crowd.stop.wait(0.05)
            with Ledger.open(place) as ledger:
                assert set(crowd.acknowledged) <= told(ledger).keys()
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(process, resource.RLIMIT_FSIZE, unlimited)
            crowd.more(10)

        crowd.work(port, True, fill)
    assert all(DOWN in said for said in crowd.refused), crowd.refused
    with Ledger.open(place) as ledger:
        crowd.check(ledger)
