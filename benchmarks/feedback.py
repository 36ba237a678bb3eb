"""How fast the labelling pages answer when many judge at once, and how long an export takes.

    python -m benchmarks.feedback --items 100000 --judgements 1000000 --annotators 50

fills a ledger, serves it by ``truing serve``, and lets annotators judge over HTTP at several sizes
of it (docs/feedback-load.md); with ``--ledger`` one that is kept, or measured as it stands. Each
fetches the next item, thinks, and submits. What they wait is timed at their side, what it costs is
the server's CPU time. All judgements are marked as simulated.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import text

from benchmarks.judgements import everything, items
from tests import postgres
from truing.data.ledger import Answer, Campaign, Ledger
from truing.data.ledger.entries import Told
from truing.web.csrf import derived

SIZES = (10_000, 100_000)
KEPT = 4.0  # seconds; the server closes a connection that was idle for 5
FORM = {"action": "judge", "choice": "a1", "active_ms": "4000", "timing": "{}"}
TOKEN = re.compile(r'name="token" value="(\w+)"')
LEASE = re.compile(r'data-lease="(\d+)"')
# What a person who judged holds, as the pages would have left it.
ASSIGNED = """
INSERT INTO assignments (campaign_id, item_id, annotator_id, retest, state, arm, shown,
                         guideline_id, slot, leased_at, expires_at, draft)
SELECT campaign_id, item_id, annotator_id, 0, 'done', 'control', shown, guideline_id, :yes, at, at,
       NULL
