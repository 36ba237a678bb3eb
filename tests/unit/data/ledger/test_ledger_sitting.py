"""Many readings of one page: one connection and one transaction, until something is written."""

from collections.abc import Callable

import pytest
from sqlalchemy import event, select, text

from tests.ledgers import Clock, Team
from truing.data.ledger import Ledger, visits
from truing.data.ledger.tables import members

Make = Callable[..., Team]


def begun(ledger: Ledger, work: Callable[[], object]) -> int:
    """How many transactions some work takes."""
    count = list[int]()

    def note(connection: object) -> None:
        count.append(1)

    event.listen(ledger.engine, "begin", note)
    work()
    event.remove(ledger.engine, "begin", note)
    return len(count)


def test_readings_share_a_transaction_until_something_is_written(team: Make) -> None:
    made = team()

    def look() -> None:
        for _ in range(3):
            made.ledger.member(made.id, made.people[0])

    def sit() -> None:
        with made.ledger.sitting():
            look()
            with made.ledger.sitting():
                look()

    def change() -> None:
        with made.ledger.sitting():
            look()
            made.ledger.set_member(made.id, made.people[0], progress=lambda _: {"step": 1})
            # What was written in between is seen.
            assert made.ledger.member(made.id, made.people[0]).progress == {"step": 1}

    assert begun(made.ledger, look) == 3
    assert begun(made.ledger, sit) == 1
    assert begun(made.ledger, change) == 3
    assert begun(made.ledger, look) == 3  # nobody sits any more


def test_what_fails_while_one_sits_breaks_nothing(team: Make) -> None:
    made = team()
    with made.ledger.sitting():
        with pytest.raises(LookupError):
            made.ledger.member(made.id, 99)
        with pytest.raises(Exception, match="no_such_table"), made.ledger.reading() as c:
            c.execute(text("SELECT * FROM no_such_table"))
        assert made.ledger.member(made.id, made.people[0]).state == "active"
    sitting, failing = made.ledger.sitting(), pytest.raises(Exception, match="no_such_table")
    with failing, sitting, made.ledger.reading() as c:
        c.execute(text("SELECT * FROM no_such_table"))
    assert made.judge()[0].kind == "pairwise"


def test_a_snapshot_is_its_own(team: Make) -> None:
    made = team()
    with made.ledger.sitting(), made.ledger.reading() as own, made.ledger.reading() as same:
        assert own is same
        with made.ledger.reading(snapshot=True) as other:
            assert other is not own
            assert other.scalar(select(members.c.state).limit(1)) == "active"


def test_a_session_ends_by_time_by_hand_and_with_its_owner(team: Make, clock: Clock) -> None:
    made = team()
    ledger, (ada, bob) = made.ledger, made.people
    secrets = [ledger.issue_token("session", 60, annotator_id=n) for n in (ada, ada, bob)]

    def who(secret: str) -> int | None:
        with ledger.reading() as c:
            found = visits.session(c, secret, ledger.now())
        assert (found is None) == (ledger.token("session", secret) is None)
        return found and found.me.id

    assert [who(secret) for secret in secrets] == [ada, ada, bob]
    assert who(secrets[0] + "x") is None
    with ledger.reading() as c:
        first = visits.session(c, secrets[0], ledger.now())
        assert first is not None
        assert first.me == ledger.annotator(ada)
    ledger.end_token(first.id)
    ledger.set_annotator(bob, state="suspended")
    assert [who(secret) for secret in secrets] == [None, ada, None]
    clock.on(60)
    assert who(secrets[1]) is None
    invited = ledger.issue_token("invitation", 60, annotator_id=ada)
    with ledger.reading() as c:
        assert visits.session(c, invited, ledger.now()) is None


def test_a_part_is_told_as_by_its_pieces(team: Make) -> None:
    made = team()
    ledger, (ada, bob) = made.ledger, made.people
    old = ledger.add_document(made.id, "guideline", "one")
    new = ledger.add_document(made.id, "guideline", "two")
    consent = ledger.add_document(made.id, "consent", "yes?")
    ledger.accept(ada, old.id)
    ledger.accept(ada, consent.id, False)
    with ledger.reading() as c:
        member, campaign, practice = visits.standing(c, made.id, ada)
        papers, answered = visits.papers(c, made.id, ada)
        assert visits.papers(c, made.id, bob) == (papers, {})
        with pytest.raises(LookupError, match="no member"):
            visits.standing(c, made.id, 99)
        with pytest.raises(LookupError, match="no member"):
            visits.standing(c, 99, ada)
    assert (member, campaign) == (ledger.member(made.id, ada), ledger.campaign(made.id))
    assert not practice
    assert papers == {"guideline": new, "consent": consent}
    assert answered == ledger.accepted(ada, made.id) == {old.id: True, consent.id: False}


def test_whether_there_is_practice_is_told(team: Make) -> None:
    made = team(purpose="practice", expected={"kind": "pairwise", "value": {}})
    with made.ledger.reading() as c:
        assert visits.standing(c, made.id, made.people[0]).practice
