"""Annotators against arithmetic by hand, laws, each other, and the world's own demonstrations."""

from dataclasses import replace
from itertools import combinations
from math import exp, log

import numpy as np
import pytest

from truing.keys import generator
from truing.worlds import annotators
from truing.worlds.annotators import (
    FAULTS,
    PARTS,
    SESSION,
    Annotator,
    Shown,
    agreement,
    calibrate,
    compare,
    judge,
    panel,
)
from truing.worlds.gold import Score, gold
from truing.worlds.replies import demonstration
from truing.worlds.service import cases

PLAIN = Annotator(0, "plain", (1.0,) * len(PARTS), temperature=0.5)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def score(**parts: float) -> Score:
    return Score(sum(parts.values()), dict.fromkeys(PARTS, 0.0) | parts, {}, frozenset())


def shown(a: str = "yes", b: str = "no", item: int = 0, better: float = 0.0) -> Shown:
    """Reply 0 is better than reply 1 by ``better`` in the decision, and equal otherwise."""
    return Shown("Ask:", (a, b), (score(decision=better), score()), item)


def faulty(fault: str) -> Annotator:
    return replace(PLAIN, fault=fault)


def share_first_reply(who: Annotator, items: list[Shown]) -> float:
    return float(np.mean([judge(who, item, seed=3).chosen == 0 for item in items]))


def accuracy(who: Annotator, items: list[Shown]) -> float:
    """The mean exact chance to agree with gold, over the items on which gold decides."""
    chances: list[float] = []
    for item in items:
        gap = item.scores[0].total - item.scores[1].total
        chance = judge(who, item, seed=3).chance
        chances += [] if gap == 0 else [chance if gap > 0 else 1 - chance]
    return float(np.mean(chances))


def consistency(who: Annotator, items: list[Shown]) -> float:
    """The mean exact chance to answer alike when the item comes again with the sides swapped."""
    p, q = (
        np.array([judge(who, replace(i, repeat=r), seed=3).chance for i in items]) for r in (0, 1)
    )
    return float(np.mean(p * q + (1 - p) * (1 - q)))


@pytest.fixture(scope="module")
def world() -> list[Shown]:
    """Pairs of demonstrations of the same case, as a first round of labelling would see them."""
    pairs: list[Shown] = []
    for i, case in enumerate(cases(300, seed=11, split="train")):
        a, b = demonstration(case, 2 * i), demonstration(case, 2 * i + 1)
        if a != b:
            pairs.append(Shown(case.prompt, (a, b), (gold(case, a), gold(case, b)), i))
    return pairs


@pytest.fixture(scope="module")
def people() -> tuple[Annotator, ...]:
    return panel(0)


def of(people: tuple[Annotator, ...], kind: str) -> list[Annotator]:
    if kind == "minority":
        return [who for who in people if who.minority]
    return [who for who in people if who.fault == kind and not who.minority]


# --- by hand


def test_chance_of_each_fault_by_hand() -> None:
    # Reply 0 is better by 0.3, temperature 0.5: logit 0.6.
    item = replace(
        shown("Thank you kindly, I am certainly sure of this", "No", better=0.3), order=(0, 1)
    )
    strength = annotators.STRENGTH
    own = sigmoid(0.6)
    expected = {
        "none": own,
        "careless": strength["careless"] / 2 + (1 - strength["careless"]) * own,
        "side-biased": sigmoid(0.6 + strength["side-biased"]),
        "length-loving": sigmoid(0.6 + strength["length-loving"] * log((1 + 9) / (1 + 1))),
        "flattered": sigmoid(0.6 + strength["flattered"] * log(1 + 2)),  # thank, kindly
        "impressed": sigmoid(0.6 + strength["impressed"] * log(1 + 2)),  # certainly, sure
        "tiring": own,  # at position 0
        "copying": own,  # nothing to copy
    }
    for fault, chance in expected.items():
        assert judge(faulty(fault), item, seed=0).chance == pytest.approx(chance, abs=1e-12), fault
    late = judge(faulty("tiring"), replace(item, position=20), seed=0).chance
    assert late == pytest.approx(sigmoid(0.6 / (1 + 20 * strength["tiring"])), abs=1e-12)
    copied = judge(faulty("copying"), replace(item, previous=1), seed=0).chance
    assert copied == pytest.approx((1 - strength["copying"]) * own, abs=1e-12)


