"""The line of items in front of a person: which they have not had, read by an index.

Items stand least held first, then by key. Each person's place in line is kept, so that the items
they have had are not walked over again; what came free behind that place is found by the time at
which it did. So a request costs the same whatever was judged before.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, RowMapping, and_, bindparam, select, tuple_

from truing.data.ledger.entries import Candidate
from truing.data.ledger.tables import assignments, item_responses, items

SCAN = 400  # items looked at in one go
SLACK = 60_000  # milliseconds by which clocks of servers may differ, and transactions last
LEAST, ACTIVE = ("load", "key", "id"), ("key", "load", "id")
_SEEN = [items.c[n] for n in Candidate.__dataclass_fields__ if n in items.c]


class Line(NamedTuple):
    """A line: an order, and whom it is made of."""

    order: tuple[str, str, str]
    named: bool  # of one domain
    who: Mapping[str, Any]


def line_of(campaign_id: int, annotator_id: int, arm: str, domain: str | None) -> Line:
    who = {"campaign": campaign_id, "annotator": annotator_id, "control": arm != "active"}
    who |= {"purpose": "work" if arm in ("control", "active") else arm, "domain": domain}
    order = ACTIVE if arm == "active" and domain is None else LEAST
    return Line(order, domain is not None, who)


def found(
    c: Connection, line: Line, cursor: Sequence[Any] | None, limit: int, now: int
) -> tuple[list[RowMapping], list[Any] | None]:
    """The first items that this person has not had, and their new cursor if it is worth keeping: a
    time and the place (values of the order) up to which they had everything at that time."""
    free, place = list[RowMapping](), None
    if cursor is not None and cursor[0] <= now + SLACK:
        at, *place = cursor
        values = {**line.who, **_at(place), "since": at - SLACK, "limit": SCAN}
        rows = c.execute(_query(line.order, line.named, "behind"), values).mappings().all()
        free = [row for row in rows if not row["had"]]
        if len(rows) == SCAN:  # so much came free that it is better to begin anew
            free, place = [], None
    ahead, passed = _ahead(c, line, place, limit)
    kept = None
    if passed is not None:
        kept = [now if place is None or cursor is None else cursor[0], *passed]
    return sorted(free + ahead, key=lambda r: [r[k] for k in line.order])[:limit], kept


def _ahead(
    c: Connection, line: Line, place: Sequence[Any] | None, limit: int
) -> tuple[list[RowMapping], list[Any] | None]:
    rows, fresh, passed, walked = list[RowMapping](), list[RowMapping](), None, 0
    size = 2 * limit
    while True:
        where = "all" if place is None else "beyond"
        values = {**line.who, **_at(place or ()), "limit": size}
        rows = c.execute(_query(line.order, line.named, where), values).mappings().all()
        for row in rows:
            if not row["had"]:
                fresh.append(row)
            elif not fresh:
                passed, walked = [row[k] for k in line.order], walked + 1
        if len(rows) < size or len(fresh) >= limit:
            return fresh, passed if walked > SCAN // 4 else None
        place, size = [rows[-1][k] for k in line.order], SCAN


def _at(place: Sequence[Any]) -> dict[str, Any]:
    return {f"place_{i}": value for i, value in enumerate(place)}


@cache
def _query(order: tuple[str, ...], named: bool, where: str):
    """Items of a line, and whether this person had them: not those whose lease ran out or was given
    back. Made once each: to put a query together takes longer than to run it."""
    mine = and_(
        assignments.c.item_id == items.c.id,
        assignments.c.annotator_id == bindparam("annotator"),
        assignments.c.retest == 0,
        assignments.c.state.not_in(("expired", "released")),
    )
    had = assignments.c.id.is_not(None).label("had")
    query = (
        select(items.c.id, *_SEEN, had)
        .select_from(items.outerjoin(assignments, mine))
        .where(items.c.campaign_id == bindparam("campaign"))
        .where(items.c.purpose == bindparam("purpose"))
        .where(items.c.control == bindparam("control"), items.c.open)
        .limit(bindparam("limit"))
    )
    if named:
        query = query.where(items.c.domain == bindparam("domain"))
    columns = tuple_(*(items.c[k] for k in order))
    place = tuple_(*(bindparam(f"place_{i}", type_=items.c[k].type) for i, k in enumerate(order)))
    if where == "behind":
        return query.where(items.c.freed_at >= bindparam("since"), columns <= place)
    query = query.where(columns > place) if where == "beyond" else query
    return query.order_by(*(items.c[k] for k in order))


_ANSWERS = (
    select(item_responses.c.item_id, item_responses.c.response_id)
    .where(item_responses.c.item_id.in_(bindparam("items", expanding=True)))
    .order_by(item_responses.c.item_id, item_responses.c.position)
)


def answers(c: Connection, numbers: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Item -> its responses, in their own order."""
    there = dict[int, tuple[int, ...]]()
    for item, response in c.execute(_ANSWERS, {"items": list(numbers)}):
        there[item] = (*there.get(item, ()), response)
    return there


def candidates(
    c: Connection, rows: Sequence[RowMapping], with_answers: bool = True
) -> list[Candidate]:
    responses = answers(c, [row["id"] for row in rows]) if rows and with_answers else {}
    return [
        Candidate(
            item_id=row["id"],
            response_ids=responses.get(row["id"], ()),
            **{column.name: row[column.name] for column in _SEEN},
        )
        for row in rows
    ]
