"""Judgements into a campaign and out again: the rows that come back are those that went in."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.ledgers import SKIP, TIE, Team, better
from truing.cli import main
from truing.data.formats import Dataset, load, save
from truing.data.ledger import Answer, Ledger, NewItem, NewResponse, Told
from truing.data.ledger.tables import judgements
from truing.data.schema import (
    KINDS,
    Comparison,
    Demonstration,
    Label,
    Message,
    Provenance,
    Ranking,
    Record,
    Steps,
)

CHAT = (Message("system", "Be brief."), Message("user", "Hello?"))
HI, BYE = ((Message("assistant", text),) for text in ("Hi.", "Go away."))
WHEN = "2026-01-02T03:04:05+00:00"


def by(author: str, *order: int, source: Any = "human", **more: Any) -> Provenance:
    return Provenance(source, author, order=order, time=WHEN, **more)


WENT_IN: dict[str, list[Record]] = {
    "pairwise": [
        Comparison("Q1", "good", "bad", provenance=by("ann", 0, 1)),
        Comparison("Q1", "good", "bad", provenance=by("bob", 1, 0)),
        Comparison("Q1", "bad", "good", provenance=by("cy", 1, 0)),
        Comparison("Q2 é \U0001f600", "a\n```x```", "b", provenance=by("ann", 1, 0)),
        Comparison("Q3", "x", "y", provenance=by("judge", 0, 1, source="ai", simulated=True)),
        Comparison(CHAT, HI, BYE, provenance=by("ann", 1, 0, extra={"strength": 2})),
    ],
    "ranking": [
        Ranking("Q1", ("a", "b", "c"), (1, 0, 1), by("ann", 2, 0, 1)),
        Ranking("Q1", ("a", "b", "c"), (0, 1, 2), by("bob", 0, 1, 2)),
    ],
    "thumbs": [
        Label("Q1", "fine", True, by("ann", 0)),
        Label("Q1", "fine", False, by("bob", 0)),
        Label("Q1", "poor", False, by("ann", 0)),
    ],
    "steps": [
        Steps("1 + 1?", ("One and", " one is", " three."), (True, True, False), by("ann", 0))
    ],
}
AS = {"pairwise": "comparison", "ranking": "ranking", "thumbs": "label", "steps": "steps"}


def run(*words: str) -> None:
    assert main(list(words)) == 0, words


def content(record: Record) -> str:
    """What a record says, and how; authors by what they judged together, names being pseudonyms."""
    told = {k: v for k, v in vars(record).items() if k != "provenance"}
    who: Provenance = vars(record)["provenance"]
    strength = who.extra.get("strength")
    return repr((told, who.source, who.simulated, who.order, who.time, strength))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", WENT_IN)
def test_what_went_in_comes_out(kind: str, form: str, place: Path) -> None:
    save(WENT_IN[kind][: 5 if form == "parquet" else None], "in.jsonl")
    run("collect", "create", "l.sqlite", "--campaign", "c", "--kind", kind)
    for _ in range(2):  # the second time adds nothing
        run("collect", "import", "l.sqlite", "--campaign", "c", "--dataset-name", "in.jsonl",
            "--judgements")  # fmt: skip
    run("collect", "export", "l.sqlite", "--campaign", "c", "--kind", AS[kind],
        "--output-dir", "out", "--format", form)  # fmt: skip
    went, came = load("in.jsonl", KINDS[AS[kind]]), load("out", KINDS[AS[kind]])
    assert Counter(map(content, came)) == Counter(map(content, went))
    names = {r.provenance.author: s.provenance.author for r, s in zip(came, came, strict=True)}
    assert all(name.startswith("p-") for name in names)
    people = {(r.provenance.author, r.provenance.source) for r in went}
    assert len({r.provenance.author for r in came}) == len(people)
    with Ledger.open("l.sqlite") as ledger:
        (export,) = ledger.exports()
        assert ledger.verify() == []
    # By this hash a run names the dataset that it was made from.
    assert (export["rows_sha256"], export["rows"]) == (came.sha256, len(came))
    run("ledger", "verify", "l.sqlite")


def test_a_pair_stands_in_the_ledger_in_an_order_that_tells_nothing(place: Path) -> None:
    save(WENT_IN["pairwise"], "in.jsonl")
    run("collect", "create", "l.sqlite", "--campaign", "c")
    run("collect", "import", "l.sqlite", "--campaign", "c", "--dataset-name", "in.jsonl")
    with Ledger.open("l.sqlite") as ledger:
        assert ledger.progress(1).items == 4
        assert [r.content for r in ledger.item(1).responses] == ["bad", "good"]
        assert ledger.judgements(1) == []


def judged(ledger: Ledger) -> Team:
    """Six items by three people: the first split, then ties, a skip, edits, and two agreed on."""
    made = Team(ledger, items=6, people=3, wanted=3)
    first = {n: (2 * n - 1, 2 * n) for n in range(1, 7)}
    sides = {1: (0, 0, 1), 2: (None, None, 0), 4: (1, 1, 1), 5: (0, 0, 0), 6: (0, 0, 0)}
    for item, choices in sides.items():
        for person, side in zip(made.people, choices, strict=True):
            lease = ledger.lease(item, person, first[item][:: 1 if person % 2 else -1])
            said = TIE if side is None else better(first[item][side])
            more = [Answer("edit", {"response": 8}, "Much nicer.")] if item == 4 else []
            ledger.submit(lease.id, person, [said, *more], token=made.token())
    lease = ledger.lease(3, made.people[0], first[3])
    ledger.submit(lease.id, made.people[0], [SKIP], token="skip")
    return made


def exported(place: Path, *flags: str) -> list[dict[str, Any]]:
    out = place / f"out{len(list(place.glob('out*')))}"
    run("collect", "export", "l.sqlite", "--campaign", "replies", "--output-dir", str(out), *flags)
    lines = (out / "train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_votes_are_shares_and_a_lead_has_the_last_word(place: Path) -> None:
    with Ledger.open("l.sqlite") as ledger:
        made = judged(ledger)
        lead = ledger.add_annotator(role="admin").id
        told = Told(5, lead, (better(10),), "lead")
        ledger.record(made.id, [told], purpose="adjudication")
        for said in ledger.judgements(6):
            ledger.undo(said.id, said.annotator_id)
    rows = exported(place, "--rows", "votes", "--ties", "half")
    found = {r["prompt"]: (r["chosen"], r["chosen_probability"]) for r in rows}
    # Prompt 1: two ties and one vote, (0.5 + 0.5 + 1) / 3.
    assert found == {
        "prompt 0": ("reply 0.0", pytest.approx(2 / 3)),
        "prompt 1": ("reply 1.0", pytest.approx(2 / 3)),
        "prompt 3": ("reply 3.1", 1.0),
        "prompt 4": ("reply 4.1", 1.0),
    }
    assert rows[0]["provenance"]["extra"]["votes"] == 3
    singles = exported(place)
    by_prompt = Counter(row["prompt"] for row in singles)
    assert by_prompt == {"prompt 0": 3, "prompt 1": 1, "prompt 3": 6, "prompt 4": 1}
    card = (place / "out1" / "README.md").read_text()
    assert "ties and both bad: left out: 2" in card
    assert "overruled by a lead's decision: 3" in card
    assert "Krippendorff's alpha" in card
    halves = exported(place, "--ties", "half")
    assert Counter(row.get("chosen_probability") for row in halves) == {None: 11, 0.5: 2}
    # What a run would call the dataset is what the ledger noted.
    with Ledger.open("l.sqlite") as ledger:
        noted = [row["rows_sha256"] for row in ledger.exports()]
    assert noted == [load(f"out{i}", Comparison).sha256 for i in range(3)]


def test_an_edit_is_a_demonstration_and_better_than_what_it_edits(place: Path) -> None:
    with Ledger.open("l.sqlite") as ledger:
        judged(ledger)
    rows = exported(place, "--kind", "demonstration")
    assert [(row["prompt"], row["completion"]) for row in rows] == [("prompt 3", "Much nicer.")] * 3
    pairs = [row for row in exported(place) if row["chosen"] == "Much nicer."]
    assert {row["rejected"] for row in pairs} == {"reply 3.1"}
    assert isinstance(load("out0", Demonstration), Dataset)


def test_the_order_shown_is_told_of_the_rows_own_order(place: Path) -> None:
    with Ledger.open("l.sqlite") as ledger:
        made = judged(ledger)
        names = {n: ledger.annotator(n).pseudonym for n in made.people}
    rows = [row for row in exported(place) if row["prompt"] == "prompt 4"]
    # Persons with odd numbers saw the first response first, which all preferred here.
    orders = {row["provenance"]["author"]: row["provenance"]["order"] for row in rows}
    assert orders == {name: [0, 1] if n % 2 else [1, 0] for n, name in names.items()}


def test_splits_share_no_prompt_nor_a_person(place: Path) -> None:
    with Ledger.open("l.sqlite") as ledger:
        made = Team(ledger, items=40, people=4, wanted=4)
        for item in range(1, 41):
            for person in made.people:
                lease = ledger.lease(item, person, (2 * item - 1, 2 * item))
                ledger.submit(lease.id, person, [better(2 * item)], token=made.token())
    for flags, people in (([], 4), (["--split-by", "prompt", "annotator"], 3)):
        train = exported(place, "--test-share", "0.25", *flags)
        folder = sorted(place.glob("out*"))[-1]
        test = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
        assert {r["prompt"] for r in train}.isdisjoint(r["prompt"] for r in test)
        assert len({r["provenance"]["author"] for r in train}) == people
        dropped = 160 - len(train) - len(test)
        if flags:
            both = [{r["provenance"]["author"] for r in rows} for rows in (train, test)]
            assert both[0].isdisjoint(both[1])
            card = (folder / "README.md").read_text()
            assert f"dropped, crossing train and test: {dropped}" in card
            assert dropped > 0
        else:
            assert dropped == 0


def test_nothing_to_export_says_what_there_is(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open("l.sqlite") as ledger:
        judged(ledger)
    assert main(["collect", "export", "l.sqlite", "--campaign", "replies", "--kind", "ranking",
                 "--output-dir", "out"]) == 1  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert "15 pairwise" in said
    assert "needed: ranking or rating" in said
    assert list((place / "out").iterdir()) == []
    with Ledger.open("l.sqlite") as ledger:
        assert ledger.exports() == []


def test_samples_make_items(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def samples(name: str, *texts: str) -> None:
        rows = [Demonstration(f"Q{i}", text) for i in range(3) for text in texts]
        save([*rows, Demonstration("alone in " + name, "x")], name)

    samples("a.jsonl", "one", "two", "one")
    samples("b.jsonl", "other")
    run("collect", "create", "l.sqlite", "--campaign", "c")
    run("collect", "import", "l.sqlite", "--campaign", "c", "--dataset-name", "a.jsonl")
    assert "1 prompts have fewer than 2 different samples" in capsys.readouterr().out
    run("collect", "import", "l.sqlite", "--campaign", "c", "--dataset-name", "a.jsonl",
        "--against", "b.jsonl")  # fmt: skip
    with Ledger.open("l.sqlite") as ledger:
        items = [[r.content for r in ledger.item(n).responses] for n in (1, 4)]
        assert (items, ledger.progress(1).items) == ([["one", "two"], ["one", "other"]], 6)


def test_gold_items_take_the_rows_own_judgement_as_right(place: Path) -> None:
    save([WENT_IN["pairwise"][0]], "gold.jsonl")
    run("collect", "create", "l.sqlite", "--campaign", "c")
    run("collect", "import", "l.sqlite", "--campaign", "c", "--dataset-name", "gold.jsonl",
        "--purpose", "gold", "--judgements")  # fmt: skip
    with Ledger.open("l.sqlite") as ledger:
        item = ledger.item(1)
        assert (item.purpose, ledger.judgements(1)) == ("gold", [])
        # The second response by content ("bad" < "good"), as its place in the item.
        assert item.expected == {
            "kind": "pairwise",
            "value": {"outcome": "better", "preferred": 1, "strength": None},
        }


def test_a_person_is_exported_erased_and_what_was_made_of_them_is_listed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open("l.sqlite") as ledger:
        judged(ledger)
    exported(place)
    data = load("out0", Comparison).parent("dataset")
    for name, parent in (
        ("made", vars(data)),
        ("other", {**vars(data), "sha256": "0", "path": "elsewhere"}),
    ):
        (place / "runs" / name).mkdir(parents=True)
        info = {"stage": "dpo", "status": "finished", "parents": [parent]}
        (place / "runs" / name / "run.json").write_text(json.dumps(info))
    after = {"role": "policy", "path": str(place / "runs" / "made"), "sha256": "1", "name": "made"}
    (place / "runs" / "after").mkdir()
    info = {"stage": "ppo", "status": "finished", "parents": [after]}
    (place / "runs" / "after" / "run.json").write_text(json.dumps(info))
    run("collect", "person", "l.sqlite", "--person", "0@example.org", "--export", "p.json",
        "--erase")  # fmt: skip
    said = "".join(capsys.readouterr().out.split())
    told = json.loads((place / "p.json").read_text())
    assert told["identity"]["name"] == "name 0"
    assert "Much nicer." in {row["text"] for row in told["judgements"]}
    for what in ("out0", "runs/made", "runs/after", "stale"):
        assert what in said, what
    assert "runs/other" not in said
    run("ledger", "verify", "l.sqlite")
    rows = exported(place, "--kind", "demonstration")
    assert len(rows) == 2  # of three edits one was theirs
    assert main(["collect", "person", "l.sqlite", "--person", "0@example.org", "--erase"]) == 1


def test_verify_finds_a_changed_row_from_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open("l.sqlite") as ledger:
        judged(ledger)
        head = str(ledger.heads()[1])
    run("ledger", "verify", "l.sqlite", "--heads", head)
    assert main(["ledger", "verify", "l.sqlite", "--heads", head[:-1] + "x"]) == 1
    with Ledger.open("l.sqlite") as ledger, ledger.writing() as c:
        c.execute(update(judgements).where(judgements.c.id == 1).values(late=True))
        assert c.scalars(select(judgements.c.late)).first()
    capsys.readouterr()
    assert main(["ledger", "verify", "l.sqlite"]) == 1
    assert "changed: judgement 1" in capsys.readouterr().out
    assert main(["ledger", "verify", "l.sqlite", "--heads", "1:2"]) == 1


def test_ratings_become_rankings_of_one_aspect(place: Path) -> None:
    with Ledger.open("l.sqlite") as ledger:
        made = Team(ledger, items=1, people=1, kind="rating", responses=3)
        value = {"responses": [1, 2, 3], "aspects": {"helpful": [1, 5, 5], "true": [3, 2, 1]}}
        lease = made.hold()
        ledger.submit(lease.id, made.people[0], [Answer("rating", value)], token="t")
    (row,) = exported(place, "--kind", "ranking", "--aspect", "helpful")
    assert (row["ranks"], row["provenance"]["extra"]["scores"]) == ([1, 0, 0], [1, 5, 5])


def test_messages_beside_texts_are_refused_by_parquet_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open("l.sqlite") as ledger:
        made = Team(ledger, items=1, people=1)
        two = (NewResponse("a"), NewResponse("b"))
        ledger.add_items(made.id, [NewItem([{"role": "user", "content": "Hm?"}], two)])
        for _ in range(2):
            made.judge()
    assert len(exported(place)) == 2
    assert main(["collect", "export", "l.sqlite", "--campaign", "replies", "--output-dir", "p",
                 "--format", "parquet"]) == 1  # fmt: skip
    assert "Write them as --format jsonl" in " ".join(capsys.readouterr().err.split())


def test_what_came_late_is_exported_and_counted_in_the_card(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open("l.sqlite") as ledger:
        made = Team(ledger, items=2)
        held = made.hold(seconds=0.001)
        time.sleep(0.01)
        assert ledger.sweep(made.id) == 1
        made.judge(1)
        said = [better(held.shown[1])]
        ledger.submit(held.id, made.people[0], said, token="late")
    rows = exported(place)
    assert [row["provenance"]["extra"].get("late") for row in rows] == [None, True]
    card = Path("out0/README.md").read_text(encoding="utf-8")
    assert "- 1 sent after the lease on the item had run out (`late`)" in card
    assert "- items with more judgements than wanted: 1" in card
    capsys.readouterr()
    run("collect", "status", "l.sqlite")
    told = capsys.readouterr().out.replace("│", " ")
    assert "judgements 1 of 2 wanted" in " ".join(told.split())