def test_weights_follow_the_names_of_the_parts() -> None:
    weights = tuple(2.0 if part == "voice" else 1.0 for part in PARTS)
    item = Shown("", ("a", "b"), (score(voice=0.1, decision=0.2), score(ending=0.3)), 0)
    # (2 * 0.1 + 0.2 - 0.3) / 0.5 = 0.2
    assert judge(replace(PLAIN, weights=weights), item, seed=0).chance == pytest.approx(
        sigmoid(0.2), abs=1e-12
    )


# --- laws


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_the_same_screen_gets_the_same_answer_whatever_the_replies_are_called(fault: str) -> None:
    for item in range(40):
        one = replace(
            shown("surely so, thanks", "no", item, 0.2), order=(0, 1), position=9, previous=0
        )
        swapped = Shown(
            one.prompt, one.replies[::-1], one.scores[::-1], item, 9, previous=1, order=(1, 0)
        )
        first, second = judge(faulty(fault), one, seed=5), judge(faulty(fault), swapped, seed=5)
        assert first.chosen == 1 - second.chosen
        assert first.chance == pytest.approx(1 - second.chance, abs=1e-12)


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_only_one_fault_each_is_moved_by_order_position_and_previous(fault: str) -> None:
    item = replace(shown("yes", "no", better=0.5), order=(0, 1))

    def moved(changed: Shown) -> bool:
        before, after = (judge(faulty(fault), x, seed=0).chance for x in (item, changed))
        return abs(before - after) > 1e-12

    assert moved(replace(item, order=(1, 0))) == (fault == "side-biased")
    assert moved(replace(item, position=30)) == (fault == "tiring")
    assert moved(replace(item, previous=1)) == (fault == "copying")


def test_answers_depend_on_their_key_alone() -> None:
    items = [shown(item=i, better=0.1) for i in range(60)]
    forwards = [judge(PLAIN, item, seed=1) for item in items]
    backwards = [judge(PLAIN, item, seed=1) for item in reversed(items)][::-1]
    assert forwards == backwards
    answers = [j.chosen for j in forwards]
    other_person = [judge(replace(PLAIN, index=1), item, seed=1).chosen for item in items]
    other_seed = [judge(PLAIN, item, seed=2).chosen for item in items]
    again = [judge(PLAIN, replace(item, repeat=1), seed=1) for item in items]
    # The sides held fixed, so that the noise of the repeat must itself be new.
    held = [replace(j.shown, order=j.order, repeat=1) for j in forwards]
    repeated = [judge(PLAIN, item, seed=1).chosen for item in held]
    assert answers not in (other_person, other_seed, repeated)
    assert [j.order for j in again] == [j.order[::-1] for j in forwards]
    assert 0.25 < np.mean([j.order[0] for j in forwards]) < 0.75


def test_answers_come_as_often_as_their_chance_says() -> None:
    items = [shown(item=i, better=0.4) for i in range(2000)]
    # sigmoid(0.8) = 0.690; four standard errors are 0.041.
    assert share_first_reply(PLAIN, items) == pytest.approx(sigmoid(0.8), abs=0.041)


# --- agreement


def test_agreement_equals_a_loop_over_all_two_annotators(people: tuple[Annotator, ...]) -> None:
    draw = generator(0, "test")
    items = [shown("so " * int(draw.integers(1, 9)), "no", i, draw.normal()) for i in range(5)]
    total = []
    for one, other in combinations(people, 2):
        for item in items:
            sides = [replace(item, order=o) for o in [(0, 1), (1, 0)]]
            p, q = (np.mean([judge(w, s, seed=0).chance for s in sides]) for w in (one, other))
            total.append(p * q + (1 - p) * (1 - q))
    assert agreement(items, people) == pytest.approx(float(np.mean(total)), abs=1e-12)


def test_calibrate_finds_the_temperature(people: tuple[Annotator, ...]) -> None:
    items = [shown(item=i, better=better) for i, better in enumerate([0.1, -0.3, 0.6, 1.0])]
    scale = calibrate(items, people, 0.6)
    scaled = [replace(who, temperature=who.temperature * scale) for who in people]
    assert agreement(items, scaled) == pytest.approx(0.6, abs=1e-6)
    with pytest.raises(ValueError, match=r"0\.99 is out of reach"):
        calibrate(items, people, 0.99)


