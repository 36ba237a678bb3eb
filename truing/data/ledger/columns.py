"""The judgements of a campaign as columns, for statistics: no texts, one row each."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from truing.data.ledger.tables import (
    LEDGER,
    item_responses,
    items,
    judgements,
    prompts,
    responses,
    streams,
    tokens,
)

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
PART = 50_000


class Columns(NamedTuple):
    """One row for each judgement that counts, of pairs or of single thumbs; lead's decisions and
    practice left out. ``value_N``: below 0 the item's first response is better (thumbs: it is
    good), 0 a tie, 2 much better. ``shown_N``: the index of the response shown first; thumbs: 0.
    ``length_N2``, ``read_N``: characters of the two responses, and of all there was to read.
    ``gold_N``: the sign of the known answer, NaN where there is none. ``human_N``: by people, of
    whom ``simulated_N`` are none. ``work_N``: of ordinary items. ``system_I2``: of each item, which
    run or model made its first and second response; ``row_N``: the item's place in it."""

    item_N: Numbers
    prompt_N: Numbers
    annotator_N: Numbers
    value_N: Array
    both_bad_N: NDArray[np.bool_]
    shown_N: Numbers
    pass_N: Numbers
    length_N2: Array
    read_N: Array
    seconds_N: Array
    gold_N: Array
    round_N: Numbers
    human_N: NDArray[np.bool_]
    simulated_N: NDArray[np.bool_]
    work_N: NDArray[np.bool_]
    row_N: Numbers
    system_I2: list[tuple[str, str]]
    decided: frozenset[int]  # items that a lead has decided

    def take(self, rows_N: NDArray[np.bool_]) -> "Columns":
        """Some of the rows."""
        kept = {n: getattr(self, n)[rows_N] for n in self._fields if n.endswith(("_N", "_N2"))}
        return self._replace(**kept)


class _Item(NamedTuple):
    prompt: int
    gold: float
    ids: list[int]
    lengths: list[int]
    systems: list[str]
    read: list[int]


def columns(c: Connection, campaign_id: int) -> Columns:
    """Read them. It takes about a second for 50,000."""
    there, places = _items(c, campaign_id), dict[int, int]()
    t = judgements.c
    query = (
        select(t.item_id, t.annotator_id, t.value, t.shown, t.retest, t.active_ms, t.round)
        .add_columns(t.source, t.simulated, t.purpose)
        .where(t.campaign_id == campaign_id, t.status == "current")
        .where(t.kind.in_(("pairwise", "thumbs")), t.purpose != "practice")
        .order_by(t.id)
    )
    rows, decided, parts = list[tuple[Any, ...]](), set[int](), list[Array]()
    for number, who, value, shown, retest, ms, round_, source, simulated, purpose in c.execute(
        query
    ):
        item = there[number]
        if purpose == "adjudication":
            decided.add(number)
            continue
        if "labels" in value and len(value["labels"]) != 1:
            continue
        first = value["preferred"] == item.ids[0] if "preferred" in value else value["labels"][0]
        clear = "labels" in value or value["preferred"] is not None
        side = (-1.0 if first else 1.0) * (value.get("strength") or 1) if clear else 0.0
        swapped = len(shown) > 1 and shown[0] == item.ids[1]
        place = places.setdefault(number, len(places))
        bad = value.get("outcome") == "both_bad"
        told = (number, item.prompt, who, side, bad, int(swapped), min(retest, 1) + 1)
        more = (*item.lengths[:2], sum(item.read), ms / 1000, item.gold, round_)
        rows.append((*told, *more, source == "human", simulated, purpose == "work", place))
        if len(rows) == PART:  # tuples take ten times the memory of numbers
            parts.append(np.array(rows, np.float64))
            rows.clear()
    table = np.concatenate([*parts, np.array(rows, np.float64).reshape(-1, 17)])
    at = table.T

    def numbers(i: int) -> Numbers:
        return at[i].astype(np.int64)

    return Columns(
        *(numbers(0), numbers(1), numbers(2), at[3], at[4] > 0, numbers(5), numbers(6)),
        *(table[:, 7:9], at[9], at[10], at[11], numbers(12), at[13] > 0, at[14] > 0, at[15] > 0),
        numbers(16),
        [(s[0], s[-1]) for s in (there[number].systems for number in places)],
        frozenset(decided),
    )


