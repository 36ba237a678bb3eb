"""The command: where it listens, what it says, and what it refuses."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.web.house import House, person
from truing.cli import main
from truing.web.serve import greet

WAIT = 120  # seconds: the machine may be busy with other things


def test_the_command_serves_and_lets_the_first_admin_in(tmp_path: Path) -> None:
    place = tmp_path / "ledger.sqlite"
    log = tmp_path / "log"
    command = [sys.executable, "-m", "truing", "serve", str(place), "--port", "0"]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + WAIT
            while not (
                found := re.search(r"http://127\.0\.0\.1:(\d+)/invitation/\S+", log.read_text())
            ):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            while True:
                try:
                    page = urllib.request.urlopen(found[0], timeout=WAIT).read().decode()
                    break
                except OSError:
                    assert time.monotonic() < end
                    time.sleep(0.1)
            assert "Password" in page
            # It never loads torch.
            maps = Path(f"/proc/{server.pid}/maps")
            if maps.exists():
                assert "libtorch" not in maps.read_text()
        finally:
            os.kill(server.pid, signal.SIGINT)
            server.wait(WAIT)
    assert found[0].split("/")[-1] not in log.read_text().replace(found[0], "")


def test_an_admin_who_is_there_needs_no_link(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    person(house.ledger, "ada@example.org", role="annotator")
    greet(house.ledger, "http://x")
    assert "/invitation/" in capsys.readouterr().out
    person(house.ledger, "root@example.org", role="admin")
    greet(house.ledger, "http://x")
    assert "/invitation/" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ssl-certfile", "nowhere.pem"], "belong together"),
        (["--ssl-certfile", "no.pem", "--ssl-keyfile", "no.pem"], "is no file"),
        (["--port", "70000"], "port"),
        (["--host", "192.0.2.1"], "cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["serve", str(tmp_path / "l.sqlite"), *flags]) in (1, 2)
    assert said in capsys.readouterr().err
