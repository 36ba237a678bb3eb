"""No change of a function on floor 0 goes unnoticed by the tests that answer for it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.algorithms import mutants
from tests.algorithms.duties import Case, cases, functions_of, house
from tests.algorithms.mutants import (
    EQUIVALENT,
    answering,
    drawn,
    matrix,
    mutants_of,
    mutated,
    survivors,
    toothless,
)


@pytest.mark.parametrize("name", mutated())
def test_every_mutant_is_killed(name: str) -> None:
    functions, duties, _ = house()
    rows = matrix(name, functions[name], answering(name), whole=False)
    assert rows, "no mutant was made"
    faults = survivors(rows) + toothless(name, rows, duties.get(name.partition(".")[0], {}))
    assert faults == [], drawn(name, rows)


def test_excuses_are_for_functions_that_exist() -> None:
    assert {name for name, _ in EQUIVALENT} <= set(mutated())
    assert all(len(reason) > 9 for reason in EQUIVALENT.values())


# --- that survivors are noticed -------------------------------------------------------------------

SOURCE = '''
def margin(a: int, b: int, *, beta: float, floor: int | None = None) -> float:
    """Prose with a 1 in it."""
    if not beta > 0:
        raise ValueError("beta must be above 0")
    if floor is None:
        return beta * (a - b)
    return max(beta * (a - b), floor)


def endless(n: int) -> int:
    while n > 0:
        n = n - 1
    return n
'''


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A module of two small functions, from a file: mutants are made from sources."""
    path = Path(tmp_path_factory.mktemp("toy")) / "toy.py"
    path.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def thorough(toy: ModuleType) -> Callable[[], None]:
    def whole() -> None:
        assert toy.margin(5, 2, beta=0.5) == 1.5
        assert toy.margin(2, 5, beta=0.5, floor=-1) == -1
        assert toy.margin(2, 5, beta=0.5, floor=-7) == -1.5
        for beta in (0, -1):
            with pytest.raises(ValueError, match="above 0"):
                toy.margin(1, 1, beta=beta)

    return whole


def asserting_nothing(toy: ModuleType) -> Callable[[], None]:
    def nothing() -> None:
        toy.margin(5, 2, beta=0.5)
        toy.margin(2, 5, beta=0.5, floor=-1)

    return nothing


def one_sided(toy: ModuleType) -> Callable[[], None]:
    def sideless() -> None:
        assert abs(toy.margin(5, 2, beta=0.5)) == 1.5

    return sideless


def tried(toy: ModuleType, name: str, test: Callable[[], None]) -> list[mutants.Row]:
    return matrix(name, functions_of(toy)[name], {"t": [Case(test, {})]})


def test_what_the_mutants_of_a_small_function_are(toy: ModuleType) -> None:
    found = [mutant.change for mutant in mutants_of("margin", toy.margin)]
    assert found == [
        "first: a, b = b, a",
        "first: a = a + 1",
        "first: b = b + 1",
        "first: beta = 1.0",
        "first: floor = None",
        "if not beta > 0: raise ValueError('beta must be above 0') -> pass",
        "not beta > 0 -> beta > 0",
        "beta > 0 -> beta >= 0",
        "0 -> 1",
        "if floor is None: return beta * (a - b) -> if not floor is None: return beta * (a - b)",
        "floor is None -> floor is not None",
        "return beta * (a - b) -> return -(beta * (a - b))",
        "beta * (a - b) -> beta / (a - b)",
        "a - b -> a + b",
        "return max(beta * (a - b), floor) -> return -max(beta * (a - b), floor)",
        "max(beta * (a - b), floor) -> min(beta * (a - b), floor)",
        "beta * (a - b) -> beta / (a - b) (2)",
        "a - b -> a + b (2)",
    ]


def test_a_mutant_that_is_dead_meets_no_other_test(toy: ModuleType) -> None:
    tests = {c.name: [c] for t in (thorough(toy), one_sided(toy)) for c in cases(t)}
    for whole in (True, False):
        rows = matrix("margin", toy.margin, tests, whole=whole)
        for row in rows:
            turned = row.mutant.change.startswith("return ")
            assert len(row.cells) == (2 if whole or turned else 1), row
        assert survivors(rows) == []


def test_a_thorough_test_lets_none_live(toy: ModuleType) -> None:
    assert survivors(tried(toy, "margin", thorough(toy))) == []


def test_survivors_are_noticed(toy: ModuleType) -> None:
    """Of a test that asserts nothing, and of one that does not look at the sign."""
    found = survivors(tried(toy, "margin", asserting_nothing(toy)))
    assert "margin survives: a - b -> a + b" in found
    assert len(found) > 9
    rows = tried(toy, "margin", one_sided(toy))
    negated = "return beta * (a - b) -> return -(beta * (a - b))"
    assert f"margin survives: {negated}" in survivors(rows)
    assert f"   .  {negated}   [SURVIVES]" in drawn("margin", rows).splitlines()
    assert "margin survives: a - b -> a + b" not in survivors(rows)


def test_excuses_are_held_to_be_true(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, dead, gone = "beta > 0 -> beta >= 0", "a - b -> a + b", "a ** b -> a * b"
    for change in (alive, dead, gone):
        monkeypatch.setitem(EQUIVALENT, ("margin", change), "for the sake of the test")
    found = survivors(tried(toy, "margin", one_sided(toy)))
    assert f"margin survives: {alive}" not in found
    for change in (dead, gone):
        assert f"EQUIVALENT excuses what is killed or not made: ('margin', '{change}')" in found


def test_a_duty_is_to_notice_the_sign_by_itself(toy: ModuleType) -> None:
    whole, half = thorough(toy), one_sided(toy)
    rows = matrix("margin", toy.margin, {c.name: [c] for t in (whole, half) for c in cases(t)})
    assert toothless("margin", rows, {"golden": [whole]}) == []
    said = toothless("margin", rows, {"golden": [whole], "gradient": [half]})
    assert len(said) == 2
    assert "margin: 'gradient' is to be shown by ['test_mutants::sideless'], which" in said[0]


def test_a_mutant_without_end_is_given_up(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "PATIENCE", 0.2)

    def test() -> None:
        assert toy.endless(3) == 0

    cells = {row.mutant.change: row.cells["t"] for row in tried(toy, "endless", test)}
    assert cells["n - 1 -> n + 1"] == "!"
    assert cells["return n -> return -n"] == "."
    assert toy.endless(3) == 0
