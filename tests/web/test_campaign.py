"""A whole campaign, from its file of samples to what trains on its judgements.

A lead makes it in a browser before the real server; three people judge it in browsers of their own
with keys alone, in turns; the lead downloads the export; the real commands train on it.
"""

import json
import math
import zipfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import asked, browser
from tests.web.command import running
from tests.web.house import PASSWORD
from tests.web.leading import LEAD
from tests.web.person import Typist
from truing.cli import main
from truing.data.ledger import Ledger
from truing.quickstart.training import BASE
from truing.rewards import load_reward, score
from truing.run import Run

NAMES = ("ada", "grace", "alan")
NEEDS = ("open the door", "find the key", "read the map", "name a river", "count the cups")
REPLIES = ("Why would I {}?", "Gladly, I will {}.", "Gladly, I will {}. Thank you.")
# Which two of the replies stand against each other, by their places, and for which needs.
PAIRED = [(0, 1), (0, 2), (1, 2)] * 3 + [(0, 0), (1, 1)]
CONSENT, GUIDELINE = "What you say is kept under a pseudonym.", "Choose the friendlier one."


def kind(text: str) -> int:
    """The rule that all three judge by: how friendly a reply is, 0 to 2."""
    return ("Gladly" in text) + ("Thank" in text)


def key(a: str, b: str) -> str:
    """What the rule says of two replies, as a key."""
    if kind(a) == kind(b):
        return "0" if kind(a) else "b"
    return {2: "1", 1: "2", -1: "3", -2: "4"}[kind(a) - kind(b)]


def samples(file: Path) -> Path:
    """Two replies to each prompt, as `truing sample` writes them."""
    rows = list[dict[str, str]]()
    for i, (one, other) in enumerate(PAIRED):
        need = NEEDS[i % len(NEEDS)]
        for place, reply in enumerate((one, other)):
            # Replies of the same friendliness are still two.
            said = REPLIES[reply].format(need + " now" * (place and one == other))
            rows.append({"prompt": f"Please {need}, number {i}.\n", "completion": said})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


class Annotator(Typist):
    """One of the three, before a browser of their own."""

    def arrive(self, link: str) -> None:
        """From the invitation to the first item."""
        self.go(link)
        self.tab_to("Password")  # the address stands there already
        self.keys(PASSWORD)
        self.after(Keys.ENTER)
        self.tab_to("Begin")
        self.after(Keys.ENTER)
        for words in (CONSENT, GUIDELINE):
            self.sees(words)
            self.after(Keys.ENTER)
        self.until(lambda: self.item)

    def judge(self) -> None:
        """One item, by the rule."""
        self.until(lambda: self.item)
        a, b = (pane.text for pane in self.driver.find_elements(By.CSS_SELECTOR, ".pane"))
        self.keys(key(a, b))
        self.after(Keys.ENTER)


def begun(lead: Typist, invitation: str, file: Path) -> dict[str, str]:
    """The lead makes the campaign, publishes its texts, invites three and opens it; their links."""

    def field(name: str, *keys: str) -> None:
        lead.driver.find_element(By.ID, name).send_keys(*keys)

    def press(button: str) -> None:
        lead.tab_to(button)
        lead.after(Keys.ENTER)

    lead.go(invitation)
    lead.keys(LEAD, Keys.TAB, "Lead", Keys.TAB, PASSWORD)
    lead.after(Keys.ENTER)
    lead.go("/lead/new")
    field("name", "friendliness")
    field("file", str(file))
    field("overlap", Keys.CONTROL, "a", Keys.NULL, "3")
    press("Make it")
    lead.sees(f"items added: {len(PAIRED)}")
    for kind, text in (("guideline", GUIDELINE), ("consent", CONSENT)):
        lead.go("/lead/1/texts")
        opened = "document.getElementById(arguments[0]).closest('details').open = true"
        lead.driver.execute_script(opened, f"text-{kind}")
        field(f"text-{kind}", text)
        press("Publish")
        lead.sees(text)
    lead.go("/lead/1/people")
    field("emails", Keys.ENTER.join(f"{name}@example.org" for name in NAMES))
    press("Make links")
    links = lead.driver.find_element(By.CSS_SELECTOR, "textarea.links").get_attribute("value")
    lead.go("/lead/1")
    press("Open")
    return dict(line.split("\t") for line in links.splitlines())


