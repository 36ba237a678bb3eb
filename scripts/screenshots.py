"""Write the pictures of the labelling app in docs/images/, from the real app over a made-up ledger.

    python scripts/screenshots.py [name ...]

It takes Chromium and chromedriver, and Pillow (matplotlib brings it) to make the files small.
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import browser, served  # noqa: E402
from truing.data.ledger import Ledger, NewItem, NewResponse  # noqa: E402
from truing.web.app import create_app  # noqa: E402
from truing.web.auth import hashed  # noqa: E402

FOLDER = ROOT / "docs" / "images"
EMAIL, PASSWORD = "ada@example.org", "only for pictures"

COUNT = [
    {"role": "user", "content": "How do I count words in Python?"},
    {"role": "assistant", "content": "In a file, or in a list that you have already?"},
    {"role": "user", "content": "In a list. And how uneven are the counts?"},
]
LONG = """A dictionary will do, with one entry for each word:

```python
def count(words):
    seen = {}
    for word in words:
        seen[word] = seen.get(word, 0) + 1
    return seen
```

How uneven the counts are, the entropy says. With $p_i$ the share of word $i$,

$$H = -\\sum_{i} p_i \\log_2 p_i$$

It is greatest when all words are equally frequent."""
SHORT = """Use `Counter` from the standard library:

```python
from collections import Counter

counts = Counter(words)
print(counts.most_common(5))
```

- `most_common` lists the words that lead.
- If the first of them has most of the total, the counts are *uneven*.

I am ChatGPT, made by OpenAI, so ask me for more."""
SUM = ["17 · 24 = 17 · 20 + 17 · 4", "17 · 20 = 340", "17 · 4 = 78", "340 + 78 = 418"]
GUIDE = """Choose the answer that **helps the person more**.

1. *Right* comes before friendly.
2. An answer to the question comes before an answer beside it.
3. Length is no merit.

### Example

> How far is the moon?

A: *About 384,000 km.* B: *The moon is a wonderful thing to look at.*

**A much better**: B does not say how far."""


def fill(ledger: Ledger) -> None:
    """Campaigns of several kinds, and somebody who has begun."""
    me = ledger.add_annotator(email=EMAIL, name="Ada", password_hash=hashed(PASSWORD))
    rules: dict[str, dict[str, Any]] = {"rating": {"aspects": ["helpful", "true", "kind"]}}
    poems = ("Old pond: a frog jumps.", "The rain. A door, left open.", "Snow, and no one's steps.")
    texts: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "pairwise": (COUNT, (LONG, SHORT)),
        "ranking": ("Write one line that could stand in a haiku.", (*poems, "I like haiku a lot!")),
        "rating": ("My parcel is late again. What now?", (
            "I am sorry that it is late again. I have asked the carrier where it is, and you hear "
            "from me by four o'clock today.", "Parcels are sometimes late. Please be patient.")),
        "steps": ("What is 17 · 24?", ({"steps": SUM},)),
        "edit": ("Tell Ms Ito that her order has left.", (
            "hey your stuff is out, should be there in like 2 days or so",)),
    }  # fmt: skip
    for kind, (prompt, responses) in texts.items():
        made = ledger.create_campaign(
            {"pairwise": "Helpful replies", "ranking": "Haiku", "rating": "Customer service",
             "steps": "Sums", "edit": "Letters"}[kind],
            kind, config={"retest_share": 0.0, **rules.get(kind, {})},
        )  # fmt: skip
        answers = tuple(NewResponse(r) for r in responses)
        ledger.add_items(made.id, [NewItem(prompt, answers)])
        if kind == "pairwise":
            ledger.add_document(made.id, "consent", "Your judgements train a model. " + CONSENT)
            ledger.add_document(made.id, "guideline", GUIDE)
        ledger.set_campaign(made.id, state="open")
        ledger.join(made.id, me.id)


CONSENT = """They are kept under a pseudonym, with the time that each took.

- You may stop at any time, and need not say why.
- You may ask for all that is kept of you, and have it erased."""


class Camera:
    """A browser that files what it sees under a name, small."""

    def __init__(self, driver: Any, url: str, suffix: str, wanted: list[str]) -> None:
        self.driver, self.url, self.suffix, self.wanted = driver, url, suffix, wanted

    def go(self, path: str) -> None:
        self.driver.get(self.url + path)

    def keys(self, text: str) -> None:
        ActionChains(self.driver).send_keys(text).perform()
        time.sleep(0.3)

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()
        time.sleep(0.5)

    def shoot(self, name: str) -> None:
        if self.wanted and name not in self.wanted:
            return
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        few = picture.quantize(96, dither=Image.Dither.NONE)
        file = FOLDER / f"{name}-{self.suffix}.png"
        few.save(file, optimize=True)
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size // 1000} kB")


def annotator(camera: Camera) -> None:
    """Everything that somebody who judges sees."""
    camera.go("/sign-in")
    camera.shoot("sign-in")
    camera.driver.find_element(By.ID, "email").send_keys(EMAIL)
    camera.driver.find_element(By.ID, "password").send_keys(PASSWORD)
    camera.click("button.main")
    camera.shoot("home")
    camera.go("/tasks/1")
    camera.shoot("consent")
    camera.click("button[value=accept]")
    camera.click("button[value=accept]")
    camera.keys("2")
    camera.driver.execute_script("scrollTo(0, 0)")
    camera.shoot("pairwise")
    camera.keys("g")
    camera.shoot("guideline")
    for number, (name, keys) in enumerate(
        {"ranking": "2134", "rating": "545221", "steps": "113", "edit": ""}.items(), start=2
    ):
        camera.go(f"/tasks/{number}")
        camera.keys(keys)
        if name == "edit":
            text = camera.driver.find_element(By.CSS_SELECTOR, "textarea")
            text.clear()
            text.send_keys("Your order is out, and should be with you in 2 days or so.")
        camera.shoot(name)


# What a camera is taken through.
Tour = Callable[[Camera], None]


def pictured(
    wanted: list[str], height: int, made: Callable[[Path], tuple[Any, Ledger, Tour]]
) -> None:
    """Light, dark and on a phone: a tour with a camera before an app, which ``made`` makes anew
    in a folder, with its ledger."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for suffix, width, tall, dark in (
        ("light", 1280, height, False),
        ("dark", 1280, height, True),
        ("phone", 390, 844, False),
    ):
        with tempfile.TemporaryDirectory() as folder:
            app, ledger, tour = made(Path(folder))
            profile = Path(folder) / "profile"
            with (
                browser(profile, width=width, height=tall, dark=dark) as driver,
                served(app) as url,
            ):
                tour(Camera(driver, url, suffix, wanted))
            ledger.close()


def made_up(folder: Path) -> tuple[Any, Ledger, Tour]:
    ledger = Ledger.open(folder / "ledger.sqlite")
    fill(ledger)
    return create_app(ledger), ledger, annotator


if __name__ == "__main__":
    pictured(sys.argv[1:], 860, made_up)
