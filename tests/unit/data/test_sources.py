"""Files -> rows: every format gives the same rows, and every damaged file a clear error."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from truing.data.sources import DataError, read, splits

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a tree.", "completion": " An oak,\nor an elm.", "margin": 0.5},
    {"prompt": "Name a river — any.", "completion": ' The "Elbe".', "margin": 1.0},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_all(folder: Path) -> list[Path]:
    (folder / "a.jsonl").write_text(LINES, encoding="utf-8")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (folder / "bom.jsonl").write_text("\ufeff" + LINES.replace("\n", "\r\n\r\n"), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (folder / "b.json.gz").write_bytes(gzip.compress(json.dumps({"data": ROWS}).encode()))
    write_csv(folder / "a.csv", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    return sorted(folder.iterdir())


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    for path in write_all(tmp_path):
        table = read(path, "train")
        assert [row.values for row in table.rows] == ROWS, path.name
        assert [row.index for row in table.rows] == [0, 1]
        assert table.name == str(path)


def test_row_numbers_are_lines_or_rows(tmp_path: Path) -> None:
    write_all(tmp_path)
    # The first record of the csv holds a line break: it stands on lines 2 and 3.
    for name, numbers in {"a.csv": [2, 4], "bom.jsonl": [1, 3], "a.parquet": [1, 2]}.items():
        assert [row.number for row in read(tmp_path / name, "train").rows] == numbers


def test_nulls_are_absent_and_dates_become_text(tmp_path: Path) -> None:
    rows = [{"a": None, "b": {"c": None, "d": 1}, "when": pa.scalar(0, pa.date32()).as_py()}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    [row] = read(tmp_path / "a.parquet", "train").rows
    assert row.values == {"b": {"d": 1}, "when": "1970-01-01"}


def test_csv_cells_of_structured_columns(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Is it True?"}]
    row = {"prompt": "42", "messages": json.dumps(messages), "label": "True", "margin": ""}
    write_csv(tmp_path / "a.csv", [row, row | {"label": "good", "messages": "[{", "prompt": ""}])
    first, second = (row.values for row in read(tmp_path / "a.csv", "train").rows)
    assert first == {"prompt": "42", "messages": messages, "label": True}
    assert second == {"prompt": "", "messages": "[{", "label": "good"}


def test_long_csv_cell_and_untouched_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit(131_072)
    write_csv(tmp_path / "a.csv", [{"text": "word " * 50_000}])
    assert len(str(read(tmp_path / "a.csv", "train").rows[0].values["text"])) == 250_000
    assert csv.field_size_limit(limit) == 131_072


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", "holds no rows"),
    "only blank lines": ("a.jsonl", b"\n \n", "holds no rows"),
    "empty json": ("a.json", b"", "holds no rows"),
    "empty list": ("a.json", b"[]", "holds no rows"),
    "header only": ("a.csv", b"prompt,completion\n", "holds no rows"),
    "broken json": ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl, row 2: broken JSON"),
    "twice a key": ("a.jsonl", b'{"a": 1, "a": 2}', "row 1: .*a key occurs twice"),
    "half a pair": ("a.jsonl", b'{"a": "\\ud800"}', "row 1: .*surrogates"),
    "deep": ("a.jsonl", b"[" * 100_000, "row 1: broken JSON"),
    "not an object": ("a.jsonl", b'{"a": 1}\n[1, 2]', "row 2: a list of length 2 came"),
    "lines as json": ("a.json", LINES.encode(), "name it .jsonl"),
    "json of text": ("a.json", b'"hello"', "the text 'hello' came"),
    "json of else": ("a.json", b'{"rows": []}', r"object with the keys \['rows'\]"),
    "latin-1": ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}', "row 2: the byte 0xe9.*UTF-8"),
    "latin-1 csv": ("a.csv", b"a\nb\ncaf\xe9\n", "row 3: the byte 0xe9"),
    "not gzip": ("a.jsonl.gz", b'{"a": 1}', "cannot be read"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-9], "cannot be read"),
    "not parquet": ("a.parquet", b"PAR1", "cannot be read"),
    "short csv row": ("a.csv", b"a,b\n1,2\n3\n", "row 3: 1 cells"),
    "same header": ("a.csv", b"a,a\n1,2\n", "distinct names"),
    "open quote": ("a.csv", b'a,b\n"1,2\n', "cannot be read"),
    "unknown": ("a.txt", b"hello", "unknown format.*\\.jsonl"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, tmp_path: Path) -> None:
    name, data, message = BROKEN[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, "train")
    assert name in str(caught.value)
    assert "needed: " in str(caught.value)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(LINES, encoding="utf-8")
    with pytest.raises(DataError, match=r"no such file.*Did you mean 'pairs.jsonl'"):
        read(tmp_path / "pears.jsonl", "train")
    with pytest.raises(DataError, match=r"no such file.*Look into"):
        read(tmp_path / "nowhere" / "pairs.jsonl", "train")


def test_folder_takes_the_split(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "train-notes.jsonl").write_text("no data", encoding="utf-8")
    (tmp_path / "data").mkdir()
    for shard in (0, 1):
        path = tmp_path / "data" / f"test-0000{shard}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist([ROWS[shard]]), path)
    assert [row.values for row in read(tmp_path, "train").rows] == ROWS
    shards = read(tmp_path, "test").rows
    assert [row.values for row in shards] == ROWS
    assert [(row.number, row.index) for row in shards] == [(1, 0), (1, 1)]
    assert splits(tmp_path) == ["test", "train", "train-notes"]
    with pytest.raises(DataError, match=r"\['test', 'train', 'train-notes'\].*one file valid\.\*"):
        read(tmp_path, "valid")
    write_csv(tmp_path / "train.csv", ROWS)
    with pytest.raises(DataError, match=r"'train.csv', 'train.jsonl'.*Name the file"):
        read(tmp_path, "train")


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": one}).save_to_disk(str(tmp_path / "many"))
    assert [row.values for row in read(tmp_path / "one", "train").rows] == ROWS
    assert [row.values for row in read(tmp_path / "many", "test").rows] == ROWS
    # What is read whole has none.
    assert splits(tmp_path / "many") == ["test"]
    assert splits(tmp_path / "one") == []
    with pytest.raises(DataError, match=r"splits \['test'\].*'train'"):
        read(tmp_path / "many", "train")


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fake(path: str, name: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((path, name, split))
        if path != "owner/some-pairs":
            raise ConnectionError("cannot reach it")
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert [row.values for row in read("owner/some-pairs:english", "test").rows] == ROWS
    assert asked == [("owner/some-pairs", "english", "test")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"cannot reach it.*Offline mode is on"):
        read("owner/other", "train")
    with pytest.raises(DataError, match="no such file"):
        read("owner/other.jsonl", "train")  # a file name never goes to the network
    assert len(asked) == 2


def test_splits_of_hub_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fake(path: str, name: str | None) -> list[str]:
        asked.append((path, name))
        if path == "pairs":
            raise ConnectionError("cannot reach it")
        return ["train", "dev"]

    monkeypatch.setattr(datasets, "get_dataset_split_names", fake)
    assert splits("owner/pairs:english") == ["dev", "train"]
    with pytest.raises(DataError, match=r"pairs: .*cannot tell its splits \(cannot reach it\)"):
        splits("pairs")
    (tmp_path / "test.jsonl").write_text(LINES, encoding="utf-8")
    for no_hub in (tmp_path / "test.jsonl", "owner/other.jsonl", "a/b/c", "a:b:c"):
        assert splits(no_hub) == []
    assert asked == [("owner/pairs", "english"), ("pairs", None)]
