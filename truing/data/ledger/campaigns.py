"""The ledger's campaigns: what is judged, by which guidelines, and how far it has come."""

import datetime
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping, bindparam, func, insert, select, update

from truing.data.ledger.chain import Link, append, begin, digest_of, lock
from truing.data.ledger.entries import Campaign, Document, Item, NewItem, Progress
from truing.data.ledger.people import People, _one, one_of, upsert
from truing.data.ledger.store import plain
from truing.data.ledger.tables import (
    LEDGER,
    campaigns,
    documents,
    domains,
    item_responses,
    items,
    prompts,
    responses,
    streams,
    tallies,
)
from truing.data.ledger.texts import ONE, SOME, read_items

T = TypeVar("T")

KINDS = ("pairwise", "ranking", "rating", "thumbs", "steps", "spans", "demonstration", "edit")
STATES = ("draft", "pilot", "open", "paused", "closed")
PURPOSES = ("work", "gold", "practice", "screening")
DOCUMENTS = ("guideline", "consent", "warning")
DAY = 86_400_000
RESPONSES = {"pairwise": (2, 2), "ranking": (2, 64), "demonstration": (0, 0)}


class Campaigns(People):
    """What is judged. Texts and documents are added and never changed."""

    def create_campaign(
        self,
        name: str,
        kind: str,
        *,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        external_id: str | None = None,
        actor: int | None = None,
    ) -> Campaign:
        """A new campaign, a draft. Raises ValueError for a name that is taken."""
        one_of("kind", kind, KINDS)
        row = {"name": plain("name", name, 100), "kind": kind, "state": "draft", "seed": seed}
        row |= {"round": 0, "config": dict(config or {}), "external_id": external_id}
        row |= {"created_at": self.now()}
        with self.writing() as c:
            if c.scalar(select(campaigns.c.id).where(campaigns.c.name == name)):
                raise ValueError(f"there is a campaign {name!r} already: give another name")
            made = c.execute(insert(campaigns).returning(campaigns), row).mappings().one()
            begin(c, made["id"])
            append(c, LEDGER, Link("campaign created", actor, made["id"], row["created_at"], row))
            return Campaign(**made)

    def campaign(self, which: int | str) -> Campaign:
        """A campaign by number or name. Raises LookupError for an unknown one."""
        by = campaigns.c.id == which if isinstance(which, int) else campaigns.c.name == which
        with self.reading() as c:
            row = c.execute(select(campaigns).where(by)).mappings().one_or_none()
        if row is None:
            known = ", ".join(campaign.name for campaign in self.campaigns()[:10]) or "none"
            raise LookupError(f"there is no campaign {which!r}; there are: {known}")
        return Campaign(**row)

    def campaigns(self) -> list[Campaign]:
        with self.reading() as c:
            query = select(campaigns).order_by(campaigns.c.id)
            return [Campaign(**row) for row in c.execute(query).mappings()]

    def set_campaign(
        self,
        campaign_id: int,
        *,
        state: str | None = None,
        round: int | None = None,
        config: Mapping[str, Any] | None = None,
        actor: int | None = None,
    ) -> Campaign:
        """Open, pause or close a campaign, begin a round, or replace its config."""
        told: dict[str, Any] = {} if state is None else {"state": one_of("state", state, STATES)}
        told |= {} if round is None else {"round": round}
        told |= {} if config is None else {"config": dict(config)}
        with self.writing() as c:
            c.execute(update(campaigns).where(campaigns.c.id == campaign_id).values(told))
            link = Link("campaign changed", actor, campaign_id, self.now(), told)
            append(c, campaign_id, link)
            return Campaign(**_one(c, campaigns, campaign_id, "campaign"))

    # --- guidelines, consent, warnings -----------------------------------------------------------

    def add_document(
        self, campaign_id: int, kind: str, text: str, actor: int | None = None
    ) -> Document:
        """A new version of a guideline, consent or warning; of a text that is the latest already,
        nothing changes."""
        one_of("kind", kind, DOCUMENTS)
        digest = digest_of(text)
        with self.writing() as c:
            last = _latest(c, campaign_id, kind)
            if last is not None and bytes(last["digest"]) == digest:
                return _document(last)
            row = {"campaign_id": campaign_id, "kind": kind, "text": text, "digest": digest}
            row |= {"version": last["version"] + 1 if last else 1, "at": self.now()}
            made = c.execute(insert(documents).returning(documents), row).mappings().one()
            told = {"kind": kind, "version": row["version"], "sha256": digest.hex()}
            append(c, campaign_id, Link("document added", actor, made["id"], row["at"], told))
            return _document(made)

    def document(self, campaign_id: int, kind: str) -> Document | None:
        """The latest version; None if there is none."""
        with self.reading() as c:
            row = _latest(c, campaign_id, kind)
            return None if row is None else _document(row)

    def documents(self, campaign_id: int) -> list[Document]:
        """All versions of all kinds, the oldest first."""
        query = select(documents).where(documents.c.campaign_id == campaign_id)
        with self.reading() as c:
            return [_document(row) for row in c.execute(query.order_by(documents.c.id)).mappings()]

    # --- items -----------------------------------------------------------------------------------

    def add_items(
        self,
        campaign_id: int,
        new: Iterable[NewItem],
        *,
        actor: int | None = None,
        batch: int = 1000,
    ) -> int:
        """Add items with their prompts and responses; returns how many. Each batch is a transaction
        and an event. Raises ValueError for an item that its kind cannot have."""
        campaign, count = self.campaign(campaign_id), 0
        for group in batches(new, batch):
            for item in group:
                _check(campaign, item)
            with self.writing() as c:
                self._add(c, campaign, group, count, actor)
            count += len(group)
        return count

    def _add(
        self,
        c: Connection,
        campaign: Campaign,
        group: Sequence[NewItem],
        before: int,
        actor: int | None,
    ) -> None:
        now, had = (
            self.now(),
            c.scalar(select(streams.c.work_items).where(streams.c.id == campaign.id)),
        )
        lock(c, campaign.id)  # so that the numbers of a batch are a range of its own
        by_chance = random.Random(f"{campaign.seed} {had} {before}")
        asked = _prompts(c, group, now)
        answers = iter(_inserted(c, responses, _responses(group, asked, now)))
        made = [
            {
                "campaign_id": campaign.id,
                "prompt_id": asked[digest_of(item.prompt)],
                "kind": item.kind or campaign.kind,
                "purpose": item.purpose,
                "domain": plain("domain", item.domain, 100),
                "tags": sorted(set(item.tags)),
                "score": item.score,
                "control": item.control,
                "expected": item.expected,
                "explanation": item.explanation,
                "digest": item_digest(item.prompt, [r.content for r in item.responses]),
                "external_id": item.external_id,
                "created_at": now,
                "freed_at": now,
                "wanted": item.wanted,
                "open": True,
                "key": _key(item, by_chance.random()),
            }
            for item in group
        ]
        numbers = _inserted(c, items, made)
        links = [
            {"item_id": number, "position": place, "response_id": next(answers)}
            for number, item in zip(numbers, group, strict=True)
            for place in range(len(item.responses))
        ]
        if links:
            c.execute(insert(item_responses), links)
        digests = [[n, row["digest"].hex()] for n, row in zip(numbers, made, strict=True)]
        told: dict[str, Any] = {"first": numbers[0], "last": numbers[-1], "count": len(numbers)}
        told["sha256"] = digest_of(digests).hex()
        work = [item for item in group if item.purpose == "work"]
        named = [{"campaign_id": campaign.id, "domain": d} for d in {i.domain for i in work} - {""}]
        if named:
            c.execute(upsert(c, domains).on_conflict_do_nothing(), named)
        slots = sum(item.wanted for item in work)
        link = Link("items added", actor, None, now, told)
        append(c, campaign.id, link, work_items=len(work), slots=slots)

    def item_numbers(self, campaign_id: int) -> dict[bytes, int]:
        """`item_digest` -> number, of all items of a campaign."""
        query = select(items.c.digest, items.c.id).where(items.c.campaign_id == campaign_id)
        with self.reading() as c:
            return {bytes(digest): number for digest, number in c.execute(query)}

    def item(self, item_id: int) -> Item:
        """An item with its texts. Raises LookupError for an unknown number."""
        found = self.items([item_id])
        if not found:
            raise LookupError(f"there is no item {item_id}")
        return found[0]

    def items(self, numbers: Sequence[int]) -> list[Item]:
        """Items with their texts, by number; unknown numbers are left out."""
        with self.reading() as c:
            if len(numbers) == 1:
                return list(read_items(c, ONE, item=numbers[0]))
            return list(read_items(c, SOME, items=list(numbers)))

    # --- how far it has come ---------------------------------------------------------------------

    def progress(self, campaign_id: int, annotator_id: int | None = None) -> Progress:
        """The counts of a campaign, or of one person in it. They cost the same at any size."""
        which = {"campaign": campaign_id, "annotator": annotator_id, "day": day_of(self.now())}
        with self.reading() as c:
            return Progress(*map(int, c.execute(_progress(annotator_id is None), which).one()))

    def domain_loads(self, campaign_id: int) -> dict[str, int]:
        """Domain -> slots of it that are held or judged, of domains with a name."""
        query = select(domains.c.domain, domains.c.load).where(domains.c.campaign_id == campaign_id)
        with self.reading() as c:
            return {row[0]: row[1] for row in c.execute(query)}

    def tallies(self, campaign_id: int) -> list[RowMapping]:
        """Per person and UTC day: annotator_id, day, done, skipped, active_ms."""
        query = select(tallies).where(tallies.c.campaign_id == campaign_id)
        query = query.order_by(tallies.c.day, tallies.c.annotator_id)
        with self.reading() as c:
            return list(c.execute(query).mappings())


