"""The data card of an export: who judged, how many, how far they agree, by which guidelines, and
what is known to be missing."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from truing.data.ledger import Campaign, Item, Ledger
from truing.data.ledger.chain import digest_of
from truing.data.ledger.reading import Said
from truing.stats.agreement import alpha, percent_agreement

SIDES = ("train", "test")


class Tally:
    """What is counted while rows are written."""

    def __init__(self) -> None:
        self.people = defaultdict[str, set[int]](set)
        self.by = defaultdict[int, Counter[str]](Counter)
        self.guidelines, self.rounds = Counter[int | None](), Counter[int]()
        self.domains, self.arms, self.sources = Counter[str](), Counter[str](), Counter[str]()
        self.short, self.over, self.late, self.items = 0, 0, 0, 0
        # As bare numbers: there may be millions.
        self.values, self.units, self.prompts = array("d"), array("q"), array("q")
        self._prompts = dict[bytes, int]()
        self._rows = Counter[Any]()

    def item(self, item: Item, said: Sequence[Said]) -> None:
        """Count an item and what agreement is measured on: pairs, or single thumbs."""
        if not said:
            return
        self.items += 1
        self.short += item.purpose == "work" and item.done < item.wanted
        self.over += item.purpose == "work" and item.done > item.wanted
        prompt = self._prompts.setdefault(digest_of(item.prompt), len(self._prompts))
        for each in said:
            value = _value(item, each)
            if value is not None:
                self.values.append(value)
                self.units.append(item.id)
                self.prompts.append(prompt)

    def row(self, side: str, said: Sequence[Said]) -> None:
        """Count the judgements of a row; what they add up to is known after `fold`."""
        for each in said:
            whose = (each.annotator_id, each.source, each.simulated)
            self._rows[side, whose, each.guideline_id, each.round, each.arm, each.late] += 1

    def fold(self) -> None:
        """Add up, of the few ways in which rows were judged, what the card tells."""
        for (side, whose, guideline, round_, arm, late), count in self._rows.items():
            person, source, simulated = whose
            self.people[side].add(person)
            self.by[person][side] += count
            self.guidelines[guideline] += count
            self.rounds[round_] += count
            self.arms[arm or "none"] += count
            self.late += count * late
            self.sources[f"{source}, simulated" if simulated else source] += count
        self._rows.clear()

    def agreement(self) -> list[str]:
        """What agreement is, or why there is none."""
        if not self.values:
            return ["It is measured on pairs and thumbs, and there are none here."]
        value, unit, prompt = map(np.array, (self.values, self.units, self.prompts))
        try:
            same = percent_agreement(np.sign(value), unit, prompt)
            found = alpha(np.sign(value), unit, prompt, distance="nominal")
        except ValueError as error:
            return [f"There is none to measure: {error}."]
        lines = [
            f"- The same side (or a tie) in {_percent(same.value)} of pairs of judgements of one "
            f"item ({_percent(same.low)} to {_percent(same.high)}; {same.n} pairs)."
        ]
        said = found.reason or f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
        return [*lines, f"- Krippendorff's alpha (nominal) over {found.n} items: {said}."]


def _value(item: Item, each: Said) -> float | None:
    if each.kind == "pairwise":
        better = each.value["preferred"]
        return 0.0 if better is None else float(1 - 2 * (better == item.responses[0].id))
    if each.kind == "thumbs" and len(each.value["labels"]) == 1:
        return float(2 * each.value["labels"][0] - 1)
    return None


def card(campaign: Campaign, ledger: Ledger, export: Any) -> str:
    """The card of an `Export`, as Markdown."""
    tally, config, head = export.tally, export.config, export.head
    people = export.people
    versions = {text.id: text for text in ledger.documents(campaign.id)}
    lines = [f"# {campaign.name}: judgements of kind {config.kind}", ""]
    if any("simulated" in who for who in tally.sources):
        lines += ["**Some of these judgements are simulated: made by no person.**", ""]
    files = [(file.path.name, file.count, file.sha256) for file in export.files.values()]
    kinds = ", ".join(f"{n} by {who}" for who, n in sorted(tally.sources.items()))
    lines += [
        f"{sum(f.count for f in export.files.values())} rows from {tally.items} items: {kinds} "
        f"judgements. Made at `{head}` of the ledger, which `truing ledger verify` can check.",
        "",
        *_table("File", "Rows", "SHA-256", files),
        "",
        "## Who judged",
        "",
        *_table("Person", *export.files, "Source", (
            (
                people[n].pseudonym,
                *(counts[side] for side in export.files),
                people[n].source + (", simulated" if people[n].simulated else ""),
            )
            for n, counts in sorted(tally.by.items())
        )),
        "",
        "## Agreement",
        "",
        *tally.agreement(),
        "",
        "## Guidelines and rounds",
        "",
    ]  # fmt: skip
    for number, count in sorted(tally.guidelines.items(), key=lambda pair: pair[0] or 0):
        text = versions.get(number)
        which = f"guideline version {text.version}" if text else "no guideline"
        lines.append(f"- {count} judgements under {which}")
    lines += [f"- {n} in round {number}" for number, n in sorted(tally.rounds.items())]
    lines += [f"- {n} chosen by the arm {name}" for name, n in sorted(tally.arms.items())]
    if tally.late:
        lines.append(f"- {tally.late} sent after the lease on the item had run out (`late`)")
    lines += ["", "## Known gaps", ""]
    gaps = {why: n for why, n in export.maker.left_out.items() if n}
    gaps |= {"dropped, crossing train and test": export.crossing} if export.crossing else {}
    gaps |= {"items with fewer judgements than wanted": tally.short} if tally.short else {}
    gaps |= {"items with more judgements than wanted": tally.over} if tally.over else {}
    lines += [f"- {why}: {n}" for why, n in gaps.items()] or ["None that is known."]
    if config.test_share:
        lines += ["", f"Train and test share no {' and no '.join(config.split_by)}."]
    return "\n".join(lines) + "\n"


def _table(*columns: Any) -> list[str]:
    *names, rows = columns
    head = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return head + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
