"""Two answers that are longer than the window: all of both can be read, at the same height."""

from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import browser, served
from tests.web.house import PASSWORD, House, campaign, person
from tests.web.person import ADA, Person
from truing.data.ledger import NewItem, NewResponse

# Scroll from the top to the foot, and note which paragraphs came into view from their first corner
# to their last, under nothing else.
SEEN = """
const all = [...document.querySelectorAll('.pane .drawn p')], seen = new Set();
const at = (p, x, y) => p.contains(document.elementFromPoint(x, y));
for (let y = 0; y < document.documentElement.scrollHeight; y += 120) {
  scrollTo(0, y);
  for (const p of all) {
    const box = p.getBoundingClientRect();
    if (at(p, box.left + 2, box.top + 4) && at(p, box.left + 2, box.bottom - 4)) seen.add(p);
  }
}
scrollTo(0, 0);
return all.map((p) => seen.has(p));
"""
# Boxes in the panes that hold more than they show.
CUT = """
return [...document.querySelectorAll('.pane, .pane *:not(.hear)')]
  .filter((x) => x.scrollHeight > x.clientHeight + 1)
  .filter((x) => getComputedStyle(x).overflowY !== 'visible')
  .map((x) => x.className || x.tagName);
"""
LENGTHS = (40, 25)


def long(paragraphs: int) -> str:
    return "\n\n".join(f"{i} " + "of many words " * 12 for i in range(paragraphs))


@pytest.mark.parametrize("width", [1280, 390])
def test_two_long_answers_move_together_and_hide_nothing(
    house: House, tmp_path: Path, width: int
) -> None:
    made = campaign(house.ledger, items=0)
    both = tuple(NewResponse(long(n)) for n in LENGTHS)
    house.ledger.add_items(made.id, [NewItem("Tell me all of it. " * 80, both)])
    person(house.ledger, ADA, made)
    with browser(tmp_path / "profile", width=width) as driver, served(house.app) as url:
        ada = Person(house, driver, url)
        ada.go(f"/sign-in?next=/tasks/{made.id}")
        ada.keys(ADA, Keys.TAB, PASSWORD)
        ada.after(Keys.ENTER)
        ada.until(lambda: ada.item)
        assert driver.execute_script(CUT) == []
        assert driver.execute_script(SEEN) == [True] * sum(LENGTHS)
        left, right = (p.rect for p in driver.find_elements(By.CSS_SELECTOR, ".pane"))
        if width > 760:  # side by side, and equally large
            assert (left["y"], left["height"]) == (right["y"], right["height"])
            assert left["height"] > 900
        else:  # one below the other, its letter above what one reads
            driver.execute_script("scrollTo(0, arguments[0])", right["y"] + 500)
            shown = driver.execute_script("return document.elementFromPoint(40, 20).textContent")
            assert "B" in shown.split()
        # A key moves both, and what one decides with stays in the window.
        ada.keys(Keys.END)
        ada.until(lambda: driver.execute_script("return scrollY > 900"))
        dock = "return document.getElementById('submit').getBoundingClientRect().bottom"
        assert driver.execute_script(dock) <= 900
        ada.keys("2")
        ada.after(Keys.ENTER)
        assert len(ada.said(made)) == 1
