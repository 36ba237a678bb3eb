"""The ledger's queue: candidates in line, leases on their slots, drafts.

Which candidate comes next is the policy's business (`truing.feedback.assign`). A lease ends by the
server's clock, which only goes forwards while it runs. After a restart the clock may have been set:
a lease that begins in the future was given by a clock that was wrong, and is over.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, or_, select, update

from truing.data.ledger.campaigns import PURPOSES, Campaigns
from truing.data.ledger.entries import Candidate, Late, Lease, Taken
from truing.data.ledger.line import SCAN, SLACK, answers, candidates, found, line_of
from truing.data.ledger.people import one_of, upsert
from truing.data.ledger.tables import assignments, domains, items, members

LEASE = 1800.0  # seconds
_LEASE = [assignments.c[n] for n in Lease.__dataclass_fields__]
_NOW = bindparam("now")
_OVER = or_(assignments.c.expires_at <= _NOW, assignments.c.leased_at > bindparam("ahead"))
# In an order that an index has: PostgreSQL cannot know of a plan made for any state that few are of
# this one, and would read all assignments; of EXISTS it would drop the order.
_SWEEP = (
    select(*_LEASE)
    .where(assignments.c.campaign_id == bindparam("campaign"))
    .where(assignments.c.state == "leased", _OVER)
    .order_by(assignments.c.expires_at)
    .limit(SCAN)
)
_ONE_OVER = _SWEEP.with_only_columns(assignments.c.id).limit(1).scalar_subquery()
_CURSOR = (
    select(members.c.cursor, _ONE_OVER.is_not(None))
    .where(members.c.campaign_id == bindparam("campaign"))
    .where(members.c.annotator_id == bindparam("annotator"))
)
_HELD = (
    select(*_LEASE)
    .where(assignments.c.annotator_id == bindparam("annotator"))
    .where(assignments.c.campaign_id == bindparam("campaign"), assignments.c.state == "leased")
    .order_by(assignments.c.id)
)
_KEEP = (
    update(members)
    .where(members.c.campaign_id == bindparam("campaign"))
    .where(members.c.annotator_id == bindparam("annotator"))
    .values(cursor=bindparam("cursor_"))
)
_OWN = select(*_LEASE).where(
    assignments.c.id == bindparam("lease"), assignments.c.annotator_id == bindparam("annotator")
)
_GIVE_BACK = (
    update(assignments)
    .where(assignments.c.id == bindparam("lease"), assignments.c.state == "leased")
    .values(state=bindparam("after"))
)
_NEEDED = ("id", "campaign_id", "kind", "purpose", "domain", "digest", "wanted", "freed_at")
_ITEM = select(*(items.c[name] for name in _NEEDED)).where(items.c.id == bindparam("item"))


class Queue(Campaigns):
    """Who holds what. Only ``purpose`` work takes slots; gold, practice and screening items may be
    held by everybody, once."""

    def candidates(
        self,
        campaign_id: int,
        annotator_id: int,
        *,
        arm: str = "control",
        domain: str | None = None,
        limit: int = 32,
        responses: bool = True,
    ) -> list[Candidate]:
        """The first items in line that this person has not had. Empty: nothing is left for them.
        Without ``responses`` their numbers are not read.

        ``arm``: control (least held first), active (highest score first; with a ``domain`` least
        held first), or gold, practice, screening, which are of no arm and stand least held first.
        Raises LookupError for somebody who is no member.
        """
        one_of("arm", arm, ("control", "active", *PURPOSES[1:]))
        line = line_of(campaign_id, annotator_id, arm, domain)
        name, now = f"{arm}:{domain or ''}", self.now()
        which = {**line.who, **self._times(now, campaign_id)}
        with self.reading() as c:
            row = c.execute(_CURSOR, which).one_or_none()
        if row is None:
            raise LookupError(f"annotator {annotator_id} is no member of campaign {campaign_id}")
        if row[1]:
            self.sweep(campaign_id)
        cursors: dict[str, Any] = row[0] or {}
        with self.reading() as c:
            rows, cursor = found(c, line, cursors.get(name), limit, now)
            first = candidates(c, rows, responses)
        if cursor is not None:
            kept = {"cursor_": {**cursors, name: cursor}}
            with self.writing(durable=False) as c:
                c.execute(_KEEP, {"campaign": campaign_id, "annotator": annotator_id, **kept})
        return first

    def retestable(
        self, campaign_id: int, annotator_id: int, *, before: int, limit: int = 32
    ) -> list[Lease]:
        """This person's first judged work from before a time, oldest first, that they have not been
        asked again: for swap re-tests, with what was shown."""
        again = assignments.alias()
        asked = (
            select(again.c.id)
            .where(again.c.item_id == assignments.c.item_id)
            .where(again.c.annotator_id == annotator_id, again.c.retest > 0)
        )
        query = (
            select(*_LEASE)
            .where(assignments.c.annotator_id == annotator_id)
            .where(assignments.c.campaign_id == campaign_id, assignments.c.state == "done")
            .where(assignments.c.slot, assignments.c.leased_at < before, ~asked.exists())
            .order_by(assignments.c.id)
            .limit(limit)
        )
        with self.reading() as c:
            return [Lease(**row) for row in c.execute(query).mappings()]

    # --- leases ----------------------------------------------------------------------------------

    def lease(
        self,
        item_id: int,
        annotator_id: int,
        shown: Sequence[int],
        *,
        seconds: float = LEASE,
        retest: int = 0,
        arm: str = "control",
        guideline_id: int | None = None,
    ) -> Lease:
        """Take a slot of an item, for a while. ``shown``: its response ids in the order in which
        this person will see them; ``retest``: 0, or the number of the re-test; ``arm``: by which
        the policy chose it.

        Of those who want the last slot exactly one gets it. Whoever holds the item already gets the
        same lease again, put off. Raises Taken for an item that is full, or that this person had.
        """
        # A database with processes of its own may fall by itself: a lease that fell with it would
        # leave somebody with a page whose judgement nobody takes.
        with self.writing(durable=not self.sqlite) as c:
            item = an_item(c, item_id)
            if sorted(shown) != sorted(answers(c, [item_id]).get(item_id, ())):
                raise ValueError(f"shown is {list(shown)}; needed: the responses of item {item_id}")
            now = self.now()
            times = {"leased_at": now, "expires_at": now + int(1000 * seconds)}
            slot = item["purpose"] == "work" and retest == 0
            row = {"campaign_id": item["campaign_id"], "item_id": item_id, "retest": retest}
            row |= {"annotator_id": annotator_id, "shown": list(shown), "slot": slot}
            row |= {"guideline_id": guideline_id, "state": "leased", "arm": arm, "draft": None}
            made = c.execute(_hold(c.dialect.name == "sqlite"), row | times).mappings().first()
            if made is None:
                mine = and_(
                    *(assignments.c[k] == row[k] for k in ("item_id", "annotator_id", "retest"))
                )
                held = and_(mine, assignments.c.state == "leased")
                if c.execute(update(assignments).where(held).values(times)).rowcount:
                    return Lease(**c.execute(select(*_LEASE).where(mine)).mappings().one())
                over = and_(mine, assignments.c.state.in_(("expired", "released")))
                again = update(assignments).where(over).values(row | times).returning(*_LEASE)
                made = c.execute(again).mappings().first()
                if made is None:
                    raise Taken(f"annotator {annotator_id} had item {item_id} already")
            if slot and take(c, item) is None:
                raise Taken(f"all {item['wanted']} slots of item {item_id} are taken")
            return Lease(**made)

    def leases(self, campaign_id: int, annotator_id: int) -> list[Lease]:
        """What this person holds now, oldest first: to go on after a lost connection."""
        which = {"campaign": campaign_id, "annotator": annotator_id}
        with self.reading() as c:
            now, held = self.now(), [Lease(*row) for row in c.execute(_HELD, which)]
        return [x for x in held if now < x.expires_at and x.leased_at <= now + SLACK]

    def assignment(self, lease_id: int, annotator_id: int) -> Lease:
        """A person's own lease, whatever its state. Raises LookupError for another's, or none."""
        with self.reading() as c:
            return own(c, lease_id, annotator_id)

    def save_draft(
        self, lease_id: int, annotator_id: int, draft: Mapping[str, Any], seconds: float = LEASE
    ) -> Lease:
        """Keep what somebody has begun to say, and put the lease off. Raises Late if it is over."""
        with self.writing(durable=False) as c:
            own(c, lease_id, annotator_id)
            row = {"draft": dict(draft), "expires_at": self.now() + int(1000 * seconds)}
            mine = and_(assignments.c.id == lease_id, assignments.c.state == "leased")
            if not c.execute(update(assignments).where(mine).values(row)).rowcount:
                raise Late(f"assignment {lease_id} is over: take the next item")
            return own(c, lease_id, annotator_id)

    def release(self, lease_id: int, annotator_id: int) -> None:
        """Give a slot back unjudged; of a lease that is over, nothing changes."""
        with self.writing() as c:
            self._give_back(c, [own(c, lease_id, annotator_id)], "released")

    def sweep(self, campaign_id: int) -> int:
        """Give back the slots of leases that are over; returns how many. `candidates` does it."""
        times = self._times(self.now(), campaign_id)
        with self.writing() as c:
            found = [Lease(**row) for row in c.execute(_SWEEP, times).mappings()]
            return self._give_back(c, found, "expired", times)

    @staticmethod
    def _times(now: int, campaign_id: int) -> dict[str, int]:
        return {"now": now, "ahead": now + SLACK, "campaign": campaign_id}

    def _give_back(
        self,
        c: Connection,
        leases: Sequence[Lease],
        state: str,
        times: dict[str, int] | None = None,
    ) -> int:
        count, query = 0, _GIVE_BACK.where(_OVER) if times else _GIVE_BACK
        for lease in leases:
            if c.execute(query, {"lease": lease.id, "after": state, **(times or {})}).rowcount:
                count += 1
                if lease.slot:
                    free(c, an_item(c, lease.item_id), self.now())
        return count


@cache
def _hold(sqlite: bool):
    """A new assignment, unless there is one of this item, person and pass."""
    return upsert(sqlite, assignments).on_conflict_do_nothing().returning(*_LEASE)


def own(c: Connection, lease_id: int, annotator_id: int) -> Lease:
    row = c.execute(_OWN, {"lease": lease_id, "annotator": annotator_id}).one_or_none()
    if row is None:
        raise LookupError(f"annotator {annotator_id} has no assignment {lease_id}")
    return Lease(*row)


def an_item(c: Connection, item_id: int) -> Mapping[Any, Any]:
    row = c.execute(_ITEM, {"item": item_id}).mappings().one_or_none()
    if row is None:
        raise LookupError(f"there is no item {item_id}")
    return row


# Counts are moved by the statement itself: of two who do so at once, neither is lost.
_MORE = items.c.load + bindparam("by")
_CAME = (items.c.done, items.c.wanted)
_MOVE = (
    update(items)
    .where(items.c.id == bindparam("item"))
    .values(
        load=_MORE,
        open=items.c.wanted > _MORE,
        done=items.c.done + bindparam("more_done"),
        freed_at=bindparam("freed"),
    )
    .returning(*_CAME)
)
_MOVE_IF_FREE = _MOVE.where(items.c.load < items.c.wanted)
_MOVE_DOMAIN = (
    update(domains)
    .where(domains.c.campaign_id == bindparam("campaign"), domains.c.domain == bindparam("name"))
    .values(load=domains.c.load + bindparam("by"))
)
_SETTLE = (
    update(items)
    .where(items.c.id == bindparam("item"))
    .values(done=items.c.done + bindparam("more_done"))
    .returning(*_CAME)
)


def take(
    c: Connection,
    item: Mapping[Any, Any],
    *,
    beyond: bool = False,
    slots: int = 1,
    done: int = 0,
) -> int | None:
    """Hold one slot more (or several), and count judgements. Returns how many of those wanted have
    come by it; None if no slot is free, unless ``beyond`` what is wanted is allowed."""
    how = {"item": item["id"], "by": slots, "more_done": done, "freed": item["freed_at"]}
    row = c.execute(_MOVE if beyond else _MOVE_IF_FREE, how).one_or_none()
    if row is None:
        return None
    _move_domain(c, item, slots)
    return _more(row, done)


def free(c: Connection, item: Mapping[Any, Any], now: int, *, done: int = 0) -> int:
    """Hold one slot less, and that many judgements less. Returns as `take` does, 0 or less."""
    how = {"item": item["id"], "by": -1, "more_done": -done, "freed": now}
    row = c.execute(_MOVE, how).one()
    _move_domain(c, item, -1)
    return _more(row, -done)


def settle(c: Connection, item: Mapping[Any, Any], by: int = 1) -> int:
    """Count a judgement in a slot that is held already. Returns as `take` does."""
    return _more(c.execute(_SETTLE, {"item": item["id"], "more_done": by}).one(), by)


def _more(row: Row[int, int], by: int) -> int:
    """Slots that a step of ``by`` judgements filled, of an item's counts after it: a judgement
    beyond those wanted fills none."""
    done, wanted = row
    return min(done, wanted) - min(done - by, wanted)


def _move_domain(c: Connection, item: Mapping[Any, Any], by: int) -> None:
    if item["domain"]:
        name = {"campaign": item["campaign_id"], "name": item["domain"]}
        c.execute(_MOVE_DOMAIN, {**name, "by": by})
