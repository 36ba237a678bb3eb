"""Submissions, second thoughts, and what they do to the counts."""

import threading
from collections.abc import Callable

import pytest

from tests.ledgers import SKIP, TIE, Clock, Team, better
from truing.data.ledger import Answer, Late, Ledger
from truing.data.ledger.entries import Told
from truing.data.ledger.values import READERS, check

Make = Callable[..., Team]


def test_the_same_submission_twice_counts_once(team: Make) -> None:
    made = team()
    lease, person = made.hold(), made.people[0]
    said = [better(1, 2), Answer("critique", {"response": 2}, "It is rude.\0\ud800")]
    first = made.ledger.submit(lease.id, person, said, token="t", active_ms=4000)
    assert made.ledger.submit(lease.id, person, said, token="t", active_ms=9) == first
    assert [j.text for j in first] == [None, "It is rude.\0\ud800"]
    assert made.ledger.judgements(1) == first
    progress = made.ledger.progress(made.id)
    assert (progress.done, progress.today, progress.active_ms) == (1, 1, 4000)
    with pytest.raises(ValueError, match="the token 't' recorded other answers"):
        made.ledger.submit(lease.id, person, [TIE], token="t")
    with pytest.raises(Late, match="undo or correct"):
        made.ledger.submit(lease.id, person, [TIE], token="u")


def test_the_same_submission_at_the_same_moment_counts_once(team: Make) -> None:
    made = team()
    lease, go, got = made.hold(), threading.Barrier(6), list[int]()

    def post() -> None:
        go.wait()
        (said,) = made.ledger.submit(lease.id, made.people[0], [TIE], token="t")
        got.append(said.id)

    posts = [threading.Thread(target=post) for _ in range(6)]
    for each in posts:
        each.start()
    for each in posts:
        each.join()
    assert (len(got), len(set(got))) == (6, 1)
    assert made.ledger.progress(made.id).done == 1
    assert made.ledger.verify() == []


def test_nobody_submits_for_another(team: Make) -> None:
    made = team()
    lease = made.hold()
    with pytest.raises(LookupError, match="has no assignment"):
        made.ledger.submit(lease.id, made.people[1], [TIE], token="t")
    (said,) = made.ledger.submit(lease.id, made.people[0], [TIE], token="t")
    with pytest.raises(LookupError, match="made no judgement"):
        made.ledger.undo(said.id, made.people[1])
    with pytest.raises(LookupError, match="made no judgement"):
        made.ledger.correct(said.id, made.people[1], TIE, token="c")


def test_a_correction_stands_beside_what_it_corrects(team: Make) -> None:
    made = team()
    (said,) = made.judge()
    ledger, person = made.ledger, made.people[0]
    new = ledger.correct(said.id, person, TIE, token="c", active_ms=10)
    assert ledger.correct(said.id, person, TIE, token="c", active_ms=10) == new
    old, now = ledger.judgements(1, everything=True)
    assert (old.status, now.supersedes, now.shown) == ("superseded", old.id, old.shown)
    assert ledger.judgements(1) == ledger.recent(made.id, person) == [now]
    assert (ledger.progress(made.id).done, ledger.item(1).done) == (1, 1)
    with pytest.raises(Late, match="is superseded already"):
        ledger.correct(said.id, person, TIE, token="d")
    with pytest.raises(ValueError, match="a pairwise was said; a skip cannot correct it"):
        ledger.correct(new.id, person, SKIP, token="e")
    assert ledger.verify() == []


def test_an_undo_takes_the_whole_submission_back(team: Make) -> None:
    made = team()
    said = made.judge(0, Answer("critique", {"response": None}, "Both short."))
    ledger, person = made.ledger, made.people[0]
    lease = ledger.undo(said[0].id, person)
    assert lease is not None
    assert (lease.state, ledger.judgements(1), ledger.item(1).done) == ("leased", [], 0)
    assert {j.status for j in ledger.judgements(1, everything=True)} == {"undone"}
    assert (ledger.progress(made.id).done, ledger.item(1).load) == (0, 1)
    ledger.submit(lease.id, person, [TIE], token="again")
    assert (ledger.progress(made.id).done, ledger.item(1).done) == (1, 1)
    assert ledger.verify() == []


