"""Import and export: files in TRL's columns, or HH transcripts, <-> datasets of records.

`load` reads a source as records of one kind, `save` writes records that `load` reads back. What
cannot be read is refused with its row number; what is left out or changed is counted in notes.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from truing.data.dialects import DIALECTS, translated, written
from truing.data.dialogue import Notes
from truing.data.records import columns_for, labels_of, record_of
from truing.data.schema import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Prompt,
    Provenance,
    Record,
)
from truing.data.sources import DataError, read, refuse, splits
from truing.lineage import Parent
from truing.writing import written as writable

__all__ = ["SIMULATED", "DataError", "Dataset", "load", "save", "splits", "to_row"]

SIMULATED = "simulated: made by no person"  # a note

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Dataset(Sequence[R]):
    """Records of one kind, and what was noticed while reading them.

    ``noted`` maps each note to the numbers of the rows it is about (see `sources.Row`), and
    ``row_numbers`` holds that number for each record; both are empty for records made in memory.
    ``source`` and ``split`` are where they were read.
    """

    rows: tuple[R, ...]
    name: str
    noted: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    row_numbers: tuple[int, ...] = ()
    source: str = ""
    split: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Dataset[R]":
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index], row_numbers=self.row_numbers[index])
        return self.rows[index]

    def take(self, n: int) -> "Dataset[R]":
        """The first ``n`` records, or all if there are fewer; the notes stay the source's."""
        if n < 1:
            raise ValueError(f"{n} rows were asked for; needed is a number from 1 upwards")
        return self[:n]

    @property
    def notes(self) -> dict[str, int]:
        """The number of rows that each note is about."""
        return {note: len(numbers) for note, numbers in self.noted.items()}

    @cached_property
    def sha256(self) -> str:
        """Hash of the records' content and order, whatever file format they came from."""
        digest = hashlib.sha256()
        for record in self.rows:
            line = json.dumps(to_row(record), sort_keys=True, separators=(",", ":"))
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    def parent(self, role: str) -> Parent:
        """These rows as what a run is made from."""
        kind = type(self.rows[0]).__name__.lower()
        return Parent(role, self.source or self.name, self.sha256, self.name, kind, self.split)

    def summary(self) -> str:
        """Name, size, hash and notes, a line each."""
        kind = type(self.rows[0]).__name__.lower() if self.rows else "record"
        lines = [f"{self.name}: {len(self)} {kind.rstrip('s')}s, sha256 {self.sha256[:12]}"]
        for note, numbers in self.noted.items():
            where = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
            every = set(numbers) >= set(self.row_numbers)
            lines.append(f"  {note}: {'every row' if every else f'{len(numbers)} (rows {where})'}")
        return "\n".join(lines)


def load(source: str | Path, kind: type[R], *, split: str = "train") -> Dataset[R]:
    """Read ``source`` (a path or a hub name, see `sources.read`) as records of ``kind``.

    Columns: prompt + completion, messages, text, prompt + chosen + rejected (+ margin), prompt +
    completions + ranks (or scores), prompt + completion + label (true, false, 1, 0), prompt +
    completions + labels (steps), or those of a dialect (`truing.data.dialects`). Rankings also
    serve as all their pairs, pairs as rankings of two and as two labels, both as demonstrations of
    the best answer, all as prompts. Raises DataError for other columns, a broken row, or when no
    row is left.
    """
    notes = Notes()
    table = translated(read(source, split), kind, notes)
    needs = columns_for(table, kind)
    found = [(row.number, record_of(row, kind, needs, notes)) for row in table.rows]
    read_as = ((n, [r] if kind is not Label else _labels(r)) for n, r in found if r is not None)
    kept = [(number, cast(R, record)) for number, records in read_as for record in records]
    if not kept:
        came = f"no row could be used ({', '.join(notes.rows)})"
        refuse(table.name, came, "at least one usable row", "Look at the rows in the file.")
    _note_repeats(table.name, kept, notes)
    _note_simulated(kept, notes)
    return Dataset(
        rows=tuple(record for _, record in kept),
        name=table.name,
        noted={note: tuple(numbers) for note, numbers in notes.rows.items()},
        row_numbers=tuple(number for number, _ in kept),
        source=str(Path(source).resolve() if Path(source).exists() else source),
        split=split,
    )


