"""What a page asks of the database: few statements, and no more when there is more behind them."""

from sqlalchemy import event

from tests.web.house import House, campaign, person
from truing.data.ledger import Answer
from truing.data.ledger.entries import Told


def asked(house: House, work) -> list[str]:
    said = list[str]()

    def note(connection, cursor, statement: str, *more: object) -> None:
        said.append(statement)

    event.listen(house.ledger.engine, "before_cursor_execute", note)
    work()
    event.remove(house.ledger.engine, "before_cursor_execute", note)
    return said


def test_the_next_item_and_a_judgement_take_few_statements(house: House) -> None:
    made = campaign(house.ledger, items=80, overlap=9)
    me = person(house.ledger, "ada@example.org", made)
    paper = house.ledger.add_document(made.id, "guideline", "Choose the better one.")
    house.ledger.accept(me.id, paper.id)
    browser = house.browser("ada@example.org")
    browser.work(made)
    browser.judge(choice="a1")
    few = asked(house, lambda: browser.work(made))
    # Each transaction's beginning is one; nothing is asked twice but how far this person is.
    assert len(few) <= 20, few
    page = browser.page
    judged = asked(house, lambda: browser.submit(
        f"/judge/{browser.lease}", script=True, token=browser.hidden("token"), choice="a1"
    ))  # fmt: skip
    assert len(judged) <= 22, judged
    assert page is not None
    others = [house.ledger.add_annotator().id for _ in range(7)]
    house.ledger.record(made.id, (
        Told(item.id, who, (Answer("pairwise", {"outcome": "tie", "preferred": None,
                                                "strength": None}),), f"{item.id}-{who}")
        for item in house.ledger.items(list(range(1, 81))) for who in others
    ))  # fmt: skip
    browser.work(made)
    browser.judge(choice="b1")
    assert len(asked(house, lambda: browser.work(made))) <= len(few)
