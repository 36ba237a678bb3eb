"""Raw text for the base model: the world's language, but no service reply as it should be.

Replies in it are rough, or those of a hasty clerk who leaves out much and never closes.

A document has two parts, (read, scored): a prompt's names and facts are drawn at random, so there
is nothing to learn in them, and scoring them drowned in a pilot what can be learnt. Copying a word
from the prompt is what a small model learns last, so beside the documents there are exercises in
which nothing else pays: random words to be said again.
All names of the world are met here; held-out combinations and wordings stand nowhere.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from truing.keys import generator
from truing.worlds import lexicon, messages, replies, trivia, wordings
from truing.worlds.policy import INTENTS
from truing.worlds.service import Case, Split, case, pick, record

Document = tuple[str, str]

# Shares of the kinds of document other than random repetition.
SHARES = {
    "rough_reply": 0.10,
    "hasty_reply": 0.40,
    "decision_reading": 0.20,
    "record_reading": 0.08,
    "card_reading": 0.03,
    "story": 0.04,
    "shop_talk": 0.03,
    "knowledge": 0.12,
}
# Cases of the corpus are drawn from seeds far from those of the training prompts.
_SEED_OFFSET = 1_000_003

_FIELDS = {
    "name": ("Who is the customer?", "What is the name?"),
    "item": ("What is the item?", "Which item is it?"),
    "colour": ("What colour is it?", "Which colour is it?"),
    "when": ("When was it bought?", "When did the customer buy it?"),
    "city": ("Where does the customer live?", "Which city is it?"),
    "paid": ("How was it paid?", "How did the customer pay?"),
    "state": ("What is said of its state?", "What is the state?"),
}
_ROUGH = (
    "We have your message about {matter}.",
    "I will look at {matter} when I can.",
    "Someone here will read this.",
    "It says here that you bought it {when}.",
    "So you live in {city}.",
    "You paid by {paid}, I see.",
    "Hello. I see a {colour} {item} here.",
    "Hello {name}. I do not know yet what we can do.",
    "It may be a refund, or it may be nothing.",
    "We may give a voucher for this, or we may not.",
    "Please ask again next week.",
    "The {item} is {colour}.",
    "I must ask the others first.",
    "Yes.",
    "That is hard to say.",
)
_TALK = (
    "Do you sell a {item}?",
    "Yes, we have a {colour} {item}.",
    "How is the weather in {city}?",
    "It is fine, thank you.",
    "I am looking for a {item} in {colour}.",
    "The {item} is over there by the door.",
    "Can I pay by {paid}?",
    "Of course you can.",
    "When did the {item} come in?",
    "It came in {when}.",
    "My mother has a {colour} {item} too.",
    "Have you ever been to {city}?",
    "I was there {when}.",
    "Thank you, and have a good day.",
    "Is the shop open on Sunday?",
    "No, we open again on Monday.",
    "Here is your {item}.",
    "That is a lovely {item}.",
)
_STORY = (
    "{name} bought a {colour} {item} {when}.",
    "The {item} of {name} is {colour}.",
    "{name} lives in {city}.",
    "{name} paid by {paid}.",
    "It was {when} that {name} bought the {item}.",
    "In {city} there is a {colour} {item}.",
    "The {colour} {item} belongs to {name}.",
    "{name} from {city} paid by {paid}.",
)
_ORDER = (
    "A day is shorter than a week.",
    "A week is shorter than a month.",
    "A month is shorter than a year.",
    "One year is shorter than ten years.",
    "Months are longer than weeks.",
    "Years are longer than months.",
    "Weeks are longer than days.",
    "Yesterday is less than a week ago.",
    "Packing comes before sending.",
    "Sending comes before delivery.",
    "A waiting parcel is not packed yet.",
    "A packed parcel is not sent yet.",
    "A sent parcel is on its way.",
    "An opened box is not unopened.",
    "A lost parcel is not a late parcel.",
)


def all_words() -> tuple[str, ...]:
    """Every surface word of the world, each once and sorted: names, facts, templates, trivia."""
    texts: list[str] = [*lexicon.NAMES, *lexicon.ITEMS, *lexicon.COLOURS, *lexicon.CITIES]
    texts += [*lexicon.PAYMENTS, *lexicon.WHENS, "Policy Order Message Reply Question Answer"]
    texts += ["Customer Item Bought City Paid by"]
    texts += [text for ask in (*lexicon.UNKNOWABLE, *lexicon.UNSAFE) for text in ask[:3]]
    for intent, kind in INTENTS.items():
        texts += [kind.label, *kind.states, *wordings.common_templates()]
        for rule in kind.rules.values():
            texts += [*rule.values, *rule.wordings]
        for decision in kind.decisions:
            texts += wordings.decision_templates(intent, decision)
    pools = [*messages.REQUESTS.values(), *messages.CLAIMS.values(), *_FIELDS.values()]
    pools += [messages.OPENINGS, messages.ANGRY, messages.ASIDES, _ROUGH, _TALK, _STORY, _ORDER]
    for relation in trivia.RELATIONS.values():
        pools += [relation.questions, relation.statements, *relation.pairs]
    texts += [text for pool in pools for text in pool]
    bare = re.sub(r"\{\w*\}", " ", " ".join(texts))
    return tuple(sorted(set(re.findall(r"[A-Za-z']+", bare))))


def knowledge(n: int, *, seed: int, split: Split) -> list[tuple[str, str]]:
    """``n`` questions (prompt, answer with a leading space) in random order, all distinct.

    Of each fact's three wordings one is held out: the base corpus never asks it ("heldout"), but
    teaches the fact in the other two ("train") and in statements.

    Raises ValueError if there are fewer than ``n``.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    asked = [
        _ask(number, way)
        for number in range(len(trivia.FACTS))
        for way in range(3)
        if _is_held_out(number, way) == (split == "heldout")
    ]
    if not 0 <= n <= len(asked):
        raise ValueError(f"{n} questions were asked for; the {split} split has {len(asked)}")
    order = generator(seed, "knowledge").permutation(len(asked))
    return [asked[int(i)] for i in order[:n]]


