"""What stands before the items: consent, warning, guideline, practice, screening; and the rules."""

import pytest

from tests.web.house import House, campaign, new_item, person
from truing.config import ConfigError
from truing.feedback.rules import rules_of
from truing.web.annotate import DONE
from truing.web.pages import minutes

EXPECTED = {
    "pairwise": {"preferred": 0},
    "ranking": {"ranks": [0, 3, 1, 2]},
    "rating": {"aspects": {"helpful": [5, 1]}},
    "thumbs": {"labels": [True]},
    "steps": {"labels": [1, 1, -1]},
    "edit": {},
    "demonstration": {},
}


# As `truing collect import` keeps it.
IMPORTED = {
    "kind": "pairwise",
    "value": {"outcome": "both_bad", "preferred": None, "strength": None},
}


def test_papers_come_first_each_with_its_version(house: House) -> None:
    made = campaign(house.ledger)
    texts = {"guideline": "Be <b>fair</b>.", "consent": "May we?", "warning": "Rude words."}
    papers = {k: house.ledger.add_document(made.id, k, text) for k, text in texts.items()}
    me = person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    for kind in ("consent", "warning", "guideline"):
        text = browser.visit(f"/tasks/{made.id}").text
        assert f"/paper/{papers[kind].id}" in text
        assert "version 1" in text
        assert "<b>fair" not in text
        browser.submit(f"/tasks/{made.id}/paper/{papers[kind].id}", answer="accept")
    lease = browser.work(made)
    assert house.ledger.assignment(lease, me.id).guideline_id == papers["guideline"].id
    assert house.ledger.accepted(me.id, made.id) == {p.id: True for p in papers.values()}
    # The new one is shown before the next item, with what is new, and the item is judged by it.
    new = house.ledger.add_document(made.id, "guideline", "Be <b>fair</b>.\n\nAnd be kind.")
    text = browser.visit(f"/tasks/{made.id}").text
    assert "What is new" in text
    assert text.count("And be kind.") == 2
    old = browser.submit(f"/tasks/{made.id}/paper/{papers['guideline'].id}", answer="accept")
    assert old.status_code == 404
    browser.submit(f"/tasks/{made.id}/paper/{new.id}", answer="accept")
    assert house.ledger.assignment(browser.lease, me.id).guideline_id == new.id


def test_no_consent_no_items_until_one_thinks_otherwise(house: House) -> None:
    made = campaign(house.ledger)
    paper = house.ledger.add_document(made.id, "consent", "May we?")
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    to = f"/tasks/{made.id}/paper/{paper.id}"
    assert "You chose not to take part" in browser.submit(to, answer="decline").text
    assert "You chose not to take part" in browser.visit(f"/tasks/{made.id}").text
    assert "May we?" in browser.submit(to, answer="again").text
    browser.submit(to, answer="accept")
    assert browser.lease


def test_a_warning_may_be_about_some_items_alone(house: House) -> None:
    made = campaign(house.ledger, items=1, warned_tag="harsh")
    house.ledger.add_items(made.id, [new_item("pairwise", 9, tags=("harsh",))])
    paper = house.ledger.add_document(made.id, "warning", "Rude words.")
    for name, answer, items in (("ada", "decline", 1), ("bob", "accept", 1)):
        email = f"{name}@example.org"
        person(house.ledger, email, made)
        browser = house.browser(email)
        browser.submit(f"/tasks/{made.id}/paper/{paper.id}", answer=answer)
        done = 0
        while "data-lease" in browser.visit(f"/tasks/{made.id}").text:
            browser.judge(choice="tie")
            done += 1
        # Bob gets the harsh one that Ada left out; of the mild one the single slot is taken.
        assert done == items, name
    tags = {j.item_id for i in (1, 2) for j in house.ledger.judgements(i)}
    assert tags == {1, 2}


@pytest.mark.parametrize("kind", list(EXPECTED))
def test_practice_is_explained(house: House, kind: str) -> None:
    made = campaign(house.ledger, kind, 1)
    practice = new_item(
        kind, 5, purpose="practice", expected=EXPECTED[kind], explanation="*This* is why."
    )
    house.ledger.add_items(made.id, [practice])
    me = person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    lease = browser.work(made)
    assert "Practice" in browser.page.text
    shown = house.ledger.assignment(lease, me.id).shown
    own = [r.id for r in house.ledger.item(2).responses]
    form = {
        "pairwise": {"choice": "a1" if shown and shown[0] == own[0] else "b2"},
        "ranking": {f"rank-{i}": str([1, 4, 2, 3][own.index(r)]) for i, r in enumerate(shown)},
        "rating": {f"aspect-0-{i}": "4" if r == own[0] else "2" for i, r in enumerate(shown)},
        "thumbs": {"thumb-0": "up"},
        "steps": {"step-0": "right", "step-1": "right", "step-2": "wrong"},
        "edit": {"edit-0": "Thanks!"},
        "demonstration": {"text": "Old pond"},
    }[kind]
    text = browser.judge(**form).text
    assert "<em>This</em> is why." in text
    assert "Right" in text
    assert "We see it otherwise" not in text
    # Then the work begins; what was explained is no decision that could be changed.
    browser.work(made)
    assert "Practice" not in browser.page.text
    assert "None yet" in browser.visit(f"/tasks/{made.id}/history").text
    assert browser.visit(f"/judge/{lease}").url.path == f"/tasks/{made.id}"


