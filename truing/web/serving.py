"""The next item for a person: the ledger's queue, as the campaign's rules decide on it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from truing.data.ledger import Annotator, Campaign, Judgement, Lease, Ledger, Member, Taken
from truing.feedback import assign
from truing.feedback.assign import Past, Rest
from truing.feedback.rules import Rules

RACES = 20  # times that others may take an item first
MAIN = ("pairwise", "ranking", "rating", "thumbs", "steps", "spans", "demonstration", "edit")


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
        item, shown, retest, arm = decided
        try:
            return ledger.lease(
                item,
                me.id,
                shown,
                seconds=seconds,
                retest=retest,
                arm=arm,
                guideline_id=guideline_id,
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
) -> tuple[int, list[int], int, str] | Rest:
    """Item, responses in the order shown, number of the re-test, arm."""
    responses: dict[int, tuple[int, ...]] = {}
    for row in ledger.candidates(campaign.id, me.id, arm="practice", limit=1):
        order = assign.side_order(policy, me.pseudonym, row.item_id, len(row.response_ids))
        return row.item_id, [row.response_ids[i] for i in order], 0, "practice"

    def window(arm: assign.Arm, domain: str | None) -> Iterator[assign.Candidate]:
        known = arm in ("gold", "screening")
        for row in ledger.candidates(
            campaign.id, me.id, arm=arm, domain=domain, limit=2 * policy.window
        ):
            responses[row.item_id] = row.response_ids
            yield assign.Candidate(
                row.item_id,
                row.domain,
                frozenset(row.tags),
                row.done,
                row.load - row.done,
                gold=known,
                certain=known,
                score=row.score or 0.0,
                control=row.control,
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
    loads = ledger.domain_loads(campaign.id) if rules.balanced else None
    if loads is not None:
        # Items without a domain come last among the domains.
        loads = {**loads, "": max(loads.values(), default=0)}
    decision = assign.decide(policy, who, window, ledger.now() / 1000, loads=loads)
    if isinstance(decision, Rest):
        return decision
    item = int(decision.item)
    if item not in responses:
        responses[item] = tuple(r.id for r in ledger.item(item).responses)
    shown = [responses[item][i] for i in decision.order[: len(responses[item])]]
    return item, shown, decision.pass_ - 1, decision.arm


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
    known = ("gold", "screening", "retest", "active")
    return [
        Past(
            j.item_id,
            j.at / 1000,
            j.arm if j.arm in known else "control",  # type: ignore[arg-type]
            1 if j.retest == 0 else 2,
            max(1, len(j.shown)),
            # Practice is not asked again.
            judged=j.kind != "skip" and j.purpose != "practice",
            active=j.active_ms / 1000,
        )
        for j in mains(ledger.history(campaign.id, me.id, limit=limit))
    ]
