"""People: invited in bulk, put on hold, their judgements set aside and asked anew."""

import re
from typing import Any

import pytest

from tests.web.house import PASSWORD, House
from tests.web.leading import LEAD, NAMES, REVIEWER, scene
from truing.web.figures import numbers_of

LINK = re.compile(r"http://localhost(/invitation/[\w-]+)")


def test_links_in_bulk_work_once_each(house: House) -> None:
    made = scene(house)
    browser = house.browser(LEAD)
    browser.visit(made.at("/people"))
    emails = "new@example.org\nother@example.org\nnew@example.org"
    page = browser.submit(made.at("/invite"), emails=emails, count="2", days="3", tags="law, art")
    links = LINK.findall(page.text)
    assert len(links) == len(set(links)) == 4
    assert not LINK.findall(browser.visit(made.at("/people")).text)
    new = house.browser()
    assert "new@example.org" in new.visit(links[0]).text
    assert new.submit(links[0], email="new@example.org", password=PASSWORD).status_code == 200
    who = made.ledger.identity(email="new@example.org")
    assert who is not None
    person = made.ledger.annotator(who["annotator_id"])
    assert (person.role, person.tags) == ("annotator", ["art", "law"])
    assert made.ledger.member(made.campaign.id, person.id).state == "active"
    assert house.browser().visit(links[0]).status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"count": "501"},
        {"count": "-1"},
        {"emails": "\n".join(f"p{i}@x" for i in range(501))},
        {"emails": "x" * 400},
        {"count": "1", "role": "king"},
        {"count": "1", "days": "0"},
        {"count": "nan"},
    ],
)
def test_odd_invitations_are_refused(house: House, fields: dict[str, Any]) -> None:
    made = scene(house, items=6)
    browser = house.browser(LEAD)
    browser.visit(made.at("/people"))
    page = browser.submit(made.at("/invite"), **fields)
    assert page.status_code == 400
    assert not LINK.findall(page.text)


def test_on_hold_nobody_gets_items_and_what_was_held_is_free(house: House) -> None:
    made = scene(house)
    one = made.people[0]
    browser, own = house.browser(LEAD), house.browser("ada@example.org")
    own.work(made.campaign)
    assert made.ledger.leases(made.campaign.id, one.id)
    browser.visit(made.at(f"/people/{one.id}"))
    said = browser.submit(made.at(f"/people/{one.id}"), action="suspend").text
    assert "no new items" in said
    assert "On hold" in said
    assert made.ledger.leases(made.campaign.id, one.id) == []
    assert own.visit(f"/tasks/{made.campaign.id}").status_code == 403
    browser.submit(made.at(f"/people/{one.id}"), action="resume")
    assert own.work(made.campaign)


def test_what_is_set_aside_goes_to_others_and_out_of_the_figures(house: House) -> None:
    made = scene(house)
    biased = made.people[3]
    browser = house.browser(LEAD)
    page = browser.visit(made.at("/people")).text
    assert page.index(biased.pseudonym) < page.index(made.people[0].pseudonym)
    assert page.count("leans to one side") == 1  # no false alarm
    before = {item.id: item.done for item in made.items if item.purpose == "work"}
    browser.visit(made.at(f"/people/{biased.id}"))
    path = made.at(f"/people/{biased.id}")
    assert browser.submit(path, action="quarantine").status_code == 400  # no reason
    said = browser.submit(path, action="quarantine", reason="one side").text
    count = int(re.findall(r"(\d+) set aside", said)[0])
    freed = sum(before.values()) - sum(i.done for i in made.items if i.purpose == "work")
    assert 0 < freed < count  # second passes and gold held no slots
    page = browser.visit(made.at("/people")).text
    assert "leans to one side" not in page
    assert f"{count} count again" in browser.submit(path, action="reinstate", reason="no").text
    assert {i.id: i.done for i in made.items if i.purpose == "work"} == before
    assert made.ledger.verify() == []


def test_setting_aside_can_begin_at_a_day(house: House) -> None:
    made = scene(house)
    one = made.people[0]
    browser = house.browser(LEAD)
    browser.visit(made.at(f"/people/{one.id}"))
    path = made.at(f"/people/{one.id}")
    last = max(
        r["day"] for r in made.ledger.tallies(made.campaign.id) if r["annotator_id"] == one.id
    )
    said = browser.submit(path, action="quarantine", reason="tired", since=last).text
    some = int(re.findall(r"(\d+) set aside", said)[0])
    rest = int(
        re.findall(r"(\d+) set aside", browser.submit(path, action="quarantine", reason="x").text)[
            0
        ]
    )
    assert some > 0
    assert rest > 0
    for odd in ("soon", "9999-99-99"):
        assert browser.submit(path, action="quarantine", reason="x", since=odd).status_code == 400


def test_a_forgotten_password_gets_a_link(house: House) -> None:
    made = scene(house, items=6)
    one = made.people[0]
    browser = house.browser(LEAD)
    browser.visit(made.at(f"/people/{one.id}"))
    page = browser.submit(made.at(f"/people/{one.id}"), action="password")
    (link,) = LINK.findall(page.text)
    own = house.browser()
    own.visit(link)
    assert own.submit(link, password="another long one").status_code == 200
    assert house.browser().sign_in("ada@example.org", "another long one").status_code == 200
    assert house.browser().sign_in("ada@example.org").status_code == 401


def test_admins_cannot_lock_themselves_out(house: House) -> None:
    made = scene(house, items=6)
    browser = house.browser(LEAD)
    made.ledger.join(made.campaign.id, made.lead.id)
    browser.visit(made.at("/people"))
    path = made.at(f"/people/{made.lead.id}")
    assert browser.submit(path, action="suspend").status_code == 400
    assert browser.submit(path, action="nonsense").status_code == 400


def test_a_reviewer_judges_after_joining(house: House) -> None:
    made = scene(house)
    browser = house.browser(REVIEWER)
    assert browser.visit(f"/tasks/{made.campaign.id}").status_code == 404
    browser.visit(made.at())
    browser.submit(made.at("/join"))
    assert browser.work(made.campaign)


def test_the_table_says_what_the_figures_say(house: House) -> None:
    made = scene(house)
    browser = house.browser(LEAD)
    page = browser.visit(made.at("/people")).text
    request = type("Asked", (), {"app": house.app})()
    people = numbers_of(request, made.campaign.id).people  # type: ignore[arg-type]
    assert len(people) == len(NAMES)
    for one in made.people:
        row = page.split(one.pseudonym)[1].split("</tr>")[0]
        figures = people[one.id].figures
        for x in (figures.agreement, figures.self_agreement, figures.first_shown, figures.gold):
            assert x is not None
            assert (
                f"<b>{100 * x.value:.0f} %</b> <small>{100 * x.low:.0f}–{100 * x.high:.0f}" in row
            )
