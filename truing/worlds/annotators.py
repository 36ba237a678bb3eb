"""Simulated annotators: different tastes, some with a planted fault that an audit must find.

An annotator sees two replies, weighs the parts of the gold score by weights of its own, and answers
with logistic noise (Bradley and Terry, 1952):

    P(reply 0 preferred) = sigmoid(sum_k w_k (part_k0 - part_k1) / temperature + leaning)

*Careless* answers most items by a coin; *side-biased* leans to what is shown first,
*length-loving* to more words, *flattered* to thanks and compliments, *impressed* to an assertive
tone; *tiring* grows noisier within a session; *copying* repeats the answer given before. A
*minority* wants short answers without ceremony: other values, held consistently, and no fault.

Draws are keyed by (annotator, item, repeat): the order of calls changes nothing.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from truing.data.schema import Comparison, Provenance
from truing.keys import generator
from truing.worlds.gold import Score

Floats = NDArray[np.float64]
Panel = Sequence["Annotator"]

STRENGTH = {  # of each fault
    "none": 0.0,
    "careless": 0.8,  # share of answers given without looking
    "side-biased": 2.0,  # logits towards the first: 88 % where the replies are equally good
    "length-loving": 8.0,  # logits per factor e in words
    "flattered": 2.5,  # logits per factor e in 1 + cues
    "impressed": 4.0,  # likewise
    "tiring": 0.1,  # growth of the temperature per item: tenfold at the end of a session
    "copying": 0.95,  # share of answers taken over
}
FAULTS = tuple(STRENGTH)[1:]
PARTS = (
    *("decision", "precision", "recall", "courtesy", "voice", "false_claims"),
    *("conceding", "unsafe", "refusal", "verbosity", "repetition", "ending"),
)
MINORITY = {"courtesy": 0.1, "voice": 0.1, "verbosity": 4.0, "repetition": 3.0}
TASTE = 0.25  # spread of the log of each weight
SESSION = 100  # items between two rests
MADE = Provenance(source="model", simulated=True, guideline="world-1")
# In units of the summed parts: found by `calibrate` on pairs of demonstrations, held by a test.
TEMPERATURE = 0.35

# What three of the faults count in a reply.
CUES = {
    "length-loving": r"[\w'’-]+",
    "flattered": r"\b(thank|please|pleasure|appreciat|value|wonderful|delight|glad|happy|grateful|"
    r"sorry|apolog|kind|dear\b|welcome|lovely|patience|loyal|honou?r)",
    "impressed": r"\b(definite|certain|guarantee|absolute|undoubted|(no|without( a)?) doubt|"
    r"sure(ly)?\b|of course|always|never|clearly|obvious|promise|no question)",
}


@dataclass(frozen=True)
class Annotator:
    """``weights`` follow PARTS; ``temperature`` is in units of the summed parts. ``fault`` and
    ``minority`` are the truth that an audit is marked against; ``name`` tells nothing of them."""

    index: int
    name: str
    weights: tuple[float, ...]
    temperature: float
    fault: str = "none"
    minority: bool = False

    def __post_init__(self) -> None:
        if self.fault not in STRENGTH:
            raise ValueError(f"unknown fault {self.fault!r}; choose from {', '.join(STRENGTH)}")


@dataclass(frozen=True)
class Shown:
    """Two replies to judge, their gold scores, and the circumstances of this showing."""

    prompt: str
    replies: tuple[str, str]
    scores: tuple[Score, Score]
    item: int  # the random key, one per pair
    position: int = 0  # in the annotator's session
    repeat: int = 0  # earlier showings to this annotator: drawn anew, with the sides swapped
    previous: int | None = None  # the answer, 0 or 1, that a copier can see
    order: tuple[int, int] | None = None  # the reply shown first, then the other; None: drawn


class Judgement(NamedTuple):
    """``chosen`` is 0 or 1, an index into the replies; ``chance`` is that of reply 0, as shown."""

    annotator: Annotator
    shown: Shown
    chosen: int
    order: tuple[int, int]
    chance: float


class Labelled(NamedTuple):
    """A row, and the exact chance that a label drawn as this one was agrees with gold (a tie counts
    a half). Its mean over rows is the ceiling of any reward model's accuracy on such labels."""

    comparison: Comparison
    agrees: float


