"""Ten thousand broken rows of every format: each is read or refused by its number, none is lost."""

import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.dialects import CASES
from truing.data.formats import DataError, load
from truing.data.schema import (
    KINDS,
    Comparison,
    Demonstration,
    Label,
    Prompt,
    Ranking,
    Record,
    Steps,
)

JUNK: list[Any] = [
    *(None, True, False, 0, -1, 3, 1.5, float("nan"), float("inf"), 10**30, "", " ", "text"),
    *([], {}, [None], [[]], {"a": None}, ["x", 1], {"role": "user"}, "\n\nHuman: x", "x" * 5000),
    *([{"role": "user", "content": 3}], {"value": "x"}, [{"value": "x", "rank": "first"}]),
]
TURNS = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
HH = "\n\nHuman: Q?\n\nAssistant: "
SEEDS: list[tuple[type[Record], dict[str, Any]]] = [
    *((kind, row) for kind, row, _ in CASES.values()),
    (Prompt, {"prompt": "Q?", "key": 3}),
    (Demonstration, {"prompt": "Q?", "completion": "A."}),
    (Demonstration, {"messages": TURNS}),
    (Demonstration, {"text": "A story."}),
    (Comparison, {"prompt": "Q?", "chosen": "a", "rejected": "b", "margin": 0.5}),
    (Comparison, {"chosen": f"{HH}a", "rejected": f"{HH}b"}),
    (Ranking, {"prompt": "Q?", "completions": ["a", "b", "c"], "ranks": [0, 1, 2]}),
    (Label, {"prompt": "Q?", "completion": "A.", "label": 1, "provenance": {"author": "ann"}}),
    (Steps, {"prompt": TURNS[:1], "completions": ["a", "b"], "labels": [0, 1], "simulated": True}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything inside a value."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    found = [path] if path else []
    return found + [p for key, item in inner for p in places(item, (*path, key))]


def broken(dice: random.Random, kind: type[Record] | None = None) -> dict[str, Any]:
    """A row with one to three things wrong in it, or moved, or doubled; mostly one of ``kind``."""
    own = [row for of, row in SEEDS if kind is None or (of is kind and dice.random() < 0.9)]
    row = copy.deepcopy(dice.choice(own or [row for _, row in SEEDS]))
    for _ in range(dice.randint(1, 3)):
        ways = places(row)
        if not ways:
            break
        *path, key = dice.choice(ways)
        holder: Any = row
        for step in path:
            holder = holder[step]
        match dice.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 2:  # something from elsewhere in a row
                _, other = dice.choice(SEEDS)
                part: Any = other
                for step in dice.choice(places(other)):
                    part = part[step]
                holder[key] = copy.deepcopy(part)
            case _:
                holder[key] = copy.deepcopy(dice.choice(JUNK))
    return row


def numbers(data: Any) -> set[int]:
    """The rows that were read, or of which something was said."""
    return {*data.row_numbers, *(n for which in data.noted.values() for n in which)}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_row_is_read_counted_or_refused(kind: type[Record], tmp_path: Path) -> None:
    dice, path = random.Random(f"fuzz {kind.__name__}"), tmp_path / "rows.jsonl"
    ends: Counter[str] = Counter()
    for _ in range(10_000 // len(KINDS) + 1):
        row = broken(dice, kind)
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        try:
            data = load(path, kind)
        except DataError as error:
            said = str(error)
            assert "rows.jsonl" in said, said
            # The row, the columns, or all that there was: never a word about nothing.
            assert ", row 1, field" in said or "the columns" in said or "no row" in said, said
            assert "needed: " in said
            ends["refused"] += 1
            continue
        assert len(data) >= 1
        assert numbers(data) == {1}
        ends["read"] += 1
    # A fuzz in which one of the two hardly happens proves little.
    assert min(ends["read"], ends["refused"]) > 50, ends


def test_a_broken_row_among_good_ones_is_named_or_counted(tmp_path: Path) -> None:
    """In a file of many rows of one format, every number is accounted for."""
    dice, path, refused = random.Random("many"), tmp_path / "rows.jsonl", 0
    for name, (kind, good, _) in CASES.items():
        for _ in range(20):
            bad = broken(dice)
            path.write_text("".join(json.dumps(r) + "\n" for r in (good, bad, good)))
            try:
                data = load(path, kind)
            except DataError as error:
                assert "row 2" in str(error) or "columns" in str(error), name  # noqa: PT017
                refused += 1
                continue
            assert numbers(data) == {1, 2, 3}, (name, bad)
    assert refused > 100
