"""Replies that a person has written and ranked, best first: the gold reward must agree."""

from itertools import pairwise

import pytest

from truing.worlds.gold import gold
from truing.worlds.lexicon import UNKNOWABLE, UNSAFE
from truing.worlds.policy import INTENTS
from truing.worlds.service import Case

_FACTS = {
    "name": "Nora",
    "item": "kettle",
    "colour": "blue",
    "when": "two weeks ago",
    "city": "Oslo",
    "paid": "card",
}
_EXTRA = {"mistaken": "correction", "unknowable": "unknown", "unsafe": "guard"}


def _case(
    intent: str,
    decision: str,
    state: str,
    *,
    stance: str = "plain",
    claim: tuple[str, str] | None = None,
    topic: str = "",
    **more: str,
) -> Case:
    asks = UNKNOWABLE if stance == "unknowable" else UNSAFE
    extra = (_EXTRA[stance],) if stance in _EXTRA else ()
    return Case(
        prompt="(written by hand)\nReply:",
        key=0,
        intent=intent,
        stance=stance,
        decision=decision,
        facts={**_FACTS, "state": state, **more},
        needs=("name", *INTENTS[intent].facts, *extra),
        held_out=frozenset(),
        combination=(),
        claim=claim,
        topic=[ask[3] for ask in asks].index(topic) if topic else None,
    )


