"""From the text of a prompt back to its case: the gold reward behind the reward protocol.

truing ppo ... --reward truing.worlds.recognise:gold_reward
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from truing.data.schema import Text
from truing.worlds import lexicon, messages
from truing.worlds.gold import gold
from truing.worlds.policy import INTENTS, decide, unit
from truing.worlds.service import Case, needs_of

_PROMPT = re.compile(
    r"Policy: (?P<card>.*)\nOrder: Customer: (?P<name>.*?)\. Item: (?P<colour>\S+) (?P<item>.*?)\. "
    r"Bought: (?P<when>.*?)\. (?P<label>[^.:]*): (?P<state>.*?)\. City: (?P<city>.*?)\. "
    r"Paid by: (?P<paid>.*?)\.\nMessage: (?P<message>.*)\nReply:"
)


def gold_reward(prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
    """The gold reward of each reply. Raises ValueError for a prompt that is not of this world."""
    return [
        gold(recognise(prompt), reply).total
        for prompt, reply in zip(prompts, completions, strict=True)
    ]


@cache
def recognise(prompt: Text) -> Case:
    """The case behind a prompt. The text does not tell its key, nor what of it is held out."""
    found = _PROMPT.fullmatch(prompt) if isinstance(prompt, str) else None
    if found is None:
        raise ValueError(
            f"the prompt {str(prompt)[:60]!r} is not of the service world (a policy card, an order "
            "record, a message), so its gold reward is not known: judge it by another reward"
        )
    parts = found.groupdict()
    card, message, label = (parts.pop(name) for name in ("card", "message", "label"))
    intent, more = _request(label, message, parts)
    facts = parts | more
    values = dict(_values(intent, card))
    values |= {"state": facts["state"]}
    values["unit"] = unit(facts["when"]) if "when" in INTENTS[intent].facts else ""
    if "way" in values:
        facts["way"] = values["way"]
    stance, claim, topic = _stance(message)
    return Case(
        prompt=str(prompt),
        key=0,
        intent=intent,
        stance=stance,
        decision=decide(intent, values),
        facts=facts,
        needs=needs_of(intent, stance),
        held_out=frozenset(),
        combination=tuple((slot, value) for slot, value in values.items() if value),
        claim=claim,
        topic=topic,
    )


def _request(label: str, message: str, facts: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The intent whose request the message holds (the longest that fits), and the city in it."""
    fitting: list[tuple[int, str, dict[str, str]]] = []
    for intent, kind in INTENTS.items():
        for wording in messages.REQUESTS[intent] if kind.label == label else ():
            pattern = re.escape(wording).replace(r"\{item\}", re.escape(facts["item"]))
            pattern = pattern.replace(r"\{new_city\}", "(?P<new_city>[^.,?]+?)")
            if found := re.search(pattern, message):
                fitting.append((len(found.group()), intent, found.groupdict()))
    if not fitting:
        raise ValueError(f"no request of the service world stands in the message {message[:60]!r}")
    _, intent, more = max(fitting, key=lambda fit: fit[0])
    return intent, more


def _values(intent: str, card: str) -> Iterator[tuple[str, str]]:
    """The values of the card's deciding rules."""
    for slot, rule in INTENTS[intent].rules.items():
        stated = [v for v in rule.values for w in rule.wordings if w.format(v) in card]
        if len(stated) != 1:
            raise ValueError(f"the policy card {card[:60]!r} has {len(stated)} rules for {slot!r}")
        yield slot, stated[0]


def _stance(message: str) -> tuple[str, tuple[str, str] | None, int | None]:
    """The stance of a message by how it ends, the wrong claim and the topic asked, if any."""
    if message.endswith(messages.ANGRY):
        return "angry", None, None
    for stance, asks in (("unknowable", lexicon.UNKNOWABLE), ("unsafe", lexicon.UNSAFE)):
        for topic, (question, *_) in enumerate(asks):
            if message.endswith(question):
                return stance, None, topic
    for field, wordings in messages.CLAIMS.items():
        for wording in wordings:
            pattern = re.escape(wording).replace(r"\{claim\}", "(.+?)")
            if found := re.search(f"{pattern}$", message):
                return "mistaken", (field, found.group(1)), None
    return "plain", None, None
