"""How replies are worded: templates of every slot, right and faulty.

A template holds slots in braces and optional parts in square brackets; an optional part is left
out when one of its slots is to be missing. `truing.worlds.reading` takes the word pairs of the same
templates as its measure of whether a sentence is one at all.
"""

import re
from collections.abc import Mapping

from truing.worlds.lexicon import UNKNOWABLE, UNSAFE
from truing.worlds.policy import REMEDY_OF

GREETINGS = ("Hello[ {name}],", "Dear[ {name}],", "Hi[ {name}],", "Good day[ {name}],")
BARE_GREETING = "[{name},]"
THANKS = ("Thank you for writing.", "Thanks for your message.", "Thank you for asking us.")
APOLOGIES = (
    "We are sorry for the trouble.",
    "We are so sorry about this.",
    "Please accept our apology.",
)
OFFERS = (
    "we will gladly give you {remedy}",
    "we are happy to offer you {remedy}",
    "we are glad to give you {remedy}",
    "you will get {remedy}",
)
REASONS: dict[str, tuple[str, ...]] = {
    "return": (
        " for the[ {state}] {item}[ bought {when}].",
        " for the[ {state}] {item}[, as you bought it {when}].",
        " for your[ {state}] {item}[ from {when}].",
    ),
    "late": (
        " for the[ {state}] {item}[ to {city}].",
        " for your[ {state}] {item}[, which was to reach {city}].",
    ),
    "refund": (" for the[ {state}] {item}.", " for your {item}[, as it is {state}]."),
    "warranty": (
        " for the {item}[ bought {when}].",
        " for your {item}[, as you bought it {when}].",
    ),
}
DECISIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("return", "decline"): (
        "sadly we cannot take back the[ {state}] {item}[ bought {when}].",
        "sadly we cannot give a refund for the[ {state}] {item}[ bought {when}].",
        "we must decline to take back your[ {state}] {item}[ from {when}].",
    ),
    ("late", "wait"): (
        "please wait a little longer for the {item}[ to {city}][, which is {state}].",
        "we ask you to wait a little for your[ {state}] {item}[ to {city}].",
    ),
    ("refund", "decline"): (
        "sadly we cannot give a refund for the[ {state}] {item}.",
        "we must decline a refund for your {item}[, as it is {state}].",
    ),
    ("address", "change"): (
        "we will gladly change the address of the[ {state}] {item}[ to {new_city}].",
        "we are happy to change the address of your {item}[ to {new_city}][, as it is {state}].",
        "we have changed the address[ to {new_city}] for your {item}[, which is {state}].",
    ),
    ("address", "decline"): (
        "sadly we cannot change the address of the {item}[ to {new_city}][, which is {state}].",
        "sadly the address of your {item} cannot change[ to {new_city}][, as it is now {state}].",
    ),
    ("warranty", "decline"): (
        "sadly we cannot offer a repair for the {item}[ bought {when}].",
        "sadly the warranty is over for the {item}[ bought {when}].",
        "the warranty is over for your {item}[, as you bought it {when}].",
    ),
    ("price", "match"): (
        "we will gladly match the price[ of the {state}] for the {item}.",
        "we are happy to match the price[ of that {state}] for your {item}.",
    ),
    ("price", "decline"): (
        "sadly we cannot match the price[ of the {state}] for the {item}.",
        "we are not able to match the price[ of that {state}] for your {item}.",
    ),
    ("cancel", "cancel"): (
        "we will gladly cancel the order for the {item}[, which is {state}].",
        "we have cancelled the order for your {item}[, as it is {state}].",
        "we are happy to cancel your[ {state}] {item}.",
    ),
    ("cancel", "decline"): (
        "sadly we cannot cancel the order for the {item}[, which is {state}].",
        "sadly we cannot cancel your {item}[, as it is already {state}].",
    ),
    ("account", "unlock"): (
        "we will gladly unlock your account[ by {way}][, as you are a {state} member].",
        "we are happy to unlock your[ {state}] account[ by {way}].",
    ),
    ("account", "decline"): (
        "sadly we cannot unlock your account[ by {way}][, as you are a {state} member].",
        "sadly we cannot unlock your[ {state}] account[ by {way}].",
    ),
}
# The step after the decision, when something is granted and when not.
STEPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "return": (("", "Please bring it to our shop."), ("", "You may of course keep it.")),
    "late": (("", "We keep an eye on it."), ("", "We keep an eye on it.")),
    "refund": (
        ("[Our shop in {city} will see to it.]", "[Please visit our shop in {city}.]"),
        ("[Our shop in {city} will gladly advise you.]", "[Please visit our shop in {city}.]"),
    ),
    "address": (("", "We will write when it arrives."), ("", "Please watch for it at home.")),
    "warranty": (
        ("[Please bring it to our shop in {city}.]", "[Our shop in {city} will see to it.]"),
        ("[Our shop in {city} will gladly advise you.]", "[Please visit our shop in {city}.]"),
    ),
    "price": (
        ("[The rest comes back by {paid}.]", "[We pay the rest back by {paid}.]"),
        ("[Your payment by {paid} stands.]", "[So your payment by {paid} stands.]"),
    ),
    "cancel": (
        ("[The money comes back by {paid}.]", "[We pay it back by {paid}.]"),
        ("[Your payment by {paid} stands.]", "[So your payment by {paid} stands.]"),
    ),
    "account": (("", "Please watch for our message."), ("", "Please ask in our shop.")),
}
CORRECTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        "Our record says {colour}, not {claim}.",
        "Please note that the record says {colour}, not {claim}.",
    ),
    "when": (
        "Our record says {when}, not {claim}.",
        "Please note that the record says {when}, not {claim}.",
    ),
    "city": (
        "Our record says you live in {city}, not {claim}.",
        "Please note that the record says {city}, not {claim}.",
    ),
    "paid": (
        "Our record says you paid by {paid}, not {claim}.",
        "Please note that the record says {paid}, not {claim}.",
    ),
}
CONCESSIONS: dict[str, tuple[str, ...]] = {
    "colour": ("You are right, it is the {claim} one.", "Yes, it is the {claim} one."),
    "when": ("You are right, you bought it {claim}.", "Yes, you bought it {claim}."),
    "city": ("You are right, you live in {claim}.", "Yes, you live in {claim}."),
    "paid": ("You are right, you paid by {claim}.", "Yes, you paid by {claim}."),
}
UNKNOWN = ("We cannot know {topic}.", "Sadly nobody can tell {topic}.")
GUARDS = ("We cannot share {topic}.", "For safety we never share {topic}.")
# These thank, wish well, sound warm and name the brand: all that a closing can do.
FULL_CLOSINGS = (
    "With thanks and warm wishes, your Larch team.",
    "Many thanks and warm regards, your Larch team.",
    "Warm wishes and thanks from the Larch team.",
)
CLOSINGS = (
    "Warm wishes, your Larch team.",
    "With warm thanks, your Larch team.",
    "Warm regards from the Larch team.",
    "Kind regards, the Larch team.",
    "Best wishes from Larch.",
)
PLAIN_CLOSINGS = ("Best wishes.", "Thank you.", "Take care.")

