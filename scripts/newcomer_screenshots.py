"""Write the pictures of a newcomer's pages in docs/images/: from the invitation to the last item.

python scripts/newcomer_screenshots.py [name ...]
"""

import sys
from pathlib import Path
from typing import Any

from selenium.webdriver.common.by import By

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.screenshots import GUIDE, Camera, Tour, pictured  # noqa: E402
from truing.data.ledger import Ledger, NewItem, NewResponse  # noqa: E402
from truing.web.app import create_app  # noqa: E402
from truing.web.auth import invite  # noqa: E402

WARNING = """Some of these messages are **angry**, and a few insult the reader.

You may decline, and leave at any time without giving a reason."""
TIMES = ("Around noon, when it is busiest.", "We are open from 9 to 6, on Saturdays from 10 to 4.")
ALIKE = ("On Saturdays until 4.", "Until four o'clock on a Saturday.")
WHY = "The one with the hours **answers** what was asked: *when*. The other tells how full it is."
SAME = "Both say the same. A *tie* is an answer, too."


def fill(ledger: Ledger) -> str:
    """A campaign with all that stands before the work, two of other kinds; an invitation's path."""
    rules = {"retest_share": 0.0, "quiz_size": 1, "quiz_pass": 1}
    made = ledger.create_campaign("Opening hours", "pairwise", config=rules)
    times, alike = (tuple(map(NewResponse, texts)) for texts in (TIMES, ALIKE))
    better = {"outcome": "better", "preferred": 1, "strength": 2}
    ledger.add_items(
        made.id,
        [
            NewItem("When are you open?", times, purpose="practice", expected=better,
                    explanation=WHY),
            NewItem("Until when can I come on Saturday?", alike, purpose="screening",
                    expected={"outcome": "tie"}, explanation=SAME),
            NewItem("Are you open on Sundays?", times),
        ],
    )  # fmt: skip
    ledger.add_document(made.id, "warning", WARNING)
    ledger.add_document(made.id, "guideline", GUIDE)
    texts: dict[str, tuple[str, tuple[str, ...]]] = {
        "thumbs": ("Can I pay by card?", ("Yes: by any card, and by phone.",)),
        "demonstration": ("Tell a customer that we are closed on Monday.", ()),
    }
    ledger.set_campaign(made.id, state="open")
    for kind, (prompt, contents) in texts.items():
        other = ledger.create_campaign(f"{kind.title()} of replies", kind)
        ledger.add_items(other.id, [NewItem(prompt, tuple(map(NewResponse, contents)))])
        ledger.set_campaign(other.id, state="open")
    return invite(ledger, campaign_id=made.id)


def newcomer(camera: Camera, path: str, ledger: Ledger) -> None:
    """Everything that somebody sees on the way to the first item and behind the last."""
    camera.go(path)
    camera.driver.find_element(By.ID, "email").send_keys("grace@example.org")
    camera.driver.find_element(By.ID, "name").send_keys("Grace")
    camera.driver.find_element(By.ID, "password").send_keys("only for pictures")
    camera.shoot("invitation")
    camera.click("button.main")
    me = ledger.identity(email="grace@example.org")
    assert me is not None
    for number in (2, 3):
        ledger.join(number, me["annotator_id"])
    camera.go("/tasks/1")
    camera.shoot("warning")
    camera.click("button[value=accept]")
    camera.click("button[value=accept]")
    camera.shoot("practice")
    camera.keys("1")
    camera.click("#submit")
    camera.shoot("explained")
    for name, keys in {"screening": "0", "history": "3"}.items():
        camera.go("/tasks/1")
        camera.keys(keys)
        camera.click("#submit")
        camera.go(f"/tasks/1/{name}")
        camera.shoot(name)
    camera.go("/tasks/1")
    camera.shoot("rest")
    camera.go("/tasks/2")
    camera.keys("1")
    camera.shoot("thumbs")
    camera.go("/tasks/3")
    text = camera.driver.find_element(By.CSS_SELECTOR, "textarea")
    text.send_keys("We are closed this Monday. From Tuesday on we are here for you again, 9 to 6.")
    camera.shoot("demonstration")


def invited(folder: Path) -> tuple[Any, Ledger, Tour]:
    ledger = Ledger.open(folder / "ledger.sqlite")
    path = fill(ledger)
    return create_app(ledger), ledger, lambda camera: newcomer(camera, path, ledger)


if __name__ == "__main__":
    pictured(sys.argv[1:], 860, invited)
