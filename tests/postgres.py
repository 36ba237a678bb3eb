"""A PostgreSQL server of the tests' own, in a temporary folder, on a socket there.

The programs are those of Debian's package ``postgresql``. Where they are absent the tests install
them if they may (root, apt-get); where that fails the tests that need them are skipped, and say so.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import debian

HOMES = "/usr/lib/postgresql"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, the newest version; None if there is none."""
    found = sorted(Path(HOMES).glob("*/bin/initdb"), key=lambda p: int(p.parts[-3].split(".")[0]))
    if found:
        return found[-1].parent
    beside = shutil.which("initdb")
    return Path(beside).resolve().parent if beside else None


def install() -> Path | None:
    if programs() is None:
        debian.install("postgresql")
    return programs()


class Server:
    """A server that can be stopped and started; `url` of a database of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # sockets need short paths
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            shutil.chown(self.folder, "postgres", "postgres")
        self.data = self.folder / "data"
        self._call("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")

    def _call(self, program: str, *args: object) -> str:
        command: Sequence[str] = [str(self.home / program), *map(str, args)]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, durable: bool = False) -> None:
        how = f"-c listen_addresses='' -k {self.folder} -c max_connections=200"
        if not durable:
            how += " -c fsync=off -c full_page_writes=off"  # the machine will not lose power
        log = self.folder / "log"
        self._call("pg_ctl", "-D", self.data, "-l", log, "-o", how, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._call("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def close(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, name: str, template: str = "template0") -> str:
        """A database, empty or the copy of another; its address."""
        self._call("createdb", "-h", self.folder, "-U", "postgres", "-T", template, name)
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"


def server() -> Server:
    """A running server. Skips the test that asks for it where there are no programs."""
    home = install()
    if home is None:
        pytest.skip("PostgreSQL is not installed, and apt-get could not install it")
    made = Server(home)
    made.start()
    return made