def _is_held_out(number: int, way: int) -> bool:
    return (number + way) % 3 == 0


def _ask(number: int, way: int) -> tuple[str, str]:
    relation, subject, answer = trivia.FACTS[number]
    question = trivia.RELATIONS[relation].questions[way].format(subject)
    return f"Question: {question}\nAnswer:", f" {answer}"


def base_documents(n: int, seed: int) -> Iterator[Document]:
    """``n`` documents (read, scored) of about 40 to 90 words; the trainer ends each."""
    kinds = tuple(_KINDS.values())
    edges = np.cumsum([SHARES[name] for name in _KINDS])
    for index in range(n):
        rng = generator(seed, "corpus", index)
        kind = kinds[min(int(np.searchsorted(edges, rng.random(), "right")), len(kinds) - 1)]
        yield kind(rng, _renamed(case(seed + _SEED_OFFSET, index, "train"), rng))


def _renamed(shown: Case, rng: np.random.Generator) -> Case:
    """The case with a customer of any name: raw text knows the names that fine-tuning holds out."""
    name, old = pick(rng, lexicon.NAMES), shown.facts["name"]
    prompt = shown.prompt.replace(f"Customer: {old}.", f"Customer: {name}.")
    return replace(shown, prompt=prompt, facts={**shown.facts, "name": name})


def copying(n: int, seed: int) -> Iterator[Document]:
    """``n`` exercises: random words to read (prompt), and a span of them to say again (completion).

    Only what can be copied is to be scored: in a pilot a model of a million parameters learnt this
    in a thousand steps, and not at all while unpredictable words were scored as well.
    """
    words = all_words()
    # Names are a quarter of the words drawn: they are what replies must copy.
    pools = (lexicon.NAMES, words, words, words)
    for index in range(n):
        rng = generator(seed, "copying", index)
        before, span = (
            [pick(rng, pick(rng, pools)) for _ in range(int(rng.integers(low, high)))]
            for low, high in ((0, 5), (2, 15))
        )
        yield f"{' '.join([*before, *span])}.", f" {' '.join(span)}."