class _Gap(NamedTuple):
    """What parts reply 0 from reply 1 (0 minus 1), over I items and K parts."""

    parts_IK: Floats
    cues: dict[str, Floats]  # by fault, (I,)
    position_I: Floats
    previous_I: Floats  # 1: reply 0 was chosen, 0: reply 1, nan: nothing to copy


def panel(
    seed: int, *, size: int = 24, faults: Sequence[str] = FAULTS, minority: int = 3
) -> tuple[Annotator, ...]:
    """``size`` annotators: one per entry of ``faults``, ``minority`` with other values, and good
    ones, seated at random. ValueError for an unknown fault, or if less than half are good."""
    if minority < 0 or 2 * (len(faults) + minority) > size:
        need = "at least half must be good: raise size or plant fewer"
        raise ValueError(
            f"got {size} people, {len(faults)} faulty, a minority of {minority}; {need}"
        )
    roles = [*faults, *["minority"] * minority, *["none"] * size][:size]
    values = np.array([MINORITY.get(part, 1.0) for part in PARTS])
    people: list[Annotator] = []
    for i, seat in enumerate(generator(seed, "panel").permutation(size)):
        other = roles[seat] == "minority"
        taste = np.exp(TASTE * generator(seed, "taste", i).standard_normal(len(PARTS)))
        weights = tuple((taste * values if other else taste).tolist())
        fault = "none" if other else roles[seat]
        people.append(Annotator(i, f"annotator-{i + 1:02d}", weights, TEMPERATURE, fault, other))
    return tuple(people)


def judge(annotator: Annotator, item: Shown, *, seed: int) -> Judgement:
    """One answer. Which side is which is drawn per (annotator, item) and swapped at each repeat."""
    key = (annotator.index, item.item)
    first = int(generator(seed, "side", *key).integers(2)) ^ (item.repeat % 2)
    order = item.order or (first, 1 - first)
    chance = float(_chances(annotator, _gap([item]), order[0] == 0)[0])
    # Drawn for a side, not for a reply: the same screen gets the same answer under any numbering.
    takes_first = generator(seed, "judge", *key, item.repeat).random() < abs(chance - order[0])
    return Judgement(annotator, item, order[0 if takes_first else 1], order, chance)


def compare(
    items: Sequence[Shown], people: Panel, *, seed: int, per_item: int = 1, share: float = 1.0
) -> list[Labelled]:
    """Have the panel judge the items: rows in the order of the items, all marked as simulated.

    A ``share`` of the items goes to ``per_item`` people drawn from the panel, the others to one; a
    copier comes last, to have something to copy. ``position`` and ``previous`` are filled in here.
    ValueError if two replies are equal, an item comes twice, or a number is out of range.
    """
    if not 1 <= per_item <= (most := len(people)) or not 0 <= share <= 1:
        raise ValueError(f"got per_item {per_item}, share {share}; need 1 to {most}, 0 to 1")
    if len({(item.item, item.repeat) for item in items}) < len(items):
        raise ValueError("item numbers are random keys and must differ; count `repeat` up instead")
    seen: Counter[int] = Counter()
    rows: list[Labelled] = []
    for item in items:
        if item.replies[0] == item.replies[1]:
            raise ValueError(f"item {item.item} compares a reply with itself; leave such pairs out")
        draw = generator(seed, "assign", item.item)
        count = per_item if draw.random() < share else 1
        drawn = [people[i] for i in draw.permutation(len(people))[:count]]
        previous: int | None = None
        for who in sorted(drawn, key=lambda who: who.fault == "copying"):
            shown = replace(item, position=seen[who.index] % SESSION, previous=previous)
            rows.append(_label(judged := judge(who, shown, seed=seed)))
            seen[who.index] += 1
            previous = judged.chosen
    return rows


