"""The table as it is printed, in the width there is."""

import textwrap

from truing import console
from truing.conformance.rows import LEVELS, Check, Row

# What every line has besides the two texts: level, distance, bar, distance, verdict, blanks.
FIGURES = 36


def columns() -> tuple[int, int]:
    """Characters for the algorithm and for the nearest broken variant."""
    free = max(console.width(), 60) - FIGURES
    first = min(max(free * 2 // 5, 20), 34)
    return first, free - first


def _fit(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def head() -> None:
    first, second = columns()
    console.say(
        f"[bold]{'algorithm':<{first}} {'':<2} {'distance':>8} {'bar':>5}  "
        f"{_fit('nearest broken variant', second):<{second}} {'its':>7}[/bold]"
    )


def level(name: str) -> None:
    """The line above the checks of a level."""
    number, asked = LEVELS[name.partition(",")[0]]
    console.say(f"\n[bold]{number}[/bold] {asked}")


def show(row: Row, *, told: str = "") -> None:
    """A check, and below it where it should end, unless that was just ``told``."""
    first, second = columns()
    check = row.check
    colour, word = ("green", "pass") if row.passed else ("red", "FAIL")
    name = check.algorithm
    if len(name) > first:
        console.say(console.plain(name))
        name = ""
    console.say(
        f"{console.plain(f'{name:<{first}}')} {check.number:<2} {row.distance:>8.1e} "
        f"{check.bar:>5.0e}  {_fit(row.nearest, second):<{second}} {row.nearest_distance:>7.1e} "
        f"[{colour}]{word}[/{colour}]"
    )
    if aim(check) != told:
        say_aim(check)


def aim(check: Check) -> str:
    """Where a check should end, and after how long."""
    return check.target + (f"; {check.level}" if "," in check.level else "")


def say_aim(check: Check) -> None:
    for line in textwrap.wrap(aim(check), max(console.width(), 60) - 2):
        console.say(f"  [dim]{console.plain(line)}[/dim]")


def listed(check: Check) -> None:
    """A check that is not measured: its name, its level, and where it should end."""
    console.say(f"{console.plain(check.algorithm)}  {check.number} {check.level}")
    say_aim(check)