def _labels(record: Record) -> Sequence[Record]:
    return labels_of(record) if isinstance(record, Comparison) else [record]


def _note_repeats(name: str, kept: Sequence[tuple[int, Record]], notes: Notes) -> None:
    """Note records whose content, provenance aside, stood earlier; refuse prompts that share keys,
    since they would share their random numbers."""
    seen: set[str] = set()
    for number, record in kept:
        content = repr([v for k, v in vars(record).items() if k not in ("provenance", "key")])
        if content in seen:
            notes.rows["repeats an earlier row: kept"].append(number)
        seen.add(content)
    keys = [record.key for _, record in kept if isinstance(record, Prompt)]
    if len(set(keys)) < len(keys):
        todo = "Drop the column 'key', and the rows will be numbered."
        refuse(name, "prompts with the same key came", "a key of its own for each", todo)


def _note_simulated(kept: Sequence[tuple[int, Record]], notes: Notes) -> None:
    for number, record in kept:
        if not isinstance(record, Prompt) and record.provenance.simulated:
            notes.rows[SIMULATED].append(number)


def save(rows: Iterable[Record], path: str | Path, dialect: str = "trl") -> Path:
    """Write the rows, whole or not at all; equal rows give equal bytes.

    One JSON object a line (.jsonl, .jsonl.gz), or a list of them (.json), in the columns of TRL or
    of another ``dialect``. Raises DataError for another name, and for a record that the dialect
    cannot hold.
    """
    path, made = Path(path), [to_row(row, dialect, n) for n, row in enumerate(rows, start=1)]
    if not made or not path.name.endswith((".jsonl", ".jsonl.gz", ".json")):
        came = f"{len(made)} rows for this name"
        refuse(path, came, "at least one row, and .jsonl, .jsonl.gz or .json", "Rename it.")
    if path.suffix == ".json":
        text = json.dumps(made, ensure_ascii=False, indent=2) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    part, data = path.with_name(path.name + ".part"), text.encode()
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    return path


def to_row(record: Record, dialect: str = "trl", number: int = 1) -> dict[str, Any]:
    """The record in the columns of TRL, or of another dialect; ``number`` is for its messages.

    ``provenance`` holds only what differs from its defaults, and ``simulated`` is never left out.
    """
    if dialect != "trl" and dialect not in DIALECTS:
        refuse("dialect", f"{dialect!r} came", f"one of {['trl', *DIALECTS]}", "Choose one.")
    if isinstance(record, Prompt):
        row = {name: _to_json(value) for name, value in vars(record).items()}
        return row if dialect == "trl" else written(record, dialect, number)
    who, named = record.provenance, False
    if dialect == "trl":
        row = _columns(record)
    else:
        row, how = written(record, dialect, number), DIALECTS[dialect]
        named = how.named
        who = replace(who, extra={k: v for k, v in who.extra.items() if k not in how.tells})
    told = _to_json(who)
    if told or named:
        row["provenance"] = told
    if who.simulated:
        row["simulated"] = True
    return row


def _columns(record: Record) -> dict[str, Any]:
    """TRL's columns, the provenance aside."""
    row = {name: _to_json(v) for name, v in vars(record).items() if name != "provenance"}
    if isinstance(record, Comparison) and record.margin is None:
        del row["margin"]
    if isinstance(record, Demonstration) and record.prompt == "":
        del row["prompt"]
        row["text"] = row.pop("completion")
    return row


def _to_json(value: Any) -> Any:
    if isinstance(value, Message):
        return dict(vars(value))
    if isinstance(value, Provenance):
        changed = {f.name for f in fields(value) if getattr(value, f.name) != f.default}
        changed -= set() if value.extra else {"extra"}
        return {k: _to_json(v) for k, v in vars(value).items() if k in changed}
    return [_to_json(v) for v in value] if isinstance(value, tuple) else value
