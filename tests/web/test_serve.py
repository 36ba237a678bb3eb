"""The command: where it listens, what it says, and what it refuses."""

import urllib.request
from pathlib import Path

import pytest

from tests.web.command import WAIT, running
from tests.web.house import House, person
from truing.cli import main
from truing.web.serve import greet


def test_the_command_serves_and_lets_the_first_admin_in(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(str(tmp_path / "ledger.sqlite"), log) as server:
        page = urllib.request.urlopen(server.invitation, timeout=WAIT).read().decode()
        assert "Password" in page
        # It never loads torch.
        maps = Path(f"/proc/{server.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
    secret = server.invitation.split("/")[-1]
    assert secret not in log.read_text().replace(server.invitation, "")


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
