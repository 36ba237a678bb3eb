"""Files, folders and Hugging Face datasets -> rows of named values, each with its row number.

Everything that can be wrong with a *file* is said here (missing, empty, damaged, not UTF-8, broken
JSON); what a row *means* is the business of `truing.data.records`.
"""

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

_FORMATS = ".jsonl, .json, .csv (each also .gz) or .parquet"
# What may be a name on the hub: owner/name, or the name alone of a few old ones.
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Names the splits of a folder that `datasets` saved.
_SAVED = "dataset_dict.json"
# Columns of a csv file whose cells hold something other than text: they are read as JSON.
_LISTS = {"messages", "completions", "responses", "ranks", "scores", "labels", "provenance"}
_STRUCTURED = _LISTS | {"label", "margin", "key", "simulated"}


class DataError(ValueError):
    """Data that cannot be used: says where, what came, what is needed and what to do."""


def refuse(where: object, came: str, needed: str, todo: str) -> NoReturn:
    """Raise a `DataError`."""
    raise DataError(f"{where}: {came}; needed: {needed}. {todo}")


def describe(value: Any) -> str:
    """A value in a few words, for messages. Long texts are cut, for they may hold anything."""
    if isinstance(value, str):
        return f"the text {value[:24]!r}" + ("..." if len(value) > 24 else "")
    if isinstance(value, dict):
        return f"an object with the keys {list(value)}"
    if isinstance(value, list):
        return f"a list of length {len(value)}"
    return f"{json.dumps(value)} ({type(value).__name__})"


@dataclass(frozen=True)
class Row:
    """One row. ``number`` counts from 1: the line (jsonl, csv) or the row in its own file.
    ``index`` counts from 0 over all that was read. ``values`` has no null: null means absent."""

    file: str
    number: int
    index: int
    values: dict[str, Any]

    def refuse(self, field: str, came: str, needed: str, todo: str = "") -> NoReturn:
        """Raise a `DataError` that names file, row and field."""
        where = f"{self.file}, row {self.number}, field {field!r}"
        refuse(where, came, needed, todo or "Mend this row or take it out.")


@dataclass(frozen=True)
class Table:
    """All rows of one source."""

    name: str
    rows: list[Row]


def read(source: str | Path, split: str) -> Table:
    """The rows of a file, of one ``split`` of a folder, or of a Hugging Face dataset.

    A file is read whole, whatever ``split`` says. A folder holds ``train.jsonl`` (or shards
    ``train-00000-of-00002.parquet``), also under ``data/``, or is what `datasets` saved to disk.
    A name that is no path goes to `datasets`: ``owner/name`` or ``owner/name:configuration``.
    """
    path = Path(source).expanduser()
    name = str(source) if path.is_file() else f"{source} [{split}]"
    if path.is_file():
        found = _file(path)
    elif path.is_dir():
        found = _folder(path, split)
    elif _on_hub(source):
        found = _hub(str(source), split)
    else:
        _missing(path)
    rows = [Row(f, n, i, _record(f, n, value)) for i, (f, n, value) in enumerate(found)]
    if not rows:
        refuse(name, "it holds no rows", "at least one row", "Was its export interrupted?")
    return Table(name, rows)


def splits(source: str | Path) -> list[str]:
    """The splits of a source that can be read; none for what is read whole, whatever the split."""
    path = Path(source).expanduser()
    if path.is_file() or (path / "state.json").is_file():
        return []
    if (path / _SAVED).is_file():
        return sorted(_json(_text(path / _SAVED), path / _SAVED)["splits"])
    if path.is_dir():
        return sorted({_split(file) for file in _data_files(path)})
    return sorted(_ask_hub(str(source), "tell its splits", _names)) if _on_hub(source) else []


def _on_hub(source: str | Path) -> bool:
    """Whether a source that is no path may be a dataset on the hub; a file's name never is."""
    name, colon, part = str(source).partition(":")
    whole = not colon or re.fullmatch(r"[\w.-]+", part)
    return bool(HUB_NAME.fullmatch(name) and whole and not _suffix(Path(source)))


def _record(file: str, number: int, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return _plain(value)
    todo = "Write each row as one object, such as {'prompt': ..., 'completion': ...}."
    where = f"{file}, row {number}"
    refuse(where, f"{describe(value)} came", "an object with named columns", todo)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: nulls of objects dropped, dates and the like as text.

    This makes the same content equal whether it came from jsonl, csv or parquet.
    """
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


# --- one file: (row number, value) for each row ---------------------------------------------------


def _suffix(path: Path) -> str:
    """The suffix that tells the format, ".gz" aside; empty if it is none of ours."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return suffix if suffix in _READERS else ""


def _file(path: Path) -> Iterator[tuple[str, int, Any]]:
    if not _suffix(path):
        refuse(path, "a file of an unknown format came", _FORMATS, "Convert or rename it.")
    try:
        for number, value in _READERS[_suffix(path)](path):
            yield path.name, number, value
    # zlib, csv and pyarrow each have their own error for a damaged file.
    except (OSError, EOFError, UnicodeError, zlib.error, csv.Error, pa.ArrowException) as error:
        refuse(path, f"it cannot be read ({error})", _FORMATS, "Is it damaged, or misnamed?")


def _text(path: Path) -> str:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        came, todo = f"the byte 0x{data[error.start]:02x}, which is not UTF-8", "Convert the file."
        refuse(f"{path.name}, row {line}", came, "text in UTF-8", todo)


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return made


def _json(text: str, where: object, todo: str = "Mend the line or export the file again.") -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_pairs)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return value
    # RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        refuse(where, f"broken JSON came ({error})", "valid JSON", todo)


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    # Not splitlines(), which also splits at separators that may stand inside a JSON string.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, _json(line, f"{path.name}, row {number}")


