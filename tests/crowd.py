"""A crowd at work on a ledger in memory, so that the laws of assignment can be watched.

The ledger keeps what docs/assignment.md asks of a ledger: it counts live leases, gives a slot only
if it is free at that moment, forgets dead leases when it does, and hands out windows of open rows
in the order of the index. Time is a number that tests move.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from truing.feedback.assign import (
    Annotator,
    Arm,
    Candidate,
    Decision,
    Name,
    Past,
    Policy,
    Rest,
    decide,
    live,
    place,
)
from truing.keys import generator


@dataclass
class Person:
    name: Name
    tags: frozenset[str] = frozenset()
    pasts: list[Past] = field(default_factory=list)
    held: Decision | None = None
    days: list[int] = field(default_factory=list)
    right: int = 0


class Crowd:
    """``size``: rows of a window as the index gives it, or None for all rows in no order."""

    def __init__(
        self,
        policy: Policy,
        items: Sequence[Candidate],
        people: Sequence[Name | Person],
        *,
        size: int | None = None,
        recent: int = 200,
    ) -> None:
        self.policy, self.size, self.recent = policy, size, recent
        self.items = {i.item: replace(i, control=place(policy, i.item).control) for i in items}
        self.key = {i.item: place(policy, i.item).key for i in items}
        self.people = {p.name: p for p in map(_person, people)}
        self.judged: dict[Name, list[Name]] = {i.item: [] for i in items}
        self.leases: dict[Name, dict[Name, float]] = {i.item: {} for i in items}
        self.now = 1_000_000.0
        self.log: list[tuple[Name, Decision]] = []
        self.read = 0

    def holders(self, item: Name) -> list[Name]:
        leases = self.leases[item].items()
        if not leases:
            return []
        return [name for name, expires in leases if live(self.policy, expires, self.now)]

    def load(self, item: Name) -> int:
        return len(self.judged[item]) + len(self.holders(item))

    def row(self, item: Name) -> Candidate:
        row, judged = self.items[item], len(self.judged[item])
        leased = len(self.holders(item)) if self.leases[item] else 0
        if (row.judged, row.leased) != (judged, leased):
            row = self.items[item] = replace(row, judged=judged, leased=leased)
        return row

    def is_gold(self, item: Name) -> bool:
        return self.items[item].gold and self.items[item].certain

    def annotator(self, name: Name) -> Annotator:
        who = self.people[name]
        seen = {p.item for p in who.pasts}
        if who.held and live(self.policy, who.held.expires, self.now):
            seen.add(who.held.item)
        quiz = sum(p.arm == "screening" for p in who.pasts)
        today = who.days.count(int(self.now // 86400))
        recent = who.pasts[-self.recent :]
        return Annotator(name, who.tags, len(who.pasts), today, seen, recent, (quiz, who.right))

    def loads(self) -> dict[str, int] | None:
        found: dict[str, int] = {}
        for item, row in self.items.items():
            if not self.is_gold(item):
                found[row.domain] = found.get(row.domain, 0) + self.load(item)
        return found if self.policy.balanced else None

    def ask(self, name: Name) -> Decision | Rest:
        """What the person should do, by the state of this moment; nothing is written."""
        held = self.people[name].held
        if held and live(self.policy, held.expires, self.now):
            return held
        annotator, policy = self.annotator(name), self.policy
        if self.size is None:
            policy = replace(policy, window=len(self.items))
        return decide(policy, annotator, Rows(self, annotator), self.now, loads=self.loads())

    def take(self, name: Name, decision: Decision) -> bool:
        """Hold the slot if it is free now, whatever the decision was made from."""
        item = decision.item
        if decision.arm in ("active", "control"):
            if name in self.judged[item] or self.load(item) >= self.policy.overlap:
                return False
            kept = self.holders(item)
            self.leases[item] = {n: self.leases[item][n] for n in kept} | {name: decision.expires}
        self.people[name].held = decision
        return True

    def submit(self, name: Name, *, right: bool = True, judged: bool = True) -> bool:
        """Answer what is held; refused if the lease has run out or was given away."""
        who = self.people[name]
        held, who.held = who.held, None
        if held is None or not live(self.policy, held.expires, self.now):
            return False
        if held.arm in ("active", "control"):
            if self.leases[held.item].get(name) != held.expires:
                return False
            del self.leases[held.item][name]
            if judged:
                self.judged[held.item].append(name)
        who.right += right and held.arm == "screening"
        who.days.append(int(self.now // 86400))
        who.pasts.append(Past(held.item, self.now, held.arm, held.pass_, len(held.order), judged))
        self.log.append((name, held))
        return True

    def work(self, name: Name, **how: bool) -> Decision | Rest:
        """Ask, take and submit at one go."""
        decision = self.ask(name)
        if isinstance(decision, Decision):
            assert self.take(name, decision)
            assert self.submit(name, **how)
        return decision

    def finish(self, order: Iterator[Name]) -> None:
        """Work in the given order of people until nobody finds anything."""
        idle: set[Name] = set()
        while len(idle) < len(self.people):
            name = next(order)
            if name not in idle and isinstance(self.work(name), Rest):
                idle.add(name)


@dataclass
class Rows:
    """The window of one annotator, as a ledger with an index gives it."""

    crowd: Crowd
    annotator: Annotator

    def __call__(self, arm: Arm, domain: str | None) -> Iterator[Candidate]:
        crowd = self.crowd
        rows = [crowd.row(item) for item in crowd.items]
        if crowd.size is not None:
            rows = [r for r in rows if self.open(r, arm, domain)]
            rows.sort(key=lambda r: _rank(arm, r, crowd.key[r.item]))
            rows = rows[: crowd.size]
        for row in rows:
            crowd.read += 1
            yield row

    def open(self, row: Candidate, arm: Arm, domain: str | None) -> bool:
        """The WHERE clause, written anew: it must not lean on what is tested."""
        if row.item in self.annotator.seen or row.tags - self.annotator.tags:
            return False
        if arm in ("gold", "screening") or self.crowd.is_gold(row.item):
            return arm in ("gold", "screening") and self.crowd.is_gold(row.item)
        if row.control != (arm == "control") or domain not in (None, row.domain):
            return False
        return row.judged + row.leased < self.crowd.policy.overlap


def _rank(arm: Arm, row: Candidate, key: float) -> tuple[float, ...]:
    if arm == "active":
        return (-row.score, row.judged + row.leased, key)
    return (key,) if arm in ("gold", "screening") else (row.judged + row.leased, key)


def _person(given: Name | Person) -> Person:
    return given if isinstance(given, Person) else Person(given)


def items(n: int, **more: object) -> list[Candidate]:
    return [Candidate(i, **more) for i in range(n)]  # pyright: ignore[reportArgumentType]


def golds(n: int) -> list[Candidate]:
    return [Candidate(f"gold-{i}", gold=True, certain=True) for i in range(n)]


def shuffled(names: list, seed: int = 0) -> Iterator:
    draw = generator(seed, "turns")
    while True:
        yield names[int(draw.integers(len(names)))]
