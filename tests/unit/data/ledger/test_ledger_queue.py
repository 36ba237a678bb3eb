"""Candidates in line, and leases on their slots."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import select

from tests.ledgers import SKIP, TIE, Clock, Team, better
from truing.data.ledger import (
    Answer,
    Judgement,
    Late,
    Ledger,
    NewItem,
    NewResponse,
    Taken,
    Told,
    line,
)
from truing.data.ledger.tables import members

Make = Callable[..., Team]


def ids(team: Team, who: int = 0, **how: object) -> list[int]:
    found = team.ledger.candidates(team.id, team.people[who], **how)  # pyright: ignore[reportArgumentType]
    return [candidate.item_id for candidate in found]


def test_least_held_items_come_first_then_by_key(team: Make) -> None:
    made = team(items=3, wanted=2)
    assert ids(made) == ids(made, 1) == [1, 2, 3]
    made.hold()
    assert (ids(made), ids(made, 1)) == ([2, 3], [2, 3, 1])
    (first, *_) = made.ledger.candidates(made.id, made.people[1], limit=1)
    assert (first.load, first.done, first.wanted, first.response_ids) == (0, 0, 2, (3, 4))


def test_a_stranger_gets_no_candidates(team: Make) -> None:
    made = team()
    with pytest.raises(LookupError, match="no member"):
        made.ledger.candidates(made.id, 99)


def test_arms_and_domains_have_lines_of_their_own(ledger: Ledger) -> None:
    two = (NewResponse("a"), NewResponse("b"))
    made = Team(ledger, items=0)
    right = {"outcome": "better"}
    ledger.add_items(made.id, [
        NewItem("p1", two, domain="law", key=1.0),
        NewItem("p2", two, domain="art", key=2.0),
        NewItem("p3", two, domain="law", control=False, score=0.1),
        NewItem("p4", two, domain="art", control=False, score=0.9, wanted=2),
        NewItem("p5", two, purpose="gold", expected=right, key=1.0),
    ])  # fmt: skip
    assert ids(made) == [1, 2]
    assert ids(made, arm="active") == [4, 3]
    assert ids(made, arm="active", domain="law") == [3]
    assert ids(made, domain="art") == [2]
    assert ids(made, arm="gold") == [5]
    assert ledger.domain_loads(made.id) == {"law": 0, "art": 0}
    (top, *_) = ledger.candidates(made.id, made.people[0], arm="active")
    lease = ledger.lease(4, made.people[0], top.response_ids, arm="active")
    # The highest score first, although it is held once already.
    assert (ids(made, 1, arm="active"), lease.arm) == ([4, 3], "active")
    assert ledger.domain_loads(made.id) == {"law": 0, "art": 1}
    gold = [ledger.lease(5, who, [9, 10], arm="gold") for who in made.people]
    assert [lease.slot for lease in gold] == [False, False]
    with pytest.raises(ValueError, match="arm is 'best'; needed: one of control, active"):
        ids(made, arm="best")


def test_one_slot_goes_to_one_of_two(team: Make) -> None:
    made = team(items=1)
    lease = made.hold()
    with pytest.raises(Taken, match="all 1 slots of item 1 are taken"):
        made.ledger.lease(1, made.people[1], [1, 2])
    assert ids(made, 1) == []
    # Whoever holds it gets the same again: two windows, a lost answer.
    assert made.ledger.lease(1, made.people[0], [2, 1]).id == lease.id
    made.ledger.submit(lease.id, made.people[0], [TIE], token="t")
    with pytest.raises(Taken, match="had item 1 already"):
        made.ledger.lease(1, made.people[0], [1, 2])


def test_of_many_who_race_for_a_slot_exactly_as_many_win_as_there_are_slots(team: Make) -> None:
    made = team(items=1, people=12, wanted=5)
    won, lost, go = list[int](), list[int](), threading.Barrier(12)

    def race(person: int) -> None:
        go.wait()
        try:
            made.ledger.lease(1, person, [1, 2])
            won.append(person)
        except Taken:
            lost.append(person)

    racers = [threading.Thread(target=race, args=(person,)) for person in made.people]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert (len(won), len(lost)) == (5, 7)
    assert made.ledger.item(1).load == 5


def test_a_lease_that_ran_out_goes_to_somebody_else(team: Make, clock: Clock) -> None:
    made = team(items=1)
    lease = made.hold(seconds=60)
    made.ledger.save_draft(lease.id, made.people[0], {"text": "half a th"}, seconds=60)
    clock.on(59)
    assert ids(made, 1) == []
    assert made.ledger.leases(made.id, made.people[0])[0].draft == {"text": "half a th"}
    clock.on(1)
    assert made.ledger.leases(made.id, made.people[0]) == []
    assert ids(made, 1) == [1]
    made.judge(1)
    with pytest.raises(Late):
        made.ledger.save_draft(lease.id, made.people[0], {})


def test_work_that_comes_late_counts(team: Make, clock: Clock) -> None:
    made = team(items=1)
    first, late = both(made, clock)
    item = made.ledger.item(1)
    assert (late.late, item.load, item.done, item.wanted) == (True, 2, 2, 1)
    assert filled(made) == 1
    made.ledger.undo(late.id, made.people[0])
    assert filled(made) == 1
    made.ledger.undo(first.id, made.people[1])
    assert filled(made) == 0


def test_what_is_beyond_the_wanted_fills_no_slot_of_another(team: Make, clock: Clock) -> None:
    made = team(items=2)
    both(made, clock)
    assert (filled(made), made.ledger.progress(made.id).done) == (1, 2)
    for lift, came in ((False, 1), (True, 1)):
        assert made.ledger.quarantine(made.id, made.people[0], "fast", lift=lift) == 1
        assert filled(made) == came
    for who in (0, 1):
        made.ledger.quarantine(made.id, made.people[who], "fast")
    assert filled(made) == 0
    for who, came in ((0, 1), (1, 1)):
        made.ledger.quarantine(made.id, made.people[who], "fast", lift=True)
        assert filled(made) == came
    more = [Told(2, who, (TIE,), f"elsewhere-{who}", shown=(3, 4)) for who in made.people]
    assert (made.ledger.record(made.id, more), filled(made)) == (2, 2)


def both(made: Team, clock: Clock) -> tuple[Judgement, Judgement]:
    """What the second person said of the first item, and the first person after their lease."""
    lease = made.hold(seconds=60)
    clock.on(61)
    (first,) = made.judge(1)
    (late,) = made.ledger.submit(lease.id, made.people[0], [TIE], token="late")
    assert first.item_id == late.item_id
    return first, late


def filled(made: Team) -> int:
    """Slots that are filled, which are those of the items as well."""
    came = made.ledger.progress(made.id).filled
    counts = [made.ledger.item(n) for n in range(1, made.ledger.progress(made.id).items + 1)]
    assert came == sum(min(item.done, item.wanted) for item in counts)
    return came


def test_a_lease_from_a_clock_that_was_wrong_is_over(team: Make, clock: Clock) -> None:
    made = team(items=1)
    clock.on(365 * 86400)
    made.hold()
    clock.on(-365 * 86400)
    assert ids(made, 1) == [1]


def test_a_lease_given_back_is_free_at_once(team: Make) -> None:
    made = team(items=1)
    lease = made.hold()
    for _ in range(2):
        made.ledger.release(lease.id, made.people[0])
    assert made.ledger.item(1).load == 0
    assert ids(made) == ids(made, 1) == [1]
    assert made.hold().id == lease.id
    with pytest.raises(LookupError, match="has no assignment"):
        made.ledger.release(lease.id, made.people[1])


def test_what_is_shown_is_what_the_item_has(team: Make) -> None:
    made = team(items=2)
    for shown in ([1], [1, 1], [1, 3], [1, 2, 3]):
        with pytest.raises(ValueError, match="needed: the responses of item 1"):
            made.ledger.lease(1, made.people[0], shown)
    with pytest.raises(LookupError, match="no item 7"):
        made.ledger.lease(7, made.people[0], [1, 2])


def test_the_own_items_of_a_person_are_not_walked_over_again(
    team: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who works alone has all that is behind them; the place in line is kept, and what
    comes free behind it is still found."""
    monkeypatch.setattr(line, "SCAN", 8)
    made = team(items=20, wanted=2)
    ledger, first = made.ledger, made.people[0]
    own = [ledger.lease(n, first, [2 * n - 1, 2 * n], seconds=1e6) for n in range(1, 19)]
    for lease in own:  # somebody else held each, and gave it back: all stand in line again
        other = ledger.lease(lease.item_id, made.people[1], lease.shown)
        ledger.release(other.id, made.people[1])
        assert ledger.item(lease.item_id).load == 1
    clock.on(3600)
    for number in (19, 20):
        ledger.lease(number, made.people[1], [2 * number - 1, 2 * number], seconds=1e6)
    assert ids(made, limit=2) == [19, 20]
    with ledger.reading() as c:
        (cursor,) = c.scalars(select(members.c.cursor).where(members.c.annotator_id == first))
    assert cursor["control:"] == [clock(), 1, 17.0, 18]
    # Behind that place one item comes free, and then so many that it is worth beginning anew.
    ledger.release(own[5].id, first)
    assert ids(made, limit=2) == [own[5].item_id, 19]
    for lease in own[6:16]:
        ledger.release(lease.id, first)
    assert ids(made, limit=20) == [*range(6, 17), 19, 20]


