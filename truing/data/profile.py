"""What a dataset is like, counted before anything is learnt from it.

Lengths are of text, in characters: what annotators saw. Tokens are the business of the stage, which
knows its tokenizer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from truing.data.schema import (
    Comparison,
    Label,
    Prompt,
    Provenance,
    Ranking,
    Record,
    Steps,
    Text,
)

Figures = dict[str, Any]


def profile(rows: Sequence[Record], held_out: Sequence[Record] | None = None) -> Figures:
    """Counts, lengths, repeats, balance and, with rows to evaluate on, leakage, by name.

    Texts count as the same where they differ in nothing but case and white space. A share is
    between 0 and 1.
    """
    prompts = Counter(_key(row.prompt) for row in rows)
    contents = Counter(_content(row) for row in rows)
    figures: Figures = {
        "rows": len(rows),
        "distinct_prompts": len(prompts),
        "repeated_rows": len(rows) - len(contents),
        "prompt_characters": spread(len(_said(row.prompt)) for row in rows),
        **_answers(rows),
        **_judges(rows),
    }
    if held_out:
        theirs = Counter(_key(row.prompt) for row in held_out)
        del theirs[_key("")]  # texts to model have no prompt to share
        shared = sum(n for prompt, n in theirs.items() if prompt in prompts)
        figures |= {
            "evaluation_rows": len(held_out),
            "evaluation_prompts_trained_on": shared,
            "evaluation_rows_trained_on": sum(_content(row) in contents for row in held_out),
        }
    return figures


def _said(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(m.content for m in text)


def _key(text: Text) -> int:
    """A hash, for the texts themselves would take as much memory again as the data."""
    return hash(" ".join(_said(text).casefold().split()))


def _texts(row: Record) -> tuple[Text, ...]:
    """The answers of a record."""
    if isinstance(row, Comparison):
        return (row.chosen, row.rejected)
    if isinstance(row, Ranking | Steps):
        return row.completions
    return () if isinstance(row, Prompt) else (row.completion,)


def _content(row: Record) -> int:
    """What a record says, whoever judged it, as a hash."""
    verdict = {Label: "label", Ranking: "ranks", Steps: "labels"}.get(type(row))
    said = getattr(row, verdict) if verdict else None
    return hash((_key(row.prompt), *map(_key, _texts(row)), said))


def spread(lengths: Iterable[int]) -> Figures:
    """Median, mean and longest."""
    found = list(lengths)
    return {"median": median(found), "mean": round(fmean(found), 1), "longest": max(found)}


def _answers(rows: Sequence[Record]) -> Figures:
    """Lengths of the answers, and how the judgements fall."""
    if all(isinstance(row, Prompt) for row in rows):
        return {}
    if pairs := [ends for row in rows if (ends := _ends(row))]:
        better, worse = zip(*((len(_said(a)), len(_said(b))) for a, b in pairs), strict=True)
        longer = [(a > b) + (a == b) / 2 for a, b in zip(better, worse, strict=True)]
        return {
            "chosen_characters": spread(better),
            "rejected_characters": spread(worse),
            "chosen_longer": round(fmean(longer), 3),
            **_ranks(rows),
        }
    figures: Figures = {
        "completion_characters": spread(len(_said(t)) for row in rows for t in _texts(row))
    }
    if labels := [row.label for row in rows if isinstance(row, Label)]:
        figures["labels_true"] = round(fmean(labels), 3)
    if steps := [right for row in rows if isinstance(row, Steps) for right in row.labels]:
        figures |= {"steps": len(steps), "steps_right": round(fmean(steps), 3)}
    return figures


def _ends(row: Record) -> tuple[Text, Text] | None:
    """The best and the worst answer of a judgement; None where it tells none apart."""
    if isinstance(row, Comparison):
        return (row.chosen, row.rejected)
    if isinstance(row, Ranking) and max(row.ranks) > min(row.ranks):
        worst = row.ranks.index(max(row.ranks))
        return (row.completions[row.ranks.index(min(row.ranks))], row.completions[worst])
    return None


def _ranks(rows: Sequence[Record]) -> Figures:
    """Of rankings: how many answers they have, and how many of their pairs are ties."""
    rankings = [row for row in rows if isinstance(row, Ranking)]
    if not rankings or all(len(row.ranks) == 2 for row in rankings):
        return {}
    pairs = sum(len(row.ranks) * (len(row.ranks) - 1) // 2 for row in rankings)
    tied = sum(n * (n - 1) // 2 for row in rankings for n in Counter(row.ranks).values())
    return {
        "answers_ranked": spread(len(row.ranks) for row in rankings),
        "pairs": pairs,
        "pairs_tied": round(tied / pairs, 3),
    }


def _judges(rows: Sequence[Record]) -> Figures:
    """Who judged, or wrote: how many of them, and the share of rows that no person made."""
    told: list[Provenance] = [row.provenance for row in rows if not isinstance(row, Prompt)]
    if not told:
        return {}
    authors = {who.author for who in told if who.author}
    simulated = fmean(who.simulated for who in told)
    shown_first = [
        who.order[0] == 0
        for row in rows
        if isinstance(row, Comparison)
        for who in [row.provenance]
        if len(who.order) == 2
    ]
    return {
        **({"authors": len(authors)} if authors else {}),
        **({"simulated": round(simulated, 3)} if simulated else {}),
        **({"chosen_shown_first": round(fmean(shown_first), 3)} if shown_first else {}),
    }


def lines(figures: Figures) -> dict[str, str | int | float]:
    """The figures as they are printed."""
    made: dict[str, str | int | float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            value = (
                f"median {value['median']:g}, mean {value['mean']:g}, longest {value['longest']}"
            )
        elif isinstance(value, float):
            value = f"{value:.1%}"
        made[name.replace("_", " ")] = value
    return made
