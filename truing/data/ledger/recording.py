"""Judgements made elsewhere, recorded many at a time: an import's, a judge's, a simulation's."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from truing.data.ledger.campaigns import batches
from truing.data.ledger.entries import Told
from truing.data.ledger.judging import WHO, Judging, chained, ending, rows_of
from truing.data.ledger.line import answers
from truing.data.ledger.queue import take
from truing.data.ledger.store import plain
from truing.data.ledger.tables import items, judgements
from truing.data.ledger.values import check

_ADD = insert(judgements)


class Recording(Judging):
    """Judgements without assignments."""

    def record(
        self,
        campaign_id: int,
        told: Iterable[Told],
        *,
        purpose: str = "",
        batch: int = 2000,
    ) -> int:
        """Record judgements made elsewhere, without assignments: an import's, a judge's, those of a
        simulation; with ``purpose`` adjudication, a lead's decisions, which fill no slots. Returns
        how many answers; those whose token was recorded before are not recorded again. Each batch
        is a transaction."""
        count = 0
        for group in batches(told, batch):
            count += self.write(lambda c, group=group: self._record(c, campaign_id, group, purpose))
        return count

    def _record(self, c: Connection, campaign_id: int, group: Sequence[Told], purpose: str) -> int:
        numbers = sorted({each.item_id for each in group})
        query = select(items).where(items.c.id.in_(numbers), items.c.campaign_id == campaign_id)
        known = {row["id"]: row for row in c.execute(query).mappings()}
        if lost := [n for n in numbers if n not in known]:
            raise LookupError(f"campaign {campaign_id} has no item {lost[0]}")
        shown, had, who = answers(c, numbers), _had(c, group), _who(c, campaign_id, group)
        rows, judged, filled = list[dict[str, Any]](), Counter[int](), 0
        for each in group:
            if (each.annotator_id, each.token) in had:
                continue
            had.add((each.annotator_id, each.token))
            plain("token", each.token, 64)
            item = known[each.item_id]
            for answer in each.answers:
                check(answer, each.shown or shown.get(each.item_id, ()))
            made = rows_of(each, item, who[each.annotator_id], at=each.at or self.now())
            if purpose:
                made = [{**row, "purpose": purpose} for row in made]
            ends = ending(item["kind"], each.answers)
            if made[0]["purpose"] == "work" and each.retest == 0 and ends == "done":
                judged[each.item_id] += 1
            self._note(made, ends)
            rows += made
        for number, count in sorted(judged.items()):
            filled += take(c, known[number], beyond=True, slots=count, done=count) or 0
        if rows:
            self._tally(c, rows)
            chained(c, campaign_id, rows, {"filled": filled}, _ADD)
        return len(rows)


def _had(c: Connection, group: Sequence[Told]) -> set[tuple[int, str]]:
    """Which of these submissions were recorded before."""
    t = judgements.c
    query = select(t.annotator_id, t.token).where(
        t.annotator_id.in_({each.annotator_id for each in group}),
        t.token.in_([each.token for each in group]),
    )
    return {(annotator, token) for annotator, token in c.execute(query)}


def _who(c: Connection, campaign_id: int, group: Sequence[Told]) -> Mapping[int, Any]:
    found: dict[int, Any] = {}
    for number in sorted({each.annotator_id for each in group}):
        row = c.execute(WHO, {"annotator": number, "campaign": campaign_id}).one_or_none()
        if row is None:
            raise LookupError(f"there is no annotator {number}")
        found[number] = row
    return found
