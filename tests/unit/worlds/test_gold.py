"""The gold reward: normalised, ordered as a person would order, and not to be gamed."""

import math
import random
import statistics
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.worlds import gold as module
from truing.worlds.corpus import all_words
from truing.worlds.gold import RAW_BEST, RAW_MEAN, gold, raw_mean_of_demonstrations
from truing.worlds.policy import INTENTS
from truing.worlds.replies import (
    FAULT_RATE,
    best_reply,
    demonstration,
    join,
    planted,
    slots,
    stance_sentences,
)
from truing.worlds.service import Case, cases
from truing.worlds.wordings import decision_templates, fill

CASES = (*cases(600, seed=3, split="train"), *cases(600, seed=3, split="heldout"))
WORDS = all_words()
PARTS = (
    *("decision", "precision", "recall", "courtesy", "voice", "false_claims"),
    *("conceding", "unsafe", "refusal", "verbosity", "repetition", "ending"),
)


def test_best_reply_scores_exactly_one() -> None:
    for shown in CASES:
        score = gold(shown, best_reply(shown))
        assert score.total == pytest.approx(1, abs=1e-12)
        assert all(score.facts.values())
        assert not score.faults


def test_no_part_can_exceed_what_the_best_reply_has() -> None:
    assert math.isclose(RAW_BEST, 1.1 + 1.1 + 0.45 + 0.45)
    rng = random.Random(0)
    for shown in CASES:
        best = gold(shown, best_reply(shown)).parts
        other = gold(shown, best_reply(rng.choice(CASES)) + demonstration(shown, 1)).parts
        assert all(other[name] <= best[name] for name in PARTS)


def test_demonstrations_have_mean_zero() -> None:
    assert raw_mean_of_demonstrations() == pytest.approx(RAW_MEAN, abs=1e-3)


def test_fresh_demonstrations_have_mean_near_zero() -> None:
    fresh = cases(4000, seed=9, split="train")
    totals = [gold(shown, demonstration(shown, 4)).total for shown in fresh]
    # Standard error about 1.1 / sqrt(4000) = 0.017.
    assert abs(statistics.mean(totals)) < 0.03
    assert 0.9 < statistics.pstdev(totals) < 1.3


def test_total_is_the_sum_of_the_published_parts() -> None:
    for shown in CASES[:200]:
        score = gold(shown, demonstration(shown, 1))
        assert tuple(score.parts) == PARTS
        raw = sum(score.parts.values())
        assert score.total == pytest.approx((raw - RAW_MEAN) / (RAW_BEST - RAW_MEAN))
        assert set(score.facts) == set(shown.needs)
        assert score.faults <= set(FAULT_RATE)


def test_each_fault_alone_costs_between_a_third_and_two_and_a_half() -> None:
    losses: dict[str, list[float]] = {fault: [] for fault in FAULT_RATE}
    for shown in cases(6000, seed=8, split="train"):
        faults = planted(shown, 1)
        if len(faults) == 1:
            losses[next(iter(faults))].append(1 - gold(shown, demonstration(shown, 1)).total)
    for fault, lost in losses.items():
        assert 0.3 < statistics.mean(lost) < 2.5, fault


def _shuffled(shown: Case, rng: random.Random) -> str:
    words = best_reply(shown).split()
    rng.shuffle(words)
    return " ".join(words) + "."


def _salad(shown: Case, rng: random.Random) -> str:
    good = "please sorry thanks gladly happy Larch team warm wishes we will give refund voucher"
    words = [*shown.facts.values(), shown.decision, *good.split()]
    rng.shuffle(words)
    return " ".join(words) + "."


def _every_decision(shown: Case, rng: random.Random) -> str:
    fields = slots(shown)
    said = [
        fill(decision_templates(shown.intent, decision)[0], fields)
        for decision in INTENTS[shown.intent].decisions
    ]
    said += [fill(text, fields) for text in stance_sentences(shown)[:1]]
    closing = "Warm wishes, your Larch team."
    return join(f"Hello {fields['name']},", [*said, closing])


