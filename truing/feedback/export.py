"""What was judged, as files to train on: `truing collect export`."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from json import encoder
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as json_of
import pyarrow.parquet as pq

from truing import console
from truing.data.ledger import Campaign, Item, Ledger
from truing.data.ledger.chain import digest_of
from truing.data.ledger.proof import Head, heads
from truing.data.ledger.reading import Said, judged
from truing.feedback.card import Tally, card
from truing.feedback.rows import MAKES, Maker, Row
from truing.settings_collect import CollectExportConfig
from truing.writing import check_place, written

BATCH, BYTES = 10_000, 2**26  # rows of a parquet file's group, and bytes of theirs that are held
LINES = 256  # of a jsonl file, written at once
SPLITS = ("train", "test")


def run(config: CollectExportConfig) -> Path:
    """Write train.* (and test.*) and README.md, the data card, into a new folder, and note in the
    ledger what was written. Raises ValueError where nothing can be made of the judgements."""
    folder = Path(config.output_dir)
    check_place("output_dir", folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"output_dir {folder} is not empty: give a new folder")
    with Ledger.open(config.ledger) as ledger:
        campaign = ledger.campaign(config.campaign)
        export = Export(ledger, campaign, config)
        export.write(folder)
    console.table("Exported", export.told())
    return folder


class Export:
    """One export: one moment of one campaign."""

    def __init__(self, ledger: Ledger, campaign: Campaign, config: CollectExportConfig) -> None:
        self.ledger, self.campaign, self.config = ledger, campaign, config
        people = {person.id: person for person in ledger.annotators()}
        versions = {
            text.id: text.version
            for text in ledger.documents(campaign.id)
            if text.kind == "guideline"
        }
        self.maker = Maker(
            config.kind,
            campaign.name,
            {number: person.pseudonym for number, person in people.items()},
            versions,
            config.ties,
            config.aspect,
        )
        self.people, self.tally, self.crossing = people, Tally(), 0
        self.kinds = Counter[str]()
        self.testers = self._testers()

    def _testers(self) -> set[int]:
        """The annotators whose judgements go into the test split, where people are split too."""
        if "annotator" not in self.config.split_by or not self.config.test_share:
            return set()
        who = sorted({row["annotator_id"] for row in self.ledger.tallies(self.campaign.id)})
        if len(who) < 2:
            raise ValueError(f"{len(who)} people judged: to split by annotator takes two or more")
        count = min(len(who) - 1, math.ceil(self.config.test_share * len(who)))
        return set(sorted(who, key=lambda n: self._share(self.people[n].pseudonym))[:count])

    def _share(self, name: str) -> float:
        """A number in [0, 1) that goes with a name, the campaign's seed aside by nothing else."""
        digest = hashlib.sha256(f"{self.campaign.seed} split {name}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64

    def write(self, folder: Path, known_as: str = "") -> None:
        """Write into a folder; ``known_as``: where it goes from there, for the ledger to note."""
        shared = self.config.test_share > 0
        files = {split: _file(folder, split, self.config.format) for split in SPLITS[: 1 + shared]}
        with written(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with self.ledger.reading(snapshot=True) as c:
                    head = next(h for h in heads(c) if h.campaign_id == self.campaign.id)
                    for item, said in judged(c, self.campaign.id):
                        self.kinds.update(each.kind for each in said)
                        for split, row in self._rows(item, said):
                            files[split].add(row)
                self.tally.fold()
                for split, file in files.items():
                    if not file.count:
                        raise ValueError(self._nothing(split))
                for file in files.values():
                    file.close()
            except BaseException:
                for file in files.values():
                    file.drop()
                raise
        self.files, self.head = files, head
        text = card(self.campaign, self.ledger, self)
        with written(folder / "README.md"):
            (folder / "README.md").write_text(text, encoding="utf-8")
        self._note(head, known_as)

    def _rows(self, item: Item, said: Sequence[Said]) -> Iterator[tuple[str, Row]]:
        said = self.maker.usable(item, said)
        self.tally.item(item, said)
        if not said:
            return
        make: Callable[..., Iterator[tuple[Row, Any]]] = self.maker.rows
        if self.config.rows == "votes":
            make = self.maker.votes
        side = "train"
        if self.config.test_share:
            share = self._share(digest_of(item.prompt).hex())
            side = SPLITS[share < self.config.test_share]
        if "annotator" in self.config.split_by and self.config.test_share:
            kept = [s for s in said if (s.annotator_id in self.testers) == (side == "test")]
            self.crossing += len(said) - len(kept)
            said = kept
        for row, of in make(item, said) if said else ():
            self.tally.row(side, of if isinstance(of, list) else [of])
            yield side, row

    def _nothing(self, split: str) -> str:
        came = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kinds.items())) or "nothing"
        needed = " or ".join(MAKES[self.config.kind])
        if split == "test" or self.config.test_share:
            more = " Another test_share may part them better."
        else:
            more = ""
        left = "; ".join(f"{n} {why}" for why, n in self.maker.left_out.items() if n)
        return (
            f"no row for {split}.{self.config.format} of kind {self.config.kind}: in the campaign "
            f"{self.campaign.name} are {came} ({left or 'none left out'}); needed: {needed}.{more}"
        )

    def _note(self, head: Head, known_as: str) -> None:
        settings = self.config.model_dump(mode="json", exclude={"ledger"})
        for split, file in self.files.items():
            self.ledger.add_export(
                self.campaign.id,
                f"{known_as}/{file.path.name}" if known_as else str(file.path.resolve()),
                digest=bytes.fromhex(file.sha256),
                rows_sha256=file.rows_sha256,
                rows=file.count,
                head=head,
                settings={**settings, "split": split},
                people=self.tally.people[split],
            )

    def told(self) -> dict[str, Any]:
        """What was written and what was not, for the table at the end."""
        rows = {f"rows of {file.path.name}": file.count for file in self.files.values()}
        left = {why: n for why, n in self.maker.left_out.items() if n}
        crossing = {"dropped, crossing the splits": self.crossing} if self.testers else {}
        people = len(set(chain.from_iterable(self.tally.people.values())))
        return {**rows, "people": people, **left, **crossing, "folder": self.config.output_dir}