def _items(c: Connection, campaign_id: int) -> dict[int, _Item]:
    mine = items.c.campaign_id == campaign_id
    query = select(items.c.id, items.c.prompt_id, items.c.expected, func.length(prompts.c.content))
    found = {
        row[0]: _Item(row[1], _gold(row[2]), [], [], [], [row[3]])
        for row in c.execute(query.join(prompts).where(mine))
    }
    links = (
        select(item_responses.c.item_id, responses.c.id, func.length(responses.c.content))
        .add_columns(responses.c.run, responses.c.model)
        .join(responses)
        .join(items, items.c.id == item_responses.c.item_id)
        .where(mine)
        .order_by(item_responses.c.item_id, item_responses.c.position)
    )
    for number, response, length, run, model in c.execute(links):
        item = found[number]
        item.ids.append(response)
        item.lengths.append(length)
        item.read.append(length)
        item.systems.append(run or model)
    for item in found.values():
        item.lengths.extend([0] * (2 - len(item.lengths)))  # of thumbs there is one alone
    return found


def _gold(expected: Any) -> float:
    if not isinstance(expected, dict):
        return np.nan
    expected = expected.get("value", expected)
    if "labels" in expected:
        return -1.0 if expected["labels"][0] is True else 1.0
    place = expected.get("preferred")
    return 0.0 if place is None else 2.0 * place - 1


def head(c: Connection, campaign_id: int) -> int:
    """How many events a campaign has had: while it stands still, nothing has changed."""
    return c.scalar(select(streams.c.seq).where(streams.c.id == campaign_id)) or LEDGER


def filled(c: Connection, campaign_id: int) -> int:
    """Judgements that came of those wanted; it costs the same at any size."""
    return int(c.execute(select(streams.c.filled).where(streams.c.id == campaign_id)).scalar_one())


def open_slots(c: Connection, campaign_id: int) -> int:
    """Judgements still wanted."""
    short = (items.c.campaign_id == campaign_id) & (items.c.purpose == "work")
    short &= items.c.done < items.c.wanted
    return int(c.scalar(select(func.sum(items.c.wanted - items.c.done)).where(short)) or 0)


def purposes(c: Connection, campaign_id: int) -> dict[str, int]:
    """How many items there are for each purpose."""
    query = select(items.c.purpose, func.count()).where(items.c.campaign_id == campaign_id)
    return {row[0]: row[1] for row in c.execute(query.group_by(items.c.purpose))}


def keys(c: Connection, now: int) -> list[Any]:
    """The living keys of the API: id, annotator_id, data, created_at, expires_at."""
    t = tokens.c
    query = select(t.id, t.annotator_id, t.data, t.created_at, t.expires_at)
    alive = query.where(t.kind == "api", t.ended_at.is_(None), t.expires_at > now)
    return list(c.execute(alive.order_by(t.id)).mappings())


def numbers_after(c: Connection, campaign_id: int, after: int, limit: int) -> list[int]:
    """The numbers of a campaign's items, a page at a time."""
    query = select(items.c.id).where(items.c.campaign_id == campaign_id, items.c.id > after)
    return list(c.scalars(query.order_by(items.c.id).limit(limit)))


def judgements_after(c: Connection, campaign_id: int, after: int, limit: int) -> list[Any]:
    """A campaign's judgements as they stand in the chain, a page at a time, whatever became of
    them."""
    query = select(judgements).where(
        judgements.c.campaign_id == campaign_id, judgements.c.seq > after
    )
    return list(c.execute(query.order_by(judgements.c.seq).limit(limit)).mappings())