FROM judgements
WHERE campaign_id = :campaign AND seq > :after AND kind = 'pairwise' AND assignment_id IS NULL
ON CONFLICT DO NOTHING
"""


# --- a ledger of a size ---------------------------------------------------------------------------


class Filling:
    """A campaign that is judged in bulk up to any count: judgement j is of item j modulo their
    number, and nobody judges an item twice, but for the few they judged over HTTP before. One that
    is there stays as it is."""

    def __init__(self, ledger: Ledger, count: int, most: int, people: int) -> None:
        self.ledger = ledger
        there = [campaign for campaign in ledger.campaigns() if campaign.name == "load"]
        if there:
            self.campaign, self.done = there[0], ledger.progress(there[0].id).done
            self.people = [one.id for one in ledger.annotators(self.campaign.id)]
            return
        # Beyond what is filled in, everybody finds something to judge in the end too.
        wanted = most // count + 3
        if wanted > people:
            raise ValueError(
                f"{most} judgements of {count} items by {people} people came; needed: at most "
                f"{people - 3} for each item, since nobody judges one twice. Give more annotators"
            )
        self.campaign: Campaign = ledger.create_campaign("load", "pairwise")
        ledger.add_items(self.campaign.id, items(count, wanted))
        paper = ledger.add_document(self.campaign.id, "guideline", "# Which helps more?\n\nSay it.")
        ledger.set_campaign(self.campaign.id, state="open")
        self.people = [ledger.add_annotator(simulated=True).id for _ in range(people)]
        for person in self.people:
            ledger.join(self.campaign.id, person)
            ledger.accept(person, paper.id)
        own = everything(ledger, self.campaign.id)
        self.shown = [(item.id, tuple(r.id for r in item.responses)) for item in own]
        self.done = 0

    def upto(self, count: int) -> None:
        """Record judgements until there are ``count`` of them."""
        if count <= self.done:
            return
        with self.ledger.reading() as c:
            after = c.scalar(text("SELECT COALESCE(MAX(seq), 0) FROM judgements"))
        self.ledger.record(self.campaign.id, self._told(self.done, count), batch=5000)
        with self.ledger.writing() as c:
            c.execute(text(ASSIGNED), {"yes": True, "campaign": self.campaign.id, "after": after})
            if not self.ledger.sqlite:
                c.execute(text("ANALYZE"))
        self.done = count

    def _told(self, start: int, end: int) -> Iterator[Told]:
        for j in range(start, end):
            k, i = divmod(j, len(self.shown))
            item, shown = self.shown[i]
            value = {"outcome": "better", "preferred": shown[j % 5 < 2], "strength": 1 + j % 2}
            yield Told(
                item,
                self.people[(i + k) % len(self.people)],
                (Answer("pairwise", value),),
                f"b{j}",
                shown=shown[:: 1 if j % 3 else -1],
                active_ms=9000,
            )


# --- the server -----------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(place: str, workers: int) -> Iterator[tuple[int, int]]:
    """The real server on a free port; its process and the port."""
    command = [sys.executable, "-m", "truing", "serve", place, "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, "--workers", str(workers)], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield server.pid, _port(server, log)
        finally:
            server.terminate()
            server.wait(30)


def _port(server: subprocess.Popen[bytes], log: Any) -> int:
    """The port that the server says it has, once it answers there."""
    end = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
        log.seek(0)
        if not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read())):
            continue
        port = int(found[1])
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/sign-in")
            connection.getresponse().read()
            connection.close()
            return port
    log.seek(0)
    raise RuntimeError(f"the server did not begin: {log.read()[-2000:]}")


def cpu_of(process: int) -> float:
    """CPU seconds of a process and of those it began, so far."""
    parents, spent = dict[int, int](), dict[int, float]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            rest = stat.read_text().rpartition(")")[2].split()
            number = int(stat.parent.name)
            parents[number] = int(rest[1])
            spent[number] = (int(rest[11]) + int(rest[12])) / os.sysconf("SC_CLK_TCK")
    family = {process}
    while more := {n for n, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(spent.get(number, 0.0) for number in family)


# --- those who judge ------------------------------------------------------------------------------


@dataclass
class Waits:
    """Seconds waited: for the next item, and for a submission to be recorded."""

    next: list[float] = field(default_factory=list[float])
    submit: list[float] = field(default_factory=list[float])
    failed: list[str] = field(default_factory=list[str])


class Person:
    """Somebody who judges over HTTP, by a session that is there already."""

    def __init__(self, port: int, campaign: int, secret: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.path, self.csrf = f"/tasks/{campaign}", derived(secret)
        self.headers, self.used = {"cookie": f"truing={secret}"}, time.monotonic()

    def _ask(self, method: str, path: str, body: str | None = None, **headers: str) -> str:
        if time.monotonic() - self.used > KEPT:
            self.connection.close()  # the next request opens it anew
        self.connection.request(method, path, body, {**self.headers, **headers})
        response = self.connection.getresponse()
        came = response.read().decode()
        self.used = time.monotonic()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {came[:300]}")
        return came

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def next(self) -> tuple[str, str]:
        """The next item's lease and the form's token."""
        page = self._ask("GET", self.path)
        lease, token = LEASE.search(page), TOKEN.search(page)
        if lease is None or token is None:
            raise RuntimeError(f"nothing to judge: {page[-500:]}")
        return lease[1], token[1]

    def submit(self, lease: str, token: str) -> None:
        body = urlencode({**FORM, "csrf": self.csrf, "token": token})
        kind = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        self._ask("POST", f"/judge/{lease}", body, **kind)

    def work(self, waits: Waits, start: float, end: float, think: float, chance: random.Random):
        """Judge from ``start`` to ``end``; ``think``: seconds between an item and its judgement."""
        try:
            time.sleep(max(0.0, start - time.monotonic()) + chance.random() * think)
            while time.monotonic() < end:
                asked = time.perf_counter()
                lease, token = self.next()
                waits.next.append(time.perf_counter() - asked)
                time.sleep(think * (0.5 + chance.random()))
                sent = time.perf_counter()
                self.submit(lease, token)
                waits.submit.append(time.perf_counter() - sent)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            waits.failed.append(repr(error))
        finally:
            self.connection.close()


def crowd(
    process: int, port: int, campaign: int, secrets: Sequence[str], seconds: float, think: float
) -> dict[str, Any]:
    """Let people judge for a while; what they waited, and what it cost."""
    people = [Person(port, campaign, secret) for secret in secrets]
    waits = [Waits() for _ in people]
    for person in people:
        # The first answer of each worker process loads templates and the like.
        person.submit(*person.next())
    start = time.monotonic() + 0.2
    before, own = cpu_of(process), time.process_time()
    threads = [
        threading.Thread(
            target=person.work, args=(wait, start, start + seconds, think, random.Random(i))
        )
        for i, (person, wait) in enumerate(zip(people, waits, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent, wall = cpu_of(process) - before, time.monotonic() - start
    failed = [said for wait in waits for said in wait.failed]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(people)} were not served: {failed[0]}")
    asked, sent = ([w for wait in waits for w in getattr(wait, n)] for n in ("next", "submit"))
    return {
        "next": spread(asked),
        "submit": spread(sent),
        "requests_per_second": (len(asked) + len(sent)) / wall,
        "server_cpu_ms_per_request": 1000 * spent / (len(asked) + len(sent)),
        "client_cpu_share": (time.process_time() - own) / wall,
        "think_seconds": think,
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: the median, the 99th percentile, the longest."""
    if len(seconds) < 2:
        raise ValueError(f"{len(seconds)} requests came in all; needed: 2. Measure for longer")
    ranks = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "count": len(seconds),
        "median_ms": 1000 * statistics.median(seconds),
        "p99_ms": 1000 * ranks[98],
        "max_ms": 1000 * max(seconds),
    }


