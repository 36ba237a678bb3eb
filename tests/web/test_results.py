"""Agreement, decisions, who wins, exports; and what is kept of them."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest

from tests.web.house import House, campaign, person
from tests.web.leading import LEAD, REVIEWER, Scene, scene, told
from truing.data.formats import load
from truing.data.ledger.columns import columns
from truing.data.schema import Comparison
from truing.web.figures import REST, Kept, made


def by_hand(built: Scene) -> list[tuple[int, int, float, bool, int]]:
    """Item, person, value, whether the first response stood first, pass: read one by one."""
    rows = list[tuple[int, int, float, bool, int]]()
    for item in built.items:
        first = item.responses[0].id
        for j in built.ledger.judgements(item.id):
            better = j.value["preferred"]
            value = 0.0 if better is None else (-1.0 if better == first else 1.0)
            rows.append((item.id, j.annotator_id, value, j.shown[0] == first, 1 + min(j.retest, 1)))
    return rows


def test_columns_say_what_the_judgements_say(house: House) -> None:
    built = scene(house)
    built.say(built.items[-6], built.people[0], None)
    with built.ledger.reading(snapshot=True) as c:
        got = columns(c, built.campaign.id)
    zipped = zip(
        got.item_N, got.annotator_N, got.value_N, got.shown_N == 0, got.pass_N, strict=True
    )
    assert sorted(
        (int(a), int(b), float(v), bool(s), int(p)) for a, b, v, s, p in zipped
    ) == sorted(by_hand(built))
    gold = np.isfinite(got.gold_N)
    assert (gold == ~got.work_N).all()
    assert set(got.gold_N[gold]) == {-1.0}
    assert set(got.system_I2) == {("sft-7b", "dpo-7b")}
    # "Short." and "Longer, so." as JSON texts.
    assert set(map(tuple, got.length_N2.tolist())) == {(8.0, 13.0)}


def test_agreement_and_win_rate_are_those_counted_by_hand(house: House) -> None:
    built = scene(house)
    work = {item.id for item in built.items if item.purpose == "work"}
    rows = [r for r in by_hand(built) if r[0] in work and r[4] == 1]
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i] if a[0] == b[0]]
    found = made(built.ledger, built.campaign.id)
    assert found.percent is not None
    assert found.percent.n == len(pairs)
    assert found.percent.value == pytest.approx(np.mean([a[2] == b[2] for a, b in pairs]))
    (win,) = found.wins
    assert (win.a, win.b) == ("dpo-7b", "sft-7b")
    assert win.rate.value == pytest.approx(np.mean([(r[2] + 1) / 2 for r in rows]))
    assert win.rate.low < win.rate.value < win.rate.high
    apart = {a[0] for a, b in pairs if a[2] != b[2]}
    assert {each.item for each in found.disputes} == apart
    page = house.browser(LEAD).visit(built.at("/agreement")).text
    assert f"<b>{100 * win.rate.value:.0f} %</b>" in page
    assert f"<b>{100 * found.percent.value:.0f} %</b>" in page


def test_rounds_are_apart(house: House) -> None:
    built = scene(house)
    before = made(built.ledger, built.campaign.id)
    built.ledger.set_campaign(built.campaign.id, round=1)
    built.say(built.items[-6], built.people[0], 0)
    assert made(built.ledger, built.campaign.id, 0).n == before.n
    assert made(built.ledger, built.campaign.id, 1).n == 1
    assert made(built.ledger, built.campaign.id).rounds == [0, 1]
    browser = house.browser(LEAD)
    assert browser.visit(built.at("/agreement?round=1")).status_code == 200
    assert browser.visit(built.at("/agreement?round=x")).status_code == 404


def test_an_empty_campaign_has_no_figures_and_says_so(house: House) -> None:
    built = campaign(house.ledger)
    person(house.ledger, LEAD, role="admin")
    browser = house.browser(LEAD)
    for path in ("", "/people", "/agreement", "/export", "/questions"):
        assert browser.visit(f"/lead/{built.id}{path}").status_code == 200
    assert "nobody has judged" in browser.visit(f"/lead/{built.id}/agreement").text


def test_judges_that_are_no_people_are_left_out_and_counted(house: House) -> None:
    built = scene(house)
    before = made(built.ledger, built.campaign.id)
    model = built.ledger.add_annotator(source="ai")
    drawn = built.ledger.add_annotator(simulated=True)
    built.ledger.record(
        built.campaign.id, [told(built.items[0], model, 0), told(built.items[1], drawn, 0)]
    )
    after = made(built.ledger, built.campaign.id)
    assert (after.n, after.other, after.simulated) == (before.n + 1, 1, 1)
    text = house.browser(LEAD).visit(built.at("/agreement")).text
    assert "1 judgements by models" in text
    assert "are simulated" in text


# --- deciding -------------------------------------------------------------------------------------


def test_a_decision_stands_in_place_of_the_votes(house: House) -> None:
    built = scene(house)
    browser = house.browser(REVIEWER)
    number = int(made(built.ledger, built.campaign.id).disputes[0].item)
    item = built.ledger.item(number)
    page = browser.visit(built.at(f"/decide/{number}")).text
    short_first = page.index("Short.") < page.index("Longer, so.")
    # Whatever stands where: the decision is for the short one.
    choice = "a2" if short_first else "b2"
    fields: dict[str, Any] = {"choice": choice, "why": "It is true.", "token": "once"}
    for _ in range(2):
        assert browser.submit(built.at(f"/decide/{number}"), **fields).status_code == 200
    said = [j for j in built.ledger.judgements(number) if j.purpose == "adjudication"]
    assert [j.kind for j in said] == ["pairwise", "critique"]
    assert said[0].value["preferred"] == item.responses[0].id
    assert said[0].value["strength"] == 2
    assert said[0].annotator_id == built.reviewer.id
    after = made(built.ledger, built.campaign.id)
    assert number not in {each.item for each in after.disputes}
    assert after.n == made(built.ledger, built.campaign.id).n
    assert "Decision" in browser.visit(built.at(f"/decide/{number}")).text.replace(
        "decision", "Decision"
    )
    # It fills no slot.
    assert built.ledger.item(number).done == item.done
    rows = exported(house, built)
    mine = [r for r in rows if r["prompt"] == item.prompt]
    assert [(r["chosen"], r["provenance"]["extra"]["decided"]) for r in mine] == [("Short.", True)]
    assert browser.submit(built.at(f"/decide/{number}"), choice="nonsense").status_code == 400


def test_votes_are_told_in_the_letters_of_the_page(house: House) -> None:
    built = scene(house)
    for role in (LEAD, REVIEWER):  # sides are drawn for each of them
        browser = house.browser(role)
        for item in built.items[:4]:
            page = browser.visit(built.at(f"/decide/{item.id}")).text
            short = "A" if page.index("Short.") < page.index("Longer, so.") else "B"
            other = "B" if short == "A" else "A"
            for j in built.ledger.judgements(item.id):
                letter = short if j.value["preferred"] == item.responses[0].id else other
                row = page.split(built.ledger.annotator(j.annotator_id).pseudonym)[1]
                assert f"{letter} better" in row.split("</tr>")[0]


def test_thumbs_and_other_kinds_can_be_decided(house: House) -> None:
    person(house.ledger, LEAD, role="admin")
    browser = house.browser(LEAD)
    forms: dict[str, dict[str, Any]] = {
        "thumbs": {"thumb-0": "up"},
        "ranking": {f"rank-{i}": "1" for i in range(4)},
        "rating": {f"aspect-0-{i}": "3" for i in range(2)},
        "steps": {f"step-{i}": "right" for i in range(3)},
    }
    for kind, form in forms.items():
        built = campaign(house.ledger, kind, items=1)
        (number,) = house.ledger.item_numbers(built.id).values()
        path = f"/lead/{built.id}/decide/{number}"
        assert browser.visit(path).status_code == 200
        assert browser.submit(path, **form).status_code == 200
        (said,) = house.ledger.judgements(number)
        assert (said.kind, said.purpose) == (kind, "adjudication")


# --- exports --------------------------------------------------------------------------------------


def exported(house: House, built: Scene, **fields: Any) -> list[dict[str, Any]]:
    browser = house.browser(LEAD)
    browser.visit(built.at("/export"))
    came = browser.submit(built.at("/export"), kind="comparison", **fields)
    assert came.headers["content-type"] == "application/zip", came.text
    with zipfile.ZipFile(io.BytesIO(came.content)) as archive:
        assert "README.md" in archive.namelist()
        return [json.loads(line) for line in archive.read("train.jsonl").splitlines()]


def test_an_export_is_what_trainings_read(house: House, tmp_path: Any) -> None:
    built = scene(house)
    rows = exported(house, built)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load(tmp_path / "train.jsonl", Comparison)
    work = {item.id for item in built.items if item.purpose == "work"}
    assert len(loaded) == sum(r[0] in work and r[4] == 1 for r in by_hand(built))
    (noted,) = built.ledger.exports()
    assert noted["path"].startswith("download of ")
    assert noted["rows"] == len(rows)
    votes = exported(house, built, rows="votes", ties="on", test_share="30", by_annotator="on")
    assert 0 < len(votes) < len(rows)


@pytest.mark.parametrize(
    "fields",
    [{"kind": "nonsense"}, {"kind": "steps"}, {"kind": "comparison", "test_share": "95"}, {}],
)
def test_odd_exports_are_refused(house: House, fields: dict[str, Any]) -> None:
    built = scene(house, items=6)
    browser = house.browser(LEAD)
    browser.visit(built.at("/export"))
    came = browser.submit(built.at("/export"), **fields)
    assert came.status_code == 400
    assert "/tmp" not in came.text
    assert built.ledger.exports() == []


# --- what is kept ---------------------------------------------------------------------------------


def test_figures_are_made_anew_only_when_something_changed(house: House) -> None:
    built = scene(house)
    browser = house.browser(LEAD)
    kept: Kept = house.app.state.kept
    for _ in range(3):
        browser.visit(built.at("/people"))
        browser.visit(built.at("/agreement"))
    assert kept.made == 1
    built.say(built.items[-6], built.people[0], 0)
    browser.visit(built.at("/people"))
    assert kept.made == 2


def test_what_took_long_is_not_made_anew_at_once() -> None:
    now = [0.0]
    kept = Kept(lambda: now[0])

    def slow() -> float:
        now[0] += 2.0
        return now[0]

    assert kept.get("a", 1, slow) == 2.0
    now[0] += REST * 2.0 - 1
    assert kept.get("a", 2, slow) == 2.0  # changed, but it would be a twentieth of the time
    now[0] += 2
    assert kept.get("a", 2, slow) == now[0]
    assert kept.get("b", 2, slow) == now[0]
    assert kept.made == 3


def test_what_a_lead_changed_is_seen_at_once() -> None:
    kept = Kept(iter(range(0, 1000, 5)).__next__)  # each look at the clock is five seconds later
    assert kept.get((1, None), 1, lambda: "old") == "old"
    assert kept.get((1, None), 2, lambda: "new") == "old"
    kept.forget(1)
    assert kept.get((1, None), 2, lambda: "new") == "new"
