"""A reward of one's own: sentiment by a lexicon (``--reward examples.lexicon_reward:sentiment``).

The lexicon is the file named by the environment variable LEXICON: a line per word, the word, a tab,
its mean valence (the layout of VADER's). The score is VADER's normalisation of the summed valences,
``s / sqrt(s^2 + 15)`` (Hutto and Gilbert 2014), without its rules for negation and emphasis.
"""

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path


@cache
def lexicon(path: str) -> dict[str, float]:
    """Words and their valence, read once."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    return {row[0].lower(): float(row[1]) for row in rows}


def sentiment(prompts: Sequence[object], completions: Sequence[str]) -> list[float]:
    """One number in (-1, 1) for each completion."""
    path = os.environ.get("LEXICON")
    if path is None:
        raise ValueError("set the environment variable LEXICON to the path of a lexicon file")
    words = lexicon(path)
    totals = [
        sum(words.get(w, 0.0) for w in re.findall(r"[a-z']+", text.lower())) for text in completions
    ]
    return [total / (total * total + 15) ** 0.5 for total in totals]
