"""Items with their texts, by two statements that are made once each."""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, select

from truing.data.ledger.entries import Item, Response
from truing.data.ledger.tables import item_responses, items, prompts, responses

_FIELDS = tuple(Item.__dataclass_fields__)
_PLACE = _FIELDS.index("responses")
_OWN = [prompts.c.content if n == "prompt" else items.c[n] for n in _FIELDS if n != "responses"]
_ANSWER = [responses.c[name] for name in Response.__dataclass_fields__]


def _both(which: ColumnElement[bool]) -> tuple[Any, Any]:
    links = (
        select(item_responses.c.item_id, *_ANSWER)
        .join(responses)
        .join(items, items.c.id == item_responses.c.item_id)
        .where(which)
        .order_by(item_responses.c.item_id, item_responses.c.position)
    )
    return select(*_OWN).join(prompts).where(which).order_by(items.c.id), links


ONE = _both(items.c.id == bindparam("item"))
SOME = _both(items.c.id.in_(bindparam("items", expanding=True)))
BETWEEN = _both(
    (items.c.campaign_id == bindparam("campaign"))
    & items.c.id.between(bindparam("first"), bindparam("last"))
)


def read_items(c: Connection, which: tuple[Any, Any], **values: Any) -> Iterator[Item]:
    """Items in the order of their numbers; ``which``: ONE (``item``), SOME (``items``) or BETWEEN
    (``campaign``, ``first``, ``last``)."""
    own, links = which
    rows = c.execute(own, values).all()
    there = {
        number: tuple(Response(*row[1:]) for row in group)
        for number, group in groupby(c.execute(links, values), key=itemgetter(0))
    }
    for row in rows:
        fields: list[Any] = [*row]
        fields.insert(_PLACE, there.get(fields[0], ()))
        yield Item(*fields)
