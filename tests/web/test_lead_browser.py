"""The lead's pages in a real browser: nothing from elsewhere, no overflow, fresh progress."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from tests.browser import asked, browser, served
from tests.web.house import PASSWORD, House
from tests.web.leading import LEAD, Scene, scene
from tests.web.person import Person


@pytest.fixture(params=[(1280, False), (390, True)], ids=["wide", "phone, dark"])
def lead(house: House, tmp_path: Path, request: Any) -> Iterator[tuple[Person, Scene]]:
    built, (width, dark) = scene(house), request.param
    with (
        served(house.app) as url,
        browser(tmp_path / "profile", width=width, dark=dark) as driver,
    ):
        one = Person(house, driver, url)
        one.go("/sign-in?next=/lead")
        driver.find_element(By.ID, "email").send_keys(LEAD)
        driver.find_element(By.ID, "password").send_keys(PASSWORD + "\n")
        one.sees("autumn")
        yield one, built


def test_all_pages_of_a_lead(lead: tuple[Person, Scene]) -> None:
    one, built = lead
    number = built.items[0].id
    tabs = ("", "/items", "/texts", "/people", "/agreement", "/questions", "/export")
    more = (f"/people/{built.people[0].id}", f"/decide/{number}")
    for path in ("/lead", "/lead/new", "/lead/keys", *(built.at(p) for p in (*tabs, *more))):
        one.go(path)
        width = one.driver.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert width == 0, path
        # Every field has a name that is read out.
        bare = one.driver.execute_script(
            "return [...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            ".filter(x => !x.labels.length && !x.getAttribute('aria-label')).map(x => x.name)"
        )
        assert bare == [], path
    assert [url for url in asked(one.driver) if not url.startswith(one.url)] == []
    assert [entry["message"] for entry in one.driver.get_log("browser")] == []


def test_progress_stays_fresh_and_decisions_are_made_by_keys(lead: tuple[Person, Scene]) -> None:
    one, built = lead
    one.go(built.at())
    one.sees("60 of 72")
    built.say(built.items[-6], built.people[0], 0)
    one.sees("61 of 72")  # without a reload
    item = built.items[0]
    one.go(built.at(f"/decide/{item.id}"))
    one.keys("2")
    chosen = one.driver.find_element(By.CSS_SELECTOR, "#decision :checked")
    assert chosen.get_attribute("value") == "a1"
    one.driver.find_element(By.CSS_SELECTOR, "[data-raw]").click()
    assert one.driver.find_element(By.CSS_SELECTOR, ".pane .raw").is_displayed()
    one.driver.find_element(By.ID, "why").send_keys("2")  # a text, no choice
    one.driver.find_element(By.CSS_SELECTOR, "#decision .main").click()
    one.sees("Krippendorff")
    said = [j for j in built.ledger.judgements(item.id) if j.purpose == "adjudication"]
    assert [j.text for j in said] == [None, "2"]