def test_a_skip_is_undone_only_while_the_slot_is_free(team: Make) -> None:
    made = team(items=1)
    ledger, lease = made.ledger, made.hold()
    (skip,) = ledger.submit(lease.id, made.people[0], [SKIP], token="s")
    held = made.hold(1)
    with pytest.raises(Late, match="all slots of item 1 are taken"):
        ledger.undo(skip.id, made.people[0])
    ledger.release(held.id, made.people[1])
    again = ledger.undo(skip.id, made.people[0])
    assert again is not None
    assert (again.state, ledger.item(1).load) == ("leased", 1)
    assert ledger.progress(made.id).skipped == 0


def test_quarantine_sets_aside_and_gives_the_slots_to_others(team: Make) -> None:
    made = team(items=2, people=3)
    made.judge(0)
    made.judge(0)
    ledger, person = made.ledger, made.people[0]
    assert ledger.candidates(made.id, made.people[1]) == []
    assert ledger.quarantine(made.id, person, "careless", actor=made.people[2]) == 2
    assert [c.item_id for c in ledger.candidates(made.id, made.people[1])] == [1, 2]
    assert ledger.judgements(1) == []
    made.judge(1)
    assert ledger.quarantine(made.id, person, "a mistake", lift=True) == 2
    assert (ledger.item(1).load, ledger.item(1).done, len(ledger.judgements(1))) == (2, 2, 2)
    assert ledger.verify() == []


def test_questions_are_answered_for_all(team: Make) -> None:
    made = team()
    ledger, (person, lead) = made.ledger, made.people
    lease = made.hold()
    question = Answer("question", {}, "Does length count?")
    (asked,) = ledger.submit(lease.id, person, [question], token="q")
    answer = ledger.answer(asked.id, "No.", lead, token="a")
    assert ledger.answer(asked.id, "No.", lead, token="a") == answer
    ((found, answers),) = [(q.judgement, q.answers) for q in ledger.questions(made.id)]
    assert (found.text, [a.text for a in answers]) == ("Does length count?", ["No."])
    with pytest.raises(ValueError, match="is a answer, no question"):
        ledger.answer(answer.id, "?", lead, token="b")
    assert ledger.progress(made.id).done == 0
    assert ledger.verify() == []


def test_what_was_made_elsewhere_is_recorded_once(ledger: Ledger) -> None:
    made = Team(ledger, items=3, wanted=2)
    judge = ledger.add_annotator(source="ai", simulated=True).id
    told = [Told(n, judge, (better(2 * n),), f"row-{n}", at=5) for n in (1, 2, 3)]
    assert ledger.record(made.id, told) == 3
    assert ledger.record(made.id, told) == 0
    (said,) = ledger.judgements(2)
    assert (said.source, said.simulated, said.at, said.shown) == ("ai", True, 5, [])
    assert ledger.progress(made.id).done == 3
    assert ledger.correct(said.id, judge, TIE, token="c").shown == []
    lead = made.people[0]
    ledger.record(made.id, [Told(1, lead, (TIE,), "lead")], purpose="adjudication")
    assert (ledger.item(1).done, ledger.judgements(1)[-1].purpose) == (1, "adjudication")
    with pytest.raises(LookupError, match="has no item 9"):
        ledger.record(made.id, [Told(9, judge, (TIE,), "x")])
    assert ledger.verify() == []


