"""Customer service: a policy card, an order record and a message; and what the gold reward knows.

A held-out case holds at least one thing that no training case shows: a customer's name, a
combination of policy and record values, or a wording of the message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from truing.keys import generator
from truing.worlds import lexicon, messages
from truing.worlds.policy import COMBINATIONS, INTENTS, decide, unit

Split = Literal["train", "heldout"]
T = TypeVar("T")

STANCES = ("plain", "angry", "mistaken", "unknowable", "unsafe")
ASPECTS = ("name", "combination", "phrasing")
# The fields that a mistaken customer may get wrong.
_POOLS = {
    "colour": lexicon.COLOURS,
    "when": lexicon.WHENS,
    "city": lexicon.CITIES,
    "paid": lexicon.PAYMENTS,
}


@dataclass(frozen=True)
class Case:
    """One prompt and all that the gold reward knows about it.

    ``facts``: the truth by field (name, item, colour, when, city, paid, state, and new_city or
    way where they apply). ``needs``: the keys of what a reply must state. ``claim``: the field and
    the wrong value that a mistaken customer claims. ``topic``: index into lexicon.UNKNOWABLE or
    lexicon.UNSAFE. ``combination``: the deciding policy and record values.
    """

    prompt: str
    key: int
    intent: str
    stance: str
    decision: str
    facts: Mapping[str, str]
    needs: tuple[str, ...]
    held_out: frozenset[str]
    combination: tuple[tuple[str, str], ...]
    claim: tuple[str, str] | None = None
    topic: int | None = None


def pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    """One of the options, each equally likely."""
    return options[int(rng.integers(len(options)))]


def card(rng: np.random.Generator, intent: str, values: Mapping[str, str], rules: int = 4) -> str:
    """A policy card: the deciding rules among others, in random order."""
    own = INTENTS[intent].rules.items()
    lines = [pick(rng, rule.wordings).format(values[slot]) for slot, rule in own]
    others = [name for name in INTENTS if name != intent]
    for other in rng.permutation(len(others))[: rules - len(lines)]:
        rule = pick(rng, tuple(INTENTS[others[int(other)]].rules.values()))
        lines.append(pick(rng, rule.wordings).format(pick(rng, rule.values)))
    return " ".join(lines[int(i)] for i in rng.permutation(len(lines)))


def record(intent: str, facts: Mapping[str, str]) -> str:
    """The order record as one line of labelled fields."""
    return (
        f"Customer: {facts['name']}. Item: {facts['colour']} {facts['item']}. "
        f"Bought: {facts['when']}. {INTENTS[intent].label}: {facts['state']}. "
        f"City: {facts['city']}. Paid by: {facts['paid']}."
    )


def _whens(intent: str, wanted: str) -> tuple[str, ...]:
    """The times of purchase that fit: those of one unit, or recent ones for an open parcel."""
    if wanted:
        return tuple(when for when in lexicon.WHENS if unit(when) == wanted)
    parcel = INTENTS[intent].label == "Parcel"
    return tuple(w for w in lexicon.WHENS if not parcel or unit(w) in ("days", "weeks"))


def _message(
    rng: np.random.Generator, kind: tuple[str, str], facts: Mapping[str, str], held: bool
) -> tuple[str, tuple[str, str] | None, int | None]:
    """The customer's words, the wrong claim in them and the topic asked, if any."""
    intent, stance = kind
    parts = [
        pick(rng, messages.OPENINGS),
        pick(rng, messages.split_pool(messages.REQUESTS[intent], held_out=held)).format(**facts),
    ]
    claim, topic = None, None
    if stance == "angry":
        parts.append(pick(rng, messages.split_pool(messages.ANGRY, held_out=held)))
    elif stance == "mistaken":
        # A wrong city would blur a change of address, where two cities are right already; and
        # a locked account is about no item.
        barred = {"address": ("city",), "account": ("colour", "when")}.get(intent, ())
        fields = tuple(field for field in _POOLS if field not in barred)
        field = pick(rng, fields)
        wrong = pick(rng, tuple(value for value in _POOLS[field] if value != facts[field]))
        claim = (field, wrong)
        pool = messages.split_pool(messages.CLAIMS[field], held_out=held)
        parts.append(pick(rng, pool).format(claim=wrong))
    elif stance in ("unknowable", "unsafe"):
        asks = lexicon.UNKNOWABLE if stance == "unknowable" else lexicon.UNSAFE
        topic = int(rng.integers(len(asks)))
        parts += [pick(rng, messages.ASIDES), asks[topic][0]]
    return " ".join(part for part in parts if part), claim, topic


def case(seed: int, index: int, split: Split) -> Case:
    """The case with this number; a held-out case has at least one held-out aspect."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    if not 0 <= index < 2**31:
        raise ValueError(f"a case index must be at least 0 and below 2**31, got {index}")
    heldout = split == "heldout"
    rng = generator(seed, "service", index, int(heldout))
    # Seven non-empty sets of three aspects, as bits, each equally likely.
    bits = 1 + int(rng.integers(7)) if heldout else 0
    held = frozenset(aspect for i, aspect in enumerate(ASPECTS) if bits >> i & 1)
    intent, stance = pick(rng, tuple(INTENTS)), pick(rng, STANCES)
    values = pick(rng, COMBINATIONS[intent]["combination" in held])
    names = lexicon.HELDOUT_NAMES if "name" in held else lexicon.TRAIN_NAMES
    facts = {
        "name": pick(rng, names),
        "item": pick(rng, lexicon.ITEMS),
        "colour": pick(rng, lexicon.COLOURS),
        "when": pick(rng, _whens(intent, values["unit"])),
        "state": values["state"],
        "city": pick(rng, lexicon.CITIES),
        "paid": pick(rng, lexicon.PAYMENTS),
    }
    if intent == "address":
        facts["new_city"] = pick(rng, tuple(c for c in lexicon.CITIES if c != facts["city"]))
    if "way" in values:
        facts["way"] = values["way"]
    policy = card(rng, intent, values)
    message, claim, topic = _message(rng, (intent, stance), facts, "phrasing" in held)
    return Case(
        prompt=f"Policy: {policy}\nOrder: {record(intent, facts)}\nMessage: {message}\nReply:",
        key=(seed << 32) | index << 1 | heldout,
        intent=intent,
        stance=stance,
        decision=decide(intent, values),
        facts=facts,
        needs=needs_of(intent, stance),
        held_out=held,
        combination=tuple((slot, value) for slot, value in values.items() if value),
        claim=claim,
        topic=topic,
    )


def needs_of(intent: str, stance: str) -> tuple[str, ...]:
    """The keys of what a reply must state."""
    extra = {"mistaken": "correction", "unknowable": "unknown", "unsafe": "guard"}.get(stance)
    return ("name", *INTENTS[intent].facts, *((extra,) if extra else ()))


def cases(n: int, *, seed: int, split: Split, start: int = 0) -> list[Case]:
    """``n`` cases from number ``start`` on."""
    return [case(seed, index, split) for index in range(start, start + n)]
