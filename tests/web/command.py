"""The command `truing serve` as a process of its own, for tests."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

WAIT = 120  # seconds: the machine may be busy with other things


class Server(NamedTuple):
    """``invitation``: the link that it printed for the first admin."""

    url: str
    invitation: str
    pid: int


@contextmanager
def running(ledger: str, log: Path, *flags: str) -> Iterator[Server]:
    """The command over a ledger in which nobody leads, once it answers."""
    command = [sys.executable, "-m", "truing", "serve", ledger, "--port", "0", *flags]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + WAIT
            while not (
                found := re.search(r"(http://127\.0\.0\.1:\d+)/invitation/\S+", log.read_text())
            ):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            while True:
                try:
                    urllib.request.urlopen(found[1] + "/sign-in", timeout=WAIT).close()
                    break
                except OSError:
                    assert time.monotonic() < end
                    time.sleep(0.1)
            yield Server(found[1], found[0], server.pid)
        finally:
            os.kill(server.pid, signal.SIGINT)
            server.wait(WAIT)
