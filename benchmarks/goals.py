"""What is asked of each workload, as data: the floors that must hold, and the goals.

Ratios are of useful tokens a second, the product's over the peer's; memory is the product's peak
over that of plain TRL. None: nothing is asked.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Key = tuple[str, str, str]  # workload, shape, precision


class Asked(NamedTuple):
    """A floor and a goal of one figure."""

    floor: float | None
    goal: float | None


class Goal(NamedTuple):
    tuned: Asked
    plain: Asked
    memory: Asked


NOTHING = Asked(None, None)
_SMALL: dict[str, Goal] = {
    "sft": Goal(Asked(1.5, 2.0), Asked(3, 4), Asked(0.70, 0.55)),
    "reward": Goal(Asked(1.8, 2.5), Asked(3.5, 4.5), Asked(0.70, 0.55)),
    "dpo": Goal(Asked(2.2, 3.0), Asked(4.5, 6), Asked(0.50, 0.45)),
    "kto": Goal(Asked(1.8, 2.5), Asked(3.5, 4.5), Asked(0.70, 0.55)),
    "grpo": Goal(Asked(None, 4.0), Asked(4, 7), Asked(0.60, 0.45)),
    "rloo": Goal(Asked(None, 4.0), Asked(4, 7), Asked(0.60, 0.45)),
    "ppo": Goal(Asked(None, 4.0), Asked(4, 7), Asked(0.60, 0.45)),
}
# Of sampling, against transformers' generate as installed.
_SAMPLING: dict[tuple[str, str], Asked] = {
    ("sampling-8", "tiny"): Asked(2, 3),
    ("sampling-32", "tiny"): Asked(3.5, 5),
    ("sampling-128", "tiny"): Asked(2.9, 5),
    ("sampling-32", "small"): Asked(3, 4),
}
_BF16 = {"sft": Asked(2, None), "dpo": Asked(2.5, None)}
GOALS: dict[Key, Goal] = {
    **{(name, "small", "fp32"): goal for name, goal in _SMALL.items()},
    **{(*key, "fp32"): Goal(NOTHING, asked, NOTHING) for key, asked in _SAMPLING.items()},
    **{(name, "small", "bf16"): Goal(NOTHING, asked, NOTHING) for name, asked in _BF16.items()},
    **{
        (name, shape, "bf16"): Goal(NOTHING, Asked(2, None), NOTHING)
        for shape in ("0.5b", "1.5b")
        for name in ("dpo", "grpo", "ppo")
    },
}
# What `make bench` measures: the headline first, other number formats last and apart.
DEFAULT: list[Key] = [
    *[(name, "small", "fp32") for name in _SMALL],
    *[(*key, "fp32") for key in _SAMPLING],
    ("sft", "small", "bf16"),
    ("dpo", "small", "bf16"),
]
# And on one GPU, what is asked for first. Eight billion weights with an optimiser do not fit one,
# so they only sample.
_FIRST = ("sft", "dpo", "grpo", "ppo", "sampling-128")
GPU_DEFAULT: list[Key] = [
    *[(name, shape, "bf16") for shape in ("0.5b", "1.5b") for name in _FIRST],
    ("sampling-128", "8b", "bf16"),
    *[(name, shape, "bf16") for shape in ("0.5b", "1.5b") for name in ("reward", "kto", "rloo")],
]


def key_of(record: Mapping[str, Any]) -> Key:
    return record["workload"], record["shape"], record["precision"]


def figures(record: Mapping[str, Any]) -> dict[str, tuple[Asked, float, int]]:
    """Of each figure that something is asked of: what, the figure, and the direction that is
    better (1 or -1)."""
    goal = GOALS.get(key_of(record), Goal(NOTHING, NOTHING, NOTHING))
    tuned = record["ratio_tuned"]  # a GPU has none
    found = {
        "tuned": (goal.tuned if tuned else NOTHING, tuned["median"] if tuned else 0.0, 1),
        "plain": (goal.plain, record["ratio_plain"]["median"], 1),
        "memory": (goal.memory, record["memory_plain"], -1),
    }
    return {name: each for name, each in found.items() if each[0] != NOTHING}


def reaches(bound: float | None, value: float, sign: int) -> bool:
    return bound is not None and sign * value >= sign * bound


def verdicts(record: Mapping[str, Any]) -> dict[str, str]:
    """Of each figure that something is asked of: "goal", "floor", or "below", what it reached."""
    return {
        name: "goal"
        if reaches(asked.goal, value, sign)
        else "floor"
        if asked.floor is None or reaches(asked.floor, value, sign)
        else "below"
        for name, (asked, value, sign) in figures(record).items()
    }


def tally(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """How many floors hold, and how many goals are reached, of how many."""
    every = [each for record in records for each in figures(record).values()]
    return {
        kind: (
            sum(reaches(getattr(asked, kind), value, sign) for asked, value, sign in every),
            sum(getattr(asked, kind) is not None for asked, _, _ in every),
        )
        for kind in Asked._fields
    }
