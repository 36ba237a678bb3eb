"""The ledger's judgements: submitted once, never overwritten; corrected, undone or set aside by
later events that name them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from truing.data.ledger.campaigns import day_of
from truing.data.ledger.chain import Head, Link, judged_digest, linked, lock, move, sealed
from truing.data.ledger.entries import Answer, Decided, Judgement, Late, Question, Told
from truing.data.ledger.people import _one, upsert
from truing.data.ledger.queue import Queue, an_item, free, own, settle, take
from truing.data.ledger.store import plain
from truing.data.ledger.tables import (
    annotators,
    assignments,
    campaigns,
    events,
    items,
    judgements,
    tallies,
)
from truing.data.ledger.values import check

LAST = 10  # how many decisions can be reopened
_JUDGEMENT = [judgements.c[n] for n in Judgement.__dataclass_fields__]
# Statements of each submission are made once: to put one together takes longer than to run it.
_TOKEN = (
    select(*_JUDGEMENT)
    .where(judgements.c.annotator_id == bindparam("annotator"))
    .where(judgements.c.token == bindparam("submission"))
    .order_by(judgements.c.part)
)
_END = (
    update(assignments)
    .where(assignments.c.id == bindparam("lease"), assignments.c.state == bindparam("before"))
    .values(state=bindparam("after"), draft=None)
)
WHO = (
    select(annotators.c.source, annotators.c.simulated, campaigns.c.round)
    .join(campaigns, campaigns.c.id == bindparam("campaign"))
    .where(annotators.c.id == bindparam("annotator"))
)
_t = judgements.c
_DECIDED = (
    select(*(_t[name] for name in Decided._fields))
    .where(_t.campaign_id == bindparam("campaign"), _t.annotator_id == bindparam("annotator"))
    .where(_t.part == 0, _t.status == "current")
    .where(_t.kind.not_in(("flag", "question", "critique", "answer")))
    .order_by(_t.id.desc())
    .limit(bindparam("limit"))
)
_JUDGED = insert(judgements).returning(*_JUDGEMENT, sort_by_parameter_order=True)
_EVENTS = insert(events)


class Judging(Queue):
    """What was said. An answer of the item's own kind fills its slot; a skip gives it back; others
    (critique, flag, question, edit) go with it, in the same submission or a later one."""

    def submit(
        self,
        lease_id: int,
        annotator_id: int,
        answers: Sequence[Answer],
        *,
        token: str,
        active_ms: int = 0,
        timing: Mapping[str, Any] | None = None,
    ) -> list[Judgement]:
        """Record what somebody said of the item they hold; when this returns, it is on the disk.

        ``token`` is made by the client for each submission: the same again, by a lost connection or
        a double click, returns what was recorded, and counts once. ``active_ms``: how long they
        read and wrote, idle time left out; ``timing``: what it was measured from.

        A lease that ran out is taken up again, even if the item is full by now, since work that was
        done should count (``late``). Raises LookupError for another's assignment, ValueError for an
        answer that does not fit, or for a token that came with other answers, Late for an item that
        was judged or skipped by another submission: undo or correct that.
        """
        plain("token", token, 64)
        try:
            return self.write(
                lambda c: self._submit(
                    c, lease_id, annotator_id, answers, token, active_ms, timing or {}
                )
            )
        except IntegrityError:  # the same token at the same moment
            with self.reading() as c:
                if said := _said(c, annotator_id, token, answers):
                    return said
            raise

    def _submit(
        self,
        c: Connection,
        lease_id: int,
        annotator_id: int,
        answers: Sequence[Answer],
        token: str,
        active_ms: int,
        timing: Mapping[str, Any],
    ) -> list[Judgement]:
        if said := _said(c, annotator_id, token, answers):
            return said
        lease = own(c, lease_id, annotator_id)
        item = an_item(c, lease.item_id)
        for answer in answers:
            check(answer, lease.shown)
        ends, filled = ending(item["kind"], answers), 0
        if ends:
            while lease.state in ("leased", "expired", "released"):
                how = {"lease": lease_id, "before": lease.state, "after": ends}
                if c.execute(_END, how).rowcount:
                    break
                lease = own(c, lease_id, annotator_id)  # which somebody changed meanwhile
            else:
                if said := _said(c, annotator_id, token, answers):
                    return said  # the same, a moment earlier
                raise Late(f"assignment {lease_id} is over: undo or correct what was said")
            leased = lease.state == "leased"
            if lease.slot and ends == "done":
                filled = settle(c, item) if leased else take(c, item, beyond=True, done=1)
            elif lease.slot and leased:
                free(c, item, self.now())
        late = ends == "done" and lease.state != "leased"
        told = Told(
            lease.item_id,
            annotator_id,
            tuple(answers),
            token,
            lease.arm,
            tuple(lease.shown),
            lease.retest,
            lease.guideline_id,
            active_ms,
            timing,
        )
        who = who_of(c, annotator_id, item["campaign_id"])
        rows = rows_of(told, item, who, at=self.now(), lease_id=lease_id, late=late)
        self._note(rows, ends)
        self._tally(c, rows)
        return chained(c, item["campaign_id"], rows, {"filled": filled or 0})

    def _note(self, rows: Sequence[dict[str, Any]], ends: str, by: int = 1) -> None:
        """Put beside a submission's first row what it adds to (or takes from) its author's day."""
        rows[0]["_done"], rows[0]["_skipped"] = by * (ends == "done"), by * (ends == "skipped")

    def _tally(self, c: Connection, rows: Sequence[dict[str, Any]], spent: bool = True) -> None:
        """Add what was noted to the tallies, in the order of their keys, so that two who add at
        once do not wait for each other. Time that was ``spent`` stays so when work is undone."""
        days = dict[tuple[int, int, str], list[int]]()
        for row in rows:
            more = (row.pop("_done", 0), row.pop("_skipped", 0), row["active_ms"] * spent)
            day = days.setdefault(
                (row["campaign_id"], row["annotator_id"], day_of(row["at"])), [0] * 3
            )
            for i, count in enumerate(more):
                day[i] += count
        query = _count(c.dialect.name == "sqlite")
        for (campaign, annotator, day), (done, skipped, active) in sorted(days.items()):
            counts = {"done": done, "skipped": skipped, "active_ms": active}
            c.execute(
                query, {"campaign_id": campaign, "annotator_id": annotator, "day": day, **counts}
            )

    # --- looking back ----------------------------------------------------------------------------

    def recent(self, campaign_id: int, annotator_id: int, limit: int = LAST) -> list[Judgement]:
        """A person's last current judgements, the newest first."""
        t = judgements.c
        query = select(*_JUDGEMENT).where(
            t.campaign_id == campaign_id, t.annotator_id == annotator_id, t.status == "current"
        )
        with self.reading() as c:
            rows = c.execute(query.order_by(t.id.desc()).limit(limit)).mappings()
            return [Judgement(**row) for row in rows]

    def history(self, campaign_id: int, annotator_id: int, *, limit: int = 100) -> list[Decided]:
        """A person's last submissions, the oldest first: of each the first answer that counts. For
        the policy, which asks when, by which arm, skipped or judged, and for how long."""
        which = {"campaign": campaign_id, "annotator": annotator_id, "limit": limit}
        with self.reading() as c:
            return [Decided(*row) for row in reversed(c.execute(_DECIDED, which).all())]

    def judgements(self, item_id: int, *, everything: bool = False) -> list[Judgement]:
        """What was said of an item, the oldest first: what counts, or ``everything`` ever said."""
        with self.reading() as c:
            campaign = _one(c, items, item_id, "item")["campaign_id"]
            t = judgements.c
            query = select(*_JUDGEMENT).where(t.campaign_id == campaign, t.item_id == item_id)
            query = query if everything else query.where(t.status == "current")
            return [Judgement(**row) for row in c.execute(query.order_by(t.id)).mappings()]

    def answer(self, judgement_id: int, text: str, actor: int, *, token: str) -> Judgement:
        """Answer a question to the lead, for all to read."""

        def work(c: Connection) -> Judgement:
            told = Told(0, actor, (Answer("answer", {"question": judgement_id}, text),), token)
            if said := _said(c, actor, token, told.answers):
                return said[0]
            asked = _one(c, judgements, judgement_id, "question")
            if asked["kind"] != "question":
                raise ValueError(f"judgement {judgement_id} is a {asked['kind']}, no question")
            check(told.answers[0], [])
            item = _one(c, items, asked["item_id"], "item")
            rows = rows_of(told, item, who_of(c, actor, item["campaign_id"]), at=self.now())
            return chained(c, asked["campaign_id"], rows, {})[0]

        plain("token", token, 64)
        return self.write(work)

    def questions(self, campaign_id: int) -> list[Question]:
        """What was asked, the oldest first, with the answers."""
        t = judgements.c
        both = t.kind.in_(("flag", "question", "answer")) & t.kind.in_(("question", "answer"))
        query = select(*_JUDGEMENT).where(t.campaign_id == campaign_id, both)
        with self.reading() as c:
            query = query.where(t.status == "current").order_by(t.id)
            rows = [Judgement(**row) for row in c.execute(query).mappings()]
        given: dict[int, tuple[Judgement, ...]] = {}
        for row in rows:
            if row.kind == "answer":
                number = row.value["question"]
                given[number] = (*given.get(number, ()), row)
        return [Question(row, given.get(row.id, ())) for row in rows if row.kind == "question"]


