"""The ledger's queue: candidates in line, leases on their slots, drafts.

Which candidate comes next is the policy's business (`truing.feedback.assign`); here they stand in
line by an index: fewest held slots first, then by key. Each person's place in line is kept, so that
the items they have had are not walked over again; an item that came free again is found by the time
at which it did. So a request costs the same whatever was judged before.

A lease ends by the server's clock, which only goes forwards while it runs. After a restart the
clock may have been set: a lease that begins in the future was given by a clock that was wrong, and
is over.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, or_, select, tuple_, update

from truing.data.ledger.campaigns import PURPOSES, Campaigns
from truing.data.ledger.entries import Candidate, Late, Lease, Taken
from truing.data.ledger.people import _is, _one, one_of, upsert
from truing.data.ledger.tables import assignments, domains, item_responses, items, members

SCAN = 400  # items looked at in one go
LEAST, ACTIVE = ("load", "key", "id"), ("key", "load", "id")
SLACK = 60_000  # milliseconds by which clocks of servers may differ, and transactions last
LEASE = 1800.0  # seconds
_LEASE = [assignments.c[n] for n in Lease.__dataclass_fields__]
_SEEN = [items.c[n] for n in Candidate.__dataclass_fields__ if n in items.c]


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
    ) -> list[Candidate]:
        """The first items in line that this person has not had. Empty: nothing is left for them.

        ``arm``: control (least held first), active (highest score first; with a ``domain`` least
        held first), or gold, practice, screening, which are of no arm and stand least held first.
        Raises LookupError for somebody who is no member.
        """
        self.sweep(campaign_id)
        one_of("arm", arm, ("control", "active", *PURPOSES[1:]))
        purpose = "work" if arm in ("control", "active") else arm
        line = and_(
            items.c.campaign_id == campaign_id,
            items.c.purpose == purpose,
            items.c.control == (arm != "active"),
            items.c.open,
        )
        line = line if domain is None else line & (items.c.domain == domain)
        order = ACTIVE if arm == "active" and domain is None else LEAST
        name = f"{arm}:{domain or ''}"
        with self.reading() as c:
            query = select(members.c.cursor).where(_is(campaign_id, annotator_id))
            row = c.execute(query).one_or_none()
            if row is None:
                raise LookupError(
                    f"annotator {annotator_id} is no member of campaign {campaign_id}"
                )
            cursors: dict[str, Any] = row[0] or {}
            found, place = self._behind(c, line, order, annotator_id, cursors.get(name))
            ahead, passed = _ahead(c, line, order, annotator_id, place, limit)
            chosen = sorted(found + ahead, key=lambda r: [r[k] for k in order])[:limit]
            answers = _answers(c, [row["id"] for row in chosen])
        if passed is not None:
            kept = {**cursors, name: [self.now() if place is None else cursors[name][0], *passed]}
            with self.writing() as c:
                where = _is(campaign_id, annotator_id)
                c.execute(update(members).where(where).values(cursor=kept))
        return [
            Candidate(
                item_id=row["id"],
                response_ids=answers.get(row["id"], ()),
                **{column.name: row[column.name] for column in _SEEN},
            )
            for row in chosen
        ]

    def _behind(
        self,
        c: Connection,
        line: Any,
        order: Sequence[str],
        annotator_id: int,
        cursor: Sequence[Any] | None,
    ) -> tuple[list[RowMapping], list[Any] | None]:
        """What came free behind this person's place in line, and that place; None: the start of the
        line, where so much came free (or a clock was so wrong) that it is better to begin anew."""
        if cursor is None or cursor[0] > self.now() + SLACK:
            return [], None
        at, *place = cursor
        free = (
            line
            & (items.c.freed_at >= at - SLACK)
            & (tuple_(*(items.c[k] for k in order)) <= tuple_(*place))
        )
        rows = c.execute(_with_had(annotator_id).where(free).limit(SCAN)).mappings().all()
        return ([], None) if len(rows) == SCAN else ([r for r in rows if not r["had"]], place)

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
        with self.writing() as c:
            item = _one(c, items, item_id, "item")
            if sorted(shown) != sorted(_answers(c, [item_id]).get(item_id, ())):
                raise ValueError(f"shown is {list(shown)}; needed: the responses of item {item_id}")
            now = self.now()
            times = {"leased_at": now, "expires_at": now + int(1000 * seconds)}
            slot = item["purpose"] == "work" and retest == 0
            row = {"campaign_id": item["campaign_id"], "item_id": item_id, "retest": retest}
            row |= {"annotator_id": annotator_id, "shown": list(shown), "slot": slot}
            row |= {"guideline_id": guideline_id, "state": "leased", "arm": arm, **times}
            mine = and_(
                *(assignments.c[k] == row[k] for k in ("item_id", "annotator_id", "retest"))
            )
            new = upsert(c, assignments).values(row).on_conflict_do_nothing()
            if not c.execute(new).rowcount:
                held = and_(mine, assignments.c.state == "leased")
                if c.execute(update(assignments).where(held).values(times)).rowcount:
                    return _lease(c, mine)
                over = and_(mine, assignments.c.state.in_(("expired", "released")))
                if not c.execute(update(assignments).where(over).values(row)).rowcount:
                    raise Taken(f"annotator {annotator_id} had item {item_id} already")
            if slot and not take(c, item):
                raise Taken(f"all {item['wanted']} slots of item {item_id} are taken")
            return _lease(c, mine)

    def leases(self, campaign_id: int, annotator_id: int) -> list[Lease]:
        """What this person holds now, oldest first: to go on after a lost connection."""
        query = select(*_LEASE).where(
            assignments.c.annotator_id == annotator_id,
            assignments.c.campaign_id == campaign_id,
            assignments.c.state == "leased",
        )
        with self.reading() as c:
            rows = c.execute(query.order_by(assignments.c.id)).mappings()
            return [lease for row in rows if not self._over(lease := Lease(**row))]

    def assignment(self, lease_id: int, annotator_id: int) -> Lease:
        """A person's own lease, whatever its state. Raises LookupError for another's, or none."""
        with self.reading() as c:
            return own(c, lease_id, annotator_id)

    def save_draft(
        self, lease_id: int, annotator_id: int, draft: Mapping[str, Any], seconds: float = LEASE
    ) -> Lease:
        """Keep what somebody has begun to say, and put the lease off. Raises Late if it is over."""
        with self.writing() as c:
            own(c, lease_id, annotator_id)
            row = {"draft": dict(draft), "expires_at": self.now() + int(1000 * seconds)}
            mine = and_(assignments.c.id == lease_id, assignments.c.state == "leased")
            if not c.execute(update(assignments).where(mine).values(row)).rowcount:
                raise Late(f"assignment {lease_id} is over: take the next item")
            return own(c, lease_id, annotator_id)

    def release(self, lease_id: int, annotator_id: int) -> None:
        """Give a slot back unjudged; of a lease that is over, nothing changes."""
        with self.writing() as c:
            lease = own(c, lease_id, annotator_id)
            self._give_back(c, [lease], "released")

    def sweep(self, campaign_id: int) -> int:
        """Give back the slots of leases that are over; returns how many. `candidates` does it."""
        now, t = self.now(), assignments.c
        over = or_(t.expires_at <= now, t.leased_at > now + SLACK)
        query = select(*_LEASE).where(t.campaign_id == campaign_id, t.state == "leased", over)
        with self.reading() as c:
            found = [Lease(**row) for row in c.execute(query.limit(SCAN)).mappings()]
        if not found:
            return 0
        with self.writing() as c:
            return self._give_back(c, found, "expired", over)

    def _over(self, lease: Lease) -> bool:
        now = self.now()
        return lease.expires_at <= now or lease.leased_at > now + SLACK

    def _give_back(self, c: Connection, leases: Sequence[Lease], state: str, *still: Any) -> int:
        count = 0
        for lease in leases:
            held = and_(assignments.c.id == lease.id, assignments.c.state == "leased", *still)
            if c.execute(update(assignments).where(held).values(state=state)).rowcount:
                count += 1
                if lease.slot:
                    free(c, _one(c, items, lease.item_id, "item"), self.now())
        return count


def own(c: Connection, lease_id: int, annotator_id: int) -> Lease:
    mine = and_(assignments.c.id == lease_id, assignments.c.annotator_id == annotator_id)
    row = c.execute(select(*_LEASE).where(mine)).mappings().one_or_none()
    if row is None:
        raise LookupError(f"annotator {annotator_id} has no assignment {lease_id}")
    return Lease(**row)


def _lease(c: Connection, which: Any) -> Lease:
    return Lease(**c.execute(select(*_LEASE).where(which)).mappings().one())


def take(c: Connection, item: Mapping[Any, Any], *, beyond: bool = False, done: int = 0) -> bool:
    """Hold one slot more, and that many judgements; False if none is free, unless ``beyond`` what
    is wanted is allowed."""
    t, more = items.c, items.c.load + 1
    one = update(items).where(t.id == item["id"])
    one = one if beyond else one.where(t.load < t.wanted)
    if not c.execute(one.values(load=more, open=more < t.wanted, done=t.done + done)).rowcount:
        return False
    _hold(c, item, 1)
    return True


def free(c: Connection, item: Mapping[Any, Any], now: int, *, done: int = 0) -> None:
    """Hold one slot less, and that many judgements less."""
    t, less = items.c, items.c.load - 1
    row = {"load": less, "open": less < t.wanted, "freed_at": now, "done": t.done - done}
    c.execute(update(items).where(t.id == item["id"]).values(row))
    _hold(c, item, -1)


def _hold(c: Connection, item: Mapping[Any, Any], by: int) -> None:
    t = domains.c
    if item["domain"]:
        one = and_(t.campaign_id == item["campaign_id"], t.domain == item["domain"])
        c.execute(update(domains).where(one).values(load=t.load + by))


def _with_had(annotator_id: int):
    """Items, and whether this person had them: not those whose lease ran out or was given back."""
    mine = and_(
        assignments.c.item_id == items.c.id,
        assignments.c.annotator_id == annotator_id,
        assignments.c.retest == 0,
        assignments.c.state.not_in(("expired", "released")),
    )
    had = assignments.c.id.is_not(None).label("had")
    return select(items.c.id, *_SEEN, had).select_from(items.outerjoin(assignments, mine))


def _ahead(
    c: Connection,
    line: Any,
    order: Sequence[str],
    annotator_id: int,
    place: Sequence[Any] | None,
    limit: int,
) -> tuple[list[RowMapping], list[Any] | None]:
    """Items after a place in line that this person has not had; the new place, if it is far on."""
    found, passed, walked = list[RowMapping](), None, 0
    columns = [items.c[k] for k in order]
    query = _with_had(annotator_id).order_by(*columns).limit(SCAN)
    while len(found) < limit:
        beyond = line if place is None else line & (tuple_(*columns) > tuple_(*place))
        rows = c.execute(query.where(beyond)).mappings().all()
        for row in rows:
            if not row["had"]:
                found.append(row)
            elif not found:
                passed, walked = [row[k] for k in order], walked + 1
        if len(rows) < SCAN:
            break
        place = [rows[-1][k] for k in order]
    return found, passed if walked > SCAN // 4 else None


def _answers(c: Connection, numbers: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Item -> its responses, in their own order."""
    t, found = item_responses.c, dict[int, tuple[int, ...]]()
    query = select(t.item_id, t.response_id).where(t.item_id.in_(numbers))
    for item, response in c.execute(query.order_by(t.item_id, t.position)):
        found[item] = (*found.get(item, ()), response)
    return found
