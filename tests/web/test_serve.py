"""The command: where it listens, what it says, and what it refuses."""

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.feedback import Person
from tests.ledgers import counts_are_true
from tests.web.command import WAIT, running
from tests.web.house import House, campaign, person
from truing.cli import main
from truing.web import serve
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


def test_two_processes_share_the_work_and_lose_nothing(house: House, tmp_path: Path) -> None:
    made = campaign(house.ledger, items=30, overlap=2)
    people = [person(house.ledger, f"{n}@example.org", made) for n in range(4)]
    paper = house.ledger.add_document(made.id, "guideline", "Choose the better one.")
    secrets: list[str] = []
    for one in people:
        house.ledger.accept(one.id, paper.id)
        secrets.append(house.ledger.issue_token("session", 3600, annotator_id=one.id))
    place = str(tmp_path / "ledger.sqlite")
    with running(place, tmp_path / "log", "--workers", "2") as server:
        port = int(server.url.rpartition(":")[2])

        def judge(secret: str) -> None:
            with Person(port, made.id, secret) as one:
                for _ in range(10):
                    one.submit(*one.next())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(judge, secrets))
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        if children.exists():
            assert len(children.read_text().split()) >= 2
    assert house.ledger.progress(made.id).done == 40
    assert [len(house.ledger.recent(made.id, one.id, 100)) for one in people] == [10] * 4
    counts_are_true(house.ledger, made.id)


def test_failed_sign_ins_are_shared_out_among_processes(tmp_path: Path) -> None:
    for workers, allowed in ((1, 5), (2, 2), (9, 1)):
        folder = tmp_path / str(workers)
        folder.mkdir()
        browser = House(folder, workers=workers).browser()
        codes = [
            browser.sign_in("ada@example.org", "wrong").status_code for _ in range(allowed + 1)
        ]
        assert codes == [401] * allowed + [429]


def test_each_process_is_told_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (serve.PLACE, serve.SECURE, serve.WORKERS):
        monkeypatch.setenv(name, "")  # and what is set in its place goes with the test
    monkeypatch.setattr(serve.uvicorn, "run", lambda *_, **__: None)
    assert main(["serve", str(tmp_path / "ledger.sqlite"), "--port", "0", "--workers", "2"]) == 0
    made = serve.app()
    assert [throttle.limit for throttle in made.state.throttles] == [2, 25]
    made.state.ledger.close()


@pytest.mark.parametrize("trusted", [True, False])
def test_the_word_of_a_proxy_is_taken_where_it_is_named(tmp_path: Path, trusted: bool) -> None:
    log, proxy = tmp_path / "log", "127.0.0.0/8" if trusted else "192.0.2.7"
    flags = ("--behind-tls", "true", "--forwarded-allow-ips", proxy)
    with running(str(tmp_path / "ledger.sqlite"), log, *flags) as server:
        asked = urllib.request.Request(server.url + "/sign-in")
        asked.add_header("X-Forwarded-For", "203.0.113.9")
        urllib.request.urlopen(asked, timeout=WAIT).close()
    assert ("203.0.113.9" in log.read_text()) == trusted


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
        (["--forwarded-allow-ips", "192.0.2.7"], "no effect without behind_tls"),
        (["--host", "192.0.2.1"], "cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["serve", str(tmp_path / "l.sqlite"), *flags]) in (1, 2)
    assert said in capsys.readouterr().err
