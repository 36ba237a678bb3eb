"""Several samples a prompt, and what the simulated annotators say of them, two by two."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from truing.data.batch import Encoder
from truing.data.schema import Comparison, Ranking
from truing.keys import generator
from truing.models.model import Policy
from truing.worlds import measuring
from truing.worlds.annotators import Annotator, Labelled, Shown, compare
from truing.worlds.service import Case


class Judged(NamedTuple):
    """Comparisons as labelled, and gold(chosen) - gold(rejected) of each."""

    rows: list[Labelled]
    gold_margins: list[float]

    @property
    def comparisons(self) -> list[Comparison]:
        return [row.comparison for row in self.rows]


def judge(
    policy: Policy, cases: Sequence[Case], people: Sequence[Annotator], seed: int, *, samples: int
) -> Judged:
    """Every pair among the different ``samples`` of each case, judged by one annotator each."""
    shown = pairs(policy, cases, seed, samples)
    rows = compare(shown, people, seed=seed)
    margins: list[float] = []
    for item, row in zip(shown, rows, strict=True):
        a, b = (score.total for score in item.scores)
        margins.append(a - b if row.comparison.chosen == item.replies[0] else b - a)
    return Judged(rows, margins)


def pairs(policy: Policy, cases: Sequence[Case], seed: int, samples: int) -> list[Shown]:
    """All pairs of different samples of each case, with gold scores for the annotators."""
    encoder = Encoder(policy.tokenizer)
    found: list[Shown] = []
    done = measuring.sampled(policy, cases, seed=seed, stream="pairs", samples=samples)
    most = samples * (samples - 1) // 2
    for case, group in zip(cases, done, strict=True):
        replies = dict(measuring.judged(case, encoder, trajectory) for trajectory in group)
        for i, ((a, score_a), (b, score_b)) in enumerate(combinations(replies.items(), 2)):
            item = most * case.key + i
            found.append(Shown(case.prompt, (a, b), (score_a, score_b), item))
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


def rankings(comparisons: Sequence[Comparison]) -> list[Ranking]:
    """The replies to each prompt by how many comparisons they won (Copeland's rule); who won
    equally many shares a rank. A prompt on which all won equally many says nothing and is left out.
    """
    wins: dict[str, dict[str, int]] = {}
    about: dict[str, Comparison] = {}
    for row in comparisons:
        table = wins.setdefault(str(row.prompt), {})
        table[str(row.chosen)] = table.get(str(row.chosen), 0) + 1
        table.setdefault(str(row.rejected), 0)
        about[str(row.prompt)] = row
    found: list[Ranking] = []
    for prompt, table in wins.items():
        order = sorted(set(table.values()), reverse=True)
        if len(order) > 1:
            ranks = tuple(order.index(won) for won in table.values())
            told = {"comparisons": sum(table.values())}
            origin = replace(about[prompt].provenance, author="panel", order=(), extra=told)
            found.append(Ranking(prompt, tuple(table), ranks, origin))
    return found


def extremes(ranked: Sequence[Ranking]) -> list[Comparison]:
    """The best reply to each prompt against the worst; of equals, the first."""
    return [
        Comparison(
            r.prompt,
            r.completions[r.ranks.index(min(r.ranks))],
            r.completions[r.ranks.index(max(r.ranks))],
            provenance=r.provenance,
        )
        for r in ranked
    ]
