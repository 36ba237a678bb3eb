"""The replications: small versions meet their criteria, controls miss them, the page is theirs."""

from pathlib import Path

import numpy as np
import pytest

from replications import figures
from replications.page import PAGE, RECORDS, render, saved
from replications.record import Measure, Record, load, number, over_seeds
from replications.run import REPLICATIONS


@pytest.mark.parametrize("name", REPLICATIONS)
def test_a_small_version_meets_its_criteria_and_its_controls_do_not(name: str) -> None:
    record = REPLICATIONS[name](True)
    assert record.name == name
    assert record.figure is not None
    record.check()


def test_the_page_is_what_the_records_say() -> None:
    records = saved(list(REPLICATIONS))
    page = render(records, list(REPLICATIONS))
    assert PAGE.read_text(encoding="utf-8") == page, "run `make replications`"
    for record in records:
        record.check()
        assert (RECORDS / f"{record.name}.png").stat().st_size < 150_000


RIGHT = Measure("distance", 0.0, most=0.1)


def made(measures: list[Measure], controls: dict[str, list[Measure]]) -> Record:
    return Record("name", "Title", "", "", "", measures, controls, "", "")


def test_what_is_missed_and_what_passes_wrongly_is_refused() -> None:
    wrong = RIGHT._replace(value=1.0)
    made([RIGHT], {"a": [wrong], "b": [wrong._replace(value=np.nan)]}).check()
    refused = {
        "not met: distance: 1, needed at most 0.1": made([wrong], {"a": [wrong], "b": [wrong]}),
        "not met: distance: nan": made(
            [RIGHT._replace(value=np.nan)], {"a": [wrong], "b": [wrong]}
        ),
        "1 criteria and 1 controls": made([RIGHT], {"a": [wrong]}),
        "0 criteria and 2 controls": made([Measure("x", 1.0)], {"a": [wrong], "b": [wrong]}),
        "the control passes: b": made([RIGHT], {"a": [wrong], "b": [RIGHT]}),
        "other criteria than ours": made([RIGHT], {"a": [wrong], "b": [Measure("x", 1, most=0)]}),
        "b: other criteria than ours": made(
            [RIGHT], {"a": [wrong], "b": [wrong._replace(most=-1.0)]}
        ),
    }
    for said, record in refused.items():
        with pytest.raises(ValueError, match=said):
            record.check()


def test_a_criterion_may_stand_on_both_sides() -> None:
    both = Measure("x", 0.5, least=0.4, most=0.6)
    assert both.passed
    assert not both._replace(value=0.7).passed
    assert not both._replace(value=0.3).passed
    assert Measure("x", np.nan).passed  # nothing was asked of it


def test_means_over_seeds_have_intervals() -> None:
    # 2 +- t(0.975, 2) / sqrt(3), with t = 4.302653.
    found = over_seeds("x", [1.0, 2.0, 3.0], least=1.5)
    assert (found.value, found.n, found.passed) == (2.0, 3, True)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)


def test_numbers_are_short() -> None:
    told = [number(x) for x in (0.0, 0.12345, 12.3, 4321.0, 1e-16, np.nan, -0.5)]
    assert told == ["0", "0.123", "12.3", "4321", "1.0e-16", "nan", "-0.5"]


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    wrong = RIGHT._replace(value=1.0)
    record = made([RIGHT], {"a": [wrong], "b": [wrong]})
    record.figure = figures.panels(1)[0]
    record.save(tmp_path)
    record.figure = None
    assert load(tmp_path / "name.json") == record
    assert "| a | distance | 1 | at most 0.1 |" in render([load(tmp_path / "name.json")], ["name"])
    assert (tmp_path / "name.png").is_file()
    assert "Not measured yet: `other`." in render([record], ["name", "other"])
    assert "Not measured" not in render([record], ["name"])
