"""The next item for a person: the ledger's queue, as the campaign's rules decide on it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select

from truing.data.ledger import Annotator, Campaign, Judgement, Lease, Ledger, Member, Taken
from truing.data.ledger.tables import items
from truing.feedback import assign
from truing.feedback.assign import Past, Rest
from truing.feedback.rules import Rules

RACES = 20  # times that others may take an item first
LOADS = 10.0  # seconds for which the loads of domains are good enough
MAIN = ("pairwise", "ranking", "rating", "thumbs", "steps", "spans", "demonstration", "edit")
_loads: dict[tuple[int, int], tuple[float, dict[str, int]]] = {}


def next_lease(
    ledger: Ledger,
    campaign: Campaign,
    rules: Rules,
    me: Annotator,
    *,
    tags: frozenset[str] = frozenset(),
    guideline_id: int | None = None,
) -> Lease | Rest:
    """What somebody is to judge now: what they hold, a practice item they have not had, or what
    `truing.feedback.assign` decides; with its lease. ``tags``: what they may see besides what they
    are expert in. Of two who want the last slot, one gets another item."""
    seconds = 60 * rules.lease_minutes
    if held := ledger.leases(campaign.id, me.id):
        if held[0].guideline_id == guideline_id:
            return held[0]
        # The guideline changed under it: the judgement will be by the new one.
        ledger.release(held[0].id, me.id)
    policy = replace(rules.policy(campaign.seed), overlap=2**31)  # the ledger counts the slots
    for _ in range(RACES):
        decided = _decided(ledger, campaign, policy, rules, me, tags)
        if isinstance(decided, Rest):
            return decided
        item, shown, retest = decided
        try:
            return ledger.lease(
                item, me.id, shown, seconds=seconds, retest=retest, guideline_id=guideline_id
            )
        except Taken:
            continue
    return Rest("no open items")


def _decided(
    ledger: Ledger,
    campaign: Campaign,
    policy: assign.Policy,
    rules: Rules,
    me: Annotator,
    tags: frozenset[str],
) -> tuple[int, list[int], int] | Rest:
    """Item, responses in the order shown, number of the re-test."""
    responses: dict[int, tuple[int, ...]] = {}
    for row in ledger.candidates(campaign.id, me.id, purpose="practice", limit=1):
        order = assign.side_order(policy, me.pseudonym, row.item_id, len(row.response_ids))
        return row.item_id, [row.response_ids[i] for i in order], 0

    def window(arm: assign.Arm, domain: str | None) -> Iterator[assign.Candidate]:
        purpose = arm if arm in ("gold", "screening") else "work"
        # A window of one arm may lie behind rows of the other.
        limit = policy.window * (1 if policy.control_share in (0, 1) else 8)
        rows = ledger.candidates(campaign.id, me.id, purpose=purpose, domain=domain, limit=limit)
        for row in rows:
            responses[row.item_id] = row.response_ids
            share = policy.control_share
            yield assign.Candidate(
                row.item_id,
                row.domain,
                frozenset(row.tags),
                row.done,
                row.load - row.done,
                gold=purpose != "work",
                certain=purpose != "work",
                score=row.score or 0.0,
                control=share == 1 or (row.control and share > 0),
                responses=max(1, len(row.response_ids)),
            )

    member = ledger.member(campaign.id, me.id)
    came = ledger.progress(campaign.id, me.id)
    who = assign.Annotator(
        me.pseudonym,
        frozenset(me.tags) | tags,
        answered=came.done + came.skipped,
        today=came.today,
        quiz=quiz(member, policy),
    )
    if "retest" in assign.arms(policy, who):
        who = replace(who, recent=pasts(ledger, campaign, me, 2 * policy.retest_distance + 20))
    loads = domain_loads(ledger, campaign.id) if rules.balanced else None
    decision = assign.decide(policy, who, window, ledger.now() / 1000, loads=loads)
    if isinstance(decision, Rest):
        return decision
    item = int(decision.item)
    if item not in responses:
        responses[item] = tuple(r.id for r in ledger.item(item).responses)
    return (
        item,
        [responses[item][i] for i in decision.order[: len(responses[item])]],
        decision.pass_ - 1,
    )


def quiz(member: Member, policy: assign.Policy) -> tuple[int, int]:
    """Screening items that a person answered, and how many of them rightly."""
    answered = dict[str, Any](member.progress.get("quiz", {}))
    rights = list(answered.values())[: policy.quiz_size]
    return len(rights), sum(map(bool, rights))


def mains(said: Sequence[Judgement]) -> list[Judgement]:
    """One judgement for each decision, in their order: what filled the slot, or the skip. An edit
    that goes with a comparison is no decision of its own."""
    best: dict[Any, Judgement] = {}
    for judgement in said:
        if judgement.kind not in (*MAIN, "skip"):
            continue
        key = judgement.assignment_id or -judgement.id
        if key not in best or best[key].kind == "edit":
            best[key] = judgement
    return list(best.values())


def pasts(ledger: Ledger, campaign: Campaign, me: Annotator, limit: int) -> list[Past]:
    """A person's last decisions as assignment sees them, the oldest first."""
    decisions = mains(ledger.recent(campaign.id, me.id, 3 * limit))[:limit]
    return [
        Past(
            j.item_id,
            j.at / 1000,
            "gold"
            if j.purpose == "gold"
            else "screening"
            if j.purpose == "screening"
            else "control",
            1 if j.retest == 0 else 2,
            max(1, len(j.shown)),
            judged=j.kind != "skip" and j.purpose != "practice",
            active=j.active_ms / 1000,
        )
        for j in reversed(decisions)
    ]


def domain_loads(ledger: Ledger, campaign_id: int) -> dict[str, int]:
    """Slots held or filled, by domain with open items; counted anew every few seconds, for counting
    costs more the more items there are."""
    key = id(ledger), campaign_id
    at, known = _loads.get(key, (0.0, {}))
    if time.monotonic() - at > LOADS or not known:
        query = (
            select(items.c.domain, func.sum(items.c.load))
            .where(items.c.campaign_id == campaign_id, items.c.purpose == "work")
            .group_by(items.c.domain)
        )
        with ledger.reading() as c:
            known = {domain: int(load) for domain, load in c.execute(query)}
        _loads[key] = time.monotonic(), known
    return known
