"""Made-up histories of runs, for the doctor."""

from collections.abc import Mapping, Sequence
from typing import Any

from truing.doctor.history import History

Column = float | Sequence[float | None]
LINES = 20


def made(
    stage: str,
    columns: Mapping[str, Column] = {},
    /,
    summary: Mapping[str, Any] = {},
    *,
    every: int = 1,
    outcome: str = "finished",
    error: str = "",
    divergence: Mapping[str, Any] = {},
    **config: Any,
) -> History:
    """A history with a line every so many steps: a number stands in all of them, None in none."""
    size = max((len(c) for c in columns.values() if isinstance(c, Sequence)), default=LINES)
    rows: list[dict[str, float]] = [{"step": float(every * (i + 1))} for i in range(size)]
    for name, column in columns.items():
        values = column if isinstance(column, Sequence) else [column] * size
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[name] = value
    return History(stage, outcome, config, rows if columns else [], summary, error, divergence)


def ramp(start: float, end: float, lines: int = LINES) -> list[float]:
    return [start + (end - start) * i / (lines - 1) for i in range(lines)]


def wave(mean: float, size: float, lines: int = LINES) -> list[float]:
    return [mean + size * (-1) ** i for i in range(lines)]


def level(start: float, *changes: tuple[int, float]) -> list[float]:
    """A constant, but for some lines (from 0)."""
    values = [start] * LINES
    for line, value in changes:
        values[line] = value
    return values


def last(start: float, end: float, lines: int) -> list[float]:
    """A constant, and another one in the last lines."""
    return [start] * (LINES - lines) + [end] * lines
