"""A real browser, and people who use nothing but keys."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import asked, browser, emulate_focus, served
from tests.web.house import PASSWORD, House, campaign, new_item, person
from tests.web.person import ADA, Person
from truing.data.ledger import Campaign
from truing.web.auth import invite


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """One browser in which Ada is signed in."""
    folder = tmp_path_factory.mktemp("web")
    house = House(folder)
    person(house.ledger, ADA)
    with browser(folder / "profile") as driver, served(house.app) as url:
        made = Person(house, driver, url)
        made.go("/sign-in")
        made.keys(ADA, Keys.TAB, PASSWORD)
        made.after(Keys.ENTER)
        made.sees("Your campaigns")
        yield made


def joined(ada: Person, kind: str, items: int = 2, name: str = "", **rules: Any) -> Campaign:
    made = campaign(ada.house.ledger, kind, items, name or f"{kind} {time.monotonic_ns()}", **rules)
    ada.house.ledger.join(made.id, 1)
    ada.go(f"/tasks/{made.id}")
    ada.until(lambda: ada.item)
    return made


def test_from_the_invitation_to_the_last_item_by_keys_alone(tmp_path: Path) -> None:
    house = House(tmp_path)
    made = campaign(house.ledger, "pairwise", 2, quiz_size=2, quiz_pass=1)
    for purpose, count in (("practice", 1), ("screening", 2)):
        right = {"expected": {"preferred": 0}, "explanation": "Canberra **is** the capital."}
        rows = [new_item("pairwise", 100 + n, purpose=purpose, **right) for n in range(count)]
        house.ledger.add_items(made.id, rows)
    for kind in ("consent", "warning", "guideline"):
        house.ledger.add_document(made.id, kind, f"The first {kind}.")
    link = invite(house.ledger, campaign_id=made.id)
    with browser(tmp_path / "profile") as driver, served(house.app) as url:
        new = Person(house, driver, url)
        new.go(link)
        new.keys("new@example.org", Keys.TAB, "New", Keys.TAB, PASSWORD)
        new.after(Keys.ENTER)
        new.sees("Your campaigns")
        new.tab_to("Begin")
        new.after(Keys.ENTER)
        for words in ("The first consent", "The first warning", "The first guideline"):
            new.sees(words)
            new.after(Keys.ENTER)
        new.sees("Practice")
        new.keys("1")
        new.after(Keys.ENTER)
        new.sees("Canberra is the capital")
        new.after(Keys.ENTER)
        for _ in range(2):
            new.sees("Screening")
            side = "2" if "Canberra" in driver.find_element(By.CSS_SELECTOR, ".pane").text else "3"
            new.keys(side)
            new.after(Keys.ENTER)
        new.sees("2 of 2 were right")
        new.tab_to("Begin")
        new.after(Keys.ENTER)
        for _ in range(2):
            new.keys("4")
            new.after(Keys.ENTER)
        new.sees("Nothing is left")
        changed_guideline(new, made)
        assert [a for a in asked(driver) if not a.startswith(url)] == []
    house.ledger.close()


def changed_guideline(new: Person, made: Campaign) -> None:
    """It is read before the next item, and the judgement says by which version it was made."""
    ledger = new.house.ledger
    ledger.add_document(made.id, "guideline", "The first guideline.\n\nAnd a second rule.")
    ledger.add_items(made.id, [new_item("pairwise", 7)])
    new.go(f"/tasks/{made.id}")
    new.sees("What is new")
    new.after(Keys.ENTER)
    new.keys("0")
    new.after(Keys.ENTER)
    work = [j for j in new.said(made, "new@example.org") if j.purpose == "work"]
    assert [j.value["outcome"] for j in work] == ["tie", "better", "better"]
    versions = {d.id: d.version for d in ledger.documents(made.id)}
    assert [versions[j.guideline_id or 0] for j in work] == [2, 1, 1]


SESSIONS: dict[str, tuple[tuple[str, ...], Any]] = {
    "ranking": (("2", "1", "3", "3"), [1, 0, 2, 2]),
    "rating": (("5", "3"), {"helpful": [5, 3]}),
    "thumbs": (("2",), [False]),
    "steps": (("1", "3"), [1, -1]),
}


@pytest.mark.parametrize("kind", list(SESSIONS))
def test_rows_are_answered_by_digits(ada: Person, kind: str) -> None:
    keys, wanted = SESSIONS[kind]
    made = joined(ada, kind)
    first = ada.item
    ada.keys(Keys.ENTER)
    ada.sees("Something is still open")
    ada.keys(*keys)
    ada.after(Keys.ENTER)
    assert ada.item not in ("", first)
    (said,) = ada.said(made)
    value = said.value
    assert value.get("ranks", value.get("aspects", value.get("labels"))) == wanted
    # The arrows go back to a row that was wrong.
    ada.keys(*keys, Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_UP, "1")
    ada.after(Keys.ENTER)
    said = ada.said(made)[0].value
    ranks = said.get("ranks") or next(iter(said.get("aspects", {}).values()), said.get("labels"))
    assert ranks[0] == {"ranking": 0, "rating": 1, "thumbs": True, "steps": 1}[kind]


@pytest.mark.parametrize("kind", ["edit", "demonstration"])
def test_texts_are_written_and_sent_by_keys(ada: Person, kind: str) -> None:
    made = joined(ada, kind)
    ada.keys(" 1234 sbfu")
    if kind == "edit":
        ins = ada.driver.find_element(By.CSS_SELECTOR, ".diff ins")
        assert "1234" in ins.text
    ada.after(Keys.CONTROL, Keys.ENTER, chord=True)
    (said,) = ada.said(made)
    assert (said.kind, "1234 sbfu" in (said.text or "")) == (kind, True)
    ada.keys(Keys.ESCAPE, "s", "2")
    ada.after(Keys.ENTER)
    ada.sees("Nothing is left")
    assert ada.said(made)[0].value == {"reason": "knowledge"}


def test_a_comparison_by_keys(ada: Person) -> None:
    made = joined(ada, "pairwise", 6)
    for key, wanted in (("1", (0, 2)), ("2", (0, 1)), ("3", (1, 1)), ("4", (1, 2))):
        shown = ada.house.ledger.assignment(int(ada.item), 1).shown
        ada.keys(key)
        ada.after(Keys.ENTER)
        value = ada.said(made)[0].value
        assert (shown.index(value["preferred"]), value["strength"]) == wanted
    ada.keys("b")
    ada.after(Keys.ENTER)
    assert ada.said(made)[0].value["outcome"] == "both_bad"
    # Undone: the item is back as it was answered, and is answered otherwise, with a reason.
    ada.after("u")
    assert ada.driver.find_element(By.CSS_SELECTOR, "input:checked").get_attribute("value") == (
        "both_bad"
    )
    ada.keys("0", "c", "because 1 s b u f ?")
    ada.after(Keys.CONTROL, Keys.ENTER, chord=True)
    latest = {j.kind: j for j in ada.said(made)[:2]}
    assert latest["critique"].text == "because 1 s b u f ?"
    assert latest["pairwise"].value["outcome"] == "tie"
    # Flagged, and judged all the same.
    ada.keys("f", "2")
    ada.keys(Keys.ENTER)
    ada.sees("Flagged")
    ada.keys("2")
    ada.after(Keys.ENTER)
    assert {j.kind for j in ada.said(made)[:2]} == {"flag", "pairwise"}
    assert ada.house.ledger.progress(made.id).done == 6
    assert all(0 < j.active_ms < 600_000 for j in ada.said(made) if j.kind == "pairwise")


def test_help_and_guideline_open_and_close(ada: Person) -> None:
    made = joined(ada, "pairwise", 1)
    ada.house.ledger.add_document(made.id, "guideline", "# Be fair\n\n- Example: **A**")
    ada.go(f"/tasks/{made.id}")
    ada.after(Keys.ENTER)
    for key, words in (("?", "Keys"), ("g", "Be fair")):
        ada.keys(key)
        ada.until(lambda: ada.driver.find_elements(By.CSS_SELECTOR, "dialog[open]"))
        assert words in ada.driver.find_element(By.CSS_SELECTOR, "dialog[open]").text
        ada.keys(Keys.ESCAPE)
        ada.until(lambda: not ada.driver.find_elements(By.CSS_SELECTOR, "dialog[open]"))
    ada.keys("g", Keys.TAB, "Which one?")
    ada.chord(Keys.CONTROL, Keys.ENTER)
    ada.sees("Sent to the lead")
    (question,) = ada.house.ledger.questions(made.id)
    assert question.judgement.text == "Which one?"
    ada.keys("g")
    ada.sees("Not answered yet")
    ada.keys(Keys.ESCAPE)
    assert "Raw text" in ada.text()
    ada.keys("r")
    assert ada.driver.find_element(By.CSS_SELECTOR, ".pane .raw").is_displayed()


def test_a_choice_alone_can_be_all(ada: Person) -> None:
    made = joined(ada, "pairwise", 1, critique="off", edit=False, auto_submit=True)
    ada.after("1")
    ada.sees("Nothing is left")
    assert len(ada.said(made)) == 1


def test_a_ranking_by_drag(ada: Person) -> None:
    made = joined(ada, "ranking", 1)
    chips = ada.driver.find_elements(By.CSS_SELECTOR, "#strip li")
    letters = [chip.text for chip in chips]
    assert letters == ["A", "B", "C", "D"]
    # The last one to the front: D A B C.
    chain = ActionChains(ada.driver).click_and_hold(chips[3])
    for chip in (chips[2], chips[1], chips[0]):
        chain.move_to_element(chip)
    chain.move_by_offset(-10, 0).release().perform()
    after = [chip.text for chip in ada.driver.find_elements(By.CSS_SELECTOR, "#strip li")]
    assert after == ["D", "A", "B", "C"]
    ada.after(Keys.ENTER)
    assert ada.said(made)[0].value["ranks"] == [1, 2, 3, 0]


def test_a_draft_outlives_a_reload(ada: Person) -> None:
    joined(ada, "pairwise", 1)
    ada.keys("3", "c", "half a thou")
    ada.driver.refresh()
    ada.until(lambda: ada.item)
    assert ada.driver.find_element(By.ID, "critique").get_attribute("value") == "half a thou"
    assert ada.driver.find_element(By.CSS_SELECTOR, "input:checked").get_attribute("value") == "b1"


def offline(ada: Person, is_off: bool) -> None:
    off = {"offline": is_off, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    ada.driver.execute_cdp_cmd("Network.enable", {})
    ada.driver.execute_cdp_cmd("Network.emulateNetworkConditions", off)


def test_a_lost_connection_loses_nothing(ada: Person) -> None:
    made = joined(ada, "pairwise", 2)
    first = ada.item
    ada.keys("2")
    offline(ada, True)
    try:
        ada.keys(Keys.ENTER)
        ada.sees("The connection is lost")
        assert ada.said(made) == []
    finally:
        offline(ada, False)
    ada.until(lambda: ada.item not in ("", first))
    assert len(ada.said(made)) == 1
    # Even if the browser was closed meanwhile: the next page sends it.
    offline(ada, True)
    try:
        ada.keys("4", Keys.ENTER)
        ada.sees("The connection is lost")
        ada.driver.execute_script("window.stop()")
    finally:
        ada.driver.get("about:blank")
        offline(ada, False)
    ada.go(f"/tasks/{made.id}")
    ada.until(lambda: len(ada.said(made)) == 2)
    ada.sees("Nothing is left")


def test_time_away_is_not_counted(ada: Person) -> None:
    made = joined(ada, "pairwise", 1)
    ada.keys("1")
    here = ada.driver.current_window_handle
    emulate_focus(ada.driver, False)
    ada.driver.switch_to.new_window("tab")
    away = time.monotonic()
    time.sleep(2.5)
    ada.driver.close()
    ada.driver.switch_to.window(here)
    emulate_focus(ada.driver, True)
    away = time.monotonic() - away
    ada.keys("2")
    ada.after(Keys.ENTER)
    (said,) = ada.said(made)
    assert said.timing["hidden_ms"] > 2000
    assert said.active_ms + said.timing["hidden_ms"] <= said.timing["shown_ms"] + 1000
    assert said.active_ms < said.timing["shown_ms"] - 2000
    assert away > 2.5


@pytest.mark.parametrize("width", [1280, 390, 640])
def test_nothing_is_out_of_reach_on_any_screen(ada: Person, width: int) -> None:
    """No page is wider than its window; 640 is what 1280 holds at twice the size."""
    made = joined(ada, "pairwise", 2)
    long = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == 390}
    ada.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", long)
    try:
        for kind in ("pairwise", "ranking", "rating", "steps", "edit"):
            made = joined(ada, kind, 1, aspects=["helpful", "honest"])
            wide = ada.driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, kind
            submit = ada.driver.find_element(By.ID, "submit").rect
            assert submit["x"] >= 0
            assert submit["x"] + submit["width"] <= width
            seen = "return document.getElementById('submit').getBoundingClientRect().bottom"
            assert ada.driver.execute_script(seen) <= 844, kind
        for path in ("/", f"/tasks/{made.id}/history"):
            ada.go(path)
            wide = ada.driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, path
    finally:
        desk = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        ada.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", desk)


def test_everything_has_a_name_for_those_who_listen(ada: Person) -> None:
    """Chromium's own accessibility tree: no control without a name."""
    for kind in ("pairwise", "ranking", "rating", "thumbs", "steps", "edit", "demonstration"):
        joined(ada, kind, 1)
        tree = ada.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        controls = ("button", "radio", "textbox", "link", "checkbox", "combobox", "progressbar")
        found = [
            (n["role"]["value"], n.get("name", {}).get("value", ""))
            for n in tree
            if not n.get("ignored") and n.get("role", {}).get("value") in controls
        ]
        assert len(found) > 4
        assert [role for role, name in found if not name.strip()] == [], kind


def test_the_network_log_knows_one_server(ada: Person) -> None:
    joined(ada, "pairwise", 1)
    foreign = [a for a in asked(ada.driver) if not a.startswith(ada.url)]
    assert foreign == []
    problems = [e["message"] for e in ada.driver.get_log("browser") if e["level"] == "SEVERE"]
    assert [p for p in problems if "ERR_INTERNET_DISCONNECTED" not in p and "400" not in p] == []
