"""Judgements read in bulk: item by item, a page at a time, in memory that does not grow."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, select

from truing.data.ledger.entries import Item
from truing.data.ledger.tables import items, judgements
from truing.data.ledger.texts import BETWEEN, read_items

PAGE = 500  # items
_NAMES = (
    *("id", "item_id", "annotator_id", "kind", "purpose", "arm", "value", "text", "shown"),
    *("retest", "guideline_id", "active_ms", "round", "source", "simulated", "late", "at"),
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


_NUMBERS = (
    select(items.c.id)
    .where(items.c.campaign_id == bindparam("campaign"), items.c.id > bindparam("after"))
    .order_by(items.c.id)
    .limit(PAGE)
)
_SAID = (
    select(*(judgements.c[name] for name in _NAMES))
    .where(judgements.c.campaign_id == bindparam("campaign"))
    .where(judgements.c.item_id.between(bindparam("first"), bindparam("last")))
    .where(judgements.c.status == "current")
    .order_by(judgements.c.item_id, judgements.c.id)
)


def judged(c: Connection, campaign_id: int) -> Iterator[tuple[Item, Sequence[Said]]]:
    """Each item of a campaign of which something was said that counts, with what was said, oldest
    first. The connection must read one moment (`Store.reading` with ``snapshot``)."""
    last = 0
    while numbers := list(c.scalars(_NUMBERS, {"campaign": campaign_id, "after": last})):
        first, last = numbers[0], numbers[-1]
        between = {"campaign": campaign_id, "first": first, "last": last}
        rows = [Said(*row) for row in c.execute(_SAID, between)]
        if not rows:
            continue
        there = {item.id: item for item in read_items(c, BETWEEN, **between)}
        for number, said in groupby(rows, key=lambda row: row.item_id):
            yield there[number], list(said)
