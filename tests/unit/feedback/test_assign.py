"""Assignment's laws: what holds for any crowd, watched on a ledger in memory (tests/crowd.py)."""

from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, chisquare

from tests.crowd import Crowd, Person, golds, items, shuffled
from truing.feedback import assign
from truing.feedback.assign import (
    Annotator,
    Candidate,
    Decision,
    Policy,
    Rest,
    arms,
    decide,
    place,
    side_order,
)
from truing.keys import generator

PLAIN = Policy(retest_share=0.0)
# A test of chance fails by chance once in a thousand seeds; the seeds here are fixed.
RARE = 1e-3


def check_slots(crowd: Crowd) -> None:
    for item in crowd.items:
        both = [*crowd.judged[item], *crowd.holders(item)]
        assert len(set(both)) == len(both), "one person, two slots"
        assert len(both) <= crowd.policy.overlap


def check_proposal(crowd: Crowd, name: str, decision: Decision) -> None:
    """A fresh proposal is open, and new to its annotator; a re-test is known to them."""
    done = [p.item for p in crowd.people[name].pasts]
    if decision.arm == "retest":
        assert decision.item in done
    else:
        assert decision.item not in done
        assert crowd.is_gold(decision.item) or crowd.load(decision.item) < crowd.policy.overlap


STEP = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["ask", "take", "submit", "skip", "wait"]),
    # Minutes: a lease is thirty; the clock is also set back.
    st.sampled_from([0.1, 5.0, 29.0, 31.0, -1.0, -40.0, -200.0]),
)


def play(crowd: Crowd, steps: list[tuple[int, str, float]]) -> None:
    """People ask, hold and answer between each other's steps; a decision may be stale by then."""
    wanted: dict[str, Decision] = {}
    names = list(crowd.people)
    for who, what, minutes in steps:
        name = names[who % len(names)]
        if what == "wait":
            crowd.now += 60 * minutes
        elif what == "ask":
            got = crowd.ask(name)
            held = crowd.people[name].held
            if isinstance(got, Decision) and got != held:
                check_proposal(crowd, name, got)
                wanted[name] = got
        elif what == "take" and name in wanted:
            crowd.take(name, wanted.pop(name))
        elif what in ("submit", "skip"):
            crowd.submit(name, judged=what == "submit")
        check_slots(crowd)


