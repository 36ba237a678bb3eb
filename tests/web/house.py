"""A small house for the pages' tests: a ledger with campaigns of each kind, and people in it."""

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from truing.data.ledger import Annotator, Campaign, Ledger, NewItem, NewResponse
from truing.web.app import create_app

PASSWORD = "a long enough one"
# Of the same kind as the app's, but checked in no time.
QUICK = PasswordHasher(1, 8, 1).hash(PASSWORD)
# Nothing here is drawn by chance or asked twice, so a test knows what comes.
QUIET = {"retest_share": 0.0}

TEXTS = {
    "pairwise": ("What is the capital of Australia?", ["Canberra.", "Sydney, of course."]),
    "ranking": ("Name a prime.", ["7", "9", "eleven", "two"]),
    "rating": ("Say hello.", ["Hello!", "What do you want?"]),
    "thumbs": ("Is water wet?", ["Yes, in most senses."]),
    "steps": ("What is 12 * 12?", [{"steps": ["12 * 10 = 120", "12 * 2 = 24", "Sum: 145"]}]),
    "edit": ("Thank Ada.", ["thx ada for all teh help"]),
    "demonstration": ("Write a haiku.", []),
}


def new_item(kind: str, number: int = 0, **more: Any) -> NewItem:
    prompt, contents = TEXTS[kind]
    responses = tuple(NewResponse(c, model=f"org/model-{i}") for i, c in enumerate(contents))
    return NewItem(f"{prompt} ({number})", responses, kind=kind, **{"key": number / 1000, **more})


def campaign(
    ledger: Ledger, kind: str = "pairwise", items: int = 3, name: str = "", **rules: Any
) -> Campaign:
    """An open campaign with some items."""
    made = ledger.create_campaign(name or f"the {kind} ones", kind, config=QUIET | rules)
    wanted = rules.get("overlap", 1)
    ledger.add_items(made.id, [new_item(kind, n, wanted=wanted) for n in range(items)])
    return ledger.set_campaign(made.id, state="open")


def person(
    ledger: Ledger, email: str = "ada@example.org", *campaigns: Campaign, **more: Any
) -> Annotator:
    made = ledger.add_annotator(email=email, name=email, password_hash=QUICK, **more)
    for each in campaigns:
        ledger.join(each.id, made.id)
    return made


class Browser(TestClient):
    """A client that fills in forms as a browser would, CSRF token and cookies included."""

    def __init__(self, app: Any) -> None:
        super().__init__(app, base_url="http://localhost", follow_redirects=True)
        self.page: Any = None

    def visit(self, path: str) -> Any:
        self.page = self.get(path)
        return self.page

    @property
    def csrf(self) -> str:
        if self.page is None:
            self.visit("/sign-in")
        assert self.page is not None
        found = re.search(r'name="csrf" content="(\w+)"', self.page.text)
        assert found, self.page.text[:500]
        return found[1]

    def submit(self, path: str, script: bool = False, **fields: Any) -> Any:
        """Post a form; ``script``: as the page's script does, so the answer is JSON."""
        headers = {"accept": "application/json"} if script else {}
        came = self.post(path, data={"csrf": self.csrf, **fields}, headers=headers)
        if not script and "csrf" in came.text:
            self.page = came
        return came

    def sign_in(self, email: str = "ada@example.org", password: str = PASSWORD) -> Any:
        self.visit("/sign-in")
        return self.submit("/sign-in", email=email, password=password)

    def hidden(self, name: str) -> str:
        """A hidden field of the page's main form."""
        assert self.page is not None
        found = re.search(rf'id="judgement".*?name="{name}" value="([^"]*)"', self.page.text, re.S)
        assert found, self.page.text
        return found[1]

    @property
    def lease(self) -> int:
        assert self.page is not None
        found = re.search(r'data-lease="(\d+)"', self.page.text)
        assert found, self.page.text
        return int(found[1])

    def work(self, campaign: Campaign) -> int:
        """Open a campaign's next item; its lease's number."""
        self.visit(f"/tasks/{campaign.id}")
        return self.lease

    def judge(self, **fields: Any) -> Any:
        return self.submit(f"/judge/{self.lease}", token=self.hidden("token"), **fields)


@cache
def _new_ledger() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "ledger.sqlite"
        with Ledger.open(place) as ledger, ledger.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return place.read_bytes()


class House:
    """A ledger in a folder and the app over it."""

    def __init__(self, folder: Path, url: str = "", **more: Any) -> None:
        """``url``: of an empty ledger to use in place of a file in the folder."""
        if not url:
            place = folder / "ledger.sqlite"
            place.write_bytes(_new_ledger())  # making the tables takes a second
            url = str(place)
        self.ledger = Ledger.open(url)
        self.app = create_app(self.ledger, **more)

    def browser(self, email: str = "") -> Browser:
        made = Browser(self.app)
        if email:
            assert made.sign_in(email).status_code == 200
        return made
