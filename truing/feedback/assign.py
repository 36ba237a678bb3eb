"""Who judges what next: pure functions of the campaign's rules, one annotator and some open items.

Nothing here reads a clock, a file or a global generator: the same seed and state give the same
decision. Random numbers are keyed (truing/keys.py). Times are seconds since 1970, UTC.

An ordinary item belongs to the *control* arm or to the *active* one by its key alone, drawn before
anybody judged: the control arm is therefore a random sample of the items, whatever was selected
actively beside it. Gold items stand apart from both. A decision's arm is drawn per annotator and
number of answers, so that reloading a page or letting a lease run out draws nothing anew.

The caller keeps the counts and holds the race: it writes the lease only if the slot is still free
(judged + live leases < overlap) and asks again if it is not. docs/assignment.md has the queries.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from truing.keys import uniform

Arm = Literal["active", "control", "gold", "retest", "screening"]
Name = int | str
MINUTE = 60.0  # in seconds


@dataclass(frozen=True)
class Policy:
    """The rules of a campaign. Shares are of all decisions after the screening.

    ``overlap``: different annotators per ordinary item. ``cap``, ``daily_cap``: answers (skips
    too) of one annotator, in all and per day. ``tags``: expertise that each annotator must have;
    an item may ask for more. ``retest_share``: the same item again, its sides swapped, after at
    least ``retest_distance`` other answers of the annotator. ``gold_share``: items whose answer is
    certain; ``gold_delay``: answers given before an annotator learns how a gold item went.
    ``quiz_size``, ``quiz_pass``: gold items asked first, and how many of them must be right.
    ``control_share``: decisions that come from the random arm; below 1 the others go to the
    highest score first. ``balanced``: ordinary decisions go to the domain with least work so far.
    ``lease_minutes``: after this a held slot is free again. ``window``: open rows looked at.
    """

    seed: int = 0
    overlap: int = 1
    cap: int | None = None
    daily_cap: int | None = None
    tags: frozenset[str] = frozenset()
    retest_share: float = 0.05
    retest_distance: int = 20
    gold_share: float = 0.0
    gold_delay: int = 20
    quiz_size: int = 0
    quiz_pass: int = 0
    control_share: float = 1.0
    balanced: bool = False
    lease_minutes: float = 30.0
    window: int = 32

    def __post_init__(self) -> None:
        for name in ("overlap", "cap", "daily_cap", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("retest_distance", "gold_delay", "quiz_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        shares = {k: getattr(self, k) for k in ("retest_share", "gold_share", "control_share")}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share of the decisions, 0 to 1, got {share}")
        if self.retest_share + self.gold_share >= 1:
            told = f"retest_share {self.retest_share} and gold_share {self.gold_share} came"
            raise ValueError(f"{told}: together they must leave room for new items, so below 1")
        if not 0 <= self.quiz_pass <= self.quiz_size:
            told = f"quiz_pass {self.quiz_pass} of quiz_size {self.quiz_size} came"
            raise ValueError(f"{told}: it counts right answers, so 0 to quiz_size")
        if not 0 < self.lease_minutes < math.inf:
            raise ValueError(f"lease_minutes must be positive, got {self.lease_minutes}")


@dataclass(frozen=True)
class Candidate:
    """An open item. ``judged`` and ``leased`` count first passes by different annotators;
    ``responses`` how many are shown. ``gold``: its answer is known; it is asked as gold only if
    ``certain`` too, otherwise as an ordinary item. ``control`` is `place`'s."""

    item: Name
    domain: str = ""
    tags: frozenset[str] = frozenset()
    judged: int = 0
    leased: int = 0
    gold: bool = False
    certain: bool = False
    score: float = 0.0
    control: bool = True
    responses: int = 2

    def __post_init__(self) -> None:
        if math.isnan(self.score):
            raise ValueError(f"item {self.item}: its score is NaN; give 0 where there is none")
        if self.responses < 1 or min(self.judged, self.leased) < 0:
            told = f"{self.responses} responses, {self.judged} judged, {self.leased} leased"
            raise ValueError(f"item {self.item}: {told}: a count cannot be that")


@dataclass(frozen=True)
class Past:
    """One of an annotator's answers, given at ``time``. ``judged`` is False for a skip. ``active``:
    seconds of reading and deciding; ``tokens``: how much there was to read; ``agreed``: for a
    second pass, whether it repeated the first answer."""

    item: Name
    time: float
    arm: Arm = "control"
    pass_: int = 1
    responses: int = 2
    judged: bool = True
    active: float = 0.0
    tokens: int = 0
    agreed: bool | None = None