def _json_file(path: Path) -> Iterator[tuple[int, Any]]:
    """A list of objects, or {"data": [...]}, whose other keys describe the file."""
    text = _text(path)
    if not text.strip():
        return
    found = _json(text, path, "If it has one object a line, name it .jsonl.")
    rows = found.get("data") if isinstance(found, dict) else found
    if not isinstance(rows, list):
        came = f"{describe(found)} came"
        refuse(path, came, 'a list of objects or {"data": [...]}', "Put the rows into a list.")
    yield from enumerate(rows, start=1)


def _cell(column: str, cell: str) -> Any:
    """Text, unless the column holds something else or the cell is a JSON list of messages."""
    if column in _STRUCTURED and not cell:
        return None
    if column in _STRUCTURED or cell.startswith('[{"'):
        try:  # other tools write True and False
            return _json(cell.lower() if cell in ("True", "False") else cell, column)
        except DataError:
            return cell  # who reads the column says what it needs
    return cell


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    # The module's limit of 128 kB a cell is too small for long texts; it is put back afterwards.
    text, limit = io.StringIO(_text(path), newline=""), csv.field_size_limit(sys.maxsize)
    try:
        lines = csv.reader(text, strict=True)
        header, number = next(lines, []), lines.line_num + 1
        if len(set(header)) < len(header):
            refuse(path, f"the columns {header}", "a header of distinct names", "Rename one.")
        for cells in lines:
            if cells and len(cells) != len(header):
                where, came = f"{path.name}, row {number}", f"{len(cells)} cells"
                refuse(where, came, f"{len(header)} cells", "Quote cells that hold a comma.")
            if cells:
                yield number, {c: _cell(c, v) for c, v in zip(header, cells, strict=True)}
            number = lines.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _jsonl,
    ".json": _json_file,
    ".csv": _csv,
    ".parquet": _parquet,
}

# --- folders and the hub --------------------------------------------------------------------------


def _data_files(path: Path) -> list[Path]:
    return [p for place in (path, path / "data") for p in sorted(place.glob("*")) if _suffix(p)]


def _split(file: Path) -> str:
    """The split that a file holds, whole or a shard of it."""
    return re.sub(r"-\d+-of-\d+$", "", Path(file.name.removesuffix(".gz")).stem)


def _folder(path: Path, split: str) -> Iterator[tuple[str, int, Any]]:
    if (path / "state.json").is_file() or (path / _SAVED).is_file():
        return _saved(path, split)
    wanted = [p for p in _data_files(path) if _split(p) == split]
    needed = f"one file {split}.*, or its shards {split}-00000-of-00002.*"
    if not _data_files(path):
        todo = "Put the file there, or name it itself."
        refuse(path, "a folder without data files came", needed, todo)
    if not wanted:
        refuse(path, f"it holds the splits {splits(path)}", needed, "Name one that is there.")
    if len(wanted) > 1 and not all("-of-" in p.name for p in wanted):
        came = f"the data files are {[p.name for p in wanted]}"
        refuse(path, came, needed, "Name the file that you mean.")
    return (row for file in wanted for row in _file(file))


def _saved(path: Path, split: str) -> Iterator[tuple[str, int, Any]]:
    # Third party, imported late: it takes a second, and most runs read plain files.
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(str(path))
    # Its own errors for a damaged folder are of many kinds.
    except Exception as error:
        came = f"`datasets` cannot read what it saved ({type(error).__name__}: {error})"
        refuse(path, came, "a folder as save_to_disk leaves it", "Save it again.")
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            came = f"it holds the splits {splits(path)}"
            refuse(path, came, f"the split {split!r}", "Name one that is there.")
        loaded = loaded[split]
    return ((path.name, n, row) for n, row in enumerate(loaded, start=1))


def _hub(name: str, split: str) -> Iterator[tuple[str, int, Any]]:
    import datasets  # late, as above

    ask = partial(datasets.load_dataset, split=split)
    loaded = _ask_hub(name, f"load its split {split!r}", ask)
    return ((name, n, row) for n, row in enumerate(loaded, start=1))


def _names(repository: str, part: str | None) -> list[str]:
    import datasets  # late, as above

    return datasets.get_dataset_split_names(repository, part)


def _ask_hub(name: str, what: str, ask: Callable[[str, str | None], Any]) -> Any:
    """What `datasets` says of a hub name. Raises DataError where it cannot do ``what``."""
    repository, _, part = name.partition(":")
    try:
        return ask(repository, part or None)
    except (OSError, ValueError, RuntimeError) as error:
        offline = any(os.environ.get(f"HF_{x}_OFFLINE", "0") != "0" for x in ("HUB", "DATASETS"))
        refuse(
            name,
            f"no file or folder here, and `datasets` cannot {what} ({error})",
            "a file, a folder, or a dataset that can be reached",
            ("Offline mode is on (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE). " if offline else "")
            + "Check the name; without a network, download it elsewhere and give the folder.",
        )


def _missing(path: Path) -> NoReturn:
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, n=1, cutoff=0.5)
    todo = f"Did you mean {near[0]!r}?" if near else f"Look into {path.parent.resolve()}."
    refuse(path, "there is no such file", "an existing file", todo)
