"""A ledger with as many synthetic judgements as asked for, and how long it takes to write, export
and verify it: ``python -m benchmarks.judgements ledger.sqlite --judgements 1000000``.

The judgements are of simulated annotators and are marked so. Peak memory is the whole process's.
"""

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from truing.data.ledger import Answer, Ledger, NewItem, NewResponse
from truing.data.ledger.entries import Told
from truing.feedback.export import Export
from truing.settings_collect import CollectExportConfig

WORDS = ("an", "answer", "of", "a", "hundred", "words", "is", "what", "people", "mostly", "compare")


def text(i: int, k: int) -> str:
    return " ".join(WORDS[(i + k + j) % len(WORDS)] for j in range(60 + (i * 7 + k) % 80))


def items(count: int, wanted: int) -> Iterator[NewItem]:
    for i in range(count):
        two = tuple(NewResponse(f"{text(i, k)} {i}", f"model-{k}", f"runs/{k}") for k in (0, 1))
        yield NewItem(f"Prompt {i}: {text(i, 2)}", two, domain=f"domain {i % 8}", wanted=wanted)


def told(first: list[tuple[int, tuple[int, ...]]], people: list[int], each: int) -> Iterator[Told]:
    for i, (item, shown) in enumerate(first):
        for k in range(each):
            better = shown[(i * 7 + k * 3) % 5 < 2]
            value = {"outcome": "better", "preferred": better, "strength": 1 + k % 2}
            order = shown[:: 1 if k % 2 else -1]
            who = people[(i + k) % len(people)]
            yield Told(
                item, who, (Answer("pairwise", value),), f"{i}-{k}", shown=order, active_ms=9000
            )


def timed(what: str, work: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {wall:.1f} s, {cpu:.1f} s of CPU, peak {peak:.2f} GB: {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ledger")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--judgements", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=50)
    args = parser.parse_args()
    with Ledger.open(args.ledger) as ledger:
        campaign = next((c for c in ledger.campaigns() if c.name == "synthetic"), None)
        if campaign is None:
            campaign = ledger.create_campaign("synthetic", "pairwise")
            number, each = campaign.id, args.judgements // args.items
            people = [ledger.add_annotator(simulated=True).id for _ in range(args.people)]
            for person in people:
                ledger.join(number, person)
            made = items(args.items, each + 2)
            timed("items", lambda: ledger.add_items(number, made))
            first = [(i.id, tuple(r.id for r in i.responses)) for i in everything(ledger, number)]
            timed("judgements", lambda: ledger.record(number, told(first, people, each)))
        folder = Path(tempfile.mkdtemp()) / "out"
        config = CollectExportConfig(
            ledger=args.ledger, campaign="synthetic", output_dir=str(folder)
        )
        timed("export", lambda: export(ledger, campaign, config, folder))
        shutil.rmtree(folder.parent)
        timed("verify", lambda: f"{len(ledger.verify())} faults")


def everything(ledger: Ledger, campaign: int):
    numbers = sorted(ledger.item_numbers(campaign).values())
    for start in range(0, len(numbers), 1000):
        yield from ledger.items(numbers[start : start + 1000])


def export(ledger: Ledger, campaign, config: CollectExportConfig, folder: Path) -> object:
    made = Export(ledger, campaign, config)
    made.write(folder)
    return made.told()


if __name__ == "__main__":
    main()
