"""Somebody before a browser, who has a keyboard."""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import WAIT
from tests.web.house import House
from truing.data.ledger import Campaign, Judgement

ADA = "ada@example.org"
# A page is loaded before it has given the focus to what is to have it.
READY = """
    const wanted = document.querySelector("[autofocus]");
    return document.readyState === "complete" && document.hasFocus()
        && (!wanted || document.activeElement !== document.body);
"""


class Typist:
    """A browser and a keyboard."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def go(self, path: str) -> None:
        """Open a page, and wait for the focus that it asks for: keys before that are lost."""
        self.driver.get(urljoin(self.url, path))
        self.until(self.ready)

    def ready(self) -> bool:
        return self.driver.execute_script(READY)

    def keys(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def chord(self, *keys: str) -> None:
        """Keys that are held together."""
        chain = ActionChains(self.driver)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        chain.perform()

    def until(self, true: Callable[[], Any]) -> Any:
        """Wait until something is so; what it was."""
        end = time.monotonic() + WAIT
        while True:
            try:
                if found := true():
                    return found
            except (StaleElementReferenceException, NoSuchElementException):
                pass  # between two pages
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def sees(self, words: str) -> None:
        self.until(lambda: words in self.text())

    def tab_to(self, words: str) -> None:
        """Go on by Tab until the focus is on something that is read out with these words."""
        for _ in range(60):
            here = self.driver.switch_to.active_element
            if here.tag_name != "body" and words in here.accessible_name:
                return
            self.keys(Keys.TAB)
        raise AssertionError(f"no Tab leads to {words!r}")

    @property
    def item(self) -> str:
        """Which item is on the page: its lease's number, once the script is at work."""
        found = self.driver.find_elements(By.CSS_SELECTOR, "#judgement[data-lease]")
        return found[0].get_attribute("data-lease") if found and self.ready() else ""

    def after(self, *keys: str, chord: bool = False) -> None:
        """Press keys that end an item, and wait for what comes."""
        before = self.driver.find_element(By.TAG_NAME, "html").id
        (self.chord if chord else self.keys)(*keys)
        self.until(lambda: self.driver.find_element(By.TAG_NAME, "html").id != before)
        self.until(self.ready)


class Person(Typist):
    """Somebody before a browser, in a house whose ledger the test can read."""

    def __init__(self, house: House, driver: Any, url: str) -> None:
        super().__init__(driver, url)
        self.house = house

    def said(self, campaign: Campaign, email: str = ADA) -> list[Judgement]:
        me = self.house.ledger.identity(email=email)
        assert me is not None
        return self.house.ledger.recent(campaign.id, me["annotator_id"], 100)