@dataclass(frozen=True)
class Annotator:
    """A person as assignment sees them. ``name``: the pseudonym. ``answered``: answers in all,
    screening and skips too; ``today``: those of this day. ``seen``: items judged, skipped or
    held now (any object with ``in``). ``recent``: the latest answers, the oldest first; it must
    reach back further than ``retest_distance``. ``quiz``: quiz items answered, and how many of
    them right."""

    name: Name
    tags: frozenset[str] = frozenset()
    answered: int = 0
    today: int = 0
    seen: Container[Name] = frozenset()
    recent: Sequence[Past] = ()
    quiz: tuple[int, int] = (0, 0)


class Decision(NamedTuple):
    """Show ``item``: its responses in ``order`` (indices), until ``expires``. ``pass_`` is 2 for a
    re-test; ``arm`` is what the item came by, to be stored with the judgement."""

    item: Name
    pass_: int
    arm: Arm
    order: tuple[int, ...]
    expires: float


class Rest(NamedTuple):
    """Nothing to show, and why."""

    reason: Literal["cap", "daily cap", "expertise", "failed", "no quiz items", "no open items"]


class Place(NamedTuple):
    """An ordinary item's arm, and its place in the random order of the campaign, in [0, 1)."""

    control: bool
    key: float


# The open rows of an arm, and of a domain if the policy balances them: the best ones first.
Window = Callable[[Arm, str | None], Iterable[Candidate]]


def place(policy: Policy, item: Name) -> Place:
    """Where an item belongs: worked out once, when it is imported, and stored with it."""
    control = uniform(policy.seed, "arm of item", item) < policy.control_share
    return Place(control, uniform(policy.seed, "order of items", item))


def side_order(
    policy: Policy, annotator: Name, item: Name, responses: int = 2, pass_: int = 1
) -> tuple[int, ...]:
    """The responses' indices in the order shown, drawn per annotator and item.

    All orders are equally likely in the first pass; the second shows the reverse of the first: two
    sides swapped, and of K responses the last one first.
    """
    keys = [uniform(policy.seed, "side", annotator, item, k) for k in range(responses)]
    order = tuple(sorted(range(responses), key=keys.__getitem__))
    return order if pass_ == 1 else order[::-1]


def live(policy: Policy, expires: float, now: float) -> bool:
    """Whether a lease still holds its slot.

    A lease with twice the time left that a new one has was written before the clock was set back:
    it is void, or it would hold its slot for as long as the clock was wrong. A small step back
    voids nothing.
    """
    return now < expires <= now + 2 * policy.lease_minutes * MINUTE


def verdict(policy: Policy, annotator: Annotator) -> Literal["open", "passed", "failed"]:
    """What the screening says: ``quiz_pass`` right of ``quiz_size``, after the last of them."""
    answered, right = annotator.quiz
    if not 0 <= right <= answered:
        raise ValueError(f"{right} right of {answered} quiz items came: that cannot be")
    if answered < policy.quiz_size:
        return "open"
    return "passed" if right >= policy.quiz_pass else "failed"


def arms(policy: Policy, annotator: Annotator) -> tuple[Arm, ...]:
    """The arms to try for the annotator's next decision, in this order.

    The first is drawn with the policy's shares, keyed by (annotator, answers so far); ordinary
    arms follow for when it is empty.
    """
    if verdict(policy, annotator) == "open":
        return ("screening",)
    key = annotator.name, annotator.answered
    both: list[Arm] = ["control", "active"]
    if uniform(policy.seed, "control", *key) >= policy.control_share:
        both.reverse()
    if policy.control_share in (0, 1):
        # One arm has no items at all then.
        both = both[:1]
    drawn = uniform(policy.seed, "arm", *key)
    if drawn < policy.retest_share:
        return ("retest", *both)
    return ("gold", *both) if drawn < policy.retest_share + policy.gold_share else tuple(both)


def decide(
    policy: Policy,
    annotator: Annotator,
    window: Window,
    now: float,
    *,
    loads: Mapping[str, int] | None = None,
) -> Decision | Rest:
    """The next item for an annotator, or why there is none.

    ``window(arm, domain)`` gives open rows and is asked only for arms that are tried; what it gives
    is read until ``policy.window`` rows suit the annotator. ``loads``: judged and leased passes by
    domain, needed with ``balanced``; domains are then tried from the least loaded on. Without,
    ``domain`` is None. Raises ValueError if ``loads`` is missing where needed, or idle.
    """
    if policy.balanced != (loads is not None):
        need = "is needed" if policy.balanced else "has no effect"
        raise ValueError(f"loads {need} where balanced is {policy.balanced}")
    if reason := barred(policy, annotator):
        return Rest(reason)
    for arm in arms(policy, annotator):
        if arm == "retest":
            found = _retest(policy, annotator, now)
        else:
            found = _fresh(policy, annotator, arm, window, now, loads or {})
        if found:
            return found
    return Rest("no quiz items" if verdict(policy, annotator) == "open" else "no open items")


