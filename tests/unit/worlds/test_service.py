"""The cases: decidable from the prompt alone, varied, and split as they claim to be."""

import re
from collections import Counter

import pytest

from truing.worlds import lexicon, messages
from truing.worlds.policy import COMBINATIONS, INTENTS, decide, is_held_out, unit
from truing.worlds.service import ASPECTS, STANCES, Case, case, cases

TRAIN = cases(4000, seed=0, split="train")
HELDOUT = cases(2000, seed=0, split="heldout")


def _pattern(text: str) -> re.Pattern[str]:
    """A wording as a pattern: its slots stand for any short run of words."""
    return re.compile(re.sub(r"\\{\w+\\}", r"[\\w ]+", re.escape(text)))


HELD_WORDINGS = [
    _pattern(text)
    for pool in (*messages.REQUESTS.values(), *messages.CLAIMS.values(), messages.ANGRY)
    for text in messages.split_pool(pool, held_out=True)
]


def _message(shown: Case) -> str:
    return shown.prompt.split("\nMessage: ")[1].removesuffix("\nReply:")


def _read(shown: Case) -> dict[str, str]:
    """The deciding values as a stranger reads them off the prompt."""
    policy, order = shown.prompt.split("\n")[:2]
    values = {
        slot: value
        for slot, rule in INTENTS[shown.intent].rules.items()
        for value in rule.values
        for wording in rule.wordings
        if wording.format(value) in policy
    }
    label = INTENTS[shown.intent].label
    values["state"] = re.findall(rf"{label}: ([\w ]+)\.", order)[0]
    values["unit"] = unit(re.findall(r"Bought: ([\w ]+)\.", order)[0])
    return values


def test_the_decision_follows_from_the_prompt() -> None:
    for shown in (*TRAIN[:1500], *HELDOUT[:1500]):
        assert decide(shown.intent, _read(shown)) == shown.decision


@pytest.mark.parametrize(
    ("intent", "values", "decision"),
    [
        ("return", "window=one month opened=nothing state=unopened unit=weeks", "refund"),
        ("return", "window=one month opened=nothing state=unopened unit=years", "decline"),
        ("return", "window=one week opened=store credit state=opened unit=days", "credit"),
        ("return", "window=one year opened=nothing state=opened unit=months", "decline"),
        ("late", "late=a voucher lost=a full refund state=late", "voucher"),
        ("late", "late=a voucher lost=a full refund state=lost", "refund"),
        ("late", "late=a voucher lost=a full refund state=travelling", "wait"),
        ("refund", "broken=a replacement scratched=nothing state=broken", "replacement"),
        ("refund", "broken=a replacement scratched=nothing state=scratched", "decline"),
        ("refund", "broken=a replacement scratched=a voucher state=sound", "decline"),
        ("address", "moving_limit=sending state=packed", "change"),
        ("address", "moving_limit=packing state=packed", "decline"),
        ("warranty", "length=one year cover=a repair state=broken unit=months", "repair"),
        ("warranty", "length=one year cover=a repair state=broken unit=years", "decline"),
        ("price", "rivals=local shops state=local shop", "match"),
        ("price", "rivals=local shops state=web shop", "decline"),
        ("price", "rivals=no shops state=web shop", "decline"),
        ("price", "rivals=all shops state=web shop", "match"),
        ("cancel", "order_limit=delivery state=sent", "cancel"),
        ("cancel", "order_limit=sending state=sent", "decline"),
        ("account", "members=gold members state=gold", "unlock"),
        ("account", "members=gold members state=silver", "decline"),
        ("account", "members=all members state=bronze", "unlock"),
    ],
)
def test_decisions(intent: str, values: str, decision: str) -> None:
    table = dict(re.findall(r"(\w+)=([\w ]+?)(?= \w+=|$)", values))
    assert decide(intent, table) == decision


def test_unknown_intent_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of return"):
        decide("gossip", {"state": "late"})


