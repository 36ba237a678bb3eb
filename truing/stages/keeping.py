"""Checkpoints: all that a run needs to go on exactly where it was, in files.

    checkpoints/step-00000040/state.safetensors   trained weights and the optimiser's moments
    checkpoints/step-00000040/state.json          everything else
    checkpoints/step-00000040/SHA256SUMS          the hashes of both, as sha256sum writes them

A checkpoint is written beside its place and then renamed: it is there whole or not at all, and the
one before it stays until then. What is read is checked against its hashes first.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from truing import console
from truing.lineage import CHECKPOINTS, SUMS, check, sums
from truing.settings import SaveTopic

TENSORS, PLAIN = "state.safetensors", "state.json"
_DRAFT, _DAMAGED = "draft", ".damaged"


class Snapshot(NamedTuple):
    """What outlives a step: tensors by name, and plain numbers and texts."""

    step: int
    tensors: dict[str, Tensor]
    plain: dict[str, Any]


class Best(NamedTuple):
    """The step at which the metric of `SaveTopic` was best so far, and its value there."""

    step: int
    value: float


class Keeper:
    """Writes and reads the checkpoints of one run. Of several processes only one ``writes``."""

    def __init__(self, run: Path, config: SaveTopic, *, writes: bool = True) -> None:
        self.folder, self.config, self.writes = run / CHECKPOINTS, config, writes
        self.best: Best | None = None

    def improves(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the metric that was asked for came with ``metrics``, better than ever before."""
        name = self.config.metric_for_best_model
        if name is None or not math.isfinite(metrics.get(name, math.nan)):
            return False
        up = self.config.greater_is_better
        sign = -1 if (name.endswith("loss") if up is None else not up) else 1
        value = metrics[name]
        if self.best is not None and not sign * value > sign * self.best.value:
            return False
        self.best = Best(step, value)
        return True

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, then remove those that are one too many.

        Raises OSError where it cannot be written; those before it are then as they were.
        """
        if not self.writes:
            return
        plain = {**snapshot.plain, "best": self.best and list(self.best)}
        draft, target = self.folder / _DRAFT, self._place(snapshot.step)
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            tensors = {n: t.detach().cpu().contiguous() for n, t in snapshot.tensors.items()}
            save_file(tensors, draft / TENSORS)
            (draft / PLAIN).write_text(json.dumps(plain) + "\n", encoding="utf-8")
            (draft / SUMS).write_text(sums(draft, (PLAIN, TENSORS)), encoding="utf-8")
            for part in (*draft.iterdir(), draft):
                _flush(part)
            shutil.rmtree(target, ignore_errors=True)  # the same step, saved twice
            draft.rename(target)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            last = f"that of step {max(self.steps())}" if self.steps() else "none before it"
            raise OSError(
                f"the checkpoint of step {snapshot.step} could not be written to {self.folder} "
                f"({error}); {last} is whole: make room, and give the same command again"
            ) from error
        kept = {*self.steps()[-self.config.save_total_limit :], self.best and self.best.step}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self._place(step))

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, in order."""
        if not self.folder.is_dir():
            return []
        names = (p.name.removeprefix("step-") for p in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())

    def latest(self) -> Snapshot | None:
        """The last checkpoint that is as it was written; a damaged one is put aside, aloud."""
        for step in reversed(self.steps()):
            try:
                snapshot = self.load(step)
            except ValueError as error:
                console.say(f"[yellow]{console.plain(str(error))}; the one before it is used[/]")
                if self.writes:
                    place = self._place(step)
                    place.rename(place.with_name(place.name + _DAMAGED))
                continue
            best = snapshot.plain.pop("best")
            self.best = Best(*best) if best else None
            return snapshot
        return None

    def load(self, step: int) -> Snapshot:
        """One checkpoint. Raises ValueError if it is not as it was written."""
        place = self._place(step)
        check(place)
        plain = json.loads((place / PLAIN).read_text(encoding="utf-8"))
        return Snapshot(step, load_file(place / TENSORS), plain)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def discard(run: Path) -> None:
    """Remove a run's checkpoints: it is finished, and has its model."""
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)


def _flush(path: Path) -> None:
    """Onto the disk, before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