@cache
def _progress(all_: bool):
    """The counts of `Progress`, of ``all_`` people or of one."""
    mine = tallies.c.campaign_id == streams.c.id
    if not all_:
        mine &= tallies.c.annotator_id == bindparam("annotator")
    counts, today = (tallies.c.done, tallies.c.skipped, tallies.c.active_ms), bindparam("day")
    sizes = (streams.c.work_items, streams.c.slots)
    return (
        select(
            *sizes,
            *(func.coalesce(func.sum(x), 0) for x in counts),
            *(func.coalesce(func.sum(x).filter(tallies.c.day == today), 0) for x in counts[:2]),
            streams.c.filled,
        )
        .select_from(streams.outerjoin(tallies, mine))
        .where(streams.c.id == bindparam("campaign"))
        .group_by(streams.c.id, *sizes, streams.c.filled)
    )


def batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """The rows in lists of a size; the last may be shorter."""
    rest = iter(rows)
    while group := list(islice(rest, size)):
        yield group


def _check(campaign: Campaign, item: NewItem) -> None:
    kind = one_of("an item's kind", item.kind or campaign.kind, KINDS)
    one_of("an item's purpose", item.purpose, PURPOSES)
    low, high = RESPONSES.get(kind, (1, 64))
    if not low <= len(item.responses) <= high:
        needed = str(low) if low == high else f"{low} to {high}"
        raise ValueError(
            f"an item of kind {kind} came with {len(item.responses)}; needed: {needed}"
        )
    if item.wanted < 1:
        raise ValueError(f"an item wants {item.wanted} judgements; needed: 1 or more")
    if item.purpose != "work" and item.expected is None:
        raise ValueError(f"an item for {item.purpose} came without `expected`, the right answer")


