"""A run as the doctor reads it: its settings, its metrics over the steps, and how it ended.

Runs are short and noisy, so nothing is said of single values where a mean will do: the *head* of a
series is its first fifth and its *tail* the last, and a change counts where it stands out from how
much neighbours differ.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from truing.run import Run

# The stages that learn from a reward.
ONLINE_STAGES = ("ppo", "rloo", "reinforce", "grpo")
# Fewer values than this say nothing of a trend.
ENOUGH = 8
# Standard errors that a change must have. A run is asked some thirty questions, so two of them,
# which chance exceeds once in twenty times, would be a false alarm in every run.
SURE = 3.0
# Of a normal distribution: the median distance of two draws, in standard deviations.
MEDIAN_GAP = 0.6745 * math.sqrt(2)


@dataclass(frozen=True)
class Series:
    """The finite values of a metric, and the steps that they were logged at."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def fifth(self) -> int:
        """How many values a fifth of them is, at least one."""
        return max(1, len(self) // 5)

    @property
    def head(self) -> float:
        return fmean(self.values[: self.fifth])

    @property
    def tail(self) -> float:
        return fmean(self.values[-self.fifth :])

    @property
    def change(self) -> float:
        """Tail less head."""
        return self.tail - self.head

    @property
    def error(self) -> float:
        """Standard error of the difference of two means over a fifth.

        From the median distance of neighbours, which neither a trend nor a jump inflates much.
        """
        gaps = [abs(b - a) for a, b in pairwise(self.values)]
        noise = median(gaps) / MEDIAN_GAP if gaps else 0.0
        if not noise and gaps:  # most neighbours are equal: a metric that counts few things
            noise = math.sqrt(fmean(gap * gap for gap in gaps) / 2)
        return noise * math.sqrt(2 / self.fifth)

    @property
    def rose(self) -> bool:
        """Whether the tail is above the head by more than noise."""
        return len(self) >= ENOUGH and self.change > SURE * self.error

    @property
    def fell(self) -> bool:
        return len(self) >= ENOUGH and -self.change > SURE * self.error

    @property
    def span(self) -> tuple[int, int]:
        """The first and last step."""
        return self.steps[0], self.steps[-1]

    @property
    def end(self) -> tuple[int, int]:
        """The first and last step of the tail."""
        return self.steps[-self.fifth], self.steps[-1]

    def best(self) -> tuple[float, tuple[int, int]]:
        """The highest mean over a fifth of neighbours, and its first and last step."""
        size = self.fifth
        starts = range(len(self) - size + 1)
        start = max(starts, key=lambda i: fmean(self.values[i : i + size]))
        steps = self.steps[start : start + size]
        return fmean(self.values[start : start + size]), (steps[0], steps[-1])

    def above(self, bound: float) -> tuple[int, ...]:
        """The steps with a value above ``bound``."""
        return tuple(s for s, v in zip(self.steps, self.values, strict=True) if v > bound)

    def since(self, bound: float) -> int | None:
        """The step from which on all values are above ``bound``; None where the last is not."""
        found = None
        for step, value in zip(reversed(self.steps), reversed(self.values), strict=True):
            if value <= bound:
                break
            found = step
        return found


@dataclass(frozen=True)
class History:
    """What is left of a run. ``outcome``: finished, stopped, running, failed or diverged."""

    stage: str
    outcome: str = "finished"
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, float]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    divergence: Mapping[str, Any] = field(default_factory=dict)

    def series(self, name: str) -> Series:
        """The finite values of a metric; empty where it was not logged."""
        found = [
            (int(r["step"]), r[name]) for r in self.rows if math.isfinite(r.get(name, math.nan))
        ]
        return Series(tuple(s for s, _ in found), tuple(v for _, v in found))

    def number(self, name: str) -> float | None:
        """A setting that is a number; None where it is not set, or did not exist yet."""
        value = self.config.get(name)
        return float(value) if isinstance(value, int | float) else None

    def count(self, note: str) -> int:
        """What the summary counted under this note, 0 for nothing."""
        value = self.summary.get(note, 0)
        return int(value) if isinstance(value, int | float) else 0

    @property
    def last_step(self) -> int:
        return max((int(row["step"]) for row in self.rows), default=0)

    @property
    def total(self) -> int | None:
        """Steps that the whole run has, as far as its lines tell."""
        if steps := max(0, int(self.number("max_steps") or 0)):
            return steps
        wanted, done = self.number("total_episodes"), self.series("episode")
        if not wanted:
            wanted, done = self.number("num_train_epochs"), self.series("epoch")
        if not wanted or not len(done) or done.values[-1] <= 0:
            return None
        return math.ceil(round(wanted * done.steps[-1] / done.values[-1], 6))

    @property
    def rows_per_step(self) -> int:
        """Rows (pairs, episodes) of a step. Where the lines do not count them, those of one device:
        with several there are more."""
        if len(done := self.series("episode")):
            return round(done.values[-1] / done.steps[-1])
        each, times = "per_device_train_batch_size", "gradient_accumulation_steps"
        return max(1, int((self.number(each) or 1) * (self.number(times) or 1)))

    @property
    def data_rows(self) -> float:
        """About how many rows the training data have, by how soon an epoch was over; on several
        devices that many each. 0 where no line tells."""
        epoch = self.series("epoch")
        if not len(epoch) or epoch.values[-1] <= 0:
            return 0.0
        seen = epoch.steps[-1] * self.rows_per_step / (self.number("num_generations") or 1)
        return seen / epoch.values[-1]


def read(folder: str | Path) -> History:
    """The history of a run folder. Raises ValueError for a folder that is no run."""
    run = Run.open(folder)
    info, error = run.info, str(run.info.get("error", ""))
    broken = info["status"] == "failed" and error.startswith(("Diverged", "FloatingPointError"))
    return History(
        stage=info["stage"],
        outcome="diverged" if broken else info["status"],
        config=_settings(run.path / "config.yaml"),
        rows=list(_lines(run.path / "metrics.jsonl")),
        summary=info.get("summary", {}),
        error=error,
        divergence=_divergence(run.path),
    )


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is damaged ({error}); run that stage again") from None
    return found or {}


def _lines(file: Path) -> Iterator[dict[str, float]]:
    """The logged lines, null as NaN; not `Run.metrics`, for a run that was killed may have left
    half a line at the end."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            yield {name: math.nan if value is None else value for name, value in row.items()}


def _divergence(folder: Path) -> Mapping[str, Any]:
    """What the first process that diverged has written down; empty if none did."""
    for file in sorted(folder.glob("diverged*.json")):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}
