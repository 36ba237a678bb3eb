"""Run replications, two at a time, and write docs/replications.md from what they measured.

    python -m replications.run                     all of them, about half an hour
    python -m replications.run label-noise         one of them; the others keep what they had
    python -m replications.run --quick             small versions in seconds; nothing is written

The command fails where a criterion is missed, and where a negative control meets them all.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from replications import (
    ensembles,
    frontier,
    kl_placement,
    kwise,
    label_noise,
    overoptimisation,
    process_rewards,
)
from replications.page import PAGE, RECORDS, render, saved
from replications.record import Record, here, needed, number

REPLICATIONS: dict[str, Callable[[bool], Record]] = {
    "label-noise": label_noise.run,
    "k-wise": kwise.run,
    "over-optimisation": overoptimisation.run,
    "ensembles": ensembles.run,
    "kl-placement": kl_placement.run,
    "frontier": frontier.run,
    "process-rewards": process_rewards.run,
}


def measured(name: str, quick: bool) -> Record:
    """Run one, say what it measured, and keep it unless it was the quick version."""
    torch.set_num_threads(1)
    start = time.monotonic()
    record = REPLICATIONS[name](quick)
    record.seconds = time.monotonic() - start
    for key, found in here().items():
        setattr(record, key, found)
    say(record)
    record.check()
    if not quick:
        record.save(RECORDS)
    record.figure = None
    return record


def say(record: Record) -> None:
    lines = [f"{record.name}: {record.seconds:.1f} s"]
    for measure in record.measures:
        word = "ok  " if measure.passed else "MISS"
        lines.append(f"  {word} {measure.what}: {number(measure.value)}   {needed(measure)}")
    for control, measures in record.controls.items():
        missed = [f"{m.what} {number(m.value)}" for m in measures if not m.passed]
        lines.append(f"  control {control}: {'; '.join(missed) or 'PASSES'}")
    print("\n".join(lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m replications.run")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(REPLICATIONS))
    parser.add_argument("--quick", action="store_true", help="small versions; nothing is written")
    options = parser.parse_args()
    names = options.names or list(REPLICATIONS)
    if unknown := set(names) - set(REPLICATIONS):
        parser.error(f"no replication {', '.join(sorted(unknown))}: {', '.join(REPLICATIONS)}")
    RECORDS.mkdir(exist_ok=True)
    with ProcessPoolExecutor(max_workers=2) as pool:
        for done in as_completed([pool.submit(measured, name, options.quick) for name in names]):
            done.result()
    if not options.quick:
        PAGE.write_text(render(saved(list(REPLICATIONS)), list(REPLICATIONS)), encoding="utf-8")


if __name__ == "__main__":
    main()
