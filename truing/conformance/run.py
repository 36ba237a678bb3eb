"""`truing conformance`: this package's functions, or one of your own, against exact optima."""

import time
from collections.abc import Iterable, Iterator, Sequence

from truing import console
from truing.config import nearest
from truing.conformance import table
from truing.conformance.checks import checks
from truing.conformance.own import KINDS, own_checks
from truing.conformance.peers import PEERS
from truing.conformance.rows import Check, Row, found
from truing.rewards import imported
from truing.settings_conformance import ConformanceConfig


def run(config: ConformanceConfig) -> list[Row]:
    """Measure and print every check that is asked for. Raises ValueError where one fails."""
    asked = list(chosen(config))
    if config.list:
        for check in asked:
            table.listed(check)
        console.say(f"{len(asked)} checks")
        return []
    began, spent = time.monotonic(), time.process_time()
    rows = list(measured(asked))
    took = f"{time.monotonic() - began:.0f} s, {time.process_time() - spent:.0f} of a CPU"
    failed = [f"{row.check.algorithm} ({row.check.level})" for row in rows if not row.passed]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(rows)} checks failed: {', '.join(failed)} ({took})"
        )
    console.say(f"\n[green]all {len(rows)} checks passed[/green] ({took})")
    return rows


def chosen(config: ConformanceConfig) -> Iterator[Check]:
    """The checks that the settings ask for."""
    if config.module is not None:
        against = config.against or "dpo"
        given = imported(config.module, "the function", KINDS[against].takes)
        everything = own_checks(config.module, given, against, quick=config.quick)
    elif config.peer is not None:
        everything = PEERS[config.peer](quick=config.quick)
    else:
        everything = checks(quick=config.quick)
    return selected(list(everything), config.only)


def selected(everything: Sequence[Check], only: Sequence[str]) -> Iterator[Check]:
    """Those whose algorithm, environment or level is named, or all. Raises ValueError for a name
    that none has."""
    known = {word for check in everything for word in check.words}
    for word in only:
        if word not in known:
            near = nearest(word, known)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"only: no check is called {word}; {hint}")
    for check in everything:
        if not only or not set(only).isdisjoint(check.words):
            yield check


def measured(asked: Iterable[Check]) -> Iterator[Row]:
    """The rows, each printed as soon as it is known."""
    table.head()
    number = told = ""
    for check in asked:
        if check.number != number:
            table.level(check.level)
            number, told = check.number, ""
        row = found(check)
        table.show(row, told=told)
        told = table.aim(check)
        yield row
