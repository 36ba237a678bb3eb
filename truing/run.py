"""The run folder: what ran, on what, from what, and what came out.

    config.yaml     every setting, resolved
    run.json        stage, status, seed, versions, revision, machine, parents with hashes, summary
    metrics.jsonl   one line per logged step
    samples.jsonl   completions of fixed prompts, one line each
    checkpoints/    while it is unfinished: what it needs to go on

The same command on the folder of a run that was stopped goes on with it. Only the first process of
a distributed run writes; the others hold a silent ``Run``.
"""

import fcntl
import json
import os
import platform
import subprocess
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import yaml
from pydantic import BaseModel

from truing import console
from truing.config import to_yaml
from truing.lineage import RECORDS, Parent, hash_file, hash_folder, hash_json
from truing.writing import check_place, plain, write_json, written

_LOGS = ("metrics.jsonl", "samples.jsonl")
# Settings that say how to go on or where things lie, not what to do.
_ABOUT_RESUMING = ("output_dir", "force_resume", "dry_run", "ref_log_probs_cache")
# What is in every run.json.
_OF_A_RUN = {"stage", "status", "parents"}
_PACKAGES = ("truing", "torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")


# Anything that wants the metrics as well, such as a wrapper around ``Accelerator.log``.
Tracker = Callable[[int, Mapping[str, float]], object]


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
        self._began, self._spent = time.time(), 0.0
        self._release: Callable[[], object] = lambda: None

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
        data: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make the folder and write config.yaml and run.json, or go on in an unfinished run's.

        ``data``: what its rows are like, to be kept in run.json.
        ``threads``, ``device``: on what it computes; sums, and so the last digits, depend on that.
        Raises ValueError where the folder holds something else, where another process runs there,
        and where settings or parents are others than they were, unless ``config.force_resume``.
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
            "versions": versions(),
            "git": _git(),
            "machine": _machine(threads, device),
            **({"data": dict(data)} if data else {}),
        }
        if run.writes:
            before = _unfinished(path, stage)
            with written(path):
                path.mkdir(parents=True, exist_ok=True)
            left = (path / "lock").exists()  # by a run that was killed
            # Given back at the end, or with the object, or with the process.
            run._release = weakref.finalize(run, os.close, _locked(path))
            try:
                if before:
                    run._go_on(before, config)
                with written(path / "config.yaml"):
                    (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
                run.info["config_sha256"] = hash_file(path / "config.yaml")
                run._save()
            except BaseException:
                run._unlock(keep=left)
                raise
        return run

    def _go_on(self, before: dict[str, Any], config: BaseModel) -> None:
        """Take over what an unfinished run knew of itself, and say what is different now."""
        changed = _changes(self.path, before, self.info, config)
        if changed and not getattr(config, "force_resume", False):
            raise ValueError(
                f"{self.path} holds an unfinished run that began otherwise:\n"
                + "\n".join(changed)
                + "\nSet that back to go on with it, give another --output-dir for a new run, or "
                "--force-resume to go on with what is new"
            )
        for line in changed:
            console.say(f"[yellow]going on with another {console.plain(line)}[/yellow]")
        other = {k: self.info[k] for k in ("versions", "machine") if before[k] != self.info[k]}
        if other:
            console.say(
                f"[yellow]{' and '.join(other)} differ from those it began with: the last digits "
                "may, too[/yellow]"
            )
        note = {"at": _now(), "git": self.info["git"], "changed": changed, **other}
        kept = {k: before[k] for k in ("created", "git", "versions", "machine")}
        self.info |= kept | {"resumed": [*before.get("resumed", []), note]}
        self._spent = float(before.get("seconds", 0.0))

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Forget the lines logged after `sizes` was asked, for they will come again."""
        for name in _LOGS if self.writes else ():
            file, size = self.path / name, sizes.get(name, 0)
            if not file.exists():
                continue
            if file.stat().st_size < size:
                console.say(f"[yellow]{console.plain(str(file))} has lost lines[/yellow]")
                continue
            os.truncate(file, size)

    def sizes(self) -> dict[str, int]:
        """Bytes of each log so far, which are then on the disk."""
        found: dict[str, int] = {}
        for name in _LOGS:
            if (self.path / name).exists():
                with open(self.path / name, "rb") as file:
                    os.fsync(file.fileno())
                found[name] = (self.path / name).stat().st_size
        return found

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
        except ValueError as error:  # no JSON, or no UTF-8
            raise ValueError(
                f"{file} is damaged ({error}); run that stage again, in another folder"
            ) from None
        if not isinstance(info, dict) or not _OF_A_RUN.issubset(cast(dict[str, Any], info)):
            raise ValueError(
                f"{file} is not what a run writes, which has {', '.join(sorted(_OF_A_RUN))} in it. "
                "Give the output_dir of a run"
            )
        return cls(
            Path(folder), cast(dict[str, Any], info), writes=os.environ.get("RANK", "0") == "0"
        )

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
        """Close the run with its figures and the hashes of what it made. Called again, it adds."""
        if self.writes:
            logs = [name for name in _LOGS if (self.path / name).exists()]
            self.info["logs_sha256"] = {name: hash_file(self.path / name) for name in logs}
            self.info["sha256"] = hash_folder(self.path, RECORDS)
        self._close("finished", summary={**self.info.get("summary", {}), **plain(summary)})

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
        if isinstance(error, KeyboardInterrupt):
            self._close("stopped")
        elif error is not None:
            # A full disk refuses this too, and what went wrong first is what is to be told.
            with suppress(OSError):
                self._close("failed", error=f"{type(error).__name__}: {error}")
        elif self.info["status"] == "running":
            self.finish({})

    def _close(self, status: str, **more: Any) -> None:
        seconds = self._spent + time.time() - self._began
        self.info.pop("error", None)
        self.info |= {"status": status, "closed": _now(), "seconds": round(seconds, 1), **more}
        try:
            self._save()
        finally:
            self._unlock()

    def _unlock(self, *, keep: bool = False) -> None:
        if self.writes and not keep:
            (self.path / "lock").unlink(missing_ok=True)
        self._release()

    def _save(self) -> None:
        self.info.pop("seal", None)
        if self.writes:
            write_json(self.path / "run.json", self.info | {"seal": hash_json(self.info)})

    def _append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.writes:
            place = self.path / name
            with written(place), open(place, "a", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps(plain(line), ensure_ascii=False) + "\n")

    def _read(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        if not file.exists():
            return []
        # Not splitlines: it would also break a line at U+2028, which JSON leaves as it is.
        lines = file.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]


def _unfinished(path: Path, stage: str) -> dict[str, Any] | None:
    """run.json of the unfinished run of this stage in a folder; None where there is nothing yet.

    Raises ValueError for a folder that holds anything else.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"output_dir {path} is a file; give the name of a new folder")
    check_place("output_dir", path)
    # A run that was killed while it began has left no more than these.
    if not path.is_dir() or {p.name for p in path.iterdir()} <= {"lock", "config.yaml"}:
        return None
    info = Run.open(path).info if (path / "run.json").is_file() else None
    if info and info["stage"] == stage and info["status"] != "finished":
        return info
    held = f"a {info['stage']} run ({info['status']})" if info else "files"
    raise ValueError(
        f"output_dir {path} already holds {held}, and a run never overwrites. "
        "Give another --output-dir, or remove the folder if you do not need it"
    )


