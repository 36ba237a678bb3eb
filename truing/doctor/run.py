"""`truing doctor` on a run folder: what happened, why, and what to do."""

from pathlib import Path

from truing import console
from truing.doctor.finding import Finding, tell
from truing.doctor.history import History, read
from truing.doctor.rules import asked, findings
from truing.settings import DoctorConfig


def run(config: DoctorConfig) -> None:
    """Print what there is to say of a run. Raises ValueError for a folder that is no run."""
    report(config.run, read(config.run))


def examine(path: str | Path) -> list[Finding]:
    """The findings on a run folder, worst first. Raises ValueError for a folder that is no run."""
    return findings(read(path))


def report(path: str | Path, history: History) -> list[Finding]:
    """Print the findings on a run by their levels, worst first, and return them."""
    found = findings(history)
    of = f" of about {history.total}" if history.total else ""
    console.say(
        f"[bold]{history.stage} run {console.plain(str(path))}[/bold]: {history.outcome}, "
        f"{history.last_step}{of} steps, {len(history.rows)} lines of metrics"
    )
    tell(found, list(asked(history.stage)))
    return found
