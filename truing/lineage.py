"""What a run was made from: files and folders by their hashes."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS, SUMS = "checkpoints", "SHA256SUMS"
# What a run says about itself, or needs while it runs; never part of the hash of what it made.
RECORDS = (
    *("config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "trackers"),
    *(CHECKPOINTS, "lock", "diverged.json"),
)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: Path, names: Sequence[str]) -> list[str]:
    """`hash_file` of each, several at a time: large weights are in several files."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(hash_file, (folder / name for name in names)))


def hash_folder(folder: str | Path, leave_out: Iterable[str] = ()) -> str:
    """SHA-256 over the sorted relative names and the contents of all files in a folder.

    ``leave_out`` names files or folders at the top that do not count.
    """
    root, digest, hidden = Path(folder), hashlib.sha256(), set(leave_out)
    found = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    names = [name for name in found if name.split("/")[0] not in hidden]
    for name, told in zip(names, _hashes(root, names), strict=True):
        digest.update(f"{name}\0{told}\n".encode())
    return digest.hexdigest()


def sums(folder: Path, names: Iterable[str]) -> str:
    """The hashes of some files, as the program sha256sum writes them."""
    names = list(names)
    told = _hashes(folder, names)
    return "".join(f"{each}  {name}\n" for each, name in zip(told, names, strict=True))


def check(checkpoint: Path) -> None:
    """Raise ValueError if a checkpoint is not as it was written (`truing.stages.keeping`)."""
    try:
        told = (checkpoint / SUMS).read_text(encoding="utf-8")
        names = [line.split("  ", 1)[1] for line in told.splitlines()]
        there = sorted(p.name for p in checkpoint.iterdir())
        whole = sorted([*names, SUMS]) == there and told == sums(checkpoint, names)
    except (OSError, UnicodeDecodeError, IndexError):
        whole = False
    if not whole:
        raise ValueError(f"the checkpoint {checkpoint} is not as it was written")


def hash_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Parent:
    """Something that a run was made from.

    ``role`` is what it was used as: ``policy``, ``reference``, ``dataset``, ``reward``, ...
    ``sha256`` is None for what has no files here (a hub name). Of rows it is the hash of their
    content as records of this ``kind``, read from this ``split``; else these two are empty.
    """

    role: str
    path: str
    sha256: str | None
    name: str
    kind: str = ""
    split: str = ""

    @classmethod
    def of(cls, role: str, source: str | Path) -> "Parent":
        """The parent behind a file, a folder (a run folder's own records left out) or a name."""
        path = Path(source)
        if path.is_file():
            return cls(role, str(path.resolve()), hash_file(path), path.name)
        if path.is_dir():
            leave_out = RECORDS if (path / "run.json").is_file() else ()
            digest = hash_folder(path, leave_out)
            return cls(role, str(path.resolve()), digest, path.resolve().name)
        return cls(role, str(source), None, str(source))
