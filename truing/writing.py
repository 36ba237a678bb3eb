"""Files that are written: refused before the work where they cannot be, named where it fails."""

import json
import math
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast


@contextmanager
def written(path: str | Path) -> Generator[None]:
    """Around the writing of a file: what the system says of the disk, with the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error.strerror or error}): make room there, or give "
            "another place"
        ) from error


def write_json(path: str | Path, figures: object) -> None:
    """Write figures for machines, readable by people too; folders on the way are made.

    It is done in one move, so that a reader never meets half a file, nor one that stopped there.
    """
    draft = Path(f"{path}.tmp")
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    with written(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(text + "\n", encoding="utf-8")
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def plain(value: Any) -> Any:
    """The same value as JSON can hold it: numpy and torch scalars as numbers, NaN as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast(Sequence[object], value)]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_output(file: str | Path, endings: tuple[str, ...] = ("",)) -> None:
    """Raise ValueError for an output_file that could not be written in the end: hours may go into
    what it is to hold. ``endings``: what its name may end in."""
    if not str(file).endswith(endings):
        raise ValueError(
            f"output_file is {file}; needed: a name that ends in {' or '.join(endings)}. Rename it"
        )
    if Path(file).is_dir():
        raise ValueError(f"output_file {file} is a folder; give the name of a file in it")
    check_place("output_file", file)


def check_place(setting: str, path: str | Path) -> None:
    """Raise ValueError where no file or folder of this name can be made."""
    above = next(place for place in Path(path).absolute().parents if place.exists())
    if not above.is_dir():
        raise ValueError(f"{setting} is {path}, but {above} is a file: give another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(
            f"{setting} is {path}, but you may not write to {above}: give another place, or have "
            "the folder opened to you"
        )
