"""Rewards for tests, named as users name theirs: ``tests.judges:vowels``."""

import math
import re
from collections.abc import Sequence
from typing import Any

from truing.keys import generator


def vowels(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """Vowels in each completion."""
    return [float(sum(sign in "aeiou" for sign in text)) for text in completions]


def early(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """How early in the alphabet of bytes a completion begins, in [-1, 1]."""
    return [1 - ord(text[:1] or " ") % 32 / 16 for text in completions]


def one_too_few(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    return [0.0] * (len(completions) - 1)


def nothing(prompts: Sequence[Any], completions: Sequence[str]) -> list[Any]:
    return [None] * len(completions)


def no_number(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    return [math.nan] * len(completions)


def by_prompt(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """1 or -1, whatever was said: for prompts that end in an even digit, or in an odd one."""
    return [1.0 - 2.0 * (int(prompt[-1]) % 2) for prompt in prompts]


def half(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """As `early` for prompts with an even number, and 0 whatever was said for the others."""
    odd = [int(re.findall(r"\d+", prompt)[0]) % 2 for prompt in prompts]
    return [0.0 if o else x for o, x in zip(odd, early(prompts, completions), strict=True)]


def tree(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """A draw from N(0, 1) for each prompt and completion, always the same."""
    pairs = zip(prompts, completions, strict=True)
    return [float(generator(0, f"tree {p}:{c}").normal()) for p, c in pairs]


def tree_cost(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """Another such draw, of which what is good has more."""
    pairs = zip(prompts, completions, strict=True)
    own = [float(generator(0, f"cost {p}:{c}").normal()) for p, c in pairs]
    return [0.7 * r + 0.7 * c for r, c in zip(tree(prompts, completions), own, strict=True)]
