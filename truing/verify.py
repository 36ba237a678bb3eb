"""`truing verify`: whether a run, and all that it was made from, is still what it was.

Everything is read anew and compared with the hashes that were written down when it was made, from
the run to its parents and theirs, down to the datasets. Nothing is asked of the network.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from truing import console
from truing.data.formats import load
from truing.data.ledger import Ledger
from truing.data.schema import KINDS
from truing.lineage import CHECKPOINTS, RECORDS, Parent, check, hash_file, hash_folder, hash_json
from truing.run import Run
from truing.settings import VerifyConfig
from truing.settings_collect import LedgerUpgradeConfig, LedgerVerifyConfig

MARKS = {True: "[green]as it was[/green]", False: "[red]CHANGED[/red]", None: "[dim]unknown[/dim]"}


class Finding(NamedTuple):
    """Whether something is as it was (None: nothing to compare with); how far down the chain."""

    depth: int
    what: str
    good: bool | None
    why: str = ""


def run(config: VerifyConfig) -> None:
    """Print the chain. Raises ValueError for a folder that is no run, and if anything changed."""
    findings = list(chain(Path(config.run)))
    for finding in findings:
        why = f" [dim]({console.plain(finding.why)})[/dim]" if finding.why else ""
        what = console.plain(finding.what)
        console.say(f"{'  ' * finding.depth}{what}: {MARKS[finding.good]}{why}")
    bad = sum(finding.good is False for finding in findings)
    if bad:
        raise ValueError(f"{bad} of {len(findings)} things are not what they were: see above")
    open_ends = sum(finding.good is None for finding in findings)
    note = f"; of {open_ends} nothing is known" if open_ends else ""
    console.say(f"all {len(findings) - open_ends} that could be checked are as they were{note}")


def chain(folder: Path, depth: int = 0, above: frozenset[Path] = frozenset()) -> Iterator[Finding]:
    """Findings about a run, then about its parents; ``above``: the runs it was reached by."""
    info = Run.open(folder).info
    sealed = {name: value for name, value in info.items() if name != "seal"}
    title = f"{info['stage']} run {folder}"
    yield Finding(depth, title, _same(info.get("seal"), hash_json(sealed)), info["status"])
    yield Finding(
        depth + 1, "config.yaml", _same(info.get("config_sha256"), _hash(folder / "config.yaml"))
    )
    for name, digest in info.get("logs_sha256", {}).items():
        yield Finding(depth + 1, name, _same(digest, _hash(folder / name)))
    if "sha256" in info:
        yield Finding(depth + 1, "model", _same(info["sha256"], hash_folder(folder, RECORDS)))
    for checkpoint in sorted(folder.glob(f"{CHECKPOINTS}/step-*[0-9]")):
        yield Finding(depth + 1, f"checkpoint {checkpoint.name}", _whole(checkpoint))
    for parent in Run.open(folder).parents:
        yield compared(parent, depth + 1)
        place = Path(parent.path)
        # A model inside a run folder comes from that run.
        source = place.parent if place.name == "model" else place
        if (source / "run.json").is_file() and source not in above:
            yield from chain(source, depth + 2, above | {folder})


def compared(parent: Parent, depth: int) -> Finding:
    """A parent as it is now against what it was."""
    what = f"{parent.role} {parent.path}"
    if parent.sha256 is None:
        return Finding(depth, what, None, "a name on the hub or a function: it has no hash")
    if not Path(parent.path).exists():
        if Path(parent.path).is_absolute():
            return Finding(depth, what, False, "it is not there")
        return Finding(depth, what, None, "a name on the hub, which is not asked")
    if not parent.kind:
        return Finding(depth, what, _same(parent.sha256, Parent.of("", parent.path).sha256))
    try:
        rows = load(parent.path, KINDS[parent.kind], split=parent.split)
    except (ValueError, OSError) as error:
        return Finding(depth, what, False, str(error).partition("\n")[0])
    return Finding(depth, what, _same(parent.sha256, rows.sha256), f"{len(rows)} rows")


def _same(was: str | None, now: str | None) -> bool | None:
    return None if was is None else was == now


def _hash(file: Path) -> str | None:
    return hash_file(file) if file.is_file() else None


def _whole(checkpoint: Path) -> bool:
    try:
        check(checkpoint)
    except ValueError:
        return False
    return True


def ledger(config: LedgerVerifyConfig) -> None:
    """Print the head of each chain of a ledger, and what is not as it was written. Raises
    ValueError if anything is not."""
    known = [_head(text) for text in config.heads]
    with Ledger.open(config.ledger) as opened:
        faults, heads = opened.verify(known), opened.heads()
    for head in heads:
        bad = [fault for fault in faults if fault.campaign_id == head.campaign_id]
        name = console.plain(f"{head.name}: {head.seq} events, head {head}")
        console.say(f"{name}: {MARKS[not bad]}")
        for fault in bad:
            console.say(console.plain(f"  event {fault.seq}: {fault.what}"))
    if faults:
        raise ValueError(
            f"{len(faults)} rows of {config.ledger} are not what was written: see above"
        )
    console.say("all rows are what was written")


def _head(text: str) -> tuple[int, int, str]:
    parts = text.split(":")
    if len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise ValueError(f"the head {text!r} came; needed: campaign:event:hash, as in a data card")
    return int(parts[0]), int(parts[1]), parts[2]


def upgrade(config: LedgerUpgradeConfig) -> None:
    """Bring the tables of a ledger to this version."""
    with Ledger.unchecked(config.ledger) as opened:
        before, after = opened.bring_up()
    told = f"from version {before} to {after}" if before != after else f"of version {after} already"
    console.say(console.plain(f"{config.ledger} is {told}"))
