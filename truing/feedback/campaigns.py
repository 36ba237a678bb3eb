"""Campaigns from the command line: `truing collect create`, `import` and `status`."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from truing import console
from truing.config import ConfigError, read_yaml
from truing.data.formats import DataError, Dataset, load
from truing.data.ledger import Answer, Campaign, Ledger, NewItem, NewResponse
from truing.data.ledger.campaigns import batches, item_digest
from truing.data.ledger.entries import Told
from truing.data.schema import (
    Comparison,
    Demonstration,
    Label,
    Prompt,
    Provenance,
    Ranking,
    Record,
    Steps,
    Text,
)
from truing.feedback.assign import place
from truing.feedback.rules import config_of, rules_of
from truing.settings_collect import (
    CollectCreateConfig,
    CollectImportConfig,
)

# What the rows of a file may be read as, for each kind of campaign, the first that fits.
READ_AS: dict[str, tuple[type[Record], ...]] = {
    "pairwise": (Comparison, Demonstration),
    "ranking": (Ranking, Demonstration),
    "rating": (Ranking, Demonstration),
    "thumbs": (Label, Demonstration),
    "steps": (Steps,),
    "spans": (Demonstration,),
    "edit": (Demonstration,),
    "demonstration": (Prompt,),
}
SAMPLES = ("pairwise", "ranking", "rating")  # whose items are several samples of a prompt


def create(config: CollectCreateConfig) -> None:
    """Make the campaign, or add new versions of its texts if it is there with the same kind."""
    made = _config(config)
    with Ledger.open(config.ledger) as ledger:
        try:
            campaign = ledger.campaign(config.campaign)
        except LookupError:
            campaign = ledger.create_campaign(
                config.campaign, config.kind, config=made, seed=config.seed
            )
        if campaign.kind != config.kind:
            raise ValueError(
                f"the campaign {campaign.name} has the kind {campaign.kind}, and {config.kind} "
                "came: give another name"
            )
        told: dict[str, Any] = {"campaign": campaign.name, "kind": campaign.kind}
        texts = {"guideline": config.guideline, "consent": config.consent}
        for kind, file in {**texts, "warning": config.warning}.items():
            if file is not None:
                text = ledger.add_document(campaign.id, kind, _text(file))
                told[kind] = f"version {text.version}"
    console.table("Campaign", {**told, "ledger": config.ledger})


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): give a text file in UTF-8") from None


def _config(config: CollectCreateConfig) -> dict[str, Any]:
    """The rules of the file, and the aspects, as the campaign will hold them."""
    rules = {} if config.rules is None else read_yaml(config.rules)
    if config.aspects and "aspects" in rules:
        raise ConfigError(f"aspects came, and stand in {config.rules} too: give them once")
    rules |= {"aspects": config.aspects} if config.aspects else {}
    if config.kind == "rating" and "aspects" not in rules:
        raise ConfigError("kind rating needs aspects: what is rated")
    try:
        return config_of(config.kind, rules)
    except ConfigError as error:
        raise ConfigError(f"{config.rules}: {error}" if config.rules else str(error)) from None


Say = Callable[[str], None]  # takes a line for whoever imports

# --- import --------------------------------------------------------------------------------------


def import_(config: CollectImportConfig) -> None:
    """Add items to a campaign, and what the rows say of them if ``judgements``. Rows whose item is
    there already add none. Raises DataError for rows that the campaign's kind cannot be made of."""
    with Ledger.open(config.ledger) as ledger:
        campaign = ledger.campaign(config.campaign)
        told = take_in(ledger, campaign, config, lambda line: console.say(console.plain(line)))
    console.table("Imported", {**told, "campaign": campaign.name})


def take_in(
    ledger: Ledger, campaign: Campaign, config: CollectImportConfig, say: Say
) -> dict[str, int]:
    """The same into an open ledger; ``say`` is told what was left out, and counts are given."""
    rows = _read(config, campaign)
    say(rows.summary())
    items = Items(ledger, campaign, config, list(_units(config, campaign, rows, say)))
    told = {"items added": items.add()}
    if config.judgements and config.purpose == "work":
        told["judgements recorded"] = items.record()
    if items.again:
        told["items that were there already"] = items.again
    return told


def _read(config: CollectImportConfig, campaign: Campaign) -> Dataset[Any]:
    """The rows as the first kind of record that they can be."""
    kinds = READ_AS[campaign.kind]
    kinds = kinds[1:] if config.against is not None else kinds
    first: DataError | None = None
    for kind in kinds:
        try:
            return load(config.dataset_name, kind, split=config.dataset_train_split)
        except DataError as error:
            first = first or error
    raise first or ValueError(f"against is for kind pairwise; the campaign is {campaign.kind}")


Unit = tuple[NewItem, Record | None]


