"""A finding: what a rule saw in a run or a plan, why it is so, what to do; how it is printed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from truing import console
from truing.doctor.history import History

Level = Literal["fault", "warning", "notice", "expected"]
# The levels, worst first, and what each means.
LEVELS: dict[Level, str] = {
    "fault": "something is wrong",
    "warning": "probably wrong, look at it",
    "notice": "good to know",
    "expected": "looks odd, but is as it should be",
}


COLOURS: dict[Level, str] = {
    "fault": "red",
    "warning": "yellow",
    "notice": "cyan",
    "expected": "green",
}


class Finding(NamedTuple):
    """What one rule has to say. ``steps``: the first and last step where it was seen."""

    rule: str
    level: Level
    seen: str
    why: str
    todo: str
    steps: tuple[int, int] | None = None


Rule = Callable[[History], Finding | None]


def sort(said: Iterable[Finding | None]) -> list[Finding]:
    """What the rules had to say, worst first."""
    order = list(LEVELS)
    return sorted((f for f in said if f is not None), key=lambda f: order.index(f.level))


def tell(found: Sequence[Finding], asked: Sequence[str]) -> None:
    """Print the findings by their levels, worst first, and a closing line: how many of the rules
    that were asked had something to say."""
    for level, meaning in LEVELS.items():
        group = [finding for finding in found if finding.level == level]
        if group:
            colour = COLOURS[level]
            console.say(f"\n[bold {colour}]{level}[/bold {colour}] [dim]({meaning})[/dim]")
        for finding in group:
            _show(finding)
    console.say("\n" + _closing(found, asked))


def _show(finding: Finding) -> None:
    first, last = finding.steps or (0, 0)
    where = f" [dim]step {first}[/dim]" if first == last else f" [dim]steps {first} to {last}[/dim]"
    console.say(f"  [bold]{finding.rule}[/bold]{where if finding.steps else ''}")
    parts = {"seen": finding.seen, "why": finding.why, "do": finding.todo}
    for word, text in parts.items():
        console.say(f"    [dim]{word:>4}[/dim]  {console.plain(text)}")


def _closing(found: Sequence[Finding], asked: Sequence[str]) -> str:
    if not found:
        return f"nothing to say; asked were {', '.join(asked)}"
    counts = Counter(finding.level for finding in found)
    told = ", ".join(
        f"{n} {level}{'s' if n > 1 and level != 'expected' else ''}"
        for level in LEVELS
        if (n := counts[level])
    )
    return f"{told}; {len(asked) - len(found)} of {len(asked)} rules had nothing to say"