def barred(
    policy: Policy, annotator: Annotator
) -> Literal["", "cap", "daily cap", "expertise", "failed"]:
    """Why an annotator gets nothing, whatever is open; empty if nothing bars them."""
    if not policy.tags <= annotator.tags:
        return "expertise"
    if verdict(policy, annotator) == "failed":
        return "failed"
    if policy.cap is not None and annotator.answered >= policy.cap:
        return "cap"
    if policy.daily_cap is not None and annotator.today >= policy.daily_cap:
        return "daily cap"
    return ""


def suits(policy: Policy, annotator: Annotator, arm: Arm, row: Candidate) -> bool:
    """Whether a row may be shown to this annotator by this arm.

    Gold and quiz items are asked of everybody, so the overlap does not bind them.
    """
    if row.item in annotator.seen or not row.tags <= annotator.tags:
        return False
    if arm in ("gold", "screening"):
        return row.gold and row.certain
    ordinary = not (row.gold and row.certain) and row.control == (arm == "control")
    return ordinary and row.judged + row.leased < policy.overlap


def _fresh(
    policy: Policy,
    annotator: Annotator,
    arm: Arm,
    window: Window,
    now: float,
    loads: Mapping[str, int],
) -> Decision | None:
    key = annotator.name, annotator.answered
    domains: list[str | None] = [None]
    if policy.balanced and arm in ("active", "control"):
        # Equal loads in an order of the moment, or the first domain would get every first item.
        ranks = ((load, uniform(policy.seed, "domain", *key, d), d) for d, load in loads.items())
        domains = [domain for *_, domain in sorted(ranks)]
    for domain in domains:
        rows = (r for r in window(arm, domain) if domain is None or r.domain == domain)
        suited = (r for r in rows if suits(policy, annotator, arm, r))
        if found := list(islice(suited, policy.window)):
            row = _best(policy, arm, found, uniform(policy.seed, "choice", *key))
            order = side_order(policy, annotator.name, row.item, row.responses)
            return Decision(row.item, 1, arm, order, now + policy.lease_minutes * MINUTE)
    return None


def _best(policy: Policy, arm: Arm, rows: Sequence[Candidate], draw: float) -> Candidate:
    """The row to show: one of the equally good, which differs between annotators so that they
    seldom race for the same slot."""
    if arm == "screening":
        # The same items for everybody, in the same order: their results can be compared.
        return min(rows, key=lambda r: place(policy, r.item).key)
    ranks = [
        (0.0, 0) if arm == "gold" else (-r.score if arm == "active" else 0.0, r.judged + r.leased)
        for r in rows
    ]
    least = min(ranks)
    equal = [r for r, rank in zip(rows, ranks, strict=True) if rank == least]
    # In an order of their own: how the caller sorted equal rows changes nothing.
    equal.sort(key=lambda r: repr(r.item))
    return equal[int(draw * len(equal))]


def _retest(policy: Policy, annotator: Annotator, now: float) -> Decision | None:
    """One of the recent items again that lies far enough back and was not asked twice."""
    recent = annotator.recent
    again = {p.item for p in recent if p.pass_ == 2}
    due = [
        p
        for p in recent[: max(len(recent) - policy.retest_distance, 0)]
        if p.pass_ == 1 and p.judged and p.arm in ("active", "control") and p.item not in again
    ]
    if not due:
        return None
    draw = uniform(policy.seed, "choice", annotator.name, annotator.answered)
    past = due[int(draw * len(due))]
    order = side_order(policy, annotator.name, past.item, past.responses, 2)
    return Decision(past.item, 2, "retest", order, now + policy.lease_minutes * MINUTE)


def feedback_due(policy: Policy, recent: Sequence[Past]) -> list[Name]:
    """Gold items whose result may be told now: ``gold_delay`` answers ago or more.

    Told at once, an annotator would learn which items are gold, and take care with those alone.
    ``recent``: the oldest first. Quiz items are told with the verdict, not here.
    """
    old = recent[: max(len(recent) - policy.gold_delay, 0)]
    return [p.item for p in old if p.arm == "gold"]
