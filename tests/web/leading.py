"""A campaign that is under way, and its leads: for the tests of their pages."""

import random
from typing import NamedTuple

from tests.web.house import House, person
from truing.data.ledger import Annotator, Answer, Campaign, Item, Ledger, NewItem, NewResponse, Told

DAY = 86_400_000
LEAD, REVIEWER = "lead@example.org", "reviewer@example.org"
NAMES = ("ada", "grace", "alan", "edsger", "barbara")


class Scene(NamedTuple):
    house: House
    campaign: Campaign
    people: list[Annotator]
    lead: Annotator
    reviewer: Annotator

    @property
    def ledger(self) -> Ledger:
        return self.house.ledger

    @property
    def items(self) -> list[Item]:
        return self.ledger.items(sorted(self.ledger.item_numbers(self.campaign.id).values()))

    def at(self, path: str = "") -> str:
        return f"/lead/{self.campaign.id}{path}"

    def say(self, item: Item, who: Annotator, choice: int | None, token: str = "") -> None:
        """Somebody judges: the place of the better response in the item, None for a tie."""
        self.ledger.record(self.campaign.id, [told(item, who, choice, token=token)])


def told(
    item: Item,
    who: Annotator,
    choice: int | None,
    *,
    first: int = 0,
    token: str = "",
    retest: int = 0,
    at: int | None = None,
    active_ms: int = 0,
) -> Told:
    """Somebody says which response is better, by its place; ``first``: what stood first."""
    ids = [response.id for response in item.responses]
    better = None if choice is None else ids[choice]
    outcome = "tie" if choice is None else "better"
    value = {"outcome": outcome, "preferred": better, "strength": None if better is None else 1}
    token = token or f"{item.id}-{who.id}-{retest}"
    answer, shown = Answer("pairwise", value), (ids[first], ids[1 - first])
    return Told(
        *(item.id, who.id, (answer,), token),
        shown=shown,
        retest=retest,
        at=at,
        active_ms=active_ms,
    )


def scene(house: House, items: int = 24, seed: int = 0) -> Scene:
    """Two systems, three judgements of each of the first items, over six days; five gold items.

    Edsger takes what stands first in 9 of 10 cases; dpo-7b wins 70 % of the others' choices."""
    ledger, draw = house.ledger, random.Random(seed)
    rules = {"overlap": 3, "retest_share": 0.05, "gold_share": 0.05}
    made = ledger.create_campaign("autumn", "pairwise", config={"rules": rules})
    both = (
        NewResponse("Short.", "org/sft", "sft-7b"),
        NewResponse("Longer, so.", "org/dpo", "dpo-7b"),
    )
    work = [NewItem(f"Question {i}?", both, wanted=3, key=i / 1000) for i in range(items)]
    known = {"kind": "pairwise", "value": {"outcome": "better", "preferred": 0}}
    ledger.add_items(made.id, work)
    ledger.add_items(
        made.id,
        [NewItem(f"Known {i}?", both, purpose="gold", expected=known) for i in range(5)],
    )
    ledger.set_campaign(made.id, state="open")
    people = [person(ledger, f"{name}@example.org", made) for name in NAMES]
    lead = person(ledger, LEAD, role="admin")
    built = Scene(house, made, people, lead, person(ledger, REVIEWER, role="reviewer"))
    said, now = list[Told](), ledger.now()
    for item in built.items:
        gold = item.purpose == "gold"
        if not gold and len({t.item_id for t in said}) >= items - 4:
            continue  # some are left to do
        for who in people if gold else draw.sample(people, 3):
            first = draw.randrange(2)
            right = 0 if gold else 1
            choice = right if draw.random() < 0.7 else 1 - right
            if who is people[3] and draw.random() < 0.9:
                choice = first
            at, ms = now - draw.randrange(6) * DAY, draw.randint(9000, 50000)
            said.append(told(item, who, choice, first=first, at=at, active_ms=ms))
            if draw.random() < 0.3:
                again = told(item, who, choice, first=1 - first, retest=1, at=at, active_ms=ms)
                said.append(again)
    ledger.record(made.id, said)
    return built