def downloaded(lead: Typist, folder: Path) -> Path:
    """The lead takes the files from the page; the folder they are in."""
    folder.mkdir()
    how = {"behavior": "allow", "downloadPath": str(folder)}
    lead.driver.execute_cdp_cmd("Browser.setDownloadBehavior", how)
    lead.go("/lead/1/export")
    lead.tab_to("Download")
    lead.keys(Keys.ENTER)
    (archive,) = lead.until(lambda: [*folder.glob("*.zip")])
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder / "export")
    return folder / "export"


def as_judged(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    """Everything that was said stands in the ledger and in the rows as the rule says it, whichever
    side it stood on."""
    sides, seen = Counter[bool](), dict[int, list[str]]()
    people = Counter[int]()
    for item in ledger.items(sorted(ledger.item_numbers(1).values())):
        texts = {r.id: str(r.content) for r in item.responses}
        for said in ledger.judgements(item.id):
            seen[said.id] = [texts[number] for number in said.shown]
            a, b = map(kind, seen[said.id])
            outcome = "better" if a != b else "tie" if a else "both_bad"
            better = said.shown[a < b] if a != b else None
            value = {"outcome": outcome, "preferred": better, "strength": abs(a - b) or None}
            assert said.value == value
            people[said.annotator_id] += 1
            sides[said.shown[0] == item.responses[0].id] += 1
    assert sorted(people.values()) == [len(PAIRED)] * 3
    assert min(sides[True], sides[False]) > 5  # a coin drew them
    assert len(rows) == 3 * sum(one != other for one, other in PAIRED)
    for row in rows:
        told = row["provenance"]
        far = kind(row["chosen"]) - kind(row["rejected"])
        assert far == told["extra"]["strength"] > 0
        both = row["chosen"], row["rejected"]
        assert [both[place] for place in told["order"]] == seen[told["extra"]["judgement"]]
        assert told["guideline"] == "v1"
    assert len({row["provenance"]["author"] for row in rows}) == 3


def trained(command: str, rows: Path, folder: Path, **more: object) -> list[dict[str, Any]]:
    """The command on the export, a few steps from the packaged model; what it logged."""
    settings = {
        **{"model-name-or-path": BASE, "dataset-name": rows, "output-dir": folder},
        **{"per-device-train-batch-size": 9, "logging-steps": 1, "report-to": "none"},
        **more,
    }
    told = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    assert main([command, *told, "--use-cpu"]) == 0
    lines = [line for line in Run.open(folder).metrics() if "loss" in line]
    assert len(lines) == more["max-steps"]
    assert all(math.isfinite(line[name]) for line in lines for name in ("loss", "grad_norm"))
    return lines


@pytest.mark.slow
def test_a_campaign_from_its_first_file_to_trainings(tmp_path: Path) -> None:
    place, file = str(tmp_path / "ledger.sqlite"), samples(tmp_path / "samples.jsonl")
    with running(place, tmp_path / "log") as server, ExitStack() as stack:
        lead = Typist(stack.enter_context(browser(tmp_path / "lead")), server.url)
        links = begun(lead, server.invitation, file)
        three = list[Annotator]()
        for name in NAMES:
            driver = stack.enter_context(browser(tmp_path / name))
            three.append(Annotator(driver, server.url))
            three[-1].arrive(links[f"{name}@example.org"])
        for _ in PAIRED:
            for person in three:
                person.judge()
        for person in three:
            person.sees("Nothing is left")
        lead.go("/lead/1")
        lead.sees(f"{3 * len(PAIRED)} of {3 * len(PAIRED)}")
        export = downloaded(lead, tmp_path / "download")
        for each in (lead, *three):
            assert [url for url in asked(each.driver) if not url.startswith(each.url)] == []
    assert "guideline" in (export / "README.md").read_text(encoding="utf-8").lower()
    file = export / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with Ledger.open(place) as ledger:
        as_judged(ledger, rows)
    assert main(["ledger", "verify", place]) == 0

    steps = {"max-steps": 6, "learning-rate": 1e-3}
    lines = trained("reward", file, tmp_path / "reward", **steps)
    assert lines[-1]["loss"] < 0.1 < 0.5 < lines[0]["loss"]
    learnt = load_reward(str(tmp_path / "reward"))
    prompts = [row["prompt"] for row in rows]
    better, worse = (score(learnt, prompts, [r[k] for r in rows]) for k in ("chosen", "rejected"))
    right = sum(b > w for b, w in zip(better, worse, strict=True))
    assert right == len(rows)

    lines = trained("dpo", file, tmp_path / "dpo", **{"max-steps": 4, "learning-rate": 1e-4})
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)  # it is its own reference
    assert lines[-1]["loss"] < lines[0]["loss"]
