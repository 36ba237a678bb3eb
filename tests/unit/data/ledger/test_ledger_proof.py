"""What the chains show, erasure, and that what was told of in them is all there is."""

from collections.abc import Callable

import pytest
from sqlalchemy import delete, insert, select, update

from tests.ledgers import TIE, Team
from truing.data.ledger import Answer, Ledger
from truing.data.ledger.ledger import Head
from truing.data.ledger.tables import (
    documents,
    events,
    identities,
    items,
    judgements,
    metadata,
    responses,
    streams,
)

Make = Callable[..., Team]


def busy(made: Team) -> None:
    """Some of everything."""
    ledger = made.ledger
    ledger.add_document(made.id, "guideline", "Be kind.")
    said = made.judge(0, Answer("critique", {"response": None}, "Both are short."))
    made.judge(0)
    ledger.correct(said[0].id, made.people[0], TIE, token="c")
    last = made.judge(1)
    ledger.undo(last[0].id, made.people[1])
    made.judge(0)


def set_(table, number: int, **values: object):
    return update(table).where(table.c.id == number).values(**values)


def event(seq: int):
    return (events.c.stream == 1) & (events.c.seq == seq)


# What somebody may do to the tables, and what must be said of it.
TAMPERED = {
    "a value": (lambda: [set_(judgements, 3, value={"outcome": "tie"})], "changed: judgement 3"),
    "who": (lambda: [set_(judgements, 3, annotator_id=2)], "changed: judgement 3"),
    "the order shown": (lambda: [set_(judgements, 3, shown=[4, 3])], "changed: judgement 3"),
    "simulated": (lambda: [set_(judgements, 3, simulated=True)], "changed: judgement 3"),
    "a text": (lambda: [set_(judgements, 2, text="Fine.")], "changed: the text of judgement 2"),
    "a text put in": (lambda: [set_(judgements, 3, text="x")], "put in: the text of judgement 3"),
    "a text removed": (
        lambda: [set_(judgements, 2, text=None, salt=None)],
        "removed: the text of judgement 2, by no erasure",
    ),
    "a status": (
        lambda: [set_(judgements, 3, status="undone")],
        "judgement 3 is marked undone, and its events say current",
    ),
    "a status taken back": (
        lambda: [set_(judgements, 1, status="current")],
        "judgement 1 is marked current, and its events say superseded",
    ),
    "a judgement removed": (
        lambda: [delete(judgements).where(judgements.c.id == 3)],
        "the judgement of this event is not there",
    ),
    "an event removed": (lambda: [delete(events).where(event(7))], "event 7 is not there"),
    "events swapped": (
        lambda: [
            update(events).where(event(7)).values(seq=99),
            update(events).where(event(8)).values(seq=7),
            update(events).where(event(99)).values(seq=8),
        ],
        "does not follow from the last one",
    ),
    "an event's content": (
        lambda: [update(events).where(event(4)).values(content={"kind": "consent"})],
        "changed: the content of the event",
    ),
    "a response": (lambda: [set_(responses, 3, content="Nicer.")], "changed: the texts of item 2"),
    "an item": (lambda: [set_(items, 2, digest=bytes(32))], "changed: the item that judgement"),
    "a guideline": (lambda: [set_(documents, 1, text="Be rude.")], "changed: document 1"),
    "the end cut off": (lambda: [delete(events).where(events.c.seq > 7)], "its head says"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_tampered_with_is_found(how: str, team: Make) -> None:
    made = team(items=6)
    busy(made)
    assert made.ledger.verify() == []
    statements, said = TAMPERED[how]
    with made.ledger.writing() as c:
        for statement in statements():
            c.execute(statement)
    found = [fault.what for fault in made.ledger.verify()]
    assert any(said in what for what in found), found


def test_a_judgement_put_in_is_found(team: Make) -> None:
    made = team()
    busy(made)
    with made.ledger.writing() as c:
        query = select(judgements).where(judgements.c.status == "current")
        row = dict(c.execute(query).mappings().first() or {})
        del row["id"]
        c.execute(insert(judgements), {**row, "seq": 99, "token": "mine"})
    assert [fault.seq for fault in made.ledger.verify()] == [99]


def test_a_chain_cut_off_with_its_head_shows_against_a_head_known_from_elsewhere(
    team: Make,
) -> None:
    made = team()
    busy(made)
    (_, head) = made.ledger.heads()
    with made.ledger.writing() as c:
        before = c.scalar(select(events.c.hash).where(event(head.seq - 1)))
        c.execute(delete(judgements).where(judgements.c.seq == head.seq))
        c.execute(delete(events).where(event(head.seq)))
        c.execute(update(streams).where(streams.c.id == 1).values(seq=head.seq - 1, hash=before))
    assert made.ledger.verify() == []
    (fault,) = made.ledger.verify([(1, head.seq, head.hash)])
    assert "not the one whose head was noted here" in fault.what
    assert str(head) == f"1:{head.seq}:{head.hash}"


def test_a_campaign_that_was_removed_whole_is_missed(ledger: Ledger) -> None:
    made = ledger.create_campaign("gone", "pairwise")
    with ledger.writing() as c:
        c.execute(delete(events).where(events.c.stream == made.id))
        c.execute(delete(streams).where(streams.c.id == made.id))
    assert [fault.campaign_id for fault in ledger.verify()] == [0]
    assert "its chain is gone" in ledger.verify()[0].what


def test_erasure_leaves_no_trace_of_a_person_and_the_chains_hold(team: Make) -> None:
    made = team(items=6)
    busy(made)
    ledger, person = made.ledger, made.people[0]
    with pytest.raises(ValueError, match="is in the ledger already"):
        ledger.add_annotator(email="0@example.org")
    ledger.add_export(
        made.id, "a.jsonl", digest=bytes(32), rows_sha256="", rows=1, head=ledger.heads()[1],
        settings={}, people=[person],
    )  # fmt: skip
    assert ledger.exports(stale=True) == []
    secret = ledger.issue_token("session", 60, annotator_id=person)
    lease = made.hold()
    ledger.save_draft(lease.id, person, {"text": "my secret"})
    told = ledger.person(person)
    assert (told["identity"]["name"], len(told["judgements"])) == ("name 0", 5)
    assert told["exports"][0]["path"] == "a.jsonl"
    erased = ledger.erase(person)
    assert (erased.texts, [row["path"] for row in erased.exports]) == (1, ["a.jsonl"])
    assert ledger.verify() == []
    assert ledger.token("session", secret) is None
    assert ledger.identity(annotator_id=person) is None
    assert [row["path"] for row in ledger.exports(stale=True)] == ["a.jsonl"]
    everything = ""
    with ledger.reading() as c:
        for table in metadata.sorted_tables:
            everything += repr(c.execute(select(table)).all())
    for trace in ("name 0", "0@example.org", "my secret", "Both are short."):
        assert trace not in everything, trace
    assert ledger.annotator(person).state == "erased"
    with pytest.raises(ValueError, match="was erased before"):
        ledger.erase(person)
    with pytest.raises(ValueError, match="was erased and cannot be changed"):
        ledger.set_annotator(person, state="active")


def test_erased_text_is_not_in_the_file_either(tmp_path) -> None:
    place = tmp_path / "ledger.sqlite"
    with Ledger.open(place) as ledger:
        made = Team(ledger)
        made.judge(0, Answer("critique", {"response": None}, "unmistakable words"))
        before = b"".join(p.read_bytes() for p in tmp_path.iterdir())
        ledger.erase(made.people[0])
        after = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"unmistakable words" in before
    assert b"unmistakable words" not in after
    assert b"name 0" not in after


def test_identities_are_the_only_place_of_what_a_person_is_known_by() -> None:
    personal = {"name", "email", "password_hash", "about"}
    for table in metadata.sorted_tables:
        if table not in (identities,) and table.name != "campaigns":
            assert personal.isdisjoint(table.c.keys()), table.name


def test_an_export_notes_the_head_it_was_made_at(team: Make) -> None:
    made = team()
    made.judge()
    head = made.ledger.heads()[1]
    wrong = Head(1, "replies", head.seq, "00" * 32)
    how = {"digest": bytes(32), "rows_sha256": "", "rows": 1, "settings": {}, "people": []}
    made.ledger.add_export(made.id, "a", head=head, **how)
    assert made.ledger.verify() == []
    made.ledger.add_export(made.id, "b", head=wrong, **how)
    assert [fault.seq for fault in made.ledger.verify()] == [head.seq]