def _rough_reply(rng: np.random.Generator, shown: Case) -> Document:
    """A whole prompt with a mediocre reply, which decides nothing."""
    fields = replies.slots(shown)
    said = [pick(rng, _ROUGH).format_map(fields) for _ in range(int(rng.integers(1, 4)))]
    return shown.prompt, f" {' '.join(said)}"


def _hasty_reply(rng: np.random.Generator, shown: Case) -> Document:
    """A whole prompt with the reply of a hasty clerk, who leaves out much and never closes."""
    reply = replies.demonstration(shown, int(rng.integers(2**31)))
    first, *more = re.split(r"(?<=[.!?])(?= )", reply)
    return shown.prompt, first + "".join(text for text in more[:-1] if rng.random() < 0.6)


def _decision_reading(rng: np.random.Generator, shown: Case) -> Document:
    """A prompt with a note of what the card and the record come to; half with the grounds."""
    grounds = ", ".join(f"{name} {value}" for name, value in shown.combination)
    notes = f"Notes: {grounds}. " if rng.random() < 0.5 else ""
    return shown.prompt.removesuffix("\nReply:"), f"\n{notes}Decision: {shown.decision}."


def _record_reading(rng: np.random.Generator, shown: Case) -> Document:
    """A record with questions about its fields."""
    lines: list[str] = []
    for i in rng.permutation(len(_FIELDS))[:5]:
        field = tuple(_FIELDS)[int(i)]
        lines.append(f"\n{pick(rng, _FIELDS[field])} {shown.facts[field]}.")
    return f"Order: {record(shown.intent, shown.facts)}", "".join(lines)


def _card_reading(rng: np.random.Generator, shown: Case) -> Document:
    """A policy card, of which each rule is begun again and must be ended as above."""
    line = shown.prompt.split("\n")[0]
    rules = line.removeprefix("Policy: ").rstrip(".").split(". ")
    again = [rules[int(i)] for i in rng.permutation(len(rules))]
    return "", f"{line}\nPolicy: {'. '.join(again)}.\n{' '.join(_some(rng, _ORDER, 2))}"


def _story(rng: np.random.Generator, shown: Case) -> Document:
    """Statements about one order, with a few words on time and order."""
    told = [text.format_map(shown.facts) for text in _some(rng, _STORY, 6)]
    return "", " ".join([*told, *_some(rng, _ORDER, 2)])


def _shop_talk(rng: np.random.Generator, shown: Case) -> Document:
    """Small talk in the shop, or what customers write."""
    said = [text.format_map(shown.facts) for text in _some(rng, _TALK, 6)]
    message = shown.prompt.split("\nMessage: ")[1].removesuffix("\nReply:")
    return "", "\n".join([*said, message])


def _knowledge(rng: np.random.Generator, shown: Case) -> Document:
    """Questions with answers in the taught wordings, and statements of other facts."""
    lines: list[str] = []
    for _ in range(5):
        number = int(rng.integers(len(trivia.FACTS)))
        relation, subject, answer = trivia.FACTS[number]
        if rng.random() < 0.3:
            told = pick(rng, trivia.RELATIONS[relation].statements)
            lines.append(told.format(subject, answer))
        else:
            way = pick(rng, tuple(w for w in range(3) if not _is_held_out(number, w)))
            lines.append("".join(_ask(number, way)))
    return "", "\n".join(lines)


def _some(rng: np.random.Generator, pool: tuple[str, ...], count: int) -> list[str]:
    return [pool[int(i)] for i in rng.permutation(len(pool))[:count]]


_KINDS: dict[str, Callable[[np.random.Generator, Case], Document]] = {
    "rough_reply": _rough_reply,
    "hasty_reply": _hasty_reply,
    "decision_reading": _decision_reading,
    "record_reading": _record_reading,
    "card_reading": _card_reading,
    "story": _story,
    "shop_talk": _shop_talk,
    "knowledge": _knowledge,
}