def _locked(path: Path) -> int:
    """The handle of a lock on the folder, which ends with this process at the latest.

    Raises ValueError where another run has it.
    """
    lock = os.open(path / "lock", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(
            f"another process runs in {path}: wait for it, stop it, or give another --output-dir"
        ) from None
    return lock


def _changes(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], config: BaseModel
) -> list[str]:
    """What differs from an unfinished run, a line each: settings, and what it was made from."""
    was = _settings(path / "config.yaml")
    new = config.model_dump(mode="json")
    found = [
        f"{name}: was {console.show(was.get(name))}, is {console.show(new[name])}"
        for name in new
        if name not in _ABOUT_RESUMING and was.get(name) != new[name]
    ]
    old, made_from = (
        {(p["role"], p["path"]): p["sha256"] for p in info["parents"]} for info in (before, now)
    )
    for role, place in sorted({*old, *made_from}):
        if old.get((role, place), "") != made_from.get((role, place), ""):
            found.append(f"{role} {place}: it is not what it was")
    return found


def _settings(file: Path) -> dict[str, Any]:
    """The settings that a run began with. Raises ValueError where they cannot be read."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{file} does not tell any more how the run began ({error}): put it back as it was, or "
            "give another --output-dir"
        ) from None
    return cast(dict[str, Any], settings)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on, as far as they are installed."""
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