def test_training_holds_nothing_held_out() -> None:
    names = set(lexicon.HELDOUT_NAMES)
    for shown in TRAIN:
        assert not shown.held_out
        assert shown.facts["name"] not in names
        assert not is_held_out(shown.intent, _read(shown))
        assert not any(wording.search(_message(shown)) for wording in HELD_WORDINGS)


def test_held_out_cases_hold_what_they_claim() -> None:
    seen: Counter[frozenset[str]] = Counter()
    for shown in HELDOUT:
        actual = {
            "name": shown.facts["name"] in lexicon.HELDOUT_NAMES,
            "combination": is_held_out(shown.intent, _read(shown)),
            "phrasing": any(wording.search(_message(shown)) for wording in HELD_WORDINGS),
        }
        assert shown.held_out == {aspect for aspect, there in actual.items() if there}
        seen[shown.held_out] += 1
    # Seven non-empty sets of three aspects, each about 2000 / 7 = 286 times.
    assert len(seen) == 2 ** len(ASPECTS) - 1
    assert min(seen.values()) > 200


def test_held_out_combinations_are_compositions_of_taught_values() -> None:
    for intent, table in COMBINATIONS.items():
        taught = {pair for values in table[False] for pair in values.items()}
        held = {pair for values in table[True] for pair in values.items()}
        assert held
        assert held <= taught
        # Each value of a field is taught with more than one decision, so none gives it away.
        assert len({decide(intent, values) for values in table[True]}) > 1


def test_held_out_wordings_use_known_words() -> None:
    known = {word for shown in TRAIN for word in re.findall(r"[\w']+", shown.prompt)}
    unknown = {word for shown in HELDOUT for word in re.findall(r"[\w']+", shown.prompt)} - known
    assert unknown <= set(lexicon.HELDOUT_NAMES)


def test_prompts_are_many_short_and_plain() -> None:
    prompts = [shown.prompt for shown in cases(20_000, seed=1, split="train")]
    # With N equally likely prompts, n draws hold about n^2 / 2N equal pairs: 2000 at N = 100,000.
    assert len(set(prompts)) > 19_950
    sizes = [len(prompt.split()) for prompt in prompts]
    assert 58 < sum(sizes) / len(sizes) < 63
    assert min(sizes) > 40
    assert max(sizes) < 80
    assert all(prompt.isascii() and not re.search(r"\d", prompt) for prompt in prompts)
    assert all(prompt.endswith("\nReply:") for prompt in prompts)


def test_intents_stances_and_decisions_are_balanced() -> None:
    intents = Counter(shown.intent for shown in TRAIN)
    stances = Counter(shown.stance for shown in TRAIN)
    assert set(intents) == set(INTENTS)
    assert set(stances) == set(STANCES)
    assert min(intents.values()) > 0.8 * len(TRAIN) / len(INTENTS)
    assert min(stances.values()) > 0.8 * len(TRAIN) / len(STANCES)
    for intent, kind in INTENTS.items():
        taken = Counter(shown.decision for shown in TRAIN if shown.intent == intent)
        assert set(taken) == set(kind.decisions)
        assert max(taken.values()) < 0.75 * sum(taken.values())


def test_a_claim_is_wrong_and_only_the_mistaken_make_one() -> None:
    for shown in TRAIN:
        assert (shown.claim is not None) == (shown.stance == "mistaken")
        assert (shown.topic is not None) == (shown.stance in ("unknowable", "unsafe"))
        if shown.claim:
            field, value = shown.claim
            assert shown.facts[field] != value
            assert value in _message(shown)


def test_a_case_depends_on_its_numbers_alone() -> None:
    assert case(0, 17, "train") == TRAIN[17]
    assert cases(3, seed=0, split="train", start=15)[2] == TRAIN[17]
    assert case(1, 17, "train").prompt != TRAIN[17].prompt
    keys = {shown.key for shown in (*TRAIN, *HELDOUT, *cases(100, seed=1, split="train"))}
    assert len(keys) == len(TRAIN) + len(HELDOUT) + 100


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'heldout', got 'test'"):
        case(0, 0, "test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got -1"):
        case(0, -1, "train")