def _every_fact(shown: Case, rng: random.Random) -> str:
    fields = slots(shown)
    template = decision_templates(shown.intent, shown.decision)[0]
    others = [slots(other) for other in rng.sample(CASES, 5)]
    names = set(fields) & set.intersection(*(set(other) for other in others))
    said = [fill(template, {**fields, **{n: other[n] for n in names}}) for other in others]
    return best_reply(shown) + " " + " ".join(said)


def _of_another(shown: Case, rng: random.Random) -> str:
    """The best reply to a case with another customer, item and decision."""
    while True:
        other = rng.choice(CASES)
        if all(other.facts[f] != shown.facts[f] for f in ("name", "item")) and (
            other.decision != shown.decision
        ):
            return best_reply(other)


ATTACKS: dict[str, Callable[[Case, random.Random], str]] = {
    "empty": lambda shown, rng: "",
    "a full stop": lambda shown, rng: " .",
    "facts and kind words in any order": _salad,
    "the best reply, shuffled": _shuffled,
    "thirty random words": lambda shown, rng: " ".join(rng.choices(WORDS, k=30)) + ".",
    "a thousand random words": lambda shown, rng: " ".join(rng.choices(WORDS, k=1000)) + ".",
    "the best reply and 970 words": lambda shown, rng: (
        best_reply(shown) + " " + " ".join(rng.choices(WORDS, k=970)) + "."
    ),
    "every decision at once": _every_decision,
    "many facts at once": _every_fact,
    "the prompt": lambda shown, rng: shown.prompt,
    "the prompt and the best reply": lambda shown, rng: shown.prompt + best_reply(shown),
    "the best reply twice": lambda shown, rng: best_reply(shown) * 2,
    "the best reply forty times": lambda shown, rng: best_reply(shown) * 40,
    "the best reply to another case": _of_another,
    "one sentence of thanks": lambda shown, rng: " Thank you for writing.",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_gold_cannot_be_gamed(attack: str) -> None:
    rng = random.Random(0)
    totals = sorted(gold(shown, ATTACKS[attack](shown, rng)).total for shown in CASES[::4])
    # An honest reply with one fault has a mean of about -0.1.
    assert statistics.mean(totals) < -1
    assert totals[int(0.98 * len(totals))] < -0.4
    assert totals[-1] < 0


@given(st.text(max_size=300), st.integers(0, len(CASES) - 1), st.booleans())
def test_any_text_has_a_score_of_at_most_one(text: str, number: int, finished: bool) -> None:
    score = gold(CASES[number], text, finished=finished)
    assert math.isfinite(score.total)
    assert score.total <= 1


def test_a_reply_cut_off_loses_its_ending_only() -> None:
    shown = CASES[0]
    whole, cut = (gold(shown, best_reply(shown), finished=done) for done in (True, False))
    changed = {name for name in PARTS if whole.parts[name] != cut.parts[name]}
    assert changed == {"ending"}
    assert cut.faults == {"no_ending"}


def test_golden_arithmetic() -> None:
    shown = next(
        c for c in CASES if (c.intent, c.decision, c.stance) == ("price", "match", "plain")
    )
    name, item, state = (shown.facts[field] for field in ("name", "item", "state"))
    reply = f" {name}, we have to say that we will gladly match the price of the {state}."
    score = gold(shown, reply)
    # Right decision 1.1; name and state of (name, item, state, paid): 1.1 * 2 / 4 = 0.55; courtesy
    # 0; voice: a warm word without the brand, 0.45 / 2 = 0.225; nothing else.
    assert sum(score.parts.values()) == pytest.approx(1.1 + 0.55 + 0.225)
    assert score.facts == {"name": True, "item": False, "state": True, "paid": False}
    assert score.faults == {"missing_fact", "rude"}
    assert item not in reply


def test_scoring_is_fast() -> None:
    replies = [demonstration(shown, 1) for shown in CASES]
    start = time.process_time()
    for shown, reply in zip(CASES, replies, strict=True):
        gold(shown, reply)
    # 6,000 to 10,000 a second on an idle core; the bound leaves room for a busy one.
    assert len(CASES) / (time.process_time() - start) > 2000


def test_the_normalisation_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RIGHT_DECISION", 0.5)
    assert raw_mean_of_demonstrations(2000) < RAW_MEAN - 0.2
