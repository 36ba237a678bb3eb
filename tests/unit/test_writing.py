"""Places to write to: refused in time, and named where writing fails."""

import os
from pathlib import Path

import pytest

from truing.writing import check_output, check_place, write_json


def test_places_where_nothing_can_be_made_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_place("output_dir", tmp_path / "new" / "deep" / "run")
    check_output(tmp_path / "new.jsonl.gz", (".jsonl", ".jsonl.gz"))
    monkeypatch.chdir(tmp_path)
    check_output("figures")
    (tmp_path / "notes").touch()
    with pytest.raises(ValueError, match=r"output_dir is notes/run, but .*/notes is a file: give"):
        check_place("output_dir", "notes/run")
    with pytest.raises(
        ValueError, match=r"a\.txt; needed: a name that ends in \.jsonl or \.json\."
    ):
        check_output("a.txt", (".jsonl", ".json"))
    with pytest.raises(ValueError, match="is a folder; give the name of a file in it"):
        check_output(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"you may not write to .*: give another place, or have"):
        check_place("output_dir", "run")


def test_what_the_disk_refuses_is_named_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"x\.json could not be written \(No space left on device\)"):
        write_json(tmp_path / "x.json", {})
    assert not any(tmp_path.iterdir())