def test_a_wrong_practice_answer_is_put_right(house: House) -> None:
    made = campaign(house.ledger, items=0)
    house.ledger.add_items(
        made.id, [new_item("pairwise", purpose="practice", expected=IMPORTED,
                           explanation="Neither.")]
    )  # fmt: skip
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    browser.work(made)
    text = browser.judge(choice="a2").text
    assert "We see it otherwise" in text
    assert "both bad" in text


@pytest.mark.parametrize("passes", [True, False])
def test_the_screening_decides(house: House, passes: bool) -> None:
    made = campaign(house.ledger, items=1, quiz_size=2, quiz_pass=2)
    rows = [
        new_item("pairwise", n, purpose="screening", expected={"outcome": "tie"}, explanation="So.")
        for n in range(3)
    ]
    house.ledger.add_items(made.id, rows)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    for choice in ("tie", "tie" if passes else "a1"):
        browser.work(made)
        assert "Screening" in browser.page.text
        assert "So." not in browser.page.text
        text = browser.judge(choice=choice).text
    assert ("2 of 2 were right" if passes else "1 of 2 was right") in text
    assert "So." in text
    if passes:
        assert browser.work(made)
        assert "Screening" not in browser.page.text
    else:
        assert DONE["failed"] in browser.visit(f"/tasks/{made.id}").text
        assert "1 of 2 was right" in browser.visit(f"/tasks/{made.id}/screening").text


def test_gold_looks_like_work_and_is_told_later(house: House) -> None:
    made = campaign(house.ledger, items=3, gold_share=1 - 1e-9, gold_delay=1)
    gold = new_item(
        "pairwise", 8, purpose="gold", expected={"outcome": "tie"}, explanation="Known for sure."
    )
    house.ledger.add_items(made.id, [gold])
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    browser.work(made)
    assert "gold" not in browser.page.text.lower()
    browser.judge(choice="tie")
    assert "Known for sure" not in browser.visit(f"/tasks/{made.id}/history").text
    browser.work(made)
    browser.judge(choice="tie")
    text = browser.visit(f"/tasks/{made.id}/history").text
    assert "Known for sure" in text
    assert "As known" in text


def test_caps_and_states_end_the_queue_in_words(house: House) -> None:
    made = campaign(house.ledger, items=5, daily_cap=1)
    me = person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    browser.work(made)
    assert DONE["daily cap"] in browser.judge(choice="tie").text
    house.ledger.set_campaign(made.id, state="paused")
    assert DONE["closed"] in browser.visit(f"/tasks/{made.id}").text
    house.ledger.set_member(made.id, me.id, state="suspended")
    assert browser.visit(f"/tasks/{made.id}").status_code == 403
    spans = house.ledger.create_campaign("spans", "spans")
    house.ledger.join(spans.id, me.id)
    house.ledger.set_campaign(spans.id, state="open")
    assert DONE["kind"] in browser.visit(f"/tasks/{spans.id}").text


def test_progress_and_a_break(house: House) -> None:
    made = campaign(house.ledger, items=6, break_minutes=1)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser("ada@example.org")
    browser.work(made)
    for _ in range(5):
        assert "short break" not in browser.page.text
        browser.judge(choice="tie", active_ms=20_000)
    assert "A short break keeps judgements sharp" in browser.page.text
    assert "<b>5</b> today" in browser.page.text
    assert "5 today" in browser.visit("/").text


def test_rules_are_read_nested_or_flat_and_checked() -> None:
    nested = rules_of({"rules": {"overlap": 3, "seed": 4, "tags": ["law"]}, "aspects": ["true"]})
    assert (nested.overlap, nested.tags, nested.aspects) == (3, ["law"], ["true"])
    policy = nested.policy(7)
    assert (policy.seed, policy.overlap, policy.tags) == (7, 3, frozenset({"law"}))
    for bad, said in (
        ({"overlapp": 2}, "overlap"),
        ({"auto_submit": True}, "no room for a critique"),
        ({"aspects": []}, "one or more"),
        ({"gold_share": 0.5, "retest_share": 0.5}, "below 1"),
        ({"quiz_pass": 2}, "0 to quiz_size"),
    ):
        with pytest.raises(ConfigError, match=said):
            rules_of(bad)


def test_times_as_people_say_them() -> None:
    told = {
        0: "0 s",
        89_000: "89 s",
        90_000: "2 min",
        3_599_000: "1 h 0 min",
        7_500_000: "2 h 5 min",
    }
    assert {ms: minutes(ms) for ms in told} == told
