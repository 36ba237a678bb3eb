"""What the shop's policy can say, and the decision that follows from it and the order record.

The decision is a small table of policy value x record value. Some cells of the table are never
shown in training; every value in them is, in other cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from truing.worlds.lexicon import UNITS

# What a policy can promise, and the decision that this is.
REMEDIES = {
    "a full refund": "refund",
    "half a refund": "half",
    "store credit": "credit",
    "a voucher": "voucher",
    "free postage": "postage",
    "a new parcel": "parcel",
    "a replacement": "replacement",
    "a repair": "repair",
    "nothing": "decline",
}
REMEDY_OF = {decision: remedy for remedy, decision in REMEDIES.items()}


@dataclass(frozen=True)
class Rule:
    """One rule of the card: the values it may take and its wordings."""

    values: tuple[str, ...]
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Intent:
    """What one kind of request needs.

    ``states`` are the values of the record's line ``label``; ``facts`` are the fields that a reply
    must state; ``decisions`` is every decision that the policy can lead to; ``held`` lists pairs
    of values, (rule or field, value) each, that occur together only in held-out cases.
    """

    rules: Mapping[str, Rule]
    label: str
    states: tuple[str, ...]
    facts: tuple[str, ...]
    decisions: tuple[str, ...]
    held: tuple[tuple[tuple[str, str], tuple[str, str]], ...]


INTENTS: dict[str, Intent] = {
    "return": Intent(
        rules={
            "window": Rule(
                ("one week", "one month", "one year"),
                ("Returns are taken within {}.", "We take returns within {}."),
            ),
            "opened": Rule(
                ("a full refund", "store credit", "nothing"),
                ("Opened goods earn {}.", "For opened goods we give {}."),
            ),
        },
        label="State",
        states=("unopened", "opened"),
        facts=("item", "state", "when"),
        decisions=("refund", "credit", "decline"),
        held=(
            (("window", "one month"), ("unit", "months")),
            (("window", "one year"), ("unit", "weeks")),
        ),
    ),
    "late": Intent(
        rules={
            "late": Rule(
                ("a voucher", "free postage", "store credit"),
                ("Late parcels earn {}.", "For late parcels we give {}."),
            ),
            "lost": Rule(
                ("a full refund", "a new parcel", "store credit"),
                ("Lost parcels earn {}.", "For lost parcels we give {}."),
            ),
        },
        label="Parcel",
        states=("late", "lost", "travelling"),
        facts=("item", "state", "city"),
        decisions=("voucher", "postage", "credit", "refund", "parcel", "wait"),
        held=(
            (("late", "free postage"), ("lost", "a full refund")),
            (("late", "a voucher"), ("lost", "a new parcel")),
        ),
    ),
    "refund": Intent(
        rules={
            "broken": Rule(
                ("a full refund", "a replacement", "a voucher"),
                ("Broken goods earn {}.", "For broken goods we give {}."),
            ),
            "scratched": Rule(
                ("half a refund", "a voucher", "nothing"),
                ("Scratched goods earn {}.", "For scratched goods we give {}."),
            ),
        },
        label="State",
        states=("broken", "scratched", "sound"),
        facts=("item", "state", "city"),
        decisions=("refund", "replacement", "half", "voucher", "decline"),
        held=(
            (("broken", "a replacement"), ("scratched", "half a refund")),
            (("broken", "a full refund"), ("scratched", "nothing")),
        ),
    ),
    "address": Intent(
        rules={
            "moving_limit": Rule(
                ("packing", "sending", "delivery"),
                ("An address can change until {}.", "We change addresses until {}."),
            )
        },
        label="Parcel",
        states=("waiting", "packed", "sent"),
        facts=("item", "state", "new_city"),
        decisions=("change", "decline"),
        held=(
            (("moving_limit", "packing"), ("state", "sent")),
            (("moving_limit", "delivery"), ("state", "waiting")),
        ),
    ),
    "warranty": Intent(
        rules={
            "length": Rule(
                ("one month", "one year", "ten years"),
                ("The warranty lasts {}.", "Our warranty runs for {}."),
            ),
            "cover": Rule(
                ("a repair", "a replacement", "a voucher"),
                ("Under warranty we give {}.", "The warranty means {}."),
            ),
        },
        label="State",
        states=("broken",),
        facts=("item", "when", "city"),
        decisions=("repair", "replacement", "voucher", "decline"),
        held=(
            (("length", "one month"), ("unit", "years")),
            (("length", "one year"), ("unit", "months")),
        ),
    ),
    "price": Intent(
        rules={
            "rivals": Rule(
                ("local shops", "web shops", "market stalls", "all shops", "no shops"),
                ("We match the prices of {}.", "Prices of {} are matched."),
            )
        },
        label="Seen cheaper",
        states=("local shop", "web shop", "market stall"),
        facts=("item", "state", "paid"),
        decisions=("match", "decline"),
        held=(
            (("rivals", "all shops"), ("state", "market stall")),
            (("rivals", "local shops"), ("state", "web shop")),
            (("rivals", "web shops"), ("state", "web shop")),
        ),
    ),
    "cancel": Intent(
        rules={
            "order_limit": Rule(
                ("packing", "sending", "delivery"),
                ("Orders can be cancelled until {}.", "You may cancel until {}."),
            )
        },
        label="Parcel",
        states=("waiting", "packed", "sent"),
        facts=("item", "state", "paid"),
        decisions=("cancel", "decline"),
        held=(
            (("order_limit", "packing"), ("state", "packed")),
            (("order_limit", "sending"), ("state", "waiting")),
        ),
    ),
    "account": Intent(
        rules={
            "members": Rule(
                ("all members", "gold members", "silver members", "bronze members"),
                ("We unlock accounts of {}.", "Accounts of {} can be unlocked."),
            ),
            "way": Rule(
                ("email", "phone", "letter"),
                ("We unlock accounts by {}.", "Accounts are unlocked by {}."),
            ),
        },
        label="Member",
        states=("gold", "silver", "bronze"),
        facts=("state", "way"),
        decisions=("unlock", "decline"),
        held=(
            (("members", "gold members"), ("state", "silver")),
            (("members", "all members"), ("state", "bronze")),
            (("members", "silver members"), ("state", "silver")),
        ),
    ),
}

_LIMITS = {"packing": 1, "sending": 2, "delivery": 3}  # how many of the states lie before it
_WINDOWS = {"one week": 0, "one month": 1, "one year": 2, "ten years": 3}


def unit(when: str) -> str:
    """The unit of a time of purchase: days, weeks, months or years."""
    return "days" if when == "yesterday" else when.split()[1]


def decide(intent: str, values: Mapping[str, str]) -> str:
    """The right decision, given the card's rule values and the record's ``state`` and ``unit``."""
    state = values["state"]
    if intent in ("late", "refund"):
        missing = {"late": "wait", "refund": "decline"}[intent]
        return REMEDIES[values[state]] if state in values else missing
    if intent in ("return", "warranty"):
        limit = values["window" if intent == "return" else "length"]
        if UNITS.index(values["unit"]) > _WINDOWS[limit]:
            return "decline"
        if intent == "warranty":
            return REMEDIES[values["cover"]]
        return "refund" if state == "unopened" else REMEDIES[values["opened"]]
    if intent in ("address", "cancel"):
        limit, granted = (
            (values["moving_limit"], "change")
            if intent == "address"
            else (values["order_limit"], "cancel")
        )
        return granted if INTENTS[intent].states.index(state) < _LIMITS[limit] else "decline"
    if intent == "price":
        allowed = values["rivals"] in ("all shops", state + "s")
        return "match" if allowed else "decline"
    if intent == "account":
        allowed = values["members"] in ("all members", f"{state} members")
        return "unlock" if allowed else "decline"
    raise ValueError(f"intent {intent!r} is unknown; choose one of {', '.join(INTENTS)}")


def is_held_out(intent: str, values: Mapping[str, str]) -> bool:
    """Whether these deciding values hold a pair that training never shows together."""
    return any(all(values[slot] == value for slot, value in pair) for pair in INTENTS[intent].held)


def _combinations(intent: str) -> dict[bool, tuple[dict[str, str], ...]]:
    """All deciding values of an intent, split into taught (False) and held out (True)."""
    kind = INTENTS[intent]
    axes: dict[str, tuple[str, ...]] = {slot: rule.values for slot, rule in kind.rules.items()}
    axes["state"] = kind.states
    axes["unit"] = UNITS if "when" in kind.facts else ("",)
    table = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return {
        held: tuple(row for row in table if is_held_out(intent, row) == held)
        for held in (False, True)
    }


COMBINATIONS = {intent: _combinations(intent) for intent in INTENTS}