# --- exports --------------------------------------------------------------------------------------


def exported(place: str, form: str) -> dict[str, Any]:
    """``truing collect export`` in a process of its own."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "truing", "collect", "export", place, "--campaign", "load"]
    command += ["--output-dir", str(folder / "out"), "--format", form]
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - start
    if child.returncode:
        raise RuntimeError(f"the export ended with {child.returncode}")
    size = (folder / "out" / f"train.{form}").stat().st_size
    shutil.rmtree(folder)
    return {
        "format": form,
        "seconds": wall,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / 1000,
        "file_mb": size / 1e6,
    }


# --- all of it ------------------------------------------------------------------------------------


@contextlib.contextmanager
def database(kind: str, kept: str | None) -> Iterator[str]:
    """The address of a database: of one that is kept, or a new one in a temporary folder."""
    if kept is not None:
        yield kept
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield str(Path(folder) / "ledger.sqlite")
    else:
        with cluster() as place:
            yield place


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """A PostgreSQL server of our own, which waits for the disk as any does."""
    home = postgres.install()
    if home is None:
        raise SystemExit("PostgreSQL is not installed, and apt-get could not install it")
    server = postgres.Server(home)
    try:
        server.start(durable=True)
        yield server.create("load")
    finally:
        server.close()


def measure(given: argparse.Namespace, place: str) -> dict[str, Any]:
    """All that is asked for, at each size; a line for each as it comes."""
    record: dict[str, Any] = {"sizes": [], "exports": []}
    with Ledger.open(place) as ledger:
        begun = time.monotonic()
        filling = Filling(ledger, given.items, given.judgements, given.annotators)
        sizes = [*(size for size in SIZES if size < given.judgements), given.judgements]
        for size in [filling.done] if filling.done else sizes:
            filling.upto(size)
            say(f"{size} judgements are there after {time.monotonic() - begun:.0f} s")
            secrets = [ledger.issue_token("session", 86400, annotator_id=n) for n in filling.people]
            with serving(place, given.workers) as (process, port):
                for think in given.think:
                    came = crowd(process, port, filling.campaign.id, secrets, given.seconds, think)
                    record["sizes"].append({"judgements": size, **came})
                    say(json.dumps(record["sizes"][-1]))
    for form in given.export:
        record["exports"].append(exported(place, form))
        say(json.dumps(record["exports"][-1]))
    return record


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--judgements", type=int, default=1_000_000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--ledger", help="a ledger to keep: a path, or an address of PostgreSQL")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long they judge each time")
    parser.add_argument(
        "--think", type=float, nargs="+", default=[5.0, 0.0], help="seconds from item to judgement"
    )
    parser.add_argument("--export", nargs="*", default=["parquet", "jsonl"], help="formats to time")
    parser.add_argument("--json", type=Path, help="where to write the record")
    given = parser.parse_args(arguments)
    with database(given.database, given.ledger) as place:
        record = measure(given, place)
    load = os.getloadavg()[0]
    told = {k: v for k, v in vars(given).items() if k != "json"}
    record = {**told, **record, "cpus": os.cpu_count(), "load_average_at_end": load}
    lines = json.dumps(record, indent=1)
    print(lines)
    if given.json:
        given.json.write_text(lines + "\n", encoding="utf-8")
    return record


if __name__ == "__main__":
    main()
