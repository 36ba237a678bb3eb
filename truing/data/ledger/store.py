"""The database under the ledger: opening it, transactions, the clock, what its failures mean."""

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError

from truing.data.ledger import migrate

T = TypeVar("T")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
IDLE = 1.0  # seconds after which a connection is asked whether it still stands
CONTROL = re.compile("[\0-\x1f\x7f\ud800-\udfff]")


def _elapsed() -> float:
    """Seconds that no setting of the clock changes, time asleep included."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


class Clock:
    """Milliseconds since 1970 that only go forwards: the wall clock is read once, at the start, so
    that no lease ends because somebody sets the clock while we run."""

    def __init__(self) -> None:
        self._start = time.time() - _elapsed()

    def __call__(self) -> int:
        return int(1000 * (self._start + _elapsed()))


def url_of(place: str | Path) -> str:
    """``postgresql+psycopg://...`` as it is; any other text is the path of an SQLite file."""
    text = str(place)
    if text.startswith("sqlite:///"):
        return text
    if "://" not in text:
        return f"sqlite:///{Path(text).absolute()}"
    text = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", text)
    if not text.startswith("postgresql+psycopg://"):
        raise ValueError(
            f"the ledger is {text.partition('://')[0]}://...; needed: the path of a file (SQLite) "
            "or postgresql+psycopg://user@host/database. Choose one of these"
        )
    return text


def _sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we begin transactions, not the driver
        for pragma in (
            *("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=20000"),
            "secure_delete=ON",  # what is erased is overwritten
            *("cache_size=-65536", "temp_store=MEMORY", "mmap_size=67108864"),
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        # A transaction that reads first and then writes could find that it read the past: refused.
        how = connection.get_execution_options()
        if how.get("writes"):
            level = "FULL" if how["durable"] else "NORMAL"
            if connection.info.get("synchronous") != level:
                connection.exec_driver_sql(f"PRAGMA synchronous={level}")
                connection.info["synchronous"] = level
        connection.exec_driver_sql("BEGIN IMMEDIATE" if how.get("writes") else "BEGIN")


def _postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: Any, _: object) -> None:
        connection.autocommit = True
        connection.execute("SET jit TO off")  # compiling takes longer than our queries
        connection.autocommit = False

    @event.listens_for(engine, "checkin")
    def _(_: object, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    # To ask each time is a trip to the server for each transaction. A connection that was lost a
    # moment ago is found by its first statement, and all that are older than that are left too.
    @event.listens_for(engine, "checkout")
    def _(connection: Any, record: Any, _: object) -> None:
        now = time.monotonic()
        if now - record.info.get("idle_since", now) > IDLE:
            try:
                engine.dialect.do_ping(connection)
            except connection.Error as error:
                raise InvalidatePoolError from error


class _Sitting(threading.local):
    """What the current thread reads from, while it sits."""

    open: ExitStack | None = None
    connection: Connection | None = None

    def leave(self, error: DBAPIError | None = None) -> None:
        """End the transaction; the next reading begins another."""
        if self.open is not None:
            self.connection = None
            self.open.__exit__(error and type(error), error, None)


class Store:
    """A database of the ledger. Any number of threads and processes may use one at once."""

    def __init__(self, engine: Engine, clock: Callable[[], int]) -> None:
        self.engine, self.now = engine, clock
        self.sqlite = engine.dialect.name == "sqlite"
        # Writers of one process queue here in turn: SQLite's own waiting sleeps, and is unfair.
        self._turn, self._sitting = threading.Lock(), _Sitting()

    @classmethod
    def open(cls, place: str | Path, *, clock: Callable[[], int] | None = None, pool: int = 20):
        """Open the ledger at a path (SQLite) or ``postgresql+psycopg://`` address.

        A new or empty database gets its tables. ``clock`` gives milliseconds since 1970 (tests).
        Raises ValueError where the tables are of an older version of truing (it says which command
        brings them up to date) or a newer one, and OSError where the database does not answer.
        """
        store = cls.unchecked(place, clock=clock, pool=pool)
        try:
            with store.reading() as c:
                ready = migrate.check(c, str(place))
            if not ready:
                store.write(lambda c: migrate.prepare(c, str(place)))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def unchecked(
        cls, place: str | Path, *, clock: Callable[[], int] | None = None, pool: int = 20
    ):
        """The same, whatever tables are there."""
        url = url_of(place)
        how: dict[str, Any] = {"pool_size": pool, "max_overflow": pool}
        if not url.startswith("sqlite"):
            # The same few statements come again and again: few connections, where they are ready.
            how |= {"pool_use_lifo": True, "connect_args": {"prepare_threshold": 1}}
        engine = create_engine(url, **how)
        (_sqlite if engine.dialect.name == "sqlite" else _postgresql)(engine)
        return cls(engine, clock or Clock())

    def bring_up(self) -> tuple[str | None, str]:
        """Bring the tables to this version; the versions before and after."""
        return self.write(migrate.bring_up)

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def sitting(self) -> Iterator[None]:
        """Within it all that this thread reads, up to its next writing, comes by one connection,
        on SQLite in one transaction: a page asks for many small things, and to begin costs more
        than to read them. What was read before a writing is read anew after it."""
        if self._sitting.open is not None:
            yield
            return
        with ExitStack() as stack:
            self._sitting.open = stack
            try:
                yield
            finally:
                self._sitting.open = self._sitting.connection = None

    @contextmanager
    def reading(self, snapshot: bool = False) -> Iterator[Connection]:
        """A connection that only reads, and blocks no writer. ``snapshot``: all that is read by it
        is of one moment, which on PostgreSQL is not a matter of course."""
        sitting = self._sitting
        if snapshot or sitting.open is None:
            with self._reading(snapshot) as connection:
                yield connection
            return
        if sitting.connection is None:
            sitting.connection = sitting.open.enter_context(self._reading())
        try:
            yield sitting.connection
        except DBAPIError as error:
            sitting.leave(error)  # which says what it means
            raise

    @contextmanager
    def _reading(self, snapshot: bool = False) -> Iterator[Connection]:
        with _explained(self.engine), self.engine.connect() as connection:
            if not self.sqlite:
                # A statement sees one moment anyway: to begin and to end would be two trips more.
                level = "REPEATABLE READ" if snapshot else "AUTOCOMMIT"
                connection = connection.execution_options(isolation_level=level)
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self, durable: bool = True) -> Iterator[Connection]:
        """A transaction that writes: whole or not at all. Raises OSError where the disk is full or
        the database is gone; what was acknowledged before stays. What is not ``durable`` (a draft,
        on SQLite a lease) outlives our end, but not always a power cut: it need not wait for the
        disk."""
        self._sitting.leave()
        with _explained(self.engine), self._one_writer(), self.engine.connect() as plain:
            connection = plain.execution_options(writes=True, durable=durable)
            with connection.begin():
                if not (durable or self.sqlite):
                    connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
                yield connection

    def write(self, work: Callable[[Connection], T], tries: int = 3) -> T:
        """Do ``work`` in a transaction; again, where the database was restarted or two transactions
        waited for each other. Only for work that may be done twice."""
        while True:
            tries -= 1
            try:
                with self.writing() as connection:
                    return work(connection)
            except (ConnectionError, BlockingIOError):
                if tries <= 0:
                    raise
                time.sleep(0.05)

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        if not self.sqlite:
            yield
            return
        with self._turn:
            yield


