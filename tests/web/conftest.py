"""Fixtures of the pages' tests: a house on SQLite, and for some modules on PostgreSQL too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledgers import emptied
from tests.web.house import House

# These are asked of both databases; of PostgreSQL in every run only what is named, and the rest
# among the slow ones.
BOTH: dict[str, set[str]] = {
    "test_annotate": {"test_papers_come_first_each_with_its_version", "test_the_screening_decides"},
    "test_api": {"test_a_campaign_from_its_items_to_its_end"},
    "test_auth": {"test_sql_in_every_field_is_a_text"},
    "test_crew": set(),
    "test_judge": {
        "test_each_kind_is_recorded_as_it_was_said",
        "test_the_same_form_twice_counts_once",
        "test_one_slot_two_clients_one_gets_it",
        "test_what_comes_late_is_kept_and_its_author_is_told",
    },
    "test_lead": {"test_questions_are_answered_once_and_read_by_all"},
    "test_results": set(),
    "test_roles": set(),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__.rpartition(".")[2]
    if "house" in metafunc.fixturenames and module in BOTH:
        quick = metafunc.function.__name__ in BOTH[module]
        other = pytest.param("postgresql", marks=() if quick else pytest.mark.slow)
        metafunc.parametrize("house", ["sqlite", other], indirect=True)


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    other = getattr(request, "param", "") == "postgresql"
    made = House(tmp_path, emptied(request.getfixturevalue("shared")) if other else "")
    assert made.ledger.engine.dialect.name == getattr(request, "param", "sqlite")
    yield made
    made.ledger.close()
