"""Second thoughts about judgements: corrected, undone, set aside. What was said stays in the
ledger, and an event says what became of it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, select, update

from truing.data.ledger.campaigns import batches
from truing.data.ledger.chain import Link, append
from truing.data.ledger.entries import Answer, Judgement, Late, Lease, Told
from truing.data.ledger.judging import _said, chained, ending, rows_of, who_of
from truing.data.ledger.line import answers
from truing.data.ledger.people import _one
from truing.data.ledger.queue import free, own, settle, take
from truing.data.ledger.recording import Recording
from truing.data.ledger.store import plain
from truing.data.ledger.tables import assignments, items, judgements
from truing.data.ledger.values import check


class Revising(Recording):
    """Judgements that no longer count, or count again."""

    def correct(
        self,
        judgement_id: int,
        annotator_id: int,
        answer: Answer,
        *,
        token: str,
        active_ms: int = 0,
        actor: int | None = None,
    ) -> Judgement:
        """Say something else of the same kind in place of one's own judgement, which stays in the
        ledger as superseded. Raises LookupError for another's, Late for one that is not current."""

        def work(c: Connection) -> Judgement:
            if said := _said(c, annotator_id, token, [answer]):
                return said[0]
            old = _mine(c, judgement_id, annotator_id)
            if answer.kind != old["kind"]:
                raise ValueError(f"a {old['kind']} was said; a {answer.kind} cannot correct it")
            item = _one(c, items, old["item_id"], "item")
            check(answer, old["shown"] or answers(c, [item["id"]]).get(item["id"], ()))
            told = Told(
                item["id"],
                annotator_id,
                (answer,),
                token,
                old["arm"],
                tuple(old["shown"]),
                old["retest"],
                old["guideline_id"],
                active_ms,
            )
            who = who_of(c, annotator_id, item["campaign_id"])
            lease, late = old["assignment_id"], old["late"]
            rows = rows_of(told, item, who, at=self.now(), lease_id=lease, late=late)
            rows[0]["supersedes"], rows[0]["purpose"] = judgement_id, old["purpose"]
            self._tally(c, rows)
            _mark(c, [judgement_id], "current", "superseded")
            return chained(c, item["campaign_id"], rows, {})[0]

        plain("token", token, 64)
        return self.write(work)

    def undo(self, judgement_id: int, annotator_id: int, seconds: float = 1800.0) -> Lease | None:
        """Take back a whole submission and whatever was said of the same assignment since; the
        person holds the item again. None where there was no assignment (an import). Raises Late for
        what is not current, or was a skip and the slot is now another's."""
        with self.writing() as c:
            old = _mine(c, judgement_id, annotator_id)
            assigned = old["assignment_id"]
            which = judgements.c.id == judgement_id
            if assigned is not None:
                which = judgements.c.assignment_id == assigned
            query = select(judgements).where(which, judgements.c.status == "current")
            rows = [dict(row) for row in c.execute(query.order_by(judgements.c.id)).mappings()]
            item = _one(c, items, old["item_id"], "item")
            ends = ending(item["kind"], [Answer(row["kind"]) for row in rows])
            slot = old["purpose"] == "work" and old["retest"] == 0
            now, lease, filled = self.now(), None, 0
            if assigned is not None:
                again = {"state": "leased", "leased_at": now}
                again |= {"expires_at": now + int(1000 * seconds)}
                c.execute(update(assignments).where(assignments.c.id == assigned).values(again))
                lease = own(c, assigned, annotator_id)
                slot = lease.slot
            if slot and ends == "done":
                filled = settle(c, item, -1) if lease else free(c, item, now, done=1)
            elif slot and ends == "skipped" and lease and take(c, item) is None:
                raise Late(f"all slots of item {item['id']} are taken by now")
            self._note(rows, ends, by=-1)
            self._tally(c, rows, spent=False)
            numbers = [row["id"] for row in rows]
            _mark(c, numbers, "current", "undone")
            link = Link("undone", annotator_id, judgement_id, now, {"judgements": numbers})
            append(c, item["campaign_id"], link, filled=filled)
            return lease

    def quarantine(
        self,
        campaign_id: int,
        annotator_id: int,
        reason: str,
        *,
        since: int = 0,
        actor: int | None = None,
        lift: bool = False,
    ) -> int:
        """Set aside what somebody said (from a time on): it is not exported, and the slots go to
        others. ``lift``: take it back in, whatever others said meanwhile. ``reason``: a word or
        two, which stay for good. Returns how many."""
        plain("reason", reason, 100)
        before, after = ("quarantined", "current") if lift else ("current", "quarantined")
        t = judgements.c
        mine = and_(t.campaign_id == campaign_id, t.annotator_id == annotator_id, t.at >= since)
        query = select(t.id, t.item_id, t.kind, t.purpose, t.retest, items.c.kind.label("of"))
        query = query.join(items).where(mine, t.status == before).order_by(t.id)
        with self.writing() as c:
            rows, now, filled = c.execute(query).mappings().all(), self.now(), 0
            for row in rows:
                if row["purpose"] != "work" or row["retest"] or row["kind"] != row["of"]:
                    continue
                item = _one(c, items, row["item_id"], "item")
                if lift:
                    filled += take(c, item, beyond=True, done=1) or 0
                else:
                    filled += free(c, item, now, done=1)
            numbers = [row["id"] for row in rows]
            _mark(c, numbers, before, after)
            told = {"judgements": numbers, "reason": reason, "since": since}
            kind = "reinstated" if lift else "quarantined"
            link = Link(kind, actor, annotator_id, now, told)
            append(c, campaign_id, link, filled=filled)
        return len(numbers)


def _mine(c: Connection, judgement_id: int, annotator_id: int) -> dict[str, Any]:
    which = and_(judgements.c.id == judgement_id, judgements.c.annotator_id == annotator_id)
    row = c.execute(select(judgements).where(which).with_for_update()).mappings().one_or_none()
    if row is None:
        raise LookupError(f"annotator {annotator_id} made no judgement {judgement_id}")
    if row["status"] != "current":
        raise Late(f"judgement {judgement_id} is {row['status']} already")
    return dict(row)


def _mark(c: Connection, numbers: Sequence[int], before: str, after: str) -> None:
    """Set the status of judgements, which an event in the same transaction explains."""
    for group in batches(numbers, 500):
        which = and_(judgements.c.id.in_(group), judgements.c.status == before)
        c.execute(update(judgements).where(which).values(status=after))
