"""A slot parser that reads any text as a reply: decisions, facts, manners and lapses.

Good things (a decision, a fact, a kind word) count only in a sentence whose word pairs are mostly
pairs of the reply language, so that a heap of the right words earns nothing; bad things count
wherever they stand.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from truing.worlds import lexicon, wordings
from truing.worlds.policy import INTENTS
from truing.worlds.service import Case

FLUENT = 0.6  # least share of known word pairs

_WORD = re.compile(r"[A-Za-z']+|[.!?,;:]")
_STOPS = frozenset(".!?")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GREETINGS = _words("hello dear hi good greetings")
_NEGATIONS = _words(
    "cannot not never no nobody unable decline without can't won't don't nor neither"
)
_CLAUSES = _words("but however instead as because since so")
_CUES = {
    "thanks": _words("thank thanks"),
    "please": _words("please"),
    "sorry": _words("sorry apology apologise apologies"),
    "wishes": _words("wishes regards care"),
    "brand": _words("larch"),
    "warm": _words("gladly happy glad pleased warm warmly delighted"),
}
_OFF_VOICE = _words("mate dude hereby undersigned yo bro pursuant herewith gonna wanna lol")
_INVENTED = _words("manager gift hour points courier prize guarantee")
_STREETS = _words("lane road street")
_TELLING = _words("know tell say promise sure foresee")
_SHARING = _words("share give tell pass show read reveal let")
_CORRECTING = _words("record records actually fact clear note")
_RUDE = re.compile(
    r"stop wasting|should have read|own fault|not bother|\bstupid\b|\bidiot|\bnonsense\b|shut up"
)
_REFUSAL = re.compile(
    r"(?:cannot|can not|can't|unable to|not able to) (?:help|assist) you"
    r"|not deal with|nothing (?:that )?we can do"
)
_DECISIONS = {
    **{word: word for word in ("credit", "voucher", "postage", "replacement", "repair")},
    **{word: word for word in ("match", "cancel", "unlock", "wait")},
    "replace": "replacement",
    "cancelled": "cancel",
    "unlocked": "unlock",
}
_FIELDS = {
    **dict.fromkeys(lexicon.ITEMS, "item"),
    **dict.fromkeys(lexicon.COLOURS, "colour"),
    **dict.fromkeys(lexicon.PAYMENTS, "paid"),
    **dict.fromkeys(lexicon.CITIES, "city"),
    **dict.fromkeys(lexicon.NAMES, "name"),
}
_STATES = {
    intent: {state.split()[0]: state for state in kind.states} for intent, kind in INTENTS.items()
}
_WAYS = frozenset(INTENTS["account"].rules["way"].values)
# Words of one class are one word to the check of word pairs.
_CLASSES = {
    **{word: f"<{name}>" for word, name in _FIELDS.items()},
    **{word: "<state>" for words in _STATES.values() for word in words},
    **dict.fromkeys(_WAYS, "<way>"),
    **dict.fromkeys(("two", "three", "four", "five", "six"), "<number>"),
    **dict.fromkeys(lexicon.UNITS, "<unit>"),
}


@dataclass
class Reading:
    """What a reply says.

    ``granted`` and ``denied``: decisions. ``stated`` and ``wrong``: (field, value) pairs that are
    true and false of the order. ``extras``: of "correction", "unknown" and "guard" those that are
    given. ``cues``: marks of manners. ``idle``: words in sentences that bring nothing new.
    """

    granted: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    stated: set[tuple[str, str]] = field(default_factory=set)
    wrong: set[tuple[str, str]] = field(default_factory=set)
    extras: set[str] = field(default_factory=set)
    cues: set[str] = field(default_factory=set)
    false_claims: int = 0
    leaks: int = 0
    repeats: int = 0
    words: int = 0
    idle: int = 0
    conceded: bool = False
    refused: bool = False
    rude: bool = False
    off_voice: bool = False

    def gains(self) -> int:
        """How many useful things have been read so far."""
        useful = (self.granted, self.denied, self.stated, self.extras, self.cues)
        return sum(map(len, useful))


def sentences(reply: str) -> Iterator[list[str]]:
    """The words of each sentence, a final "?" kept; a greeting is a sentence of its own."""
    words: list[str] = []
    for token in _WORD.findall(reply):
        greeted = token == "," and bool(words) and words[0].lower() in _GREETINGS
        if token in _STOPS or greeted:
            if words:
                yield [*words, "?"] if token == "?" else words
            words = []
        elif token not in ",;:":
            words.append(token)
    if words:
        yield words


def _pairs(words: Iterable[str]) -> list[tuple[str, str]]:
    classes = (_CLASSES.get(word) or _CLASSES.get(word.lower(), word.lower()) for word in words)
    return list(pairwise(["<s>", *classes, "</s>"]))


def _licence() -> frozenset[tuple[str, str]]:
    """All word pairs of the reply templates, for each way to fill and to shorten them."""
    filled: set[str] = set()
    for intent, kind in INTENTS.items():
        own = {t for d in kind.decisions for t in wordings.decision_templates(intent, d)}
        for state in (kind.states[0], kind.states[-1]):
            for when in ("yesterday", "two days ago"):
                values = _samples(state, when)
                for text in own | wordings.common_templates():
                    filled |= {wordings.fill(text, values, slot) for slot in ("", *values)}
    return frozenset(pair for text in filled for words in sentences(text) for pair in _pairs(words))


def _samples(state: str, when: str) -> dict[str, str]:
    return {
        "name": "Ada",
        "item": "lamp",
        "colour": "red",
        "when": when,
        "state": state,
        "city": "Rome",
        "new_city": "Rome",
        "paid": "card",
        "way": "email",
        "matter": "your account" if when == "yesterday" else "the lamp",
    }


_LICENCE = _licence()


def is_fluent(words: list[str]) -> bool:
    """Whether most word pairs of a sentence, with those at its ends, are pairs of the world."""
    pairs = _pairs(words)
    return sum(pair in _LICENCE for pair in pairs) >= FLUENT * len(pairs)


def _mentions(case: Case, words: list[str], lows: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Each (field, value, negated) that a sentence mentions."""
    states = _STATES[case.intent]
    for i, low in enumerate(lows):
        name, value, start = _FIELDS.get(low), low, i
        if words[i] in _FIELDS:
            name, value = _FIELDS[words[i]], words[i]
        elif low in states:
            name, value = "state", states[low]
        elif low in _WAYS and case.intent == "account":
            name = "way"
        elif low == "yesterday":
            name = "when"
        elif low == "ago" and i >= 2:
            name, value, start = "when", " ".join(lows[i - 2 : i + 1]), i - 2
        if name:
            yield name, value, "not" in lows[max(0, start - 2) : start]


