"""Each kind of judgement through its form, and what becomes of a form that came twice, late, wrong
or from somebody else."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.web.house import TEXTS, House, campaign, new_item, person
from truing.data.ledger import Judgement, NewItem, NewResponse

FORMS: dict[str, dict[str, str]] = {
    "pairwise": {"choice": "a2", "critique": "It is right."},
    "ranking": {"rank-0": "1", "rank-1": "3", "rank-2": "1", "rank-3": "4"},
    "rating": {"aspect-0-0": "5", "aspect-0-1": "2"},
    "thumbs": {"thumb-0": "up"},
    "steps": {"step-0": "right", "step-1": "neutral", "step-2": "wrong"},
    "edit": {"edit-0": "Thank you, Ada, for all your help!"},
    "demonstration": {"text": "An old silent pond"},
}


def said(house: House, browser: Any) -> list[Judgement]:
    me = house.ledger.identity(email="ada@example.org")
    assert me is not None
    return house.ledger.recent(1, me["annotator_id"], 50)


def shown(house: House, lease: int) -> list[int]:
    return house.ledger.assignment(lease, 1).shown


@pytest.mark.parametrize("kind", list(FORMS))
def test_each_kind_is_recorded_as_it_was_said(house: House, kind: str) -> None:
    person(house.ledger, "ada@example.org", campaign(house.ledger, kind, 1))
    browser = house.browser("ada@example.org")
    lease = browser.work(house.ledger.campaign(1))
    came = browser.judge(**FORMS[kind], active_ms="4200", timing='{"shown_ms": 9000, "evil": 1}')
    assert "Nothing is left" in came.text
    *_, main = said(house, browser)
    order = shown(house, lease)
    wanted: dict[str, Any] = {
        "pairwise": {"outcome": "better", "preferred": (order or [0])[0], "strength": 2},
        # Equal ranks are ties, and no rank is left out: 1, 3, 1, 4 means 0, 1, 0, 2.
        "ranking": {"responses": order, "ranks": [0, 1, 0, 2]},
        "rating": {"responses": order, "aspects": {"helpful": [5, 2]}},
        "thumbs": {"responses": order, "labels": [True]},
        "steps": {"response": (order or [0])[0], "labels": [1, 0, -1]},
        "edit": {"response": (order or [0])[0]},
        "demonstration": {},
    }
    assert (main.kind, main.value) == (kind, wanted[kind])
    assert main.active_ms == 4200
    assert main.timing == {"shown_ms": 9000}
    if kind in ("edit", "demonstration"):
        assert main.text in FORMS[kind].values()
    if kind == "pairwise":
        assert said(house, browser)[0].text == "It is right."


@pytest.mark.parametrize("kind", list(FORMS))
@pytest.mark.parametrize("wrong", ["missing", "unknown"])
def test_a_form_that_says_too_little_or_too_much_is_refused(
    house: House, kind: str, wrong: str
) -> None:
    person(house.ledger, "ada@example.org", campaign(house.ledger, kind, 1))
    browser = house.browser("ada@example.org")
    browser.work(house.ledger.campaign(1))
    form = {} if wrong == "missing" else dict.fromkeys(FORMS[kind], "99")
    if wrong == "unknown" and kind in ("edit", "demonstration"):
        form = dict.fromkeys(FORMS[kind], " ")
    assert browser.judge(**form).status_code == 400
    assert said(house, browser) == []


def test_nothing_about_the_author_reaches_the_page(house: House) -> None:
    made = campaign(house.ledger, "pairwise", 0)
    evil = "I am secret-model-7b, made by OpenAI."
    responses = (NewResponse(evil, "org/secret-model-7b", "runs/ppo"), NewResponse("B", "base"))
    house.ledger.add_items(made.id, [NewItem("Who are you?", responses, score=0.123456)])
    person(house.ledger, "ada@example.org", made)
    other = person(house.ledger, "bob@example.org", made)
    browser = house.browser("ada@example.org")
    browser.work(made)
    assert browser.page is not None
    for word in ("secret-model", "OpenAI", "runs/ppo", "base", "0.123456", other.pseudonym):
        assert word not in browser.page.text, word
    # An edited version gets the names back that the annotator did not see.
    place = next(i for i in (0, 1) if f'name="edit-{i}" data-edit="I am' in browser.page.text)
    edit = {f"edit-{place}": "I am ⟦name 1⟧, made by ⟦name 2⟧, and glad to help."}
    browser.judge(choice="tie", **edit)
    edits = [j for j in said(house, browser) if j.kind == "edit"]
    assert [j.text for j in edits] == ["I am secret-model-7b, made by OpenAI, and glad to help."]


def test_the_same_form_twice_counts_once(house: House) -> None:
    made = campaign(house.ledger)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    lease = browser.work(made)
    token = browser.hidden("token")
    for _ in range(3):
        came = browser.submit(f"/judge/{lease}", script=True, token=token, choice="b1")
        assert came.json()["next"] == f"/tasks/{made.id}"
    assert len(said(house, browser)) == 1
    assert house.ledger.progress(made.id).done == 1
    # Another form for the same item is no second vote.
    came = browser.submit(f"/judge/{lease}", script=True, token="another", choice="a1")
    assert came.status_code == 409
    assert len(said(house, browser)) == 1


def test_two_who_want_the_last_slot_get_different_items(house: House) -> None:
    made = campaign(house.ledger, items=2)
    emails = [f"p{n}@example.org" for n in range(2)]
    for email in emails:
        person(house.ledger, email, made)
    browsers = [house.browser(email) for email in emails]
    with ThreadPoolExecutor(2) as pool:
        leases = list(pool.map(lambda b: b.work(made), browsers))
    items = {house.ledger.assignment(lease, n + 1).item_id for n, lease in enumerate(leases)}
    assert len(items) == 2


def test_one_slot_two_clients_one_gets_it(house: House) -> None:
    made = campaign(house.ledger, items=1)
    emails = [f"p{n}@example.org" for n in range(4)]
    for email in emails:
        person(house.ledger, email, made)
    browsers = [house.browser(email) for email in emails]
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda b: b.visit(f"/tasks/{made.id}").text, browsers))
    assert sum("data-lease" in text for text in pages) == 1
    assert sum("Nothing is left" in text for text in pages) == 3


def test_a_skip_goes_to_somebody_else_with_its_reason(house: House) -> None:
    made = campaign(house.ledger, items=1)
    person(house.ledger, "ada@example.org", made)
    person(house.ledger, "bob@example.org", made)
    browser = house.browser("ada@example.org")
    browser.work(made)
    assert browser.judge(action="skip").status_code == 400
    browser.visit(f"/tasks/{made.id}")
    came = browser.judge(action="skip", reason="knowledge", text="physics")
    assert "Nothing is left" in came.text
    (skip,) = said(house, browser)
    assert (skip.kind, skip.value, skip.text) == ("skip", {"reason": "knowledge"}, "physics")
    assert house.browser("bob@example.org").work(made)


def test_a_flag_and_a_question_leave_the_item_open(house: House) -> None:
    made = campaign(house.ledger, items=1)
    house.ledger.add_document(made.id, "guideline", "Be *fair*.")
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    browser.visit(f"/tasks/{made.id}")
    browser.submit(f"/tasks/{made.id}/paper/1", answer="accept")
    lease = browser.lease
    to = f"/judge/{lease}"
    came = browser.submit(to, script=True, action="flag", token="f", reason="harmful", text="see B")
    assert came.json()["message"].startswith("Flagged")
    came = browser.submit(to, script=True, action="question", token="q", text="What of ties?")
    assert came.status_code == 200
    assert (
        browser.submit(to, script=True, action="question", token="q2", text=" ").status_code == 400
    )
    lead = person(house.ledger, "lead@example.org", role="reviewer")
    house.ledger.answer(said(house, browser)[0].id, "Use them **freely**.", lead.id, token="a")
    asked = browser.get(f"/tasks/{made.id}/questions").text
    assert "What of ties?" in asked
    assert "Use them **freely**." in asked
    assert browser.work(made) == lease
    browser.judge(choice="tie")
    assert sorted(j.kind for j in said(house, browser)) == ["flag", "pairwise", "question"]


def test_undo_gives_the_item_back_as_it_was_filled_in(house: House) -> None:
    made = campaign(house.ledger)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    assert browser.submit(f"/tasks/{made.id}/undo").status_code == 400
    first = browser.work(made)
    browser.judge(choice="b2", critique="Shorter")
    second = browser.lease
    assert second != first
    browser.submit(f"/tasks/{made.id}/undo")
    assert browser.lease == first
    assert browser.page is not None
    assert 'value="b2" checked' in browser.page.text
    assert "Shorter</textarea>" in browser.page.text
    assert said(house, browser) == []
    browser.judge(choice="a1")
    assert browser.lease == second
    assert [j.value["outcome"] for j in said(house, browser)] == ["better"]
    item = house.ledger.assignment(first, 1).item_id
    every = house.ledger.judgements(item, everything=True)
    assert [(j.kind, j.status) for j in every] == [
        ("pairwise", "undone"),
        ("critique", "undone"),
        ("pairwise", "current"),
    ]
    assert house.ledger.progress(made.id).done == 1


@pytest.mark.parametrize("kind", list(FORMS))
def test_a_decision_can_be_opened_again_and_changed(house: House, kind: str) -> None:
    made = campaign(house.ledger, kind, 1, ties=True)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    lease = browser.work(made)
    browser.judge(**FORMS[kind])
    before = said(house, browser)
    assert f'href="/judge/{lease}"' in browser.visit(f"/tasks/{made.id}/history").text
    text = browser.visit(f"/judge/{lease}").text
    for name, value in FORMS[kind].items():
        shown_as = (f'value="{value}" checked', f"{value}</textarea>", 'value="2" checked')
        assert any(s in text for s in shown_as), name
    # As it is: nothing happens.
    browser.judge(**FORMS[kind], reopened="1")
    assert said(house, browser) == before
    change = {
        "pairwise": {"choice": "b1"},
        "ranking": {"rank-0": "4"},
        "rating": {"aspect-0-0": "1"},
        "thumbs": {"thumb-0": "down"},
        "steps": {"step-0": "wrong"},
        "edit": {"edit-0": "Dear Ada, thank you."},
        "demonstration": {"text": "Another one"},
    }[kind]
    browser.visit(f"/judge/{lease}")
    browser.judge(**{**FORMS[kind], **change}, reopened="1")
    after = said(house, browser)
    assert len(after) == len(before)
    assert [(j.value, j.text) for j in after] != [(j.value, j.text) for j in before]
    assert house.ledger.progress(made.id).done == 1
    every = house.ledger.judgements(1, everything=True)
    assert len(every) == len(before) + 1


def test_a_reason_that_vanished_is_not_silently_kept(house: House) -> None:
    made = campaign(house.ledger)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    lease = browser.work(made)
    browser.judge(choice="a1", critique="Because")
    browser.visit(f"/judge/{lease}")
    came = browser.judge(choice="a1", critique="", reopened="1")
    assert came.status_code == 400
    assert "undo the decision" in came.text
    # One that comes later is added.
    browser.work(made)
    lease = browser.lease
    browser.judge(choice="a1")
    browser.visit(f"/judge/{lease}")
    browser.judge(choice="a1", critique="Now I know why", reopened="1")
    assert said(house, browser)[0].text == "Now I know why"


def test_an_older_decision_stays_as_it_is(house: House) -> None:
    made = campaign(house.ledger, items=12)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    first = browser.work(made)
    for _ in range(11):
        browser.judge(choice="tie")
    token = "f" * 32
    came = browser.submit(f"/judge/{first}", True, token=token, choice="a1", reopened="1")
    assert came.status_code == 409
    assert len(said(house, browser)) == 11


def test_a_draft_comes_back_and_prolongs_the_lease(house: House) -> None:
    made = campaign(house.ledger, lease_minutes=1)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    lease = browser.work(made)
    before = house.ledger.assignment(lease, 1).expires_at
    to = f"/judge/{lease}/draft"
    came = browser.submit(to, True, choice="a2", critique="So fa\u202er \0", active_ms="1234")
    assert came.json()["expires_at"] >= before
    text = browser.visit(f"/tasks/{made.id}").text
    assert browser.lease == lease
    assert 'value="a2" checked' in text
    assert browser.hidden("active_ms") == "1234"
    assert browser.submit(to, True, critique="x" * 200_001).status_code == 400
    browser.judge(choice="a2")
    assert browser.submit(to, True, choice="b1").status_code == 409


def test_an_item_can_be_given_back(house: House) -> None:
    made = campaign(house.ledger, items=1)
    person(house.ledger, "ada@example.org", made)
    person(house.ledger, "bob@example.org", made)
    browser = house.browser("ada@example.org")
    lease = browser.work(made)
    assert "Nothing is left" in house.browser("bob@example.org").visit(f"/tasks/{made.id}").text
    browser.submit(f"/judge/{lease}/release")
    assert house.browser("bob@example.org").work(made)


def test_a_retest_looks_like_any_item_and_has_its_sides_swapped(house: House) -> None:
    made = campaign(house.ledger, items=1, retest_share=0.999, retest_distance=0)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    first = browser.work(made)
    page = browser.page
    browser.judge(choice="a1")
    again = browser.lease
    assert again != first
    assert browser.page is not None
    assert page is not None
    assert shown(house, again) == shown(house, first)[::-1]
    for word in ("retest", "re-test", "again", "swap", "gold"):
        assert (word in browser.page.text) == (word in page.text), word
    browser.judge(choice="b1")
    assert [j.retest for j in said(house, browser)] == [1, 0]


def test_wrong_timing_never_loses_a_judgement(house: House) -> None:
    made = campaign(house.ledger, items=5)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    for active, timing in (("-5", "{"), ("1e400", "[]"), ("x", '{"idle_ms": "a"}'), ("9e99", "1")):
        browser.work(made)
        assert browser.judge(choice="tie", active_ms=active, timing=timing).status_code == 200
    assert [0 <= j.active_ms <= 86_400_000 for j in said(house, browser)] == [True] * 4


def test_all_texts_are_shown_whole(house: House) -> None:
    made = campaign(house.ledger, "pairwise", 0)
    long = "word " * 40_000
    responses = (NewResponse(long), NewResponse("short\0\u202e<script>x</script>"))
    house.ledger.add_items(made.id, [NewItem("Hi", responses)])
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    browser.work(made)
    assert browser.page is not None
    assert long.strip() in browser.page.text
    assert "<script>x" not in browser.page.text
    assert "\0" not in browser.page.text
    assert "\u202e" not in browser.page.text
    fields = [f'name="edit-{i}" data-edit="short⟦U+0000⟧' for i in (0, 1)]
    place = next(i for i, field in enumerate(fields) if field in browser.page.text)
    edit = {f"edit-{place}": "shorter⟦U+202E⟧ now\0"}
    browser.judge(choice="a1", critique="a\0b'); DROP TABLE judgements; --", **edit)
    texts = {j.kind: j.text for j in said(house, browser)}
    assert texts["critique"] == "a\0b'); DROP TABLE judgements; --"
    assert texts["edit"] == "shorter now\0"


def test_the_forms_here_are_those_of_every_kind() -> None:
    assert set(FORMS) == set(TEXTS)
    assert new_item("thumbs").kind == "thumbs"


def test_what_comes_late_is_kept_and_its_author_is_told(house: House) -> None:
    made = campaign(house.ledger, items=1, lease_minutes=0.001)
    for name in ("ada", "eve"):
        person(house.ledger, f"{name}@example.org", made)
    ada, eve = house.browser("ada@example.org"), house.browser("eve@example.org")
    number = house.ledger.assignment(ada.work(made), 1).item_id

    def late() -> tuple[list[bool], int]:
        return [j.late for j in house.ledger.judgements(number)], house.ledger.item(number).done

    # The slot is free again, and nobody else has taken it: it counts as if in time.
    time.sleep(0.1)
    assert house.ledger.sweep(made.id) == 1
    assert "Nothing is left" in ada.judge(choice="a2").text
    assert "marked as late" not in ada.page.text
    assert late() == ([True], 1)
    # Somebody else judged it meanwhile: it is kept beside theirs, and the next page says so.
    ada.submit(f"/tasks/{made.id}/undo")
    ada.work(made)
    time.sleep(0.1)
    assert eve.work(made)
    assert "Nothing is left" in eve.judge(choice="tie").text
    fields = {"token": ada.hidden("token"), "choice": "b1"}
    came = ada.submit(f"/judge/{ada.lease}", script=True, **fields)
    assert late() == ([False, True], 2)
    assert "marked as late" in ada.visit(came.json()["next"]).text
    again = ada.submit(f"/judge/{came.request.url.path.split('/')[-1]}", script=True, **fields)
    assert again.json() == came.json()
    assert late() == ([False, True], 2)
    assert "marked as late" not in ada.visit(f"/tasks/{made.id}").text
    # To the whole campaign it adds nothing: the slot that was wanted is filled once.
    assert '<progress value="1" max="1"' in ada.visit("/").text
