"""What a replication found: measured numbers, what each had to be, and what broken set-ups gave."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from truing.stats.ratings import mean
from truing.writing import plain, write_json


class Measure(NamedTuple):
    """A number that was measured. ``least`` and ``most``: the criterion, where there is one;
    ``low`` and ``high``: the ends of its 95 % interval, where it is a mean over ``n`` seeds."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 1

    @property
    def passed(self) -> bool:
        """What is no number passes nothing."""
        if self.least is None and self.most is None:
            return True
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)


def over_seeds(
    what: str, values_N: ArrayLike, *, least: float | None = None, most: float | None = None
) -> Measure:
    """The mean over seeds, with Student's interval; the criterion is on the mean."""
    found = mean(values_N)
    return Measure(what, found.value, least, most, found.low, found.high, found.n)


@dataclass
class Record:
    """One replication. ``controls``: the same criteria, measured on what was put together wrongly;
    ``differs``: where set-up or finding part from the paper's."""

    name: str
    title: str
    claim: str
    source: str
    setup: str
    measures: list[Measure]
    controls: dict[str, list[Measure]]
    caption: str
    differs: str
    figure: Figure | None = None
    seconds: float = 0.0
    date: str = ""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError unless every criterion is met, and every control fails one of them."""
        missed = [m for m in self.measures if not m.passed]
        if missed:
            raise ValueError(f"{self.name}: not met: " + "; ".join(map(told, missed)))
        bounded = {m.what for m in self.measures if m.least is not None or m.most is not None}
        if not bounded or len(self.controls) < 2:
            raise ValueError(
                f"{self.name} has {len(bounded)} criteria and {len(self.controls)} controls; "
                "needed: a criterion, and two controls that fail"
            )
        for control, measures in self.controls.items():
            strange = {asked(m) for m in measures} - {asked(m) for m in self.measures}
            if strange:
                raise ValueError(f"{self.name}, {control}: other criteria than ours: {strange}")
            if all(m.passed for m in measures):
                raise ValueError(f"{self.name}: the control passes: {control}")

    def save(self, folder: Path) -> None:
        """NAME.json, and NAME.png beside it."""
        assert self.figure is not None
        self.figure.savefig(folder / f"{self.name}.png", dpi=110, metadata={"Software": None})
        fields = {k: v for k, v in self.__dict__.items() if k != "figure"}
        fields["measures"] = [m._asdict() for m in self.measures]
        fields["controls"] = {k: [m._asdict() for m in v] for k, v in self.controls.items()}
        write_json(folder / f"{self.name}.json", plain(fields))


def load(file: Path) -> Record:
    """A record that was saved; what was no number is one again."""
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))

    def measures(rows: Sequence[Mapping[str, Any]]) -> list[Measure]:
        return [
            Measure(**{**row, "value": np.nan if row["value"] is None else row["value"]})
            for row in rows
        ]

    fields["measures"] = measures(fields["measures"])
    fields["controls"] = {k: measures(v) for k, v in fields["controls"].items()}
    return Record(**fields)


def asked(measure: Measure) -> tuple[str, float | None, float | None]:
    """What was measured, and the criterion."""
    return measure.what, measure.least, measure.most


def needed(measure: Measure) -> str:
    """The criterion in words."""
    bounds = [
        f"{word} {number(bound)}"
        for word, bound in (("at least", measure.least), ("at most", measure.most))
        if bound is not None
    ]
    return " and ".join(bounds)


def told(measure: Measure) -> str:
    return f"{measure.what}: {number(measure.value)}, needed {needed(measure)}"


def number(x: float) -> str:
    """Three digits; what is far from 1 as a power of ten."""
    if not np.isfinite(x) or x == 0 or 1e-3 <= abs(x) < 1e4:
        return f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}"
    return f"{x:.1e}"


def here() -> dict[str, Any]:
    """Date, kind of machine and versions of what is measured now."""
    threads = torch.get_num_threads()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{threads} {'thread' if threads == 1 else 'threads'}",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