def _units(
    config: CollectImportConfig, campaign: Campaign, rows: Dataset[Any], say: Say
) -> Iterator[Unit]:
    """Items, each with the record that says something of it."""
    sampled = isinstance(rows[0], Demonstration) and campaign.kind in SAMPLES
    if config.against is not None:
        if campaign.kind != "pairwise":
            raise ValueError(f"against is for kind pairwise; the campaign is {campaign.kind}")
        other = load(config.against, Demonstration, split=config.dataset_train_split)
        yield from ((item, None) for item in _matched(rows, other, _systems(config), say))
    elif sampled:
        if config.judgements:
            raise ValueError(
                "judgements came, and the rows are samples that say nothing: leave out"
            )
        yield from ((item, None) for item in _grouped(rows, config.responses, say))
    else:
        for record in rows:
            yield _item(record), record


def _item(record: Record) -> NewItem:
    """What a record is about; the better of a pair stands first or second by its content alone."""
    if isinstance(record, Prompt):
        return NewItem(_plain(record.prompt), ())
    told = record.provenance
    if isinstance(record, Comparison):
        texts: list[Any] = sorted((record.chosen, record.rejected), key=repr)
        if texts[0] != record.chosen:
            told = record.swap().provenance
    elif isinstance(record, Ranking):
        texts = list(record.completions)
    elif isinstance(record, Steps):
        texts = [{"steps": list(record.completions)}]
    else:
        texts = [record.completion]
    return NewItem(
        _plain(record.prompt),
        tuple(_response(text, told, i, len(texts)) for i, text in enumerate(texts)),
        domain=str(told.extra.get("domain", "")),
    )


def _response(text: Any, told: Provenance, place: int, count: int) -> NewResponse:
    """A response, with what the record tells of where it came from."""

    def own(name: str) -> Any:
        given: Any = told.extra.get(name)
        several = isinstance(given, list | tuple) and len(given) == count
        return given[place] if several else given

    made_by = told.author if told.source == "model" else ""
    model, run = own("models") or own("model") or made_by, own("runs") or own("run") or ""
    more = {k: own(k) for k in ("finish_reason", "sampling", "seed") if own(k) is not None}
    content = text if isinstance(text, dict) else _plain(text)
    return NewResponse(content, str(model), str(run), more)


def _plain(text: Text) -> Any:
    return text if isinstance(text, str) else [dict(vars(message)) for message in text]


def _grouped(rows: Iterable[Any], count: int, say: Say) -> Iterator[NewItem]:
    """The first ``count`` samples of each prompt as one item."""
    found: dict[Any, dict[Any, Any]] = defaultdict(dict)
    for row in rows:
        found[row.prompt].setdefault(row.completion, row)
    short = sum(len(samples) < count for samples in found.values())
    if short:
        say(f"{short} prompts have fewer than {count} different samples: left out")
    for samples in found.values():
        if len(samples) >= count:
            parts = [_item(row).responses[0] for row in list(samples.values())[:count]]
            first = next(iter(samples.values()))
            yield replace(_item(first), responses=tuple(parts))


def _systems(config: CollectImportConfig) -> tuple[str, str]:
    """What two files of samples are called: by their names, or their folders' too."""
    one, two = Path(config.dataset_name), Path(str(config.against))
    if one.stem != two.stem:
        return one.stem, two.stem
    return f"{one.parent.name}/{one.stem}", f"{two.parent.name}/{two.stem}"


def _matched(
    rows: Iterable[Any], other: Iterable[Any], names: tuple[str, str], say: Say
) -> Iterator[NewItem]:
    """Each prompt's first sample in the one file against its first in the other."""
    theirs: dict[Any, Any] = {}
    for row in other:
        theirs.setdefault(row.prompt, row)
    had, alone, same = set[Any](), 0, 0
    for row in rows:
        if row.prompt in had:
            continue
        had.add(row.prompt)
        against = theirs.get(row.prompt)
        alone += against is None
        if against is None or against.completion == row.completion:
            same += against is not None
            continue
        one, two = _item(row), _item(against)
        both = zip((*one.responses, *two.responses), names, strict=True)
        named = (replace(each, run=each.run or name) for each, name in both)
        yield replace(one, responses=tuple(named))
    for count, why in ((alone, "are in one file alone"), (same, "have the same response twice")):
        if count:
            say(f"{count} prompts {why}: left out")