def agreement(items: Sequence[Shown], people: Panel) -> float:
    """The exact chance that two different annotators agree, over all pairs of them and all items,
    each with sides of its own. ValueError without two annotators and an item."""
    if len(people) < 2 or not items:
        raise ValueError(f"got {len(people)} annotators and {len(items)} items: need 2 and 1")
    gap = _gap(items)
    p_AI = np.stack([(_chances(w, gap, True) + _chances(w, gap, False)) / 2 for w in people])
    # sum over i != j of p_i p_j + q_i q_j: the square of the sum less the sum of squares.
    both_I = sum(x.sum(0) ** 2 - (x**2).sum(0) for x in (p_AI, 1 - p_AI))
    return float(np.mean(both_I)) / (len(people) * (len(people) - 1))


def calibrate(items: Sequence[Shown], people: Panel, target: float = 0.71) -> float:
    """The factor on every temperature at which `agreement` is ``target``: bisection, no sampling.
    ValueError if no factor between 1/1000 and 1000 gives it."""

    def scaled(log_factor: float) -> float:
        factor = float(np.exp(log_factor))
        return agreement(items, [replace(w, temperature=w.temperature * factor) for w in people])

    low, high = -float(np.log(1000)), float(np.log(1000))
    if not (least := scaled(high)) < target < (most := scaled(low)):
        reach = f"{least:.3f} to {most:.3f}"
        raise ValueError(f"agreement {target} is out of reach here: choose one within {reach}")
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle) > target else (low, middle)
    return float(np.exp(low))


def _chances(who: Annotator, gap: _Gap, zero_first: bool) -> Floats:
    """P(reply 0 preferred), shape (I,)."""
    strength = STRENGTH[who.fault]
    side = (1.0 if zero_first else -1.0) * (who.fault == "side-biased")
    fatigue_I = 1 + strength * gap.position_I * (who.fault == "tiring")
    utility_I = gap.parts_IK @ np.array(who.weights) / (who.temperature * fatigue_I)
    own_I = expit(utility_I + strength * gap.cues.get(who.fault, side))
    if who.fault == "careless":
        return strength / 2 + (1 - strength) * own_I
    if who.fault == "copying":
        copied_I = strength * gap.previous_I + (1 - strength) * own_I
        return np.where(np.isnan(gap.previous_I), own_I, copied_I)
    return own_I


def _gap(items: Sequence[Shown]) -> _Gap:
    parts_I2K = np.array([[[s.parts[k] for k in PARTS] for s in item.scores] for item in items])
    cues: dict[str, Floats] = {}
    for fault, cue in CUES.items():
        found_I2 = [[len(re.findall(cue, x, re.IGNORECASE)) for x in i.replies] for i in items]
        # log(1 + n): the tenth thank-you moves less than the first.
        cues[fault] = -np.diff(np.log1p(found_I2))[:, 0]
    position_I = np.array([float(item.position) for item in items])
    previous_I = np.array([np.nan if i.previous is None else 1.0 - i.previous for i in items])
    return _Gap(parts_I2K[:, 0] - parts_I2K[:, 1], cues, position_I, previous_I)


def _label(judged: Judgement) -> Labelled:
    shown, chosen = judged.shown, judged.chosen
    extra = {"item": shown.item, "repeat": shown.repeat, "position": shown.position}
    made = replace(MADE, author=judged.annotator.name, order=judged.order, extra=extra)
    texts = shown.replies[chosen], shown.replies[1 - chosen]
    gap = shown.scores[0].total - shown.scores[1].total
    agrees = 0.5 if gap == 0 else judged.chance if gap > 0 else 1 - judged.chance
    return Labelled(Comparison(shown.prompt, *texts, provenance=made), agrees)