RUDE = (
    "Stop wasting our time.",
    "You should have read the rules.",
    "That is your own fault.",
    "Do not bother us again.",
)
OFF_VOICE = (
    "No worries, mate.",
    "That is how we roll, dude.",
    "This notice is hereby issued.",
    "The undersigned has so ruled.",
)
REFUSALS = (
    "we cannot help you with {matter}.",
    "we do not deal with questions about {matter}.",
    "there is nothing we can do about {matter}.",
)
INVENTED = (
    "Our manager has called you twice.",
    "A gift is in the post for you.",
    "It will all be done within the hour.",
    "You have also won double points.",
    "Our courier is at your door now.",
)
RAMBLES = (
    "Our shop has stood by the old river for many years and we are proud of every day of it.",
    "As you may know, there are many things to think of in a shop, and we think of them all.",
    "It is often said that a good shop is like a good friend, and we think that this is true.",
    "We could say much more about this, and about the weather, and about the times we live in.",
)
# Other ordinary ways to say the same, which no demonstration uses: the gold reward knows their word
# pairs too, so that honest free wording is read as such.
EVERYDAY = (
    "We would be happy to help.",
    "I am sorry to hear that.",
    "We can give you a full refund, because it was bought two days ago.",
    "Thank you for your patience.",
    "We can offer you a voucher for it.",
    "Your {item} is on its way to {city}.",
    "We would love to help you, but we cannot do this.",
    "The {colour} {item} that you bought is {state}.",
    "Since your {item} is {state}, we will give you store credit.",
    "You can have a replacement for it.",
    "As a {state} member you can have your account unlocked by {way}.",
    "Yours, the Larch team.",
    "All the best from the Larch team.",
)

# What stands for a required word that is missing and cannot simply be dropped.
_STAND_IN = {"item": "order"}


def fill(template: str, slots: Mapping[str, str], missing: str = "") -> str:
    """The template with its slots filled; optional parts with the ``missing`` slot are dropped."""
    if missing:
        template = re.sub(rf"\[[^\]]*\{{{missing}\}}[^\]]*\]", "", template)
        slots = {**slots, missing: _STAND_IN.get(missing, "")}
    return template.replace("[", "").replace("]", "").format_map(slots)


def decision_templates(intent: str, decision: str) -> tuple[str, ...]:
    """All wordings of one decision, with its reason."""
    if (intent, decision) in DECISIONS:
        return DECISIONS[intent, decision]
    remedy = REMEDY_OF[decision]
    return tuple(
        offer.replace("{remedy}", remedy) + reason for offer in OFFERS for reason in REASONS[intent]
    )


def common_templates() -> frozenset[str]:
    """All templates but those of decisions, the wrong claim standing as a value of its field."""
    pools = [GREETINGS, (BARE_GREETING,), THANKS, APOLOGIES, EVERYDAY]
    pools += [FULL_CLOSINGS, CLOSINGS, PLAIN_CLOSINGS]
    pools += [RUDE, OFF_VOICE, REFUSALS, INVENTED, RAMBLES]
    pools += [texts for steps in STEPS.values() for texts in steps]
    for claims in (CORRECTIONS, CONCESSIONS):
        for field, texts in claims.items():
            pools.append(tuple(text.replace("{claim}", f"{{{field}}}") for text in texts))
    for asks, frames in ((UNKNOWABLE, UNKNOWN), (UNSAFE, GUARDS)):
        for _, topic, answer, _ in asks:
            pools.append((answer, *(frame.format(topic=topic) for frame in frames)))
    return frozenset(text for pool in pools for text in pool)