def test_retests_are_of_the_persons_own_old_work_and_asked_once(team: Make, clock: Clock) -> None:
    made = team(items=3)
    (said,) = made.judge()
    clock.on(3600)
    made.judge()
    ledger, person = made.ledger, made.people[0]
    (old,) = ledger.retestable(made.id, person, before=clock() - 1)
    assert old.item_id == said.item_id
    again = ledger.lease(old.item_id, person, old.shown[::-1], retest=1, arm="retest")
    assert (again.slot, ledger.item(old.item_id).load) == (False, 1)
    (second,) = ledger.submit(again.id, person, [better(again.shown[0])], token="again")
    assert (second.retest, second.arm, second.shown) == (1, "retest", old.shown[::-1])
    assert ledger.retestable(made.id, person, before=clock() - 1) == []
    assert ledger.item(old.item_id).done == 1
    assert ledger.progress(made.id).done == 3


def test_a_skip_gives_the_slot_back_to_others_only(team: Make) -> None:
    made = team(items=1)
    lease = made.hold()
    made.ledger.submit(lease.id, made.people[0], [SKIP], token="s")
    assert (ids(made), ids(made, 1)) == ([], [1])
    assert made.ledger.progress(made.id, made.people[0]).skipped == 1
    held = made.hold(1)
    with pytest.raises(ValueError, match="a pairwise and a skip came of the same item"):
        made.ledger.submit(held.id, made.people[1], [TIE, SKIP], token="both")


def test_a_flag_ends_nothing(team: Make) -> None:
    made = team(items=1)
    lease = made.hold()
    flag = Answer("flag", {"reason": "personal data"}, "a phone number")
    made.ledger.submit(lease.id, made.people[0], [flag], token="f")
    assert [held.id for held in made.ledger.leases(made.id, made.people[0])] == [lease.id]
    made.ledger.submit(lease.id, made.people[0], [TIE], token="j")
    assert made.ledger.progress(made.id).done == 1
