"""The chains of hashes: what makes a changed, removed, inserted or moved row of the ledger visible.

Each campaign has a chain of its events, and one more (0) is that of people and of the campaigns.
An event's hash is over the hash before it, its place, and the digest of its content; the content of
a judgement is the row in ``judgements``. Free text enters by the digest of a random salt and the
text: once both are erased, the digest says nothing about the text, and the chain still holds.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from truing.data.ledger.tables import events, streams

START = bytes(32)
# The columns of a judgement that its digest is over: all that never change.
JUDGED = (
    *("campaign_id", "seq", "item_id", "annotator_id", "assignment_id", "token", "part", "kind"),
    *("purpose", "arm", "value", "shown", "retest", "guideline_id", "active_ms", "timing", "round"),
    *("source", "simulated", "late", "supersedes", "at"),
)


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def digest_of(content: Any) -> bytes:
    """SHA-256 of a JSON value: keys sorted, no spaces, ASCII."""
    return hashlib.sha256(_encode(content).encode()).digest()


def sealed(text: str | None) -> dict[str, Any]:
    """The columns of a free text: itself, its salt and their digest."""
    if text is None:
        return {"text": None, "salt": None, "text_digest": None}
    salt = os.urandom(16)
    return {"text": text, "salt": salt, "text_digest": text_digest(salt, text)}


def text_digest(salt: bytes, text: str) -> bytes:
    return hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest()


def judged_digest(row: Mapping[str, Any]) -> bytes:
    """Digest of a judgement's row; of its text and its item, their digests."""
    content = {name: row[name] for name in JUDGED}
    for name in ("text_digest", "item_digest"):
        content[name] = None if row[name] is None else bytes(row[name]).hex()
    return digest_of(content)


class Head(NamedTuple):
    """The end of a chain, locked until the transaction's end."""

    seq: int
    hash: bytes


class Link(NamedTuple):
    """What an event says, its digest aside."""

    kind: str
    actor: int | None
    subject: int | None
    at: int
    content: Any = None


def linked(stream: int, head: Head, link: Link, digest: bytes) -> dict[str, Any]:
    """The row of the event after ``head``."""
    seq = head.seq + 1
    place = [head.hash.hex(), stream, seq, link.kind, link.actor, link.subject, link.at]
    return {
        "stream": stream,
        "seq": seq,
        **link._asdict(),
        "digest": digest,
        "hash": digest_of([*place, digest.hex()]),
    }


_LOCK = (
    select(streams.c.seq, streams.c.hash)
    .where(streams.c.id == bindparam("stream"))
    .with_for_update()
)
_COUNTS = ("work_items", "slots", "filled")
_MOVE = (
    update(streams)
    .where(streams.c.id == bindparam("stream"))
    .values(
        seq=bindparam("to_seq"),
        hash=bindparam("to_hash"),
        **{name: streams.c[name] + bindparam(f"more_{name}") for name in _COUNTS},
    )
)
_APPEND = insert(events)


def lock(connection: Connection, stream: int) -> Head:
    """The head of a chain; others who would lengthen it wait until this transaction ends."""
    seq, digest = connection.execute(_LOCK, {"stream": stream}).one()
    return Head(seq, bytes(digest))


def move(connection: Connection, stream: int, head: Head, **more: int) -> None:
    """Write the new head, and add to the counts beside it (work_items, slots, filled)."""
    counts = {f"more_{name}": more.get(name, 0) for name in _COUNTS}
    place = {"stream": stream, "to_seq": head.seq, "to_hash": head.hash}
    connection.execute(_MOVE, place | counts)


def append(connection: Connection, stream: int, link: Link, **counts: int) -> int:
    """Lengthen a chain by an event whose content stands in it. Returns its place."""
    head = lock(connection, stream)
    row = linked(stream, head, link, digest_of(link.content))
    connection.execute(_APPEND, row)
    move(connection, stream, Head(row["seq"], row["hash"]), **counts)
    return row["seq"]


def begin(connection: Connection, stream: int) -> None:
    """The start of a chain."""
    connection.execute(insert(streams).values(id=stream, seq=0, hash=START))
