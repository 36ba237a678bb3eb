"""What a page asks of the database: few statements, and no more when there is more behind them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import event, text

from tests.ledgers import emptied
from tests.web.house import House, campaign, person
from truing.data.ledger import Answer, Campaign, Ledger
from truing.data.ledger.entries import Told


def asked(house: House, work) -> list[str]:
    said = list[str]()

    def note(connection, cursor, statement: str, *more: object) -> None:
        said.append(statement)

    event.listen(house.ledger.engine, "before_cursor_execute", note)
    work()
    event.remove(house.ledger.engine, "before_cursor_execute", note)
    return said


def record(ledger: Ledger, made: Campaign, items: int, people: list[int]) -> None:
    """A tie on each of the items by each of the people."""
    tie = (Answer("pairwise", {"outcome": "tie", "preferred": None, "strength": None}),)
    numbers = range(1, items + 1)
    ledger.record(made.id, (Told(i, who, tie, f"{i}-{who}") for i in numbers for who in people))


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
    record(house.ledger, made, 80, others)
    browser.work(made)
    browser.judge(choice="b1")
    assert len(asked(house, lambda: browser.work(made))) <= len(few)


# What people who judged hold, as the pages would have left it.
HELD = """
INSERT INTO assignments (campaign_id, item_id, annotator_id, retest, state, arm, shown, slot,
                         leased_at, expires_at)
SELECT campaign_id, item_id, annotator_id, 0, 'done', 'control', shown, true, at, at
FROM judgements
"""
READ_WHOLE = """
SELECT relname, seq_scan FROM pg_stat_user_tables
WHERE relname IN ('items', 'assignments', 'judgements', 'events', 'responses', 'item_responses')
"""
OTHERS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def read_whole(url: str) -> dict[str, int]:
    """How often each large table was read from end to end, once all that did so have gone."""
    with Ledger.open(url) as ledger:
        end = time.monotonic() + 30
        while True:
            with ledger.reading() as c:
                if not c.scalar(text(OTHERS)):
                    return {row[0]: row[1] for row in c.execute(text(READ_WHOLE))}
            assert time.monotonic() < end
            time.sleep(0.05)


@contextmanager
def planned_for_any(url: str) -> Iterator[None]:
    """Plans that know no values: what PostgreSQL may take for a statement that comes often."""
    with Ledger.open(url) as ledger, ledger.writing() as c:
        c.execute(text("ALTER DATABASE shared SET plan_cache_mode = force_generic_plan"))
    try:
        yield
    finally:
        with Ledger.open(url) as ledger, ledger.writing() as c:
            c.execute(text("ALTER DATABASE shared RESET plan_cache_mode"))


def test_postgresql_reads_no_large_table_whole(shared: str, tmp_path: Path) -> None:
    url = emptied(shared)
    with planned_for_any(url):
        house = House(tmp_path, url)
        made = campaign(house.ledger, items=1500, overlap=9)
        record(house.ledger, made, 1500, [house.ledger.add_annotator().id for _ in range(3)])
        person(house.ledger, "ada@example.org", made)
        with house.ledger.writing() as c:
            c.execute(text(HELD))
            c.execute(text("ANALYZE"))
        house.ledger.close()
        before, house = read_whole(url), House(tmp_path, url)
        browser = house.browser("ada@example.org")
        for _ in range(12):  # a statement is prepared when it comes for the sixth time
            browser.work(made)
            browser.judge(choice="a1")
        house.ledger.close()
        assert read_whole(url) == before
