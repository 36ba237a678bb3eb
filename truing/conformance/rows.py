"""A line of the table: what is measured, how far it may be off, and what must be further off.

A check passes where the right thing lies within its bar of the target, and every broken variant
outside of it: a test that nothing can fail proves nothing.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

# What a level is called in a check, its number, and what is asked there.
LEVELS = {
    "certificate": ("E", "what each environment says of its own optimum"),
    "unit": ("L0", "values and gradients against the formula, alone and among neighbours"),
    "at the optimum": ("L1", "at pi* no sample has an advantage"),
    "population": ("L2", "where a loss on all that can be drawn is least"),
    "sampled": ("L3", "a table of logits that learns from samples"),
    "transformer": ("L4", "a tiny transformer that learns, by what it still lacks"),
}
# Bars by level: what is exact but for rounding, what a solver reaches, what sampling reaches.
EXACT, UNIT, ZERO, FIXED, SAMPLED = 1e-9, 1e-6, 1e-5, 1e-6, 1e-3


class Check(NamedTuple):
    """One line of the table. ``measure`` gives the distance from the target; ``broken``, the
    distances of what is put together wrongly. ``algorithm``: its name, and after a comma where it
    is measured; ``level``: a name of `LEVELS`, and after a comma for how long."""

    algorithm: str
    level: str
    target: str
    bar: float
    measure: Callable[[], float]
    broken: Mapping[str, Callable[[], float]]

    @property
    def number(self) -> str:
        """L0 to L4, or E."""
        return LEVELS[self.level.partition(",")[0]][0]

    @property
    def words(self) -> tuple[str, ...]:
        """By what it can be asked for: algorithm, environment, level."""
        return (*self.algorithm.split(", "), self.number)


class Row(NamedTuple):
    """What a check found; ``nearest``: the broken variant that came closest."""

    check: Check
    distance: float
    nearest: str
    nearest_distance: float

    @property
    def passed(self) -> bool:
        return self.distance <= self.check.bar < self.nearest_distance


def found(check: Check) -> Row:
    """Measure a check and all its broken variants. What is no number is infinitely far."""
    far = {name: _number(measure()) for name, measure in check.broken.items()}
    nearest = min(far, key=far.__getitem__)
    return Row(check, _number(check.measure()), nearest, far[nearest])


def _number(distance: float) -> float:
    """Rounding may take a distance of 0 below it."""
    return abs(distance) if distance == distance else float("inf")