@cache
def _count(sqlite: bool):
    """What is added to a day's tally."""
    new, keys = upsert(sqlite, tallies), ("campaign_id", "annotator_id", "day")
    more = {k: tallies.c[k] + new.excluded[k] for k in ("done", "skipped", "active_ms")}
    return new.on_conflict_do_update(index_elements=keys, set_=more)


def ending(kind: str, answers: Iterable[Answer]) -> str:
    """What a submission makes of its assignment: done, skipped, or nothing."""
    said = {answer.kind for answer in answers}
    if {kind, "skip"} <= said:
        raise ValueError(f"a {kind} and a skip came of the same item; needed: one of the two")
    return "done" if kind in said else "skipped" if "skip" in said else ""


def _said(
    c: Connection, annotator_id: int, token: str, answers: Sequence[Answer]
) -> list[Judgement] | None:
    """What this token recorded before; None if nothing."""
    rows = c.execute(_TOKEN, {"annotator": annotator_id, "submission": token}).mappings()
    said = [Judgement(**row) for row in rows]
    if said and [(j.kind, j.value) for j in said] != [(a.kind, a.value) for a in answers]:
        raise ValueError(f"the token {token!r} recorded other answers; needed: one of its own")
    return said or None


def who_of(c: Connection, annotator_id: int, campaign_id: int) -> Sequence[Any]:
    """A judge's source and whether they are simulated, and the campaign's round."""
    return c.execute(WHO, {"annotator": annotator_id, "campaign": campaign_id}).one()