class _Lines:
    """A jsonl file, written whole or not at all; its hash is that of its rows as records, unless a
    row says how probable its choice is."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.count, self._file, self._lines = 0, None, list[bytes]()
        self._bytes = self._rows = hashlib.sha256()  # one for both while they are the same

    def add(self, row: Row) -> None:
        line = canonical(row)
        if self._rows is self._bytes and "chosen_probability" in row:
            self._pour()
            self._rows = self._bytes.copy()
        if self._rows is not self._bytes:
            self._rows.update(recorded(row, line))
        self._lines.append(line)
        self.count += 1
        if len(self._lines) >= LINES:
            self._pour()

    def _pour(self) -> None:
        if self._file is None:
            self._file = self.part.open("wb")
        block = b"".join(self._lines)
        self._file.write(block)
        self._bytes.update(block)
        self._lines.clear()

    def close(self) -> None:
        self._pour()
        assert self._file is not None
        self._file.close()
        os.replace(self.part, self.path)
        self.sha256, self.rows_sha256 = self._bytes.hexdigest(), self._rows.hexdigest()

    def drop(self) -> None:
        if self._file is not None:
            self._file.close()
        self.part.unlink(missing_ok=True)


class _Groups(_Lines):
    """A parquet file, written likewise; the columns' types are those of the first rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._held, self._size, self._writer, self._schema = list[bytes](), 0, None, None

    def add(self, row: Row) -> None:
        line = canonical(row)
        self._schema = self._schema or schema_of(row)
        self._held.append(line)
        self._size += len(line)
        self._rows.update(recorded(row, line))
        self.count += 1
        if len(self._held) >= BATCH or self._size >= BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.part, self._schema)
        writer: Any = self._writer
        # The lines are there for the hash, and arrow reads them faster than it does dicts. Half
        # characters are no text to it, nor to a parquet file.
        whole = json_of.ReadOptions(use_threads=False, block_size=self._size + 1)
        types = json_of.ParseOptions(
            explicit_schema=self._schema, unexpected_field_behavior="ignore"
        )
        try:
            table = json_of.read_json(pa.py_buffer(b"".join(self._held)), whole, types)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"parquet cannot hold these rows ({error}): texts beside messages, or half "
                "characters. Write them as --format jsonl"
            ) from error
        writer.write_table(table.select(writer.schema.names))
        self._held.clear()
        self._size = 0

    def close(self) -> None:
        if self._held:
            self._flush()
        assert self._writer is not None
        self._writer.close()
        os.replace(self.part, self.path)
        with self.path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.rows_sha256 = self._rows.hexdigest()

    def drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.part.unlink(missing_ok=True)