class Items:
    """What is to be imported into a campaign, and which of it is there already."""

    def __init__(
        self, ledger: Ledger, campaign: Campaign, config: CollectImportConfig, units: list[Unit]
    ) -> None:
        self.ledger, self.campaign, self.config = ledger, campaign, config
        self.units, self.policy = units, rules_of(campaign.config).policy(campaign.seed)
        self.source = Path(config.dataset_name).name
        self.again = 0

    def _digest(self, item: NewItem) -> bytes:
        return item_digest(item.prompt, [response.content for response in item.responses])

    def add(self) -> int:
        there = set(self.ledger.item_numbers(self.campaign.id))
        new = dict[bytes, NewItem]()
        for item, record in self.units:
            digest = self._digest(item)
            if digest in there or digest in new:
                self.again += 1
                continue
            found = place(self.policy, digest.hex())
            more: dict[str, Any] = {"wanted": self.policy.overlap, "control": found.control}
            if self.config.purpose != "work":
                assert record is not None
                answer = said_of(record, self.campaign.kind, range(len(item.responses)))
                more = {"expected": {"kind": answer.kind, "value": answer.value}}
                more["purpose"] = self.config.purpose
                assert not isinstance(record, Prompt)  # `said_of` refused it
                if isinstance(why := record.provenance.extra.get("explanation"), str):
                    more["explanation"] = why
            new[digest] = replace(item, key=found.key if found.control else None, **more)
        return self.ledger.add_items(self.campaign.id, new.values())

    def record(self) -> int:
        numbers = self.ledger.item_numbers(self.campaign.id)
        people: dict[tuple[str, str, bool], int] = {}
        count, seen = 0, Counter[str]()
        for group in batches(self.units, 2000):
            there = {item.id: item for item in self.ledger.items(
                [numbers[self._digest(item)] for item, _ in group]
            )}  # fmt: skip
            told = list[Told]()
            for item, record in group:
                if record is None or isinstance(record, Prompt):
                    continue
                stored, who = there[numbers[self._digest(item)]], record.provenance
                ids = [response.id for response in stored.responses]
                key = (who.author, who.source, who.simulated)
                if key not in people:
                    people[key] = self._person(key)
                token = self._token(record, seen)
                answer = said_of(record, self.campaign.kind, ids)
                active = who.extra.get("active_ms")
                told.append(
                    Told(
                        stored.id,
                        people[key],
                        (answer,),
                        token,
                        shown=_shown(record, answer, who.order, ids),
                        active_ms=active if type(active) is int else 0,
                        at=_when(who.time),
                    )
                )
            count += self.ledger.record(self.campaign.id, told)
        return count

    def _person(self, key: tuple[str, str, bool]) -> int:
        """The judge of this name in this file, made if there is none; the name is personal."""
        author, source, simulated = key
        digest = hashlib.sha256(repr((self.source, *key)).encode("utf-8", "surrogatepass"))
        email = f"import-{digest.hexdigest()[:32]}"
        if (known := self.ledger.identity(email=email)) is not None:
            return known["annotator_id"]
        # What the row does not tell was made by somebody, as far as anybody knows.
        source = source if source in ("human", "ai", "verifier") else "human"
        name = "".join(c for c in author if c.isprintable())[:200]
        made = self.ledger.add_annotator(name=name, email=email, source=source, simulated=simulated)
        return made.id

    def _token(self, record: Record, seen: Counter[str]) -> str:
        """A name for the row, the same whenever it is imported; equal rows are told apart."""
        digest = hashlib.sha256(repr(record).encode("utf-8", "surrogatepass")).hexdigest()[:40]
        seen[digest] += 1
        return f"{digest}-{seen[digest]}"


def _when(time: str) -> int | None:
    """Milliseconds since 1970 of a time as records hold it; None where it cannot be told."""
    try:
        return int(1000 * datetime.fromisoformat(time).timestamp())
    except ValueError:
        return None


def said_of(record: Record, kind: str, ids: Sequence[int]) -> Answer:
    """What a record says, in the ledger's form; ``ids``: of the item's responses, in their order.
    Raises ValueError for a record that says nothing of this kind."""
    if isinstance(record, Comparison) and kind == "pairwise":
        better = ids[[record.chosen, record.rejected] != sorted(
            (record.chosen, record.rejected), key=repr
        )]  # fmt: skip
        if record.provenance.extra.get("chosen_probability") == 0.5:
            return Answer("pairwise", {"outcome": "tie", "preferred": None, "strength": None})
        strength = record.provenance.extra.get("strength")
        value = {"outcome": "better", "preferred": better}
        return Answer("pairwise", {**value, "strength": strength if strength in (1, 2) else None})
    if isinstance(record, Ranking) and kind == "ranking":
        return Answer("ranking", {"responses": list(ids), "ranks": list(record.ranks)})
    if isinstance(record, Label) and kind == "thumbs":
        return Answer("thumbs", {"responses": list(ids), "labels": [record.label]})
    if isinstance(record, Steps) and kind == "steps":
        labels = [1 if label else -1 for label in record.labels]
        return Answer("steps", {"response": ids[0], "labels": labels})
    what = type(record).__name__.lower()
    raise ValueError(f"a {what} says nothing of kind {kind}: import it without judgements")


def _shown(
    record: Record, answer: Answer, order: Sequence[int], ids: Sequence[int]
) -> tuple[int, ...]:
    """The response ids in the order shown; empty where the record does not tell it."""
    if sorted(order) != list(range(len(ids))):
        return ()
    own = list(ids)
    if isinstance(record, Comparison) and answer.value["preferred"] is not None:
        own.sort(key=lambda number: number != answer.value["preferred"])
    return tuple(own[i] for i in order)
