"""Assignment and people: screening, gold, leases, races, expertise, and what a ledger must hand."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.crowd import Crowd, golds, items
from truing.feedback.assign import (
    Annotator,
    Candidate,
    Decision,
    Past,
    Policy,
    Rest,
    decide,
    feedback_due,
    live,
    verdict,
)

PLAIN = Policy(retest_share=0.0)


def test_people_start_at_different_items_so_that_they_seldom_race() -> None:
    crowd = Crowd(PLAIN, items(200), [f"p{i}" for i in range(50)], size=32)
    asked = Counter(d.item for p in crowd.people if isinstance(d := crowd.ask(p), Decision))
    # Fifty people, thirty-two equal rows: each alone would be 1 - (31/32)^50 = 80 % of them, 25.
    assert len(asked) > 20


def test_screening_asks_all_the_same_and_then_says_so() -> None:
    policy = Policy(quiz_size=4, quiz_pass=3, gold_share=0.5, retest_share=0.0)
    crowd = Crowd(policy, [*items(30), *golds(10)], ["a", "b", "c"], size=32)
    for n in range(4):
        crowd.work("a", right=n != 1)
        crowd.work("b", right=n > 1)
    asked = {n: [d.item for m, d in crowd.log if m == n] for n in "ab"}
    assert asked["a"] == asked["b"]
    assert {d.arm for _, d in crowd.log} == {"screening"}
    assert [verdict(policy, crowd.annotator(n)) for n in "abc"] == ["passed", "failed", "open"]
    assert crowd.ask("b") == Rest("failed")
    later = [crowd.work("a") for _ in range(30)]
    shown = [d for d in later if isinstance(d, Decision)]
    assert {d.arm for d in shown} == {"gold", "control"}
    # What the quiz asked is not asked again, in disguise.
    assert not {d.item for d in shown} & set(asked["a"])


def test_only_certain_items_are_gold() -> None:
    policy = Policy(gold_share=0.9, retest_share=0.0, quiz_size=2, quiz_pass=0)
    doubtful = [Candidate(f"d{i}", gold=True) for i in range(30)]
    crowd = Crowd(policy, doubtful, ["a"])
    assert crowd.ask("a") == Rest("no quiz items")
    crowd = Crowd(replace(policy, quiz_size=0), [*doubtful, *golds(3)], ["a", "b"])
    for _ in range(33):
        crowd.work("a")
    by = {arm: {d.item for _, d in crowd.log if d.arm == arm} for arm in ("gold", "control")}
    assert by["gold"] == {g.item for g in golds(3)}
    assert by["control"] == {d.item for d in doubtful}
    # Gold is for everybody: what one person answered is asked of the next.
    for _ in range(3):
        crowd.work("b")
    assert {d.arm for n, d in crowd.log if n == "b"} == {"gold"}


def test_results_of_gold_are_told_late() -> None:
    policy = Policy(gold_delay=3)
    pasts = [Past(i, 0.0, "gold" if i in (1, 4) else "control") for i in range(6)]
    assert feedback_due(policy, pasts[:2]) == feedback_due(policy, pasts[:4]) == []
    assert feedback_due(policy, pasts[:5]) == [1]
    assert feedback_due(policy, [*pasts, *pasts[:2]]) == [1, 4]
    assert feedback_due(replace(policy, gold_delay=0), pasts[:2]) == [1]


def test_a_lease_that_ran_out_gives_the_slot_back() -> None:
    crowd = Crowd(PLAIN, items(1), ["a", "b"])
    got = crowd.ask("a")
    assert isinstance(got, Decision)
    assert got.expires == crowd.now + 1800
    assert crowd.take("a", got)
    assert crowd.ask("a") == got
    assert crowd.ask("b") == Rest("no open items")
    crowd.now += 1799
    assert crowd.ask("b") == Rest("no open items")
    crowd.now += 1
    assert isinstance(crowd.work("b"), Decision)
    assert not crowd.submit("a")
    assert crowd.judged == {0: ["b"]}


def test_a_clock_that_jumps_holds_no_slot_for_long() -> None:
    assert live(PLAIN, 1800, 0)
    assert not live(PLAIN, 1800, 1800)
    assert live(PLAIN, 1800, -5)
    # Written before the clock went back by a day.
    assert not live(PLAIN, 1800, -86400)


def test_what_a_window_must_hold() -> None:
    """Rows that the annotator cannot take may fill a window of fixed size: a ledger leaves them
    out in its query, or hands an iterator that reads on."""
    policy = replace(PLAIN, overlap=2, window=4)
    rows, who = items(100), Annotator("a", seen=set(range(50)))
    full = decide(policy, who, lambda *_: rows[:32], 0.0)
    assert full == Rest("no open items")
    read: list[int] = []

    def reading(*_: object) -> Iterator[Candidate]:
        for row in rows:
            read.append(row.item)  # pyright: ignore[reportArgumentType]
            yield row

    got = decide(policy, who, reading, 0.0)
    assert isinstance(got, Decision)
    assert got.item in range(50, 54)
    # Fifty that were seen, and four to choose from: never the whole campaign.
    assert len(read) == 54


def test_a_decision_reads_its_window_alone() -> None:
    crowd = Crowd(Policy(control_share=0.5, window=8), items(500), ["a"], size=32)
    for _ in range(40):
        crowd.work("a")
    assert crowd.read <= 40 * 8


def test_expertise_bars_people_and_items() -> None:
    policy = replace(PLAIN, tags=frozenset({"en"}))
    rows = [Candidate(0, tags=frozenset({"law"}))]
    got = [
        decide(policy, Annotator("a", frozenset(t)), lambda *_: rows, 0.0) for t in ((), ("en",))
    ]
    assert got == [Rest("expertise"), Rest("no open items")]
    assert isinstance(
        decide(policy, Annotator("a", frozenset({"en", "law"})), lambda *_: rows, 0), Decision
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Policy(overlap=0), "overlap must be at least 1, got 0"),
        (lambda: Policy(cap=0), "cap must be at least 1"),
        (lambda: Policy(window=0), "window must be"),
        (lambda: Policy(retest_distance=-1), "retest_distance must not be negative"),
        (lambda: Policy(control_share=1.1), "control_share is a share"),
        (lambda: Policy(retest_share=0.5, gold_share=0.5), "must leave room for new items"),
        (lambda: Policy(quiz_pass=1), "quiz_pass 1 of quiz_size 0"),
        (lambda: Policy(lease_minutes=0), "lease_minutes must be positive"),
        (lambda: Candidate(1, score=float("nan")), "item 1: its score is NaN"),
        (lambda: Candidate(1, judged=-1), "a count cannot be that"),
        (lambda: verdict(PLAIN, Annotator("a", quiz=(1, 2))), "2 right of 1 quiz items"),
        (lambda: decide(PLAIN, Annotator("a"), lambda *_: [], 0, loads={}), "has no effect"),
        (lambda: decide(Policy(balanced=True), Annotator("a"), lambda *_: [], 0), "is needed"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
