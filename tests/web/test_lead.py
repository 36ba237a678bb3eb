"""A campaign made and led: from files, from two runs, its texts, its pilot, its questions."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.web.house import Browser, House, campaign, person
from tests.web.leading import DAY, LEAD, scene, told
from truing.data.ledger import Answer, Campaign, Told
from truing.data.ledger.campaigns import day_of
from truing.feedback.rules import rules_of
from truing.web.figures import outlook, per_day

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}."} for i in range(4)
]


def samples(model: str, count: int = 3, each: int = 1) -> str:
    told = {"source": "model", "author": model}
    rows = [
        {"prompt": f"Question {i}?", "completion": f"{model} {i} {k}", "provenance": told}
        for i in range(count)
        for k in range(each)
    ]
    return "\n".join(map(json.dumps, rows))


def lead(house: House) -> Browser:
    person(house.ledger, LEAD, role="admin")
    return house.browser(LEAD)


def sent(browser: Browser, path: str, files: dict[str, tuple[str, Any]], **fields: Any) -> Any:
    browser.page = browser.post(path, data={"csrf": browser.csrf, **fields}, files=files)
    return browser.page


def parquet(folder: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist(PAIRS), folder / "pairs.parquet")
    return (folder / "pairs.parquet").read_bytes()


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_campaign_from_a_file(house: House, tmp_path: Path, ending: str) -> None:
    browser = lead(house)
    lines = [",".join(row.values()) for row in [dict(zip(PAIRS[0], PAIRS[0], strict=True)), *PAIRS]]
    content = {
        "jsonl": "\n".join(map(json.dumps, PAIRS)),
        "json": json.dumps(PAIRS),
        "csv": "\n".join(lines),
        "parquet": parquet(tmp_path),
    }[ending]
    came = sent(
        browser,
        "/lead/new",
        {"file": (f"../../etc/pairs.{ending}", content)},
        name="replies",
        kind="pairwise",
        overlap="3",
        retest_share="10",
        rules="daily_cap: 40\nwarned_tag: sad",
        edit="on",
    )
    assert "items added: 4" in came.text
    (made,) = house.ledger.campaigns()
    assert (made.state, made.kind) == ("draft", "pairwise")
    items = house.ledger.items(list(house.ledger.item_numbers(made.id).values()))
    assert {item.prompt for item in items} == {row["prompt"] for row in PAIRS}
    assert {item.wanted for item in items} == {3}
    # Which of the two was called better says nothing about which is first.
    assert {r.content for item in items for r in item.responses} == {
        row[name] for row in PAIRS for name in ("chosen", "rejected")
    }
    page = browser.visit(f"/lead/{made.id}")
    assert page.status_code == 200
    assert "40" in page.text
    assert "10 %" in page.text


def test_a_campaign_from_two_runs_says_which_made_what(house: House) -> None:
    browser = lead(house)
    files = {
        "file": ("samples.jsonl", samples("org/a", 3)),
        "second": ("samples.jsonl", samples("org/b", 2)),
    }
    came = sent(
        browser, "/lead/new", files, name="ab", kind="pairwise", name_a="before", name_b="after"
    )
    assert "items added: 2" in came.text
    assert "1 prompts are in one file alone" in came.text
    (made,) = house.ledger.campaigns()
    for item in house.ledger.items(list(house.ledger.item_numbers(made.id).values())):
        assert [(r.run, r.model) for r in item.responses] == [
            ("before", "org/a"),
            ("after", "org/b"),
        ]


def test_several_samples_of_a_prompt_make_an_item(house: House) -> None:
    browser = lead(house)
    files = {"file": ("samples.jsonl", samples("org/a", 3, each=4))}
    came = sent(browser, "/lead/new", files, name="four", kind="ranking", responses="4")
    assert "items added: 3" in came.text


@pytest.mark.parametrize(
    ("name", "content", "fields", "said"),
    [
        ("pairs.exe", "x", {}, "needed: a file .jsonl"),
        ("pairs.jsonl", "{broken", {}, "pairs.jsonl"),
        ("pairs.jsonl", '{"text": "x"}', {}, "fewer than 2"),
        ("pairs.jsonl", json.dumps(PAIRS[0]), {"kind": "steps"}, "pairs.jsonl"),
        ("pairs.jsonl", json.dumps(PAIRS[0]), {"kind": "nonsense"}, "kind"),
        ("pairs.jsonl", json.dumps(PAIRS[0]), {"overlap": "many"}, "overlap"),
        ("pairs.jsonl", json.dumps(PAIRS[0]), {"rules": "nonsense: 1"}, "nonsense"),
        ("pairs.jsonl", json.dumps(PAIRS[0]), {"rules": "- a\n- b"}, "YAML"),
        ("pairs.jsonl", json.dumps(PAIRS[0]), {"retest_share": "60", "gold_share": "60"}, "room"),
        ("pairs.jsonl", json.dumps(PAIRS[0]), {"name": " "}, "name"),
    ],
)
def test_what_cannot_be_used_leaves_no_campaign(
    house: House, name: str, content: str, fields: dict[str, Any], said: str
) -> None:
    browser = lead(house)
    told = {"name": "replies", "kind": "pairwise", **fields}
    came = sent(browser, "/lead/new", {"file": (name, content)}, **told)
    assert came.status_code == 400
    assert said in came.text
    assert "/tmp" not in came.text
    assert house.ledger.campaigns() == []


def test_a_name_can_be_taken(house: House) -> None:
    browser = lead(house)
    campaign(house.ledger, name="mine")
    assert sent(browser, "/lead/new", {}, name="mine", kind="pairwise").status_code == 400
    assert len(house.ledger.campaigns()) == 1


# --- items, practice, texts -----------------------------------------------------------------------


def test_a_practice_item_is_explained_to_whoever_judges_it(house: House) -> None:
    browser, made = lead(house), campaign(house.ledger)
    browser.visit(f"/lead/{made.id}/items")
    came = browser.submit(
        f"/lead/{made.id}/items",
        purpose="practice",
        prompt="Capital of Peru?",
        first="Lima.",
        other="Cusco.",
        right="first",
        explanation="Lima it is.",
    )
    assert "items added: 1" in came.text
    person(house.ledger, "ada@example.org", made)
    ada = house.browser("ada@example.org")
    ada.work(made)
    assert ada.page is not None
    assert "Capital of Peru?" in ada.page.text
    place = "a1" if ada.page.text.index("Lima.") < ada.page.text.index("Cusco.") else "b1"
    text = ada.judge(action="judge", choice=place).text
    assert "Lima it is." in text
    assert "verdict good" in text


def test_gold_items_from_a_file_have_the_files_answers(house: House) -> None:
    browser, made = lead(house), campaign(house.ledger)
    rows = "\n".join(map(json.dumps, PAIRS))
    browser.visit(f"/lead/{made.id}/items")
    came = sent(browser, f"/lead/{made.id}/items", {"file": ("g.jsonl", rows)}, purpose="gold")
    assert "items added: 4" in came.text
    gold = [i for i in house.ledger.items(range(1, 20)) if i.purpose == "gold"]
    assert len(gold) == 4
    for item in gold:
        assert item.expected is not None
        right = item.responses[item.expected["value"]["preferred"]].content
        assert right.startswith("Good")


@pytest.mark.parametrize(
    "fields",
    [
        {"purpose": "work", "prompt": "a", "first": "b", "other": "c", "right": "first"},
        {"purpose": "gold", "prompt": "a", "first": "b", "other": "b", "right": "first"},
        {"purpose": "gold", "prompt": "a", "first": "b", "other": "c", "right": "third"},
        {"purpose": "gold", "prompt": "", "first": "b", "other": "c", "right": "first"},
        {"purpose": "nonsense"},
        {},
    ],
)
def test_odd_items_are_refused(house: House, fields: dict[str, Any]) -> None:
    browser, made = lead(house), campaign(house.ledger)
    browser.visit(f"/lead/{made.id}/items")
    assert browser.submit(f"/lead/{made.id}/items", **fields).status_code == 400
    assert len(house.ledger.item_numbers(made.id)) == 3


def test_a_new_guideline_is_read_before_the_next_item(house: House) -> None:
    browser, made = lead(house), campaign(house.ledger)
    person(house.ledger, "ada@example.org", made)
    ada = house.browser("ada@example.org")
    for version in (1, 2):
        browser.visit(f"/lead/{made.id}/texts")
        came = browser.submit(
            f"/lead/{made.id}/texts", kind="guideline", text=f"Be *kind*. {version}"
        )
        assert f"version {version}" in came.text
        assert "<em>kind</em>" in came.text
        page = ada.visit(f"/tasks/{made.id}")
        assert f"Be <em>kind</em>. {version}" in page.text
        assert "judgement" not in page.text
        papers = house.ledger.documents(made.id)
        ada.submit(f"/tasks/{made.id}/paper/{papers[-1].id}", answer="accept")
        assert ada.work(made)
    browser.visit(f"/lead/{made.id}/texts")
    assert browser.submit(f"/lead/{made.id}/texts", kind="guideline", text=" ").status_code == 400
    assert browser.submit(f"/lead/{made.id}/texts", kind="poem", text="x").status_code == 400


def test_texts_of_people_are_never_code(house: House) -> None:
    browser = lead(house)
    evil = "<script>alert(1)</script>"
    made = house.ledger.create_campaign(evil, "pairwise")
    one = person(house.ledger, "<img src=x onerror=alert(1)>@x", made)
    items = campaign(house.ledger, name="other")
    number = next(iter(house.ledger.item_numbers(items.id).values()))
    question = Told(number, one.id, (Answer("question", {}, f"{evil} \u202e"),), "q")
    house.ledger.record(items.id, [question])
    paths = ["/lead", *(f"/lead/{made.id}{p}" for p in ("", "/people", "/export", "/texts"))]
    for path in [*paths, f"/lead/{items.id}/questions"]:
        text = browser.visit(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "\u202e" not in text


# --- state, pilot, questions ----------------------------------------------------------------------


def state(browser: Browser, made: Campaign, to: str) -> int:
    browser.visit(f"/lead/{made.id}")
    return browser.submit(f"/lead/{made.id}/state", state=to).status_code


def test_a_pilot_is_a_round_of_its_own(house: House) -> None:
    browser = lead(house)
    made = house.ledger.create_campaign("p", "pairwise")
    assert state(browser, made, "paused") == 400  # a draft cannot pause
    assert [state(browser, made, to) for to in ("pilot", "open")] == [200, 200]
    after = house.ledger.campaign(made.id)
    assert (after.state, after.round) == ("open", 1)
    assert [state(browser, made, to) for to in ("paused", "open", "closed")] == [200] * 3
    assert house.ledger.campaign(made.id).round == 1
    assert state(browser, made, "nonsense") == 400


def test_questions_are_answered_once_and_read_by_all(house: House) -> None:
    made = scene(house)
    asked = Told(made.items[0].id, made.people[0].id, (Answer("question", {}, "Why so?"),), "q")
    made.ledger.record(made.campaign.id, [asked])
    browser = house.browser(LEAD)
    assert "1 question waits" in browser.visit(made.at()).text
    browser.visit(made.at("/questions"))
    (question,) = made.ledger.questions(made.campaign.id)
    path = made.at(f"/questions/{question.judgement.id}")
    for _ in range(2):  # a double click
        came = browser.submit(path, text="Because.", token="t")
        assert came.status_code == 200
        assert "Because." in came.text
    assert len(made.ledger.questions(made.campaign.id)[0].answers) == 1
    assert "waits" not in browser.visit(made.at()).text
    assert browser.submit(path, text="  ").status_code == 400


# --- progress and forecast ------------------------------------------------------------------------


def test_progress_counts_what_was_wanted(house: House) -> None:
    made = scene(house)
    browser = house.browser(LEAD)
    live = browser.get(made.at("/progress")).text
    assert "<html" not in live
    # 20 of the 24 items have their three judgements; gold and second passes fill nothing.
    assert ">60 <small>of 72" in live
    made.say(made.items[-6], made.people[0], 0)
    assert ">61 <small>of 72" in browser.get(made.at("/progress")).text


def test_days_are_counted_with_those_off() -> None:
    rows = [
        {"day": d, "done": n} for d, n in (("2026-01-01", 4), ("2026-01-04", 2), ("2026-01-04", 1))
    ]
    assert per_day(rows, "2026-01-06") == [4, 0, 0, 3, 0]
    assert per_day(rows, "2026-01-01") == []  # today is not over
    assert per_day([], "2026-01-01") == []
    assert len(per_day(rows, "2026-03-01")) == 14


def test_the_forecast_is_open_work_over_the_pace(house: House) -> None:
    made = campaign(house.ledger, items=50, retest_share=0.2)
    one, ledger = person(house.ledger, "ada@example.org", made), house.ledger
    items = ledger.items(list(ledger.item_numbers(made.id).values()))
    now = ledger.now()
    # Two days of ten answers of 36 s each.
    ledger.record(made.id, [
        told(item, one, 0, at=now - DAY * (1 + i % 2), active_ms=36_000)
        for i, item in enumerate(items[:20])
    ])  # fmt: skip
    found, seconds = outlook(
        ledger, made.id, rules_of({"retest_share": 0.2}), day_of(now), 20.0, 0.1
    )
    assert seconds == 36
    assert found is not None
    # 30 are open, one in five answers asks again: 37.5; at ten a day 3.75 days; each answer costs
    # 20 / 100 h + 0.1.
    assert found.answers == pytest.approx(37.5)
    assert found.days == pytest.approx(3.75)
    assert found.cost == pytest.approx(37.5 * 0.3)
    page = lead(house).visit(f"/lead/{made.id}?hourly=20&each=0.1").text
    assert "They cost about <b>" in page
    assert house.browser(LEAD).visit(f"/lead/{made.id}?hourly=lots").status_code == 400


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_can_be_withdrawn(house: House) -> None:
    browser = lead(house)
    browser.visit("/lead/keys")
    text = browser.submit("/lead/keys", name="nightly", days="2").text
    secret = text.split("data-copy>")[1].split("<")[0]
    assert house.ledger.token("api", secret) is not None
    again = browser.visit("/lead/keys").text
    assert secret not in again
    assert "nightly" in again
    number = again.split('name="end" value="')[1].split('"')[0]
    browser.submit("/lead/keys", end=number)
    assert house.ledger.token("api", secret) is None
    assert browser.submit("/lead/keys", end=number).status_code == 404
    assert browser.submit("/lead/keys", name="").status_code == 400
