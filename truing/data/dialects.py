"""How other tools write the same records: each dialect reads its rows as ours, and writes ours.

A dialect is known by its columns. Its reader turns rows into rows of the columns that
`truing.data.records` reads, so that everything is checked in one place; what it cannot read is
refused with the row's number, what it leaves out is counted. Its writer takes one record of a kind
that the dialect can hold. ``provenance``, ``simulated`` and ``margin`` stand beside the dialect's
own columns, and come back with them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

from truing.data import chats, labelling, trees
from truing.data.dialogue import Notes
from truing.data.records import ABOUT_ANSWERS
from truing.data.schema import Comparison, Demonstration, Label, Ranking, Record
from truing.data.sources import Row, Table, refuse

# Columns of ours that answer a prompt: a row with both needs no dialect.
_ANSWERS = ("completion", "chosen", "completions", "response", "answer")


class Dialect(NamedTuple):
    """``columns``: a row that has all of one of these sets is of the dialect. ``read``: all rows of
    a table as rows of ours. ``write``: one record as a row; the kinds that it can take. ``tells``:
    what of ``provenance.extra`` its own columns hold. ``named``: it names annotators itself, so
    that our provenance is written even where it says nothing."""

    columns: tuple[frozenset[str], ...]
    read: Callable[[Iterable[Row], type[Record], Notes], Iterator[Row]]
    write: Mapping[type[Record], Callable[[Any, int], dict[str, Any]]]
    tells: tuple[str, ...] = ()
    named: bool = False


def _sets(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in sets)


DIALECTS: dict[str, Dialect] = {
    "hh": Dialect((), chats.hh, {Comparison: chats.write_hh}),
    "alpaca": Dialect(
        _sets("instruction output", "instruction chosen rejected"),
        chats.alpaca,
        dict.fromkeys((Demonstration, Comparison, Label), chats.write_alpaca),
    ),
    "sharegpt": Dialect(
        _sets("conversations"),
        chats.sharegpt,
        dict.fromkeys((Demonstration, Comparison, Label), chats.write_sharegpt),
    ),
    "ultrafeedback": Dialect(
        _sets("instruction completions"),
        chats.ultrafeedback,
        {Ranking: chats.write_ultrafeedback},
        tells=("scores", "models", "aspects"),
    ),
    "openassistant": Dialect(
        _sets("message_tree_id prompt", "message_tree_id message_id text role"),
        trees.read,
        dict.fromkeys((Comparison, Ranking), trees.write),
    ),
    "argilla": Dialect(
        _sets("fields responses"),
        labelling.argilla,
        dict.fromkeys((Demonstration, Comparison, Ranking, Label), labelling.write_argilla),
        named=True,
    ),
    "labelstudio": Dialect(
        _sets("data annotations"),
        labelling.label_studio,
        dict.fromkeys((Demonstration, Comparison, Ranking, Label), labelling.write_label_studio),
        named=True,
    ),
}


def dialect_of(table: Table) -> str | None:
    """The dialect of a table's first row, or None for our own columns."""
    first = table.rows[0].values
    if any(column.endswith(".responses") for column in first):
        return "argilla"  # as Argilla flattens its records for the hub
    if isinstance(first.get("prompt"), str | list) and any(c in first for c in _ANSWERS):
        return None
    fits = (n for n, d in DIALECTS.items() if any(needs <= first.keys() for needs in d.columns))
    return next(fits, None)


def translated(table: Table, kind: type[Record], notes: Notes) -> Table:
    """The table in our columns, for records of ``kind``: a dialect's rows read, ranks made of
    scores, and rankings taken apart into their pairs where pairs are asked for."""
    rows: Iterable[Row] = table.rows
    if name := dialect_of(table):
        rows = DIALECTS[name].read(rows, kind, notes)
    rows = (_ranked(row, notes) for row in rows)
    if kind is Comparison:
        rows = (pair for row in rows for pair in _pairs(row, notes))
    found = [replace(row, index=i) for i, row in enumerate(rows)]
    if not found:
        came = f"no row of this {name or ''} file could be used ({', '.join(notes.rows)})"
        refuse(table.name, came, "at least one usable row", "Look at the rows in the file.")
    if name:
        for row in found:
            notes.add(row, f"read as {name}")
    return Table(table.name, found)


def _ranked(row: Row, notes: Notes) -> Row:
    """``completions`` with ``scores`` (higher is better) get their ``ranks``."""
    scores = row.values.get("scores")
    if scores is None or "completions" not in row.values or "ranks" in row.values:
        return row
    if not isinstance(scores, list) or any(type(s) not in (int, float) or s != s for s in scores):
        row.refuse("scores", "something else came", "a list of numbers, one for each answer")
    best = sorted(set(scores), reverse=True)
    notes.add(row, "ranks taken from scores")
    return replace(row, values={**row.values, "ranks": [best.index(s) for s in scores]})


def _pairs(row: Row, notes: Notes) -> Iterator[Row]:
    """Every pair of a ranking that is no tie; any other row as it is."""
    values = row.values
    answers, ranks = values.get("completions"), values.get("ranks")
    if "chosen" in values or not isinstance(answers, list) or not isinstance(ranks, list):
        yield row
        return
    if len(answers) != len(ranks) or any(type(rank) is not int for rank in ranks):
        row.refuse("ranks", "something else came", f"{len(answers)} whole numbers, the best 0")
    notes.add(row, "ranking read as its pairs, ties left out")
    rest = {k: v for k, v in values.items() if k not in ("completions", "ranks")}
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    for better, worse in combinations(order, 2):
        if ranks[better] < ranks[worse]:
            made = {**rest, "chosen": answers[better], "rejected": answers[worse]}
            yield replace(row, values=_of_pair(made, better, worse, len(ranks)))


def _of_pair(values: dict[str, Any], better: int, worse: int, k: int) -> dict[str, Any]:
    """Lists about K answers (`ABOUT_ANSWERS`), cut to the two of a pair, wherever they stand."""
    values, provenance = dict(values), values.get("provenance")
    places = [values]
    if isinstance(provenance, dict) and isinstance(provenance.get("extra"), dict):
        extra = dict(provenance["extra"])
        values["provenance"] = {**provenance, "extra": extra}
        places.append(extra)
    for place in places:
        for name in ABOUT_ANSWERS:
            if isinstance(place.get(name), list) and len(place[name]) == k:
                place[name] = [place[name][better], place[name][worse]]
    return values


def written(record: Record, dialect: str, number: int) -> dict[str, Any]:
    """The record as a row of ``dialect``, its provenance aside. Raises DataError for a kind, or a
    record, that it cannot hold; it names the ``number`` of the row."""
    write = DIALECTS[dialect].write
    if type(record) not in write:
        came = f"a {type(record).__name__.lower()} for {dialect}"
        able = " or ".join(kind.__name__.lower() for kind in write)
        refuse(f"row {number}", came, able, "Choose another kind or another format.")
    return write[type(record)](record, number)
