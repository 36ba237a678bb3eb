"""A campaign with people, to be judged in tests, and a clock that can be set."""

from collections import Counter
from itertools import count

from sqlalchemy import case, func, select, text

from truing.data.ledger import Answer, Ledger, NewItem, NewResponse, chain
from truing.data.ledger.tables import (
    LEDGER,
    assignments,
    items,
    judgements,
    metadata,
    streams,
    tallies,
)

START = 1_800_000_000_000  # milliseconds since 1970


def emptied(url: str) -> str:
    """A database as it was when its tables were made: to make them takes seconds."""
    with Ledger.open(url) as ledger, ledger.writing() as c:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        c.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        chain.begin(c, LEDGER)
    return url


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.ms = START

    def __call__(self) -> int:
        return self.ms

    def on(self, seconds: float) -> None:
        self.ms += int(1000 * seconds)


class Team:
    """A campaign with items and people, ready to judge."""

    def __init__(self, ledger: Ledger, items: int = 4, people: int = 2, **how: object) -> None:
        self.ledger, self._tokens = ledger, count()
        kind = str(how.pop("kind", "pairwise"))
        self.id = ledger.create_campaign("replies", kind).id
        texts = int(str(how.pop("responses", 2)))
        ledger.add_items(
            self.id,
            (
                NewItem(
                    f"prompt {i}",
                    tuple(NewResponse(f"reply {i}.{k}", model="m", run="r") for k in range(texts)),
                    key=float(i),
                    **how,  # pyright: ignore[reportArgumentType]
                )
                for i in range(items)
            ),
        )
        self.people = [
            ledger.add_annotator(name=f"name {i}", email=f"{i}@example.org").id
            for i in range(people)
        ]
        for person in self.people:
            ledger.join(self.id, person)

    def token(self) -> str:
        return f"token-{next(self._tokens)}"

    def hold(self, who: int = 0, **how: object):
        """The first candidate of a person, leased in the items' own order."""
        first = self.ledger.candidates(self.id, self.people[who])[0]
        return self.ledger.lease(first.item_id, self.people[who], first.response_ids, **how)  # pyright: ignore[reportArgumentType]

    def judge(self, who: int = 0, *more: Answer):
        """The first candidate of a person, judged: the first response shown is better."""
        lease = self.hold(who)
        answers = [better(lease.shown[0]), *more]
        return self.ledger.submit(lease.id, self.people[who], answers, token=self.token())


def better(response: int, strength: int = 1) -> Answer:
    return Answer("pairwise", {"outcome": "better", "preferred": response, "strength": strength})


TIE = Answer("pairwise", {"outcome": "tie", "preferred": None, "strength": None})
SKIP = Answer("skip", {"reason": "not my field"})


def counts_are_true(ledger: Ledger, campaign: int) -> None:
    """The counts that are kept beside are those of the rows."""
    with ledger.reading(snapshot=True) as c:
        done = c.scalar(select(func.count()).select_from(judgements)) or 0
        assert c.scalar(select(func.sum(tallies.c.done))) == done
        came = case((items.c.done < items.c.wanted, items.c.done), else_=items.c.wanted)
        filled = c.scalar(select(func.sum(came)).where(items.c.campaign_id == campaign))
        assert c.scalar(select(streams.c.filled).where(streams.c.id == campaign)) == filled
        assert c.scalar(select(func.sum(items.c.done))) == done
        held = select(func.count()).where(assignments.c.state.in_(("leased", "done")))
        assert c.scalar(select(func.sum(items.c.load))) == c.scalar(held)
        over = select(func.count()).where(items.c.load > items.c.wanted)
        assert c.scalar(over) == 0
    assert ledger.verify() == []


def told(ledger: Ledger) -> Counter[str]:
    with ledger.reading() as c:
        return Counter(c.scalars(select(judgements.c.token)))