@contextmanager
def _explained(engine: Engine) -> Iterator[None]:
    """Failures of the database, as what a caller can act on."""
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except DBAPIError as error:
        said, state = str(error.orig).strip(), getattr(error.orig, "sqlstate", None) or ""
        if "disk is full" in said or "disk I/O" in said or state == "53100":
            todo = (
                f"{where} could not be written ({said}): make room there; nothing is half written"
            )
            raise OSError(errno.ENOSPC, todo) from error
        if state in ("40001", "40P01") or "database is locked" in said:
            todo = f"{where} was busy for too long ({said}): try again"
            raise BlockingIOError(errno.EAGAIN, todo) from error
        if error.connection_invalidated or state[:2] in ("08", "57") or _gone(error, state):
            todo = f"{where} does not answer ({said.splitlines()[0]}): start it, or try again"
            raise ConnectionError(todo) from error
        raise


def _gone(error: DBAPIError, state: str) -> bool:
    """Whether the driver of PostgreSQL, and not the server, raised the error."""
    if state:
        return False
    return (
        type(error.orig).__name__ == "OperationalError" and "psycopg" in type(error.orig).__module__
    )


def plain(what: str, text: str, size: int) -> str:
    """A short text for a column of its own. Raises ValueError for control characters or length."""
    if CONTROL.search(text) or len(text) > size:
        raise ValueError(
            f"{what} is {text[:80]!r} ({len(text)} characters); needed: at most {size}, without "
            "control characters. Shorten or clean it"
        )
    return text
