"""The replies: good ones are short and whole, faults come at their rates and can be found."""

import re
from collections import Counter

from truing.worlds.gold import gold
from truing.worlds.replies import (
    CARELESS,
    FAULT_RATE,
    best_reply,
    can_apply,
    demonstration,
    planted,
)
from truing.worlds.service import cases
from truing.worlds.wordings import fill

CASES = cases(4000, seed=2, split="train")
REPLIES = [demonstration(shown, 5) for shown in CASES]
FAULTS = [planted(shown, 5) for shown in CASES]


def test_fill_drops_the_optional_part_with_the_missing_slot() -> None:
    template = "We take the[ {state}] {item}[ bought {when}]."
    slots = {"state": "opened", "item": "lamp", "when": "yesterday"}
    assert fill(template, slots) == "We take the opened lamp bought yesterday."
    assert fill(template, slots, "when") == "We take the opened lamp."
    assert fill(template, slots, "item") == "We take the opened order bought yesterday."


def test_best_replies_are_short_and_whole() -> None:
    sizes = Counter(len(best_reply(shown).split()) for shown in CASES)
    assert min(sizes) >= 15
    assert max(sizes) <= 44
    within = sum(count for size, count in sizes.items() if size <= 35)
    assert within > 0.85 * len(CASES)
    for shown in CASES:
        reply = best_reply(shown)
        assert reply.startswith(" ")
        assert reply.endswith(".")
        assert "  " not in reply
        assert shown.facts["name"] in reply


def test_replies_are_plain_text() -> None:
    for reply in REPLIES:
        assert re.fullmatch(r" [A-Za-z' ,.]+", reply), reply
        assert "  " not in reply


def test_about_a_third_of_the_demonstrations_are_faulty() -> None:
    share = sum(map(bool, FAULTS)) / len(FAULTS)
    # Standard error sqrt(0.36 * 0.64 / 4000) = 0.008.
    assert abs(share - CARELESS) < 0.03
    assert 0.3 < share < 0.4


def test_each_fault_occurs_in_5_to_40_percent_where_it_can() -> None:
    for fault in FAULT_RATE:
        able = [
            faults for shown, faults in zip(CASES, FAULTS, strict=True) if fault in can_apply(shown)
        ]
        share = sum(fault in faults for faults in able) / len(able)
        assert 0.045 < share < 0.40, (fault, share)


def test_gold_finds_what_is_planted() -> None:
    hits: Counter[str] = Counter()
    for shown, reply, faults in zip(CASES, REPLIES, FAULTS, strict=True):
        hits.update(faults & gold(shown, reply).faults)
    planted_in_all = Counter(fault for faults in FAULTS for fault in faults)
    for fault, count in planted_in_all.items():
        # Not all: a reply that breaks off may lose the sentence that bore the fault.
        assert hits[fault] > 0.9 * count, (fault, hits[fault], count)


def test_gold_finds_next_to_nothing_where_nothing_is_planted() -> None:
    clean = [
        gold(shown, reply).faults
        for shown, reply, faults in zip(CASES, REPLIES, FAULTS, strict=True)
        if not faults
    ]
    assert sum(map(bool, clean)) < 0.005 * len(clean)


def test_demonstrations_vary_in_their_wording() -> None:
    shown = CASES[0]
    replies = {demonstration(shown, seed) for seed in range(200)}
    assert len(replies) > 120


def test_a_demonstration_depends_on_its_key_alone() -> None:
    assert demonstration(CASES[7], 5) == REPLIES[7]
    assert any(
        demonstration(shown, 6) != reply
        for shown, reply in zip(CASES[:5], REPLIES[:5], strict=True)
    )
