"""Two samples a prompt, and what the simulated annotators say of them."""

from collections.abc import Sequence
from typing import NamedTuple

from truing.data.batch import Encoder
from truing.keys import generator
from truing.models.model import Policy
from truing.worlds import measuring
from truing.worlds.annotators import Annotator, Labelled, Shown, compare
from truing.worlds.service import Case


class Judged(NamedTuple):
    """Comparisons as labelled, and gold(chosen) - gold(rejected) of each."""

    rows: list[Labelled]
    gold_margins: list[float]


def judge(policy: Policy, cases: Sequence[Case], people: Sequence[Annotator], seed: int) -> Judged:
    """A pair of samples for each case, judged by one annotator of the panel."""
    shown = pairs(policy, cases, seed)
    rows = compare(shown, people, seed=seed)
    margins: list[float] = []
    for item, row in zip(shown, rows, strict=True):
        a, b = (score.total for score in item.scores)
        margins.append(a - b if row.comparison.chosen == item.replies[0] else b - a)
    return Judged(rows, margins)


def pairs(policy: Policy, cases: Sequence[Case], seed: int) -> list[Shown]:
    """Two different samples for each case, with their gold scores for the simulated annotators."""
    encoder = Encoder(policy.tokenizer)
    found: list[Shown] = []
    done = measuring.sampled(policy, cases, seed=seed, stream="pairs", samples=2)
    for case, (a, b) in zip(cases, done, strict=True):
        (text_a, score_a), (text_b, score_b) = (measuring.judged(case, encoder, t) for t in (a, b))
        if text_a != text_b:
            found.append(Shown(case.prompt, (text_a, text_b), (score_a, score_b), case.key))
    return found


def mislabel(judged: Judged, labels: str, seed: int) -> Judged:
    """The negative controls: labels at random (shuffled), or every label turned round (flipped)."""
    if labels == "panel":
        return judged
    draws = generator(seed, "shuffled labels").random(len(judged.rows))
    turn = [labels == "flipped" or draw < 0.5 for draw in draws]
    rows = [
        row._replace(comparison=row.comparison.swap()) if turned else row
        for row, turned in zip(judged.rows, turn, strict=True)
    ]
    margins = [-m if turned else m for m, turned in zip(judged.gold_margins, turn, strict=True)]
    return Judged(rows, margins)
