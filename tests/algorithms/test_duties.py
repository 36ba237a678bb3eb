"""Every public function on floor 0 has its duties, and the tests named for them do them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.algorithms import reference
from tests.algorithms.duties import (
    OWED,
    cases,
    declared,
    everything,
    faults,
    files_with_tables,
    house,
    performed,
    public,
)
from truing.algorithms import dpo, gae, tied_pairs
from truing.stats.ratings import mean


@pytest.mark.parametrize("room", OWED)
def test_every_public_function_has_its_duties(room: str) -> None:
    functions, duties, record = house()
    assert faults(room, public(room), functions, duties, record) == []


def test_the_tables_name_what_there_is() -> None:
    known = [name for room in OWED for name in public(room)]
    assert len(set(known)) == len(known) > 40
    assert sorted(house()[1].keys() - known) == []
    assert len(files_with_tables()) > 9


def test_a_public_function_without_a_table_is_told() -> None:
    missing = faults("truing.algorithms", ["gae"], {}, {}, {})
    assert len(missing) == 7
    assert missing[0].startswith("truing.algorithms.gae lacks the duty 'golden': write a test and")
    assert [m.split("'")[1] for m in faults("truing.stats", ["mean"], {}, {}, {})] == [
        *("golden", "law", "library", "refusal")
    ]


# --- tests that do not do what they are named for -------------------------------------------------

PAIR = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])


def silent() -> None:
    assert 1 + 1 == 2


def once() -> None:
    dpo(*PAIR, beta=0.1)


def through_another() -> None:
    """Calls `bradley_terry`, but only as `dpo` does."""
    dpo(*PAIR, beta=0.1)
    dpo(*PAIR, beta=0.2)


def refuses_itself() -> None:
    """A ValueError, but not of the function."""
    dpo(*PAIR, beta=0.1)
    with pytest.raises(ValueError, match="invalid literal"):
        int("x")


def bites_another() -> None:
    dpo(*PAIR, beta=0.1)

    def check(f: Any) -> None:
        assert f([0, 0]) == [(0, 1)]

    reference.bites(check, {"none": lambda k: []})


def pairs() -> None:
    assert tied_pairs([0, 0]) == [(0, 1)]


@pytest.mark.parametrize(
    ("name", "word", "what", "said"),
    [
        ("dpo", "golden", silent, "silent is to show 'golden', but never calls it itself"),
        ("bradley_terry", "law", through_another, "never calls it itself"),
        ("dpo", "gradient", once, "never calls it inside torch.autograd.gradcheck"),
        ("dpo", "bite", bites_another, "never calls it inside reference.bites"),
        ("dpo", "loop", once, "calls no function of tests/algorithms/reference"),
        ("dpo", "refusal", refuses_itself, "never makes it raise ValueError"),
        ("dpo", "invariance", once, "calls it once only"),
        ("dpo", "golden", "too simple", "'golden' is owed by every function, but the table says"),
        ("dpo", "gradient", "too simple", "'gradient' is owed: its result carries a gradient"),
        ("dpo", "invariance", "too simple", "'invariance' is owed by a function of tensors"),
    ],
)
def test_a_table_is_not_believed(name: str, word: str, what: Any, said: str) -> None:
    functions = everything("truing.algorithms")
    tests = [what] if callable(what) else [once]
    duties = declared([{name: {word: what}}])
    found = faults("truing.algorithms", [name], functions, duties, performed(tests, functions))
    assert len(found) == 7
    assert any(said in line for line in found), found


def test_what_is_true_is_believed() -> None:
    functions = everything("truing.algorithms")
    duties = declared([{"tied_pairs": {"golden": pairs, "gradient": "indices"}}])
    found = faults(
        "truing.algorithms", ["tied_pairs"], functions, duties, performed([pairs], functions)
    )
    assert [line.split("'")[1] for line in found] == [
        "law",
        "bite",
        "invariance",
        "loop",
        "refusal",
    ]


def with_a_fixture(tmp_path: Any) -> None:
    pass


@pytest.mark.slow
def slow() -> None:
    pass


@pytest.mark.parametrize("a", [1, 2])
@pytest.mark.parametrize(("b", "c"), [(3, 4), pytest.param(5, 6, id="x")])
def grid(a: int, b: int, c: int) -> None:
    pass


def test_tests_are_called_by_their_parametrisations() -> None:
    found = [tuple(sorted(case.values.items())) for case in cases(grid)]
    wanted = [(("a", a), ("b", b), ("c", c)) for a in (1, 2) for b, c in ((3, 4), (5, 6))]
    assert sorted(found) == sorted(wanted)
    for test, said in ((with_a_fixture, "takes a fixture"), (slow, "is marked slow")):
        with pytest.raises(ValueError, match=said):
            cases(test)
    with pytest.raises(ValueError, match="dpo: 'gold' is no duty; there are"):
        declared([{"dpo": {"gold": once}}])


def test_functions_are_themselves_again_when_they_were_watched() -> None:
    before: dict[Callable[..., Any], Any] = {f: f.__code__ for f in (gae, dpo, mean)}
    performed([once], {"gae": gae, "dpo": dpo, "mean": mean})
    assert {f: f.__code__ for f in before} == before
    assert "_note" not in dpo.__globals__