def rows_of(
    told: Told,
    item: Mapping[Any, Any],
    who: Sequence[Any],
    *,
    at: int,
    lease_id: int | None = None,
    late: bool = False,
) -> list[dict[str, Any]]:
    """The rows of a submission, their places in the chain aside."""
    if not told.answers:
        raise ValueError("a submission came without an answer; needed: at least one")
    if told.active_ms < 0:
        raise ValueError(f"active_ms is {told.active_ms}; needed: milliseconds, 0 or more")
    source, simulated, round_ = who
    common = {
        "campaign_id": item["campaign_id"],
        "item_id": item["id"],
        "annotator_id": told.annotator_id,
        "assignment_id": lease_id,
        "token": told.token,
        "purpose": item["purpose"],
        "arm": told.arm,
        "shown": list(told.shown),
        "retest": told.retest,
        "guideline_id": told.guideline_id,
        "timing": dict(told.timing),
        "round": round_,
        "source": source,
        "simulated": simulated,
        "late": late,
        "supersedes": None,
        "item_digest": bytes(item["digest"]),
        "at": at,
        "status": "current",
    }
    return [
        {
            **common,
            "part": part,
            "kind": answer.kind,
            "value": answer.value,
            "active_ms": told.active_ms if part == 0 else 0,
            **sealed(answer.text),
        }
        for part, answer in enumerate(told.answers)
    ]


def chained(
    c: Connection,
    campaign_id: int,
    rows: Sequence[dict[str, Any]],
    counts: dict[str, int],
    how: Any = _JUDGED,
) -> list[Judgement]:
    """Insert judgements, each with its event. The head is locked last, for the shortest time.
    ``how``: an INSERT that returns them, or one that returns nothing, for many."""
    head, links = lock(c, campaign_id), list[dict[str, Any]]()
    for row in rows:
        row["seq"] = head.seq + 1
        link = Link("judged", row["annotator_id"], None, row["at"])
        links.append(linked(campaign_id, head, link, judged_digest(row)))
        head = Head(links[-1]["seq"], links[-1]["hash"])
    done = c.execute(how, list(rows))
    made = [Judgement(**row) for row in done.mappings()] if done.returns_rows else []
    c.execute(_EVENTS, links)
    move(c, campaign_id, head, **counts)
    return made