def item_digest(prompt: Any, contents: Sequence[Any]) -> bytes:
    """What an item shows, as one digest: of its prompt's and its responses', in their order."""
    return digest_of([digest_of(prompt).hex(), *(digest_of(content).hex() for content in contents)])


def _key(item: NewItem, chance: float) -> float:
    if item.key is not None:
        return item.key
    return chance if item.control or item.score is None else -item.score


def _prompts(c: Connection, group: Sequence[NewItem], now: int) -> dict[bytes, int]:
    """The numbers of the items' prompts, those that are new added."""
    rows = {
        digest_of(item.prompt): {
            "content": item.prompt,
            "domain": plain("domain", item.domain, 100),
            "tags": sorted(set(item.tags)),
            "created_at": now,
        }
        for item in group
    }
    query = select(prompts.c.digest, prompts.c.id).where(prompts.c.digest.in_(list(rows)))
    new = [{"digest": digest, **row} for digest, row in rows.items()]
    c.execute(upsert(c, prompts).on_conflict_do_nothing(index_elements=["digest"]), new)
    return {bytes(digest): number for digest, number in c.execute(query)}


def _responses(
    group: Sequence[NewItem], asked: Mapping[bytes, int], now: int
) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": asked[digest_of(item.prompt)],
            "digest": digest_of(response.content),
            "content": response.content,
            "model": plain("model", response.model, 300),
            "run": plain("run", response.run, 500),
            "origin": dict(response.origin),
            "created_at": now,
        }
        for item in group
        for response in item.responses
    ]


def _inserted(c: Connection, table: Any, rows: list[dict[str, Any]]) -> list[int]:
    """Insert rows; their numbers in their order."""
    if not rows:
        return []
    query = insert(table).returning(table.c.id, sort_by_parameter_order=True)
    return list(c.scalars(query, rows))


def _latest(c: Connection, campaign_id: int, kind: str) -> RowMapping | None:
    which = (documents.c.campaign_id == campaign_id) & (documents.c.kind == kind)
    query = select(documents).where(which).order_by(documents.c.version.desc()).limit(1)
    return c.execute(query).mappings().one_or_none()


def _document(row: RowMapping) -> Document:
    return Document(**{k: row[k] for k in Document.__dataclass_fields__})


def day_of(ms: int) -> str:
    """The UTC day of a time, as 2026-01-31."""
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).date().isoformat()
