"""What is known of one person, for them to have or to be erased: `truing collect person`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from truing import console
from truing.data.ledger import Ledger
from truing.run import Run
from truing.settings_collect import CollectPersonConfig
from truing.writing import check_output, write_json


def run(config: CollectPersonConfig) -> None:
    """Write what the ledger holds of somebody, and erase them if asked, in this order; then list
    the exports they are in and the runs made from those. Raises ValueError for nobody."""
    if config.export is not None:
        check_output(config.export, (".json",))
    with Ledger.open(config.ledger) as ledger:
        number = find(ledger, config.person)
        told = ledger.person(number)
        if config.export is not None:
            write_json(config.export, told)
        exports = ledger.exports_of(number)
        table: dict[str, Any] = {"judgements": len(told["judgements"])}
        if config.export is not None:
            table["written to"] = config.export
        if config.erase:
            erased = ledger.erase(number)
            table["erased"] = "name, email, sign-ins, drafts"
            table["texts redacted"] = erased.texts
    console.table(f"Person {told['annotator']['pseudonym']}", table)
    for export in exports:
        console.say(console.plain(f"in the export {export['path']} ({export['rows']} rows)"))
    runs = list(made_from(exports, Path(config.runs)))
    for folder in runs:
        console.say(console.plain(f"in the run {folder}"))
    if config.erase and (exports or runs):
        console.say(
            "These are stale: they were made before the erasure. Make them anew, or say why."
        )


def find(ledger: Ledger, who: str) -> int:
    """The number of the person with this email or pseudonym."""
    identity = ledger.identity(email=who)
    if identity is not None:
        return identity["annotator_id"]
    found = [person.id for person in ledger.annotators() if person.pseudonym == who]
    if not found:
        raise ValueError(f"nobody in the ledger has the email or pseudonym {who!r}: check it")
    return found[0]


def made_from(exports: Iterable[Mapping[Any, Any]], folder: Path) -> Iterator[Path]:
    """Runs below a folder that were made from these exports, or from such runs, and so on."""
    paths = {str(Path(export["path"])) for export in exports}
    folders = {str(Path(path).parent) for path in paths}
    hashes = {export["rows_sha256"] for export in exports} | {
        bytes(export["digest"]).hex() for export in exports
    }
    parents = {
        file.parent.resolve(): Run.open(file.parent).parents
        for file in sorted(folder.rglob("run.json"))
    }
    stale = set[Path]()
    grown = True
    while grown:
        grown = False
        for place, made in parents.items():
            if place in stale:
                continue
            for parent in made:
                near = Path(parent.path)
                if (
                    parent.path in paths | folders
                    or parent.sha256 in hashes
                    or {near, near.parent} & stale
                ):
                    stale.add(place)
                    grown = True
                    break
    yield from sorted(stale)