def test_the_panel_agrees_as_people_do_on_the_world(
    world: list[Shown], people: tuple[Annotator, ...]
) -> None:
    assert len(world) > 250
    assert 0.65 < agreement(world, people) < 0.77
    assert 0.65 < agreement(world, of(people, "none")) < 0.77
    # TEMPERATURE is what calibrate finds, up to the draw of panel and pairs.
    assert calibrate(world, people) == pytest.approx(1, abs=0.1)


# --- faults, each against a good annotator, on the world's pairs


def test_careless_answers_are_near_a_coin(
    world: list[Shown], people: tuple[Annotator, ...]
) -> None:
    (careless,) = of(people, "careless")
    assert 0.5 < accuracy(careless, world) < 0.6
    assert min(accuracy(who, world) for who in of(people, "none")) > 0.65


def test_the_side_biased_take_the_first(world: list[Shown], people: tuple[Annotator, ...]) -> None:
    def first(who: Annotator) -> float:
        answers = [judge(who, item, seed=3) for item in world]
        return float(np.mean([a.chosen == a.order[0] for a in answers]))

    (biased,) = of(people, "side-biased")
    assert first(biased) > 0.65
    # A dozen people with 250 answers each: six standard errors.
    assert np.mean([first(who) for who in of(people, "none")]) == pytest.approx(0.5, abs=0.05)


def test_the_length_loving_follow_length(world: list[Shown], people: tuple[Annotator, ...]) -> None:
    longer = [log(len(item.replies[0].split()) / len(item.replies[1].split())) for item in world]

    def correlation(who: Annotator) -> float:
        return float(np.corrcoef(longer, [judge(who, i, seed=3).chance for i in world])[0, 1])

    (lover,) = of(people, "length-loving")
    assert correlation(lover) > 0.2 > 0 > max(correlation(who) for who in of(people, "none"))


@pytest.mark.parametrize(
    ("fault", "phrase"),
    [
        ("flattered", " Thank you so much, what a pleasure to help so valued a customer."),
        ("impressed", " This is definitely so, guaranteed, without a doubt."),
    ],
)
def test_a_phrase_wins_the_flattered_and_the_impressed_alone(
    world: list[Shown], people: tuple[Annotator, ...], fault: str, phrase: str
) -> None:
    # Same gold on both sides: what moves the answer is the phrase and nothing else.
    items = [
        replace(item, replies=(item.replies[0] + phrase, item.replies[0]), scores=(score(),) * 2)
        for item in world[:120]
    ]
    (moved,) = of(people, fault)
    assert share_first_reply(moved, items) > 0.75
    good = [share_first_reply(who, items) for who in of(people, "none")]
    # A dozen people with 120 answers each: four standard errors.
    assert np.mean(good) == pytest.approx(0.5, abs=0.05)


def test_the_tiring_get_worse_and_the_rested_do_not(
    world: list[Shown], people: tuple[Annotator, ...]
) -> None:
    late = [replace(item, position=SESSION - 1) for item in world]
    (tiring,) = of(people, "tiring")
    assert accuracy(tiring, world) > 0.65 > accuracy(tiring, late) + 0.05
    good = of(people, "none")[0]
    assert accuracy(good, world) == accuracy(good, late)


def test_the_copying_repeat_what_they_see(
    world: list[Shown], people: tuple[Annotator, ...]
) -> None:
    def repeats(who: Annotator) -> float:
        seen = [replace(item, previous=item.item % 2) for item in world[:150]]
        return float(np.mean([judge(who, i, seed=3).chosen == i.previous for i in seen]))

    (copier,) = of(people, "copying")
    assert repeats(copier) > 0.9
    assert max(repeats(who) for who in of(people, "none")) < 0.6


def test_the_minority_differ_without_wavering(
    world: list[Shown], people: tuple[Annotator, ...]
) -> None:
    minority, good, (careless,) = (of(people, kind) for kind in ("minority", "none", "careless"))
    some = world[:100]
    steady = np.mean([consistency(who, some) for who in minority])
    assert steady > np.mean([consistency(who, some) for who in good]) - 0.02
    assert steady > consistency(careless, some) + 0.15
    # Warm and long against cool and brief: the same merits in all, weighed otherwise.
    warm = Shown("", ("a", "b"), (score(courtesy=0.6), score(verbosity=0.3)), 0)
    assert all(judge(who, warm, seed=0).chance < 0.2 for who in minority)
    # Most, not all: tastes differ among good annotators too.
    assert np.mean([judge(who, warm, seed=0).chance > 0.5 for who in good]) > 0.8
    across = [agreement(world, [who, other]) for who in minority for other in good]
    assert agreement(world, minority) > np.mean(across) + 0.01