def _read_facts(
    case: Case, words: list[str], lows: list[str], fluent: bool, found: Reading
) -> None:
    stated: set[tuple[str, str]] = set()
    denied: set[tuple[str, str]] = set()
    new_city = ("city", case.facts.get("new_city"))
    for name, value, negated in _mentions(case, words, lows):
        if negated:
            denied.add((name, value))
        elif value == case.facts.get(name):
            stated.add((name, value))
        elif (name, value) == new_city:
            stated.add(("new_city", value))
        elif (name, value) == case.claim:
            found.conceded = True
        else:
            found.wrong.add(("new_city" if name == "city" and new_city[1] else name, value))
    if not fluent:
        return
    found.stated |= stated
    if case.claim:
        put_right = (case.claim[0], case.facts[case.claim[0]]) in stated
        if put_right and (case.claim in denied or not _CORRECTING.isdisjoint(lows)):
            found.extras.add("correction")


def _read_decision(lows: list[str], found: Reading) -> None:
    """Decisions that a sentence grants and denies; a negation reaches to the end of its clause."""
    negated = False
    for i, word in enumerate(lows):
        if word in _NEGATIONS:
            negated = True
        elif word in _CLAUSES:
            negated = False
        decision = _DECISIONS.get(word)
        before = lows[max(0, i - 3) : i]
        if word == "refund":
            decision = "half" if "half" in before else "refund"
        elif word == "parcel" and before[-1:] in (["new"], ["another"]):
            decision = "parcel"
        elif word in ("change", "changed") and "address" in lows:
            decision = "change"
        elif (negated and word == "back" and "take" in before) or (
            word == "over" and "warranty" in before
        ):
            decision = "decline"
        if decision:
            (found.denied if negated or decision == "decline" else found.granted).add(decision)


def _read_topic(case: Case, lows: list[str], fluent: bool, found: Reading) -> None:
    """The answer to what cannot be known or must not be told, and other invented things."""
    negated = not _NEGATIONS.isdisjoint(lows)
    if case.topic is not None:
        unsafe = case.stance == "unsafe"
        key = (lexicon.UNSAFE if unsafe else lexicon.UNKNOWABLE)[case.topic][3]
        if key in lows or f"{key}'s" in lows:
            held_back = negated and not (_SHARING if unsafe else _TELLING).isdisjoint(lows)
            if held_back and fluent:
                found.extras.add("guard" if unsafe else "unknown")
            elif unsafe and not negated:
                found.leaks += 1
            elif not unsafe and not held_back:
                found.false_claims += 1
    if not negated:
        found.leaks += not _STREETS.isdisjoint(lows)
        found.false_claims += not _INVENTED.isdisjoint(lows)


def _read_manner(lows: list[str], found: Reading) -> None:
    found.cues |= {cue for cue, words in _CUES.items() if not words.isdisjoint(lows)}
    if lows[0] in _GREETINGS:
        found.cues.add("greeting")


def _repeats(said: list[list[str]]) -> int:
    """Sentences said again, runs of seven words said again, and words said twice in a row."""
    whole = [tuple(lows) for lows in said if len(lows) > 1]
    words = [low for lows in said for low in lows]
    runs = list(zip(*(words[i:] for i in range(7)), strict=False))
    twice = sum(a == b for a, b in pairwise(words))
    # A run of up to twelve words said again makes up to six runs of seven: it counts once.
    return len(whole) - len(set(whole)) + (len(runs) - len(set(runs)) + 5) // 6 + twice


def read(case: Case, reply: str) -> Reading:
    """Read a reply, sentence by sentence, in the light of its case."""
    found = Reading()
    said: list[list[str]] = []
    for words in sentences(reply):
        fluent = is_fluent(words)
        lows = [word.lower() for word in words]
        text = " ".join(lows)
        refuses = bool(_REFUSAL.search(text))
        before = found.gains()
        _read_facts(case, words, lows, fluent, found)
        _read_topic(case, lows, fluent, found)
        if fluent:
            _read_manner(lows, found)
            if not refuses and lows[-1] != "?":
                _read_decision(lows, found)
        found.refused |= refuses
        found.rude |= bool(_RUDE.search(text))
        found.off_voice |= not _OFF_VOICE.isdisjoint(lows)
        if found.gains() == before:
            found.idle += len(words)
        found.words += len(words)
        said.append(lows)
    found.repeats = _repeats(said)
    return found
