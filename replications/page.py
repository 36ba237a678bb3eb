"""docs/replications.md, from the records alone: claim, set-up, figure, numbers, controls."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from replications.record import Measure, Record, load, needed, number

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "replications"
PAGE = ROOT / "docs" / "replications.md"
HEAD = """\
# Replications

Published findings, made again where everything can be counted or drawn in minutes on two CPU cores,
by the package's own losses and estimators. The worlds are small and made up: what is replicated is
the effect and its direction, not a paper's numbers. Each has criteria that were set before it ran,
and negative controls: the same measurement with something put together wrongly, which must miss one
of the criteria. `make replications` runs them all and writes this page from what they measured;
`python -m replications.run NAME` runs one of them, `--quick` a small version of it that is part of
the tests.

In brackets: 95 % intervals of means over seeds.
"""


def render(records: Sequence[Record], names: Sequence[str]) -> str:
    """The page. ``names``: of all replications; what has no record is said to have none."""
    missing = [f"`{name}`" for name in names if name not in {r.name for r in records}]
    left = [f"\nNot measured yet: {', '.join(missing)}."] if missing else []
    rows = [f"- [{r.title}](#{anchor(r.title)}): {r.source}" for r in records]
    return "\n".join([HEAD, *rows, *left, "", *(line for r in records for line in section(r))])


def anchor(title: str) -> str:
    return "".join(c for c in title.lower() if c.isalnum() or c in "- _").replace(" ", "-")


def section(record: Record) -> Iterator[str]:
    """One replication."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    yield from (f"## {record.title}", "", f"**Claim.** {record.claim}", "")
    yield from (f"**Source.** {record.source}", "", f"**Set-up.** {record.setup}", "")
    yield from (f"![{record.caption}](replications/{record.name}.png)", "")
    yield from ("| measured | | needed |", "|---|---|---|")
    for measure in record.measures:
        yield f"| {measure.what} | {value(measure)} | {needed(measure)} |"
    yield from ("", "| control | misses | by | needed |", "|---|---|---|---|")
    for control, measures in record.controls.items():
        missed = next(m for m in measures if not m.passed)
        yield f"| {control} | {missed.what} | {value(missed)} | {needed(missed)} |"
    yield from ("", f"**Differs.** {record.differs}", "")
    yield (
        f"Measured {record.date} on {record.machine}, {versions}, in {record.seconds:.0f} s, by "
        f"`python -m replications.run {record.name}`."
    )
    yield ""


def value(measure: Measure) -> str:
    """The number, with its interval where it has one."""
    text = number(measure.value)
    if measure.low is None or measure.high is None:
        return text
    return f"{text} ({number(measure.low)} to {number(measure.high)}, {measure.n} seeds)"


def saved(names: Sequence[str]) -> list[Record]:
    """The records that there are, in this order."""
    files = (RECORDS / f"{name}.json" for name in names)
    return [load(file) for file in files if file.is_file()]
