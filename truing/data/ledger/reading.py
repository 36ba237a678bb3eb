"""Judgements read in bulk: item by item, a page at a time, in memory that does not grow."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Connection, Text, bindparam, select, type_coerce

from truing.data.ledger.entries import Item
from truing.data.ledger.tables import items, judgements
from truing.data.ledger.texts import BETWEEN, read_items

PAGE = 500  # items
_NAMES = (
    *("id", "item_id", "annotator_id", "kind", "purpose", "arm", "value", "text", "shown"),
    *("retest", "guideline_id", "active_ms", "round", "source", "simulated", "late", "at"),
    *("assignment_id", "token"),
)


class Said(NamedTuple):
    """A judgement that counts, as exports need it; the fields are those of `Judgement`."""

    id: int
    item_id: int
    annotator_id: int
    kind: str
    purpose: str
    arm: str
    value: dict[str, Any]
    text: str | None
    shown: list[int]
    retest: int
    guideline_id: int | None
    active_ms: int
    round: int
    source: str
    simulated: bool
    late: bool
    at: int
    assignment_id: int | None
    token: str


_NUMBERS = (
    select(items.c.id)
    .where(items.c.campaign_id == bindparam("campaign"), items.c.id > bindparam("after"))
    .order_by(items.c.id)
    .limit(PAGE)
)
_PARSED = ("value", "shown")
_SAID = (
    select(
        *(
            type_coerce(judgements.c[name], Text) if name in _PARSED else judgements.c[name]
            for name in _NAMES
        )
    )
    .where(judgements.c.campaign_id == bindparam("campaign"))
    .where(judgements.c.item_id.between(bindparam("first"), bindparam("last")))
    .where(judgements.c.status == "current")
    .order_by(judgements.c.item_id, judgements.c.id)
)


def judged(c: Connection, campaign_id: int) -> Iterator[tuple[Item, Sequence[Said]]]:
    """Each item of a campaign of which something was said that counts, with what was said, oldest
    first. The connection must read one moment (`Store.reading` with ``snapshot``). Equal values are
    one object: they are to be read, not changed."""
    last = 0
    at = [_NAMES.index(name) for name in _PARSED]
    while numbers := list(c.scalars(_NUMBERS, {"campaign": campaign_id, "after": last})):
        first, last = numbers[0], numbers[-1]
        between = {"campaign": campaign_id, "first": first, "last": last}
        rows, known = list[Said](), dict[str, Any]()  # of people who judge one item many agree
        for found in c.execute(_SAID, between):
            row = list(found)
            for i in at:
                if (parsed := known.get(row[i])) is None:
                    parsed = known[row[i]] = json.loads(row[i])
                row[i] = parsed
            rows.append(Said(*row))
        if not rows:
            continue
        there = {item.id: item for item in read_items(c, BETWEEN, **between)}
        for number, said in groupby(rows, key=lambda row: row.item_id):
            yield there[number], list(said)
