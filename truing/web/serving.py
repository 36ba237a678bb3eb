"""The next item for a person: the ledger's queue, as the campaign's rules decide on it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from truing.data.ledger import (
    Annotator,
    Campaign,
    Candidate,
    Item,
    Judgement,
    Lease,
    Ledger,
    Member,
    Taken,
)
from truing.data.ledger.entries import Decided
from truing.feedback import assign
from truing.feedback.assign import Past, Rest
from truing.feedback.rules import Rules

T = TypeVar("T", Judgement, Decided)
RACES = 20  # times that others may take an item first
MAIN = ("pairwise", "ranking", "rating", "thumbs", "steps", "spans", "demonstration", "edit")


def next_lease(
    ledger: Ledger,
    campaign: Campaign,
    rules: Rules,
    me: Annotator,
    member: Member,
    *,
    practice: bool = True,
    tags: frozenset[str] = frozenset(),
    guideline_id: int | None = None,
) -> tuple[Lease, Item] | Rest:
    """What somebody is to judge now: what they hold, a practice item they have not had, or what
    `truing.feedback.assign` decides; with its lease. ``practice``: whether to look for such items;
    ``tags``: what they may see besides what they are expert in. Of two who want the last slot, one
    gets another item."""
    seconds = 60 * rules.lease_minutes
    if held := ledger.leases(campaign.id, me.id):
        if held[0].guideline_id == guideline_id:
            return held[0], ledger.item(held[0].item_id)
        # The guideline changed under it: the judgement will be by the new one.
        ledger.release(held[0].id, me.id)
    policy = replace(rules.policy(campaign.seed), overlap=2**31)  # the ledger counts the slots
    for _ in range(RACES):
        decided = _decided(ledger, campaign, policy, rules, me, member, practice, tags)
        if isinstance(decided, Rest):
            return decided
        item, shown, retest, arm = decided
        try:
            lease = ledger.lease(
                item.id,
                me.id,
                shown,
                seconds=seconds,
                retest=retest,
                arm=arm,
                guideline_id=guideline_id,
            )
        except Taken:
            continue
        return lease, item
    return Rest("no open items")


def _decided(
    ledger: Ledger,
    campaign: Campaign,
    policy: assign.Policy,
    rules: Rules,
    me: Annotator,
    member: Member,
    practice: bool,
    tags: frozenset[str],
) -> tuple[Item, list[int], int, str] | Rest:
    """Item, responses in the order shown, number of the re-test, arm."""
    for row in _line(ledger, campaign, me, "practice", None, 1) if practice else ():
        return _shown(ledger, policy, me, row.item_id, 1, "practice")

    def window(arm: assign.Arm, domain: str | None) -> Iterator[assign.Candidate]:
        known = arm in ("gold", "screening")
        for row in _line(ledger, campaign, me, arm, domain, policy.window):
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
            )

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
    return _shown(ledger, policy, me, int(decision.item), decision.pass_, decision.arm)


def _line(
    ledger: Ledger, campaign: Campaign, me: Annotator, arm: str, domain: str | None, limit: int
) -> Iterator[Candidate]:
    """The first in line, ``limit`` of them and, if more are asked for, as many again: some may need
    an expertise that this person lacks."""
    had = 0
    for most in (limit, 2 * limit):
        rows = ledger.candidates(
            campaign.id, me.id, arm=arm, domain=domain, limit=most, responses=False
        )
        yield from rows[had:]
        if len(rows) < most:
            return
        had = most


def _shown(
    ledger: Ledger, policy: assign.Policy, me: Annotator, number: int, pass_: int, arm: str
) -> tuple[Item, list[int], int, str]:
    """The item with its texts, and the order in which this person sees its responses: it is by
    (annotator, item) alone, so they are read of the item that was chosen only."""
    item = ledger.item(number)
    own = [response.id for response in item.responses]
    order = assign.side_order(policy, me.pseudonym, number, len(own), pass_)
    return item, [own[i] for i in order], pass_ - 1, arm


def quiz(member: Member, policy: assign.Policy) -> tuple[int, int]:
    """Screening items that a person answered, and how many of them rightly."""
    answered = dict[str, Any](member.progress.get("quiz", {}))
    rights = list(answered.values())[: policy.quiz_size]
    return len(rights), sum(map(bool, rights))


def mains(said: Sequence[T]) -> list[T]:
    """One judgement for each decision, in their order: what filled the slot, or the skip. An edit
    that goes with a comparison is no decision of its own."""
    best: dict[Any, T] = {}
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
