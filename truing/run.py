"""The run folder: what ran, on what, from what, and what came out.

    config.yaml     every setting, resolved
    run.json        stage, status, seed, versions, revision, machine, parents with hashes, summary
    metrics.jsonl   one line per logged step
    samples.jsonl   completions of fixed prompts, one line each

Only the first process of a distributed run writes; the others hold a silent ``Run``.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from pydantic import BaseModel

from truing import console
from truing.config import to_yaml

# What a run says about itself; never part of the hash of what it made.
RECORDS = ("config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "trackers")
_PACKAGES = ("truing", "torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")


# Anything that wants the metrics as well, such as a wrapper around ``Accelerator.log``.
Tracker = Callable[[int, Mapping[str, float]], object]


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: str | Path, leave_out: Iterable[str] = ()) -> str:
    """SHA-256 over the sorted relative names and the contents of all files in a folder.

    ``leave_out`` names files or folders at the top that do not count.
    """
    root, digest, hidden = Path(folder), hashlib.sha256(), set(leave_out)
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    for name in names:
        if name.split("/")[0] not in hidden:
            digest.update(f"{name}\0{hash_file(root / name)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Parent:
    """Something that a run was made from.

    ``role`` is what it was used as: ``policy``, ``reference``, ``dataset``, ``reward``, ...
    ``sha256`` is None for what has no files here (a hub name).
    """

    role: str
    path: str
    sha256: str | None
    name: str

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


class Run:
    """An open run folder. Made by ``Run.create`` or ``Run.open``; use it as a context manager.

    ``info`` is the content of run.json. Leaving the context marks the run as finished, or as
    failed with the error's message. The folder itself is ``path``.
    """

    def __init__(self, path: Path, info: dict[str, Any], *, writes: bool) -> None:
        self.path = path
        self.info = info
        self.writes = writes
        self._trackers: list[Tracker] = []
        self._every = 10

    @classmethod
    def create(
        cls,
        output_dir: str | Path,
        *,
        stage: str,
        config: BaseModel,
        seed: int,
        parents: Sequence[Parent] = (),
        threads: int | None = None,
        device: str = "cpu",
    ) -> Self:
        """Make the folder and write config.yaml and run.json.

        ``threads``, ``device``: on what it computes; sums, and so the last digits, depend on that.
        Raises ValueError where the folder already holds something: nothing is ever overwritten.
        """
        path = Path(output_dir)
        run = cls(path, {}, writes=os.environ.get("RANK", "0") == "0")
        run._every = int(getattr(config, "logging_steps", 10))
        run.info = {
            "stage": stage,
            "name": getattr(config, "run_name", None) or path.resolve().name,
            "status": "running",
            "seed": seed,
            "created": _now(),
            "parents": [asdict(parent) for parent in parents],
            "versions": _versions(),
            "git": _git(),
            "machine": _machine(threads, device),
        }
        if run.writes:
            _refuse_used(path)
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
            run._save()
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """An existing run, to read (or to add to its summary).

        Raises ValueError where there is no readable run.json.
        """
        file = Path(folder) / "run.json"
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
        except OSError:
            raise ValueError(
                f"{folder} is no run folder: it has no run.json. Give the output_dir of a run"
            ) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is damaged ({error}); run that stage again") from None
        return cls(Path(folder), info, writes=os.environ.get("RANK", "0") == "0")

    @property
    def name(self) -> str:
        """What the run is called in trackers and tables."""
        return str(self.info["name"])

    @property
    def parents(self) -> list[Parent]:
        """What the run was made from."""
        return [Parent(**parent) for parent in self.info["parents"]]

    def attach(self, tracker: Tracker) -> None:
        """Send every later ``log`` to this tracker too."""
        self._trackers.append(tracker)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics; ``step`` counts optimiser steps from 1.

        A value that is not a finite number is kept as null, for JSON has no NaN.
        """
        if clash := {"step", "time"} & metrics.keys():
            raise ValueError(f"a metric cannot be called {min(clash)!r}: the line has it already")
        line = {"step": step, "time": round(time.time(), 3), **metrics}
        self._append("metrics.jsonl", [line])
        for tracker in self._trackers:
            tracker(step, metrics)

    def metrics(self) -> list[dict[str, float | None]]:
        """The logged lines, oldest first; each has ``step`` and ``time`` (seconds since 1970)."""
        return self._read("metrics.jsonl")

    def log_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append completions that the model gave at this step, one line each."""
        self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    def samples(self) -> list[dict[str, Any]]:
        """The kept completions, oldest first; each has ``step``."""
        return self._read("samples.jsonl")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the run with its figures. Called again, it adds to them."""
        self._close("finished", summary={**self.info.get("summary", {}), **_plain(summary)})

    def progress(self, total: int, description: str) -> AbstractContextManager[console.Progress]:
        """A progress bar on a terminal; elsewhere one printed line per logging_steps."""
        return console.progress(total, description, every=self._every, quiet=not self.writes)

    def final_table(self, title: str, figures: Mapping[str, object]) -> None:
        """Print the closing figures, and where to find the rest."""
        if self.writes:
            console.table(title, figures)
            console.say(f"[dim]{console.plain(str(self.path))}[/dim]")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._close("failed", error=f"{type(error).__name__}: {error}")
        elif self.info["status"] == "running":
            self.finish({})

    def _close(self, status: str, **more: Any) -> None:
        seconds = time.time() - datetime.fromisoformat(self.info["created"]).timestamp()
        self.info |= {"status": status, "closed": _now(), "seconds": round(seconds, 1), **more}
        self._save()

    def _save(self) -> None:
        if self.writes:
            write_json(self.path / "run.json", self.info)

    def _append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.writes:
            with open(self.path / name, "a", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps(_plain(line), ensure_ascii=False) + "\n")

    def _read(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        if not file.exists():
            return []
        # Not splitlines: it would also break a line at U+2028, which JSON leaves as it is.
        lines = file.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]


def write_json(path: str | Path, figures: object) -> None:
    """Write figures for machines, readable by people too; folders on the way are made.

    It is done in one move, so that a reader never meets half a file, nor one that stopped there.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draft = Path(f"{path}.tmp")
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    draft.write_text(text + "\n", encoding="utf-8")
    os.replace(draft, path)


def _refuse_used(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"output_dir {path} is a file; give the name of a new folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    info = Run.open(path).info if (path / "run.json").is_file() else None
    held = f"a {info['stage']} run ({info['status']})" if info else "files"
    raise ValueError(
        f"output_dir {path} already holds {held}, and a run never overwrites. "
        "Give another --output-dir, or remove the folder if you do not need it"
    )


def _plain(value: Any) -> Any:
    """The same value as JSON can hold it: numpy and torch scalars as numbers, NaN as null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast(Sequence[object], value)]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _git() -> dict[str, object] | None:
    """Revision of the working directory, and whether it has changes; None outside a repository."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"revision": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine(threads: int | None, device: str) -> dict[str, object]:
    here: dict[str, object] = {"platform": platform.platform(), "cpus": os.cpu_count()}
    return here | {"threads": threads, "device": device}