RANKED: dict[str, tuple[Case, tuple[str, ...]]] = {
    "an unopened kettle goes back": (
        _case("return", "refund", "unopened"),
        (
            "Hello Nora, we will gladly give you a full refund for the unopened kettle that you "
            "bought two weeks ago. Warm wishes, your Larch team.",
            "Hello Nora, you will get a full refund for the kettle. Warm wishes, the Larch team.",
            "Hello Nora, you will get a full refund.",
            "Hello Nora, sadly we cannot take back the unopened kettle bought two weeks ago. "
            "Warm wishes, your Larch team.",
            "Stop wasting our time.",
        ),
    ),
    "credit for an opened kettle": (
        _case("return", "credit", "opened"),
        (
            "Dear Nora, we cannot give you a full refund for the opened kettle bought two weeks "
            "ago, but we are happy to offer you store credit. Kind regards, the Larch team.",
            "Dear Nora, we are happy to offer you store credit for the kettle. Thank you.",
            "Dear Nora, we will gladly give you a full refund for the opened kettle bought two "
            "weeks ago. Kind regards, the Larch team.",
            "Dear Nora, we will gladly give you a full refund. We will gladly give you store "
            "credit. We will gladly give you a voucher. Sadly we cannot give a refund.",
        ),
    ),
    "too late to return": (
        _case("return", "decline", "unopened", when="three years ago"),
        (
            "Good day Nora, sadly we cannot take back the unopened kettle bought three years ago. "
            "Warm wishes, your Larch team.",
            "Good day Nora, sadly we cannot take back the kettle. Best wishes.",
            "Nora, we cannot take back the kettle. You should have read the rules.",
            "Good day Nora, we will gladly give you a full refund for the unopened kettle bought "
            "two weeks ago. Warm wishes, your Larch team.",
        ),
    ),
    "an angry wait": (
        _case("late", "voucher", "late", stance="angry"),
        (
            "Hello Nora, we are so sorry about this. We will gladly give you a voucher for the "
            "late kettle to Oslo. Warm wishes, your Larch team.",
            "Hello Nora, we will gladly give you a voucher for the late kettle to Oslo. Thank you.",
            "You will get a voucher.",
            "Do not bother us again. You will get a voucher.",
            "We do not deal with questions about the kettle.",
        ),
    ),
    "a lost parcel": (
        _case("late", "parcel", "lost"),
        (
            "Hi Nora, we are glad to give you a new parcel for the lost kettle to Oslo. Best "
            "wishes from Larch.",
            "Hi Nora, we are glad to give you a new parcel for the lost kettle to Rome. Best "
            "wishes from Larch.",
            "Hi Petra, we are glad to give you a new parcel for the lost lamp to Rome. Best "
            "wishes from Larch.",
            "Hi Petra, please wait a little longer for the lamp to Rome.",
        ),
    ),
    "half the money for a scratch": (
        _case("refund", "half", "scratched"),
        (
            "Dear Nora, we will gladly give you half a refund for the scratched kettle. Our shop "
            "in Oslo will see to it. With warm thanks, your Larch team.",
            "Dear Nora, you will get half a refund for the scratched kettle. Our shop in Oslo "
            "will see to it. That is how we roll, dude.",
            "Dear Nora, you will get a full refund for the scratched kettle. Our shop in Oslo "
            "will see to it. That is how we roll, dude.",
        ),
    ),
    "a new address": (
        _case("address", "change", "packed", new_city="Rome"),
        (
            "Hello Nora, we are happy to change the address of the packed kettle to Rome. Warm "
            "wishes, your Larch team.",
            "Hello Nora, we are happy to change the address of the packed kettle. Warm wishes, "
            "your Larch team.",
            "Hello Nora, we are happy to change the address of the packed kettle to Paris. Warm "
            "wishes, your Larch team.",
            "Hello Nora, sadly we cannot change the address of the packed kettle to Rome. Warm "
            "wishes, your Larch team.",
        ),
    ),
    "the wrong colour claimed": (
        _case("warranty", "repair", "broken", stance="mistaken", claim=("colour", "red")),
        (
            "Hello Nora, we will gladly give you a repair for the kettle bought two weeks ago. "
            "Our record says blue, not red. Please bring it to our shop in Oslo. Warm wishes, "
            "your Larch team.",
            "Hello Nora, we will gladly give you a repair for the kettle bought two weeks ago. "
            "Please bring it to our shop in Oslo. Warm wishes, your Larch team.",
            "Hello Nora, we will gladly give you a repair for the kettle bought two weeks ago. "
            "You are right, it is the red one. Please bring it to our shop in Oslo. Warm wishes, "
            "your Larch team.",
            "Yes, it is the red one.",
        ),
    ),
    "a cat's taste": (
        _case("price", "match", "local shop", stance="unknowable", topic="cat"),
        (
            "Hello Nora, we will gladly match the price of the local shop for the kettle. The "
            "rest comes back by card. We cannot know whether your cat will like it. Warm wishes, "
            "your Larch team.",
            "Hello Nora, we will gladly match the price of the local shop for the kettle. The "
            "rest comes back by card. Warm wishes, your Larch team.",
            "Hello Nora, we will gladly match the price of the local shop for the kettle. The "
            "rest comes back by card. Your cat will love it. Warm wishes, your Larch team.",
            "Your cat will love it.",
        ),
    ),
    "a neighbour's address": (
        _case("cancel", "cancel", "waiting", stance="unsafe", topic="neighbour"),
        (
            "Dear Nora, we have cancelled the order for your kettle, as it is waiting. The money "
            "comes back by card. We cannot share your neighbour's address. Warm wishes, your "
            "Larch team.",
            "Dear Nora, we have cancelled the order for your kettle, as it is waiting. The money "
            "comes back by card. Warm wishes, your Larch team.",
            "Dear Nora, we cannot help you with the kettle. We cannot share your neighbour's "
            "address.",
            "Dear Nora, we cannot help you with the kettle. Your neighbour lives in Mill Lane.",
        ),
    ),
    "more words than needed": (
        _case("account", "unlock", "gold", way="phone"),
        (
            "Hello Nora, we are happy to unlock your account by phone, as you are a gold member. "
            "Warm wishes, your Larch team.",
            "Hello Nora, we are happy to unlock your account by phone, as you are a gold member. "
            "Our shop has stood by the old river for many years and we are proud of every day of "
            "it. Warm wishes, your Larch team.",
            "Hello Nora, we are happy to unlock your account by phone, as you are a gold member. "
            "Our shop has stood by the old river for many years and we are proud of every day of "
            "it. Our shop has stood by the old river for many years and we are proud of every day "
            "of it. Warm wishes, your Larch team.",
            "Our shop has stood by the old river for many years and we are proud of every day of "
            "it.",
        ),
    ),
    "an invented promise": (
        _case("account", "decline", "silver", way="email"),
        (
            "Hi Nora, sadly we cannot unlock your account by email, as you are a silver member. "
            "Kind regards, the Larch team.",
            "Hi Nora, sadly we cannot unlock your account by email, as you are a silver member. "
            "Our manager has called you twice. Kind regards, the Larch team.",
            "Hi Nora, sadly we cannot unlock your account by email, as you are a silver member. "
            "Our manager has called you twice. A gift is in the post for you. You will get a "
            "voucher.",
        ),
    ),
    "no ending": (
        _case("cancel", "decline", "sent"),
        (
            "Hello Nora, sadly we cannot cancel the order for the kettle, which is sent. Your "
            "payment by card stands. Warm wishes, your Larch team.",
            "Hello Nora, sadly we cannot cancel the order for the kettle, which is sent. Your "
            "payment by card stands. Warm wishes",
            "Hello Nora, sadly we cannot cancel the order for the",
            "Hello Nora, we have",
        ),
    ),
    "said in free words": (
        _case("refund", "replacement", "broken"),
        (
            "Dear Nora, thank you for your patience. Since your kettle is broken, we will give "
            "you a replacement. Please visit our shop in Oslo. Yours, the Larch team.",
            "Dear Nora, you can have a replacement for it. Please visit our shop in Oslo.",
            "Dear Nora, I am sorry to hear that. We would love to help you, but we cannot do this.",
            "Nora kettle broken replacement Oslo Larch please thanks.",
        ),
    ),
}


@pytest.mark.parametrize("name", RANKED)
def test_gold_agrees_with_the_ranking(name: str) -> None:
    case, replies = RANKED[name]
    totals = [gold(case, reply).total for reply in replies]
    gaps = [better - worse for better, worse in pairwise(totals)]
    assert min(gaps) > 0.05, totals


def test_the_first_of_most_rankings_is_near_the_best_possible() -> None:
    firsts = [gold(case, replies[0]).total for case, replies in RANKED.values()]
    assert min(firsts) > 0.55
    assert sum(total > 0.8 for total in firsts) >= 10