def _file(folder: Path, split: str, form: str) -> _Lines:
    kind = _Lines if form == "jsonl" else _Groups
    return kind(folder / f"{split}.{form}")


def encoding(plain: json.JSONEncoder) -> Callable[[Any], str]:
    """What ``plain.encode`` does of values without cycles, its part in C made once: to make that
    for each value takes as long as to use it. Where there is none in C, `encode` itself."""
    make = getattr(encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    between = (plain.indent, plain.key_separator, plain.item_separator)
    flags = (plain.sort_keys, plain.skipkeys, plain.allow_nan)
    text = encoder.encode_basestring_ascii if plain.ensure_ascii else encoder.encode_basestring
    parts = make(None, plain.default, text, *between, *flags)
    return lambda value: "".join(parts(value, 0))


_encode = encoding(json.JSONEncoder(sort_keys=True, separators=(",", ":")))
# A text comes again in the rows of all who judged it, which follow each other.
_text = lru_cache(maxsize=64)(_encode)


def canonical(row: Row) -> bytes:
    """A row as `Dataset.sha256` hashes it."""
    parts = (
        f'"{name}":{_text(value) if type(value) is str else _encode(value)}'
        for name, value in sorted(row.items())
    )
    return f"{{{','.join(parts)}}}\n".encode()


def recorded(row: Row, line: bytes) -> bytes:
    """The line that the row makes once it is a record, which keeps other columns as extra."""
    if "chosen_probability" not in row:
        return line
    row = {**row, "provenance": {**row["provenance"]}}
    more = {"chosen_probability": row.pop("chosen_probability")}
    row["provenance"]["extra"] = {**row["provenance"]["extra"], **more}
    return canonical(row)


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_EXTRA = {
    **dict.fromkeys(("campaign", "arm", "domain", "aspect", "critique"), pa.string()),
    **dict.fromkeys(("item", "judgement", "active_ms", "strength", "votes"), pa.int64()),
    **dict.fromkeys(("late", "decided", "edited"), pa.bool_()),
    **dict.fromkeys(("models", "runs", "authors", "critiques"), pa.list_(pa.string())),
    **dict.fromkeys(("judgements", "scores"), pa.list_(pa.int64())),
    "share": pa.float64(),
}


def schema_of(row: Row) -> pa.Schema:
    """The columns' types of a parquet file with rows like this one."""
    text = pa.string() if isinstance(row["prompt"], str) else _MESSAGES
    types: dict[str, pa.DataType] = dict.fromkeys(
        ("prompt", "chosen", "rejected", "completion"), text
    )
    types |= {"ranks": pa.list_(pa.int64()), "label": pa.bool_(), "labels": pa.list_(pa.bool_())}
    types["completions"] = pa.list_(pa.string() if "labels" in row else text)
    several = ("completions" in row and "labels" not in row) or "chosen" in row
    finish = pa.list_(pa.string()) if several else pa.string()
    extra = pa.struct([*_EXTRA.items(), ("finish_reason", finish)])
    told = [(name, pa.string()) for name in ("source", "author", "guideline", "time")]
    told += [("simulated", pa.bool_()), ("round", pa.int64()), ("order", pa.list_(pa.int64()))]
    columns = [(name, types[name]) for name in row if name in types]
    columns += [("provenance", pa.struct([*told, ("extra", extra)])), ("simulated", pa.bool_())]
    return pa.schema([*columns, ("chosen_probability", pa.float64())])
