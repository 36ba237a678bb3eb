"""Whether the ledger is what was written: every row against the chains.

A chain shows what was changed, removed, put in or moved inside it. Whoever can write to the
database could also cut its end off and move its head back: that shows against a head that is known
from elsewhere, such as those that exports were made at (the ledger keeps them, and each data card
has its own).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from truing.data.ledger.chain import START, digest_of, judged_digest, text_digest
from truing.data.ledger.tables import (
    campaigns,
    documents,
    events,
    exports,
    item_responses,
    items,
    judgements,
    prompts,
    responses,
    streams,
)

PAGE = 5000  # rows read at a time


class Fault(NamedTuple):
    """A row that is not what was written. ``seq``: its place in the campaign's chain (campaign 0:
    people), or 0 where it has none."""

    campaign_id: int
    seq: int
    what: str


class Head(NamedTuple):
    """How far a chain has come, and the hash there: all that is needed to recognise it later."""

    campaign_id: int
    name: str
    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.campaign_id}:{self.seq}:{self.hash}"


def heads(c: Connection) -> list[Head]:
    query = (
        select(streams.c.id, campaigns.c.name, streams.c.seq, streams.c.hash)
        .outerjoin(campaigns, campaigns.c.id == streams.c.id)
        .order_by(streams.c.id)
    )
    return [
        Head(number, name or "people", seq, bytes(digest).hex())
        for number, name, seq, digest in c.execute(query)
    ]


def faults(c: Connection, known: Sequence[tuple[int, int, str]] = ()) -> Iterator[Fault]:
    """All faults. ``known``: heads (campaign, seq, hash) from elsewhere that the chains must hold.
    The connection must read one moment (`Store.reading` with ``snapshot``)."""
    there = {head.campaign_id: head for head in heads(c)}
    made = select(events.c.subject, events.c.seq).where(
        events.c.stream == 0, events.c.kind == "campaign created"
    )
    for number, seq in c.execute(made).all():
        if number not in there:
            yield Fault(0, seq, f"campaign {number} was created here, and its chain is gone")
    query = select(exports.c.campaign_id, exports.c.seq, exports.c.hash).order_by(exports.c.id)
    at_exports = [(number, seq, bytes(digest).hex()) for number, seq, digest in c.execute(query)]
    for number, seq, digest in {*known, *at_exports}:
        place = (events.c.stream == number) & (events.c.seq == seq)
        found = c.scalar(select(events.c.hash).where(place))
        if seq and (found is None or bytes(found).hex() != digest):
            yield Fault(number, seq, "the chain is not the one whose head was noted here")
    for number, head in there.items():
        yield from _Walk(c, number, head).faults()


class _Walk:
    """One chain from its start to its head."""

    def __init__(self, c: Connection, stream: int, head: Head) -> None:
        self.c, self.stream, self.head = c, stream, head
        self.judged = 0
        self.status: dict[int, str] = {}  # of those that are not current
        self.redacted, self.wiped = set[int](), set[int]()
        self.items = 0

    def faults(self) -> Iterator[Fault]:
        before, seq = START, 0
        while page := self._page(seq):
            rows = self._judgements(page[0].seq, page[-1].seq)
            for event in page:
                if event.seq != seq + 1:
                    lost = f"{seq + 1}" if event.seq == seq + 2 else f"{seq + 1} to {event.seq - 1}"
                    yield self._fault(seq + 1, f"removed: event {lost} is not there")
                place = [before.hex(), self.stream, event.seq, event.kind, event.actor]
                place += [event.subject, event.at, bytes(event.digest).hex()]
                if digest_of(place) != bytes(event.hash):
                    said = "changed, moved or put in: the event does not follow from the last one"
                    yield self._fault(event.seq, said)
                before, seq = bytes(event.hash), event.seq
                yield from self._content(event, rows.get(event.seq))
        if (seq, before.hex()) != (self.head.seq, self.head.hash):
            yield self._fault(seq, f"the chain ends here, and its head says {self.head.seq}")
        if self.stream:
            yield from self._strays()
            yield from self._texts()

    def _fault(self, seq: int, what: str) -> Fault:
        return Fault(self.stream, seq, what)

    def _page(self, after: int) -> Sequence[Any]:
        mine = (events.c.stream == self.stream) & (events.c.seq > after)
        return self.c.execute(select(events).where(mine).order_by(events.c.seq).limit(PAGE)).all()

    def _judgements(self, low: int, high: int) -> dict[int, Mapping[Any, Any]]:
        t = judgements.c
        mine = (t.campaign_id == self.stream) & t.seq.between(low, high)
        query = select(judgements, items.c.digest.label("shows")).join(items).where(mine)
        return {row["seq"]: row for row in self.c.execute(query).mappings()}

    def _content(self, event: Any, row: Mapping[Any, Any] | None) -> Iterator[Fault]:
        if event.kind != "judged":
            if digest_of(event.content) != bytes(event.digest):
                yield self._fault(event.seq, f"changed: the content of the event {event.kind!r}")
            else:
                yield from self._told(event)
            return
        if row is None:
            yield self._fault(event.seq, "removed: the judgement of this event is not there")
            return
        self.judged += 1
        if judged_digest(row) != bytes(event.digest):
            yield self._fault(event.seq, f"changed: judgement {row['id']}")
        if row["supersedes"] is not None:
            self.status[row["supersedes"]] = "superseded"
        if bytes(row["shows"]) != bytes(row["item_digest"]):
            yield self._fault(event.seq, f"changed: the item that judgement {row['id']} is about")
        if row["text_digest"] is None:
            if row["text"] is not None:
                yield self._fault(event.seq, f"put in: the text of judgement {row['id']}")
        elif row["text"] is None:
            self.wiped.add(row["id"])
        elif text_digest(bytes(row["salt"]), row["text"]) != bytes(row["text_digest"]):
            yield self._fault(event.seq, f"changed: the text of judgement {row['id']}")

    def _told(self, event: Any) -> Iterator[Fault]:
        """What an event says of other rows."""
        told = event.content
        if event.kind in ("undone", "quarantined"):
            self.status |= dict.fromkeys(told["judgements"], event.kind)
        elif event.kind == "reinstated":
            for number in told["judgements"]:
                self.status.pop(number, None)
        elif event.kind == "redacted":
            self.redacted |= set(told["judgements"])
        elif event.kind == "document added":
            text = self.c.scalar(select(documents.c.text).where(documents.c.id == event.subject))
            if digest_of(text).hex() != told["sha256"]:
                yield self._fault(event.seq, f"changed: document {event.subject}")
        elif event.kind == "items added":
            mine = items.c.campaign_id == self.stream
            between = mine & items.c.id.between(told["first"], told["last"])
            query = select(items.c.id, items.c.digest).where(between).order_by(items.c.id)
            digests = [[number, bytes(digest).hex()] for number, digest in self.c.execute(query)]
            self.items += len(digests)
            if digest_of(digests).hex() != told["sha256"]:
                said = f"changed: the items {told['first']} to {told['last']}"
                yield self._fault(event.seq, f"{said}, of which {len(digests)} are there")

    def _strays(self) -> Iterator[Fault]:
        """Rows that no event explains."""
        t = judgements.c
        mine = t.campaign_id == self.stream
        count = self.c.scalar(select(func.count()).select_from(judgements).where(mine))
        if count != self.judged:
            known = select(events.c.seq).where(
                events.c.stream == self.stream, events.c.kind == "judged", events.c.seq == t.seq
            )
            for number, seq in self.c.execute(select(t.id, t.seq).where(mine, ~known.exists())):
                yield self._fault(seq, f"put in: judgement {number}, of which no event tells")
        odd = select(t.id, t.seq, t.status).where(mine, t.status != "current")
        found = {number: (seq, status) for number, seq, status in self.c.execute(odd)}
        for number in sorted(found.keys() | self.status.keys()):
            seq, status = found.get(number, (0, "current"))
            if status != (due := self.status.get(number, "current")):
                said = f"changed: judgement {number} is marked {status}, and its events say {due}"
                yield self._fault(seq, said)
        for number in sorted(self.wiped - self.redacted):
            yield self._fault(0, f"removed: the text of judgement {number}, by no erasure")
        mine = items.c.campaign_id == self.stream
        count = self.c.scalar(select(func.count()).select_from(items).where(mine)) or 0
        if count != self.items:
            yield self._fault(0, f"{count} items are there, and events tell of {self.items}")

    def _texts(self) -> Iterator[Fault]:
        """Prompts and responses against the digests of the items that show them."""
        last = 0
        while True:
            mine = (items.c.campaign_id == self.stream) & (items.c.id > last)
            query = select(items.c.id, items.c.digest, prompts.c.content).join(prompts).where(mine)
            rows = self.c.execute(query.order_by(items.c.id).limit(PAGE)).all()
            if not rows:
                return
            links = item_responses.join(responses)
            between = item_responses.c.item_id.between(rows[0].id, rows[-1].id)
            shown: dict[int, list[str]] = {}
            answers = (
                select(item_responses.c.item_id, responses.c.content)
                .select_from(links)
                .where(between)
                .order_by(item_responses.c.item_id, item_responses.c.position)
            )
            for number, content in self.c.execute(answers):
                shown.setdefault(number, []).append(digest_of(content).hex())
            for row in rows:
                parts = [digest_of(row.content).hex(), *shown.get(row.id, [])]
                if digest_of(parts) != bytes(row.digest):
                    yield self._fault(0, f"changed: the texts of item {row.id}")
            last = rows[-1].id