@settings(max_examples=100)
@given(
    st.lists(STEP, max_size=60),
    st.integers(1, 3),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_no_interleaving_exceeds_the_overlap(
    steps: list[tuple[int, str, float]], overlap: int, size: int | None, control: float
) -> None:
    policy = Policy(
        overlap=overlap, control_share=control, retest_share=0.2, gold_share=0.2, retest_distance=1
    )
    play(Crowd(policy, [*items(4), *golds(2)], ["a", "b", "c", "d"], size=size), steps)


@pytest.mark.parametrize("mutant", ["blind to leases", "blind to the overlap", "blind to the past"])
def test_the_watch_on_interleavings_bites(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = assign.suits

    def wrong(policy: Policy, annotator: Annotator, arm: assign.Arm, row: Candidate) -> bool:
        if mutant == "blind to leases":
            row = replace(row, leased=0)
        elif mutant == "blind to the overlap":
            policy = replace(policy, overlap=9)
        else:
            annotator = replace(annotator, seen=())
        return right(policy, annotator, arm, row)

    monkeypatch.setattr(assign, "suits", wrong)
    draw = generator(0, "steps")
    names = ("ask", "take", "submit")
    steps = [(int(draw.integers(4)), names[draw.integers(3)], 0.0) for _ in range(400)]
    with pytest.raises(AssertionError):
        play(Crowd(replace(PLAIN, overlap=2), items(3), ["a", "b", "c", "d"]), steps)


@settings(max_examples=15)
@given(
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([None, 1, 8]),
    st.integers(0, 99),
    st.booleans(),
)
def test_every_item_reaches_its_overlap_where_people_suffice(
    overlap: int, more: int, size: int | None, seed: int, balanced: bool
) -> None:
    # Experts for the items that need them are as many as the overlap, and do not waste it.
    rows = [Candidate(i, "ab"[i % 2], frozenset(["law"] * (i % 5 == 0))) for i in range(30)]
    people = [
        Person(f"p{i}", frozenset({"law"} if i < overlap else ())) for i in range(overlap + more)
    ]
    policy = Policy(seed, overlap, control_share=0.4, balanced=balanced, retest_distance=3)
    crowd = Crowd(policy, rows, people, size=size)
    crowd.finish(shuffled([p.name for p in people], seed))
    check_slots(crowd)
    assert {len(names) for names in crowd.judged.values()} == {overlap}
    experts = {p.name for p in people if p.tags}
    assert all(set(crowd.judged[r.item]) <= experts for r in rows if r.tags)


@pytest.mark.parametrize("size", [None, 1, 32])
def test_the_least_judged_come_first(size: int | None) -> None:
    """Nobody is excluded where each item is new to whoever asks: the spread is then at most 1."""
    crowd = Crowd(replace(PLAIN, overlap=3), items(20), [f"p{i}" for i in range(60)], size=size)
    for i in range(60):
        crowd.work(f"p{i}")
        loads = [crowd.load(item) for item in crowd.items]
        assert max(loads) - min(loads) <= 1
    assert set(loads) == {3}


@pytest.mark.parametrize("size", [None, 1, 32])
def test_of_the_items_open_to_them_people_get_the_least_judged(size: int | None) -> None:
    names = [f"p{i}" for i in range(5)]
    crowd = Crowd(replace(PLAIN, overlap=4), items(40), names, size=size)
    turns, met = shuffled(names), Counter[int]()
    for _ in range(150):
        name = next(turns)
        decision = crowd.ask(name)
        open_to = [i for i in crowd.items if name not in crowd.judged[i] and crowd.load(i) < 4]
        if isinstance(decision, Decision):
            least = min(map(crowd.load, open_to))
            assert crowd.load(decision.item) == least
            met[least] += 1
            crowd.work(name)
        else:
            assert not open_to
    assert set(met) == {0, 1, 2, 3}


def test_sides_are_balanced() -> None:
    first = np.array([[side_order(PLAIN, f"p{a}", i)[0] for i in range(200)] for a in range(20)])
    for counts in (first.sum(0), first.sum(1), first.sum()[None]):
        tries = first.size / len(counts)
        assert chisquare([first.sum(), first.size - first.sum()]).pvalue > RARE
        # The spread over items and over annotators is that of fair coins.
        z = (counts - tries / 2) ** 2 / (tries / 4)
        assert RARE < float(chi2.sf(z.sum(), len(counts))) < 1 - RARE


def test_every_order_of_a_ranking_is_as_likely_and_a_second_pass_reverses_it() -> None:
    drawn = [side_order(PLAIN, a, i, 3) for a, i in product("abcdef", range(500))]
    counts = Counter(drawn)
    assert set(counts) == set(permutations(range(3)))
    assert chisquare(list(counts.values())).pvalue > RARE
    for k in (1, 2, 5):
        assert side_order(PLAIN, "a", 7, k, 2) == side_order(PLAIN, "a", 7, k)[::-1]
    assert side_order(PLAIN, "a", 1, 8) != side_order(PLAIN, "a", "1", 8)


def rate_is(events: int, n: int, share: float) -> bool:
    return binomtest(events, n, share).pvalue > RARE


def long_run(policy: Policy, decisions: int = 900, size: int | None = 8) -> Crowd:
    draw = generator(5, "scores")
    rows = [Candidate(i, score=float(draw.random())) for i in range(decisions)]
    crowd = Crowd(policy, [*rows, *golds(decisions // 10)], ["a", "b"], size=size)
    for name, _ in zip(shuffled(["a", "b"], 3), range(decisions), strict=False):
        crowd.work(name)
    return crowd


@pytest.fixture(scope="module")
def run() -> Crowd:
    return long_run(
        Policy(2, control_share=0.3, retest_share=0.1, gold_share=0.08, retest_distance=15)
    )


def test_arms_have_their_shares(run: Crowd) -> None:
    count = Counter(decision.arm for _, decision in run.log)
    total = len(run.log)
    assert rate_is(count["gold"], total, 0.08)
    # No re-test can come before the distance is reached, fifteen answers of each of the two.
    assert rate_is(count["retest"], total - 30, 0.1)
    fresh = count["control"] + count["active"]
    assert rate_is(count["control"], fresh, 0.3)
    for name in ("a", "b"):
        own = [d.arm for n, d in run.log if n == name and d.arm in ("control", "active")]
        assert rate_is(own.count("control"), len(own), 0.3)


def test_the_control_arm_is_a_random_sample_and_the_active_one_the_top(run: Crowd) -> None:
    by = {
        arm: [run.items[d.item].score for _, d in run.log if d.arm == arm]
        for arm in ("control", "active")
    }
    # Uniform scores: mean 1/2, variance 1/12; four standard errors.
    assert abs(np.mean(by["control"]) - 0.5) < 4 * (1 / 12 / len(by["control"])) ** 0.5
    assert by["active"] == sorted(by["active"], reverse=True)
    # What the active arm left lies below what it took.
    taken = {d.item for _, d in run.log}
    left = [r.score for i, r in run.items.items() if not (r.gold or r.control or i in taken)]
    assert max(left) < min(by["active"])
    assert all(run.items[d.item].control for _, d in run.log if d.arm == "control")


def test_membership_of_the_control_arm_follows_the_share() -> None:
    policy = Policy(control_share=0.3)
    assert rate_is(sum(place(policy, i).control for i in range(4000)), 4000, 0.3)
    assert all(place(PLAIN, i).control for i in range(100))
    keys = [place(policy, i).key for i in range(4000)]
    assert chisquare(np.histogram(keys, 20, (0, 1))[0]).pvalue > RARE


def test_an_empty_arm_leaves_its_turns_to_the_other() -> None:
    policy = Policy(control_share=0.5, retest_share=0.0)
    crowd = Crowd(policy, items(40), ["a"])
    crowd.finish(shuffled(["a"]))
    assert all(crowd.judged.values())


def test_retests_come_late_enough_once_and_with_the_sides_swapped(run: Crowd) -> None:
    met = 0
    for name in ("a", "b"):
        own = [d for n, d in run.log if n == name]
        for at, second in enumerate(own):
            if second.pass_ == 1:
                continue
            firsts = [i for i, d in enumerate(own) if d.item == second.item and d.pass_ == 1]
            assert len(firsts) == 1
            assert at - firsts[0] > 15
            first = own[firsts[0]]
            assert first.arm in ("active", "control")
            assert second.order == first.order[::-1]
            met += 1
        again = Counter(d.item for d in own if d.pass_ == 2)
        assert set(again.values()) == {1}
    assert met > 50


def test_a_skipped_item_is_not_asked_again() -> None:
    crowd = Crowd(Policy(retest_share=0.9, retest_distance=0), items(20), ["a"])
    crowd.work("a", judged=False)
    skipped = crowd.log[0][1].item
    for _ in range(60):
        crowd.work("a")
    assert [d.item for _, d in crowd.log].count(skipped) == 1
    assert Counter(d.pass_ for _, d in crowd.log)[2] > 10


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("seed", range(4))
def test_domains_are_balanced(seed: int, size: int | None) -> None:
    """Of 120, 40 and 40 items the same number of answers, to one, while each has some left."""
    rows = [Candidate(i, "abc"[max(0, i // 40 - 2)]) for i in range(200)]
    names = [f"p{i}" for i in range(4)]
    policy = Policy(seed, 2, control_share=0.5, balanced=True, retest_share=0.0)
    crowd = Crowd(policy, rows, names, size=size)
    for name, _ in zip(shuffled(names, seed), range(60), strict=False):
        crowd.work(name)
        loads = crowd.loads() or {}
        assert max(loads.values()) - min(loads.values()) <= 1
    assert min(loads.values()) == 20


def test_caps_hold() -> None:
    policy = Policy(overlap=3, cap=25, daily_cap=10, retest_share=0.2, retest_distance=2)
    crowd = Crowd(policy, items(100), ["a", "b"])
    said: dict[int, list[object]] = {}
    for day in range(4):
        for _ in range(15):
            got = crowd.work("a")
            said.setdefault(day, []).append(got.reason if isinstance(got, Rest) else "item")
        crowd.now += 86400
    assert said[0] == said[1] == ["item"] * 10 + ["daily cap"] * 5
    assert said[2] == ["item"] * 5 + ["cap"] * 10
    assert said[3] == ["cap"] * 15
    assert isinstance(crowd.work("b"), Decision)


def test_the_same_seed_gives_the_same_decisions() -> None:
    policy = Policy(4, 2, control_share=0.5, gold_share=0.1, retest_share=0.1, retest_distance=3)
    logs = [long_run(p, 150).log for p in (policy, policy, replace(policy, seed=5))]
    assert logs[0] == logs[1] != logs[2]


@given(st.permutations(range(12)), st.sampled_from([0.0, 1.0]))
def test_the_order_of_equal_rows_changes_nothing(order: list[int], control: float) -> None:
    policy = replace(PLAIN, control_share=control)
    rows = [Candidate(i, judged=0, control=control == 1, score=i // 4) for i in range(12)]
    who = Annotator("a")
    wanted = decide(policy, who, lambda *_: rows, 0.0)
    assert isinstance(wanted, Decision)
    assert decide(policy, who, lambda *_: [rows[i] for i in order], 0.0) == wanted


def test_reloading_draws_nothing_anew_and_answering_does() -> None:
    policy = Policy(control_share=0.5, gold_share=0.3, retest_share=0.2)
    drawn = [arms(policy, Annotator("a", answered=n)) for n in range(100)]
    assert drawn == [arms(policy, Annotator("a", answered=n, today=5)) for n in range(100)]
    assert {d[0] for d in drawn} == {"control", "active", "gold", "retest"}
    assert {d for d in drawn if d[0] == "gold"} == {
        ("gold", "control", "active"),
        ("gold", "active", "control"),
    }
