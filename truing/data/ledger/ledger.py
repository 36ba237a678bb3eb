"""The ledger as one thing: `Ledger.open`, and everything that can be asked of it; what one person
may ask of it; what went out of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import RowMapping, delete, insert, select, update

from truing.data.ledger.campaigns import batches
from truing.data.ledger.chain import Link, append
from truing.data.ledger.people import _one
from truing.data.ledger.proof import Fault, Head, faults, heads
from truing.data.ledger.revising import Revising
from truing.data.ledger.tables import (
    LEDGER,
    acceptances,
    annotators,
    assignments,
    documents,
    export_people,
    exports,
    identities,
    judgements,
    members,
    tallies,
    tokens,
)


class Erased(NamedTuple):
    """What an erasure did: the texts redacted, and the exports that still hold them."""

    texts: int
    exports: list[RowMapping]


class Ledger(Revising):
    """People, campaigns, the queue and judgements over one database (see docs/ledger.md).

    Every method is a transaction of its own, whole or not at all, and may be called from any number
    of threads and processes at once. Wrong input raises ValueError; a number that is not there, or
    is another's, LookupError; a database that is gone, ConnectionError; a full disk, OSError.
    """

    def verify(self, known: Sequence[tuple[int, int, str]] = ()) -> list[Fault]:
        """Every row against the chains; ``known``: heads noted elsewhere that must be in them."""
        with self.reading(snapshot=True) as c:
            return list(faults(c, known))

    def heads(self) -> list[Head]:
        """How far each chain has come, and its hash there."""
        with self.reading(snapshot=True) as c:
            return heads(c)

    # --- one person ------------------------------------------------------------------------------

    def person(self, annotator_id: int) -> dict[str, Any]:
        """All that the ledger holds of one person, as plain data: for them to have."""
        told: dict[str, Any] = {"annotator": vars(self.annotator(annotator_id)).copy()}
        identity = self.identity(annotator_id=annotator_id)
        hidden = ("password_hash", "hash", "salt", "text_digest", "item_digest", "data")
        queries = {
            "campaigns": select(members),
            "agreed_to": select(acceptances, documents.c.kind, documents.c.version).join(documents),
            "signed_in": select(tokens),
            "assignments": select(assignments),
            "judgements": select(judgements).order_by(judgements.c.id),
            "days": select(tallies),
        }
        told["identity"] = {k: v for k, v in (identity or {}).items() if k not in hidden}
        with self.reading(snapshot=True) as c:
            for name, query in queries.items():
                mine = query.columns_clause_froms[0].c.annotator_id == annotator_id
                rows = c.execute(query.where(mine)).mappings()
                told[name] = [{k: v for k, v in r.items() if k not in hidden} for r in rows]
        told["exports"] = [
            {"path": r["path"], "at": r["at"]} for r in self.exports_of(annotator_id)
        ]
        return told

    def erase(self, annotator_id: int, actor: int | None = None) -> Erased:
        """Forget who somebody is, and what they wrote: the identity, sign-ins and drafts are
        deleted, free texts of their judgements redacted. What they chose stays, by a pseudonym that
        leads nowhere, and the chains still hold. Exports they are in become stale. Raises
        ValueError for somebody who is erased already."""
        now, t = self.now(), judgements.c
        with self.writing() as c:
            if _one(c, annotators, annotator_id, "annotator")["state"] == "erased":
                raise ValueError(f"annotator {annotator_id} was erased before: nothing is left")
            for table in (identities, tokens):
                c.execute(delete(table).where(table.c.annotator_id == annotator_id))
            gone = {"state": "erased", "tags": [], "external_id": None}
            c.execute(update(annotators).where(annotators.c.id == annotator_id).values(gone))
            mine = assignments.c.annotator_id == annotator_id
            c.execute(update(assignments).where(mine).values(draft=None))
            mine = members.c.annotator_id == annotator_id
            c.execute(update(members).where(mine).values(progress={}))
            wrote = select(t.id, t.campaign_id).where(
                t.annotator_id == annotator_id, t.text.is_not(None)
            )
            texts: dict[int, list[int]] = {}
            for number, campaign in c.execute(wrote.order_by(t.id)):
                texts.setdefault(campaign, []).append(number)
            for campaign, numbers in sorted(texts.items()):
                for group in batches(numbers, 500):
                    blank = update(judgements).where(t.id.in_(group))
                    c.execute(blank.values(text=None, salt=None))
                link = Link("redacted", actor, annotator_id, now, {"judgements": numbers})
                append(c, campaign, link)
            append(c, LEDGER, Link("annotator erased", actor, annotator_id, now))
            used = select(export_people.c.export_id).where(
                export_people.c.annotator_id == annotator_id
            )
            stale = update(exports).where(exports.c.id.in_(used), exports.c.stale_at.is_(None))
            c.execute(stale.values(stale_at=now))
        if self.sqlite:  # or the log of the file would hold the texts for a while
            with self.engine.connect() as c:
                c.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return Erased(sum(map(len, texts.values())), self.exports_of(annotator_id))

    def exports_of(self, annotator_id: int) -> list[RowMapping]:
        """The exports that somebody's judgements are in, as `exports` gives them."""
        query = select(exports).join(export_people).order_by(exports.c.id)
        with self.reading() as c:
            mine = export_people.c.annotator_id == annotator_id
            return list(c.execute(query.where(mine)).mappings())

    # --- what went out ---------------------------------------------------------------------------

    def add_export(
        self,
        campaign_id: int,
        path: str,
        *,
        digest: bytes,
        rows_sha256: str,
        rows: int,
        head: Head,
        settings: Mapping[str, Any],
        people: Iterable[int],
    ) -> int:
        """Note a file that was written: its SHA-256, that of its rows as runs name their datasets,
        the chain's head that it was made at, and whose judgements are in it. Returns its number."""
        row = {"campaign_id": campaign_id, "path": path, "digest": digest, "rows": rows}
        row |= {"rows_sha256": rows_sha256, "settings": dict(settings), "at": self.now()}
        row |= {"seq": head.seq, "hash": bytes.fromhex(head.hash)}
        with self.writing() as c:
            number = c.execute(insert(exports).returning(exports.c.id), row).scalar_one()
            used = [{"export_id": number, "annotator_id": each} for each in sorted(set(people))]
            if used:
                c.execute(insert(export_people), used)
            told = {"sha256": digest.hex(), "rows": rows, "at_event": head.seq}
            append(c, campaign_id, Link("exported", None, number, row["at"], told))
            return number

    def exports(self, *, stale: bool = False) -> list[RowMapping]:
        """Files that were written, oldest first: id, campaign_id, path, digest, rows_sha256, rows,
        settings, seq, hash, at, stale_at (None: nobody in it was erased since)."""
        query = select(exports).order_by(exports.c.id)
        query = query.where(exports.c.stale_at.is_not(None)) if stale else query
        with self.reading() as c:
            return list(c.execute(query).mappings())