def test_history_is_of_submissions_that_count(team: Make, clock: Clock) -> None:
    made = team()
    made.judge(0, Answer("critique", {"response": None}, "Short."))
    clock.on(5)
    lease = made.hold()
    made.ledger.submit(lease.id, made.people[0], [SKIP], token="s")
    history = made.ledger.history(made.id, made.people[0])
    assert [(j.kind, j.arm, j.item_id) for j in history] == [
        ("pairwise", "control", 1),
        ("skip", "control", 2),
    ]
    assert made.ledger.history(made.id, made.people[0], limit=1) == history[1:]


GOOD = [
    *(TIE, SKIP, better(7), Answer("pairwise", {**TIE.value, "outcome": "both_bad"})),
    Answer("pairwise", {"outcome": "better", "preferred": 9, "strength": None}),
    Answer("ranking", {"responses": [9, 7], "ranks": [0, 0]}),
    Answer("rating", {"responses": [7, 9], "aspects": {"helpful": [4, 1], "true": [0, 5]}}),
    Answer("thumbs", {"responses": [7, 9], "labels": [True, False]}),
    Answer("steps", {"response": 7, "labels": [1, 0, -1]}),
    Answer("spans", {"spans": [{"response": 9, "start": 0, "end": 4, "label": "x",
                                "severity": 1}]}),
    Answer("spans", {"spans": []}),
    Answer("critique", {"response": None}, "Too long."),
    Answer("edit", {"response": 9}, "Better."),
    Answer("demonstration", {}, "My own."),
    Answer("flag", {"reason": "harmful"}),
    Answer("question", {}, "Why?"),
    Answer("answer", {"question": 3}, "So."),
]  # fmt: skip


def test_every_kind_can_be_said() -> None:
    for answer in GOOD:
        check(answer, [7, 9])
    assert {answer.kind for answer in GOOD} == set(READERS)


BAD = [
    (better(8), "one of the shown"),
    (better(7, 3), "1 .better., 2"),
    (Answer("pairwise", {"outcome": "tie", "preferred": 7, "strength": None}), "no preferred"),
    (Answer("pairwise", {"outcome": "A", "preferred": 7, "strength": 1}), "tie or both_bad"),
    (Answer("pairwise", {"outcome": "tie"}), "outcome, preferred, strength"),
    (Answer("ranking", {"responses": [7, 7], "ranks": [0, 1]}), "each of the shown"),
    (Answer("ranking", {"responses": [7, 9], "ranks": [1, 1]}), "the best is 0"),
    (Answer("ranking", {"responses": [7, 9], "ranks": [0, 2]}), "whole numbers"),
    (Answer("rating", {"responses": [7, 9], "aspects": {}}), "each named aspect"),
    (Answer("rating", {"responses": [7, 9], "aspects": {"a": [1]}}), "a list of 2"),
    (Answer("thumbs", {"responses": [7, 9], "labels": [1, 0]}), "true or false"),
    (Answer("steps", {"response": 7, "labels": []}), "labels"),
    (Answer("steps", {"response": True, "labels": [1]}), "one of the shown"),
    (Answer("spans", {"spans": [{"response": 7}]}), "start"),
    (Answer("critique", {"response": None}), "without its text"),
    (Answer("edit", {"response": 7}, " \n"), "without its text"),
    (Answer("edit", {"response": 7}, "x" * 200_001), "at most 200000"),
    (Answer("skip", {"reason": ""}), "a word or two"),
    (Answer("bogus", {}), "kind 'bogus' came"),  # pyright: ignore[reportArgumentType]
]  # fmt: skip


@pytest.mark.parametrize(("answer", "said"), BAD)
def test_what_does_not_fit_is_refused(answer: Answer, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(answer, [7, 9])


def test_a_refused_submission_leaves_nothing(team: Make) -> None:
    made = team()
    lease = made.hold()
    for answers in ([better(99)], [TIE, better(99)], []):
        with pytest.raises(ValueError, match="needed"):
            made.ledger.submit(lease.id, made.people[0], answers, token="t")
    assert made.ledger.judgements(1, everything=True) == []
    assert made.ledger.assignment(lease.id, made.people[0]).state == "leased"
