"""What a person sees while a command runs: progress, tables, short messages.

On a terminal rich draws; elsewhere (a log file, CI) plain lines come now and then.
"""

import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table


def _console(*, stderr: bool = False) -> Console:
    """Made on each use, so that it follows a redirected sys.stdout.

    Of several processes that share a run only the first speaks; errors come from all.
    """
    quiet = not stderr and os.environ.get("RANK", "0") != "0"
    return Console(stderr=stderr, highlight=False, quiet=quiet)


def say(message: str, *, error: bool = False) -> None:
    """Print a line with rich's markup; errors go to stderr."""
    console = _console(stderr=error)
    # A log file keeps its lines whole.
    console.print(message, soft_wrap=not console.is_terminal)


def width() -> int:
    """Columns of the terminal; 100 where there is none."""
    console = _console()
    return console.width if console.is_terminal else 100


def plain(text: str) -> str:
    """Text that is not ours (data, names, paths), safe to put between rich's markup."""
    return escape(text)


def show(value: object) -> str:
    """A figure as people read it: four significant digits, thousands apart, true as yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return "-" if value is None else str(value)


def memory(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def table(title: str, figures: Mapping[str, object]) -> None:
    """Print names and figures in two columns."""
    grid = Table(title=title, title_justify="left", show_header=False)
    grid.add_column(style="cyan")
    grid.add_column(justify="right")
    for name, value in figures.items():
        grid.add_row(plain(name), plain(show(value)))
    _console().print(grid)


@dataclass
class Progress:
    """How far a stage has come. ``advance`` after each step, with the figures worth a look."""

    total: int
    description: str
    every: int
    bar: Bar | None
    task: TaskID | None
    quiet: bool = False
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def advance(self, figures: Mapping[str, float] | None = None, *, steps: int = 1) -> None:
        """Count ``steps`` more as done."""
        self.done += steps
        note = "  ".join(f"{name} {show(value)}" for name, value in (figures or {}).items())
        if self.bar is not None and self.task is not None:
            # Without new figures the last ones stay on screen.
            note = plain(note) or str(self.bar.tasks[0].fields["note"])
            self.bar.update(self.task, completed=self.done, note=note)
        elif not self.quiet and (self.done // self.every > (self.done - steps) // self.every):
            seconds = time.monotonic() - self.started
            print(f"{self.description} {self.done}/{self.total}  {note}  {seconds:.0f} s")


@contextmanager
def progress(
    total: int, description: str, *, every: int = 10, quiet: bool = False
) -> Generator[Progress]:
    """A bar on a terminal; elsewhere one line per ``every`` steps; nothing where ``quiet``."""
    console = _console()
    if quiet or not console.is_terminal:
        yield Progress(total, description, every, None, None, quiet)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(plain(description), total=total, note="")
        yield Progress(total, description, every, bar, task)