# --- panel and rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_panel_holds_each_fault_once_and_is_mostly_good(seed: int) -> None:
    people = panel(seed)
    assert panel(seed) == people
    assert [who.fault for who in people] != [who.fault for who in panel(seed + 1)]
    assert [who.index for who in people] == list(range(24))
    assert sorted(who.fault for who in people if who.fault != "none") == sorted(FAULTS)
    assert len(of(people, "minority")) == 3
    assert all(who.fault == "none" for who in people if who.minority)
    assert len(of(people, "none")) == 14
    assert not any(who.fault in who.name or "minority" in who.name for who in people)
    logs = np.log([who.weights for who in of(people, "none")])
    assert abs(logs.mean()) < 0.1  # 168 draws of spread 0.25: five standard errors
    assert 0.2 < logs.std() < 0.3


def test_every_row_is_marked_as_simulated(
    world: list[Shown], people: tuple[Annotator, ...]
) -> None:
    rows = compare(world, people, seed=0)
    assert len(rows) == len(world)
    for (row, _), item in zip(rows, world, strict=True):
        made = row.provenance
        assert made.simulated
        assert (made.source, made.guideline) == ("model", "world-1")
        assert made.author in {who.name for who in people}
        assert sorted(made.order) == [0, 1]
        assert row.prompt == item.prompt
        assert {row.chosen, row.rejected} == set(item.replies)
        assert made.extra["item"] == item.item
    assert len({row.provenance.author for row, _ in rows}) == len(people)
    assert compare(world, people, seed=0) == rows


def test_the_ceiling_is_what_labels_reach(
    world: list[Shown], people: tuple[Annotator, ...]
) -> None:
    rows = compare(world, people, seed=0, per_item=8)
    gold_of = {
        (i.item, r): s.total for i in world for r, s in zip(i.replies, i.scores, strict=True)
    }
    hits = []
    for row, _ in rows:
        item = row.provenance.extra["item"]
        gap = gold_of[item, row.chosen] - gold_of[item, row.rejected]
        hits.append(0.5 + 0.5 * np.sign(gap))
    # About 2,400 labels: four standard errors are some 0.035.
    assert np.mean([agrees for _, agrees in rows]) == pytest.approx(np.mean(hits), abs=0.035)


def test_the_share_that_is_judged_more_than_once_and_the_copier_last(
    people: tuple[Annotator, ...],
) -> None:
    items = [shown(item=i, better=0.1) for i in range(200)]
    rows = [row.provenance for row, _ in compare(items, people, seed=0, per_item=3, share=0.25)]
    judged = np.bincount([int(str(made.extra["item"])) for made in rows])
    assert set(judged.tolist()) == {1, 3}
    assert 0.15 < np.mean(judged == 3) < 0.35
    (copier,) = of(people, "copying")
    both = compare(items, [copier, *of(people, "none")[:1]], seed=0, per_item=2)
    pairs = [(one[0], two[0]) for one, two in zip(both[::2], both[1::2], strict=True)]
    assert all(two.provenance.author == copier.name for _, two in pairs)
    assert np.mean([one.chosen == two.chosen for one, two in pairs]) > 0.9
    assert [one.provenance.extra["position"] for one, _ in pairs] == [
        i % SESSION for i in range(200)
    ]


def test_bad_input_is_refused(people: tuple[Annotator, ...]) -> None:
    item = shown()
    with pytest.raises(ValueError, match="sleepy"):
        panel(0, faults=["sleepy"])
    with pytest.raises(ValueError, match="at least half must be good"):
        panel(0, size=19)
    with pytest.raises(ValueError, match="sleepy"):
        judge(faulty("sleepy"), item, seed=0)
    with pytest.raises(ValueError, match="must differ"):
        compare([item, item], people, seed=0)
    with pytest.raises(ValueError, match="with itself"):
        compare([shown("same", "same")], people, seed=0)
    with pytest.raises(ValueError, match="per_item 25"):
        compare([item], people, seed=0, per_item=25)
    with pytest.raises(ValueError, match="need 2 and 1"):
        agreement([], people)
