"""The mathematics of PPO takes a small share of the model's time (benchmarks/floor0.py)."""

from statistics import median

import pytest

from benchmarks.floor0 import (
    BOUND,
    by_turns,
    mathematics,
    measured,
    medians,
    seconds,
    ten_million,
)
from truing.algorithms import gae


def test_a_model_of_ten_million() -> None:
    assert 10e6 < sum(p.numel() for p in ten_million().parameters()) < 10.6e6


def test_the_mathematics_takes_less_than_its_bound() -> None:
    """64 rows of 1,024 tokens, against a model that reads 64 rows of 128 at the pace of one: an
    eighth of the tokens, and for each of them less attention than it would pay in a long row."""
    other, short = mathematics(64, 1024), measured(64, 128, 1, 4)
    long = [seconds(other) for _ in range(5)]
    assert median(long) < BOUND * 8 * medians(short).model


def test_both_are_timed_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only work moves: parts of 20 and 30 s, the other 3 and then 1 s."""
    now, costs = [0.0], iter([20.0, 3.0, 30.0, 1.0])

    def work() -> None:
        now[0] += next(costs)

    monkeypatch.setattr("benchmarks.floor0.perf_counter", lambda: now[0])
    found = by_turns([work, work], work)
    assert found == [(20.0, 3.0), (30.0, 1.0)]
    assert medians(found) == (25.0, 2.0)
    assert medians(found).share == 0.08


def test_the_work_is_that_of_the_house(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bite: a slow estimate is part of what is timed."""
    calls: list[int] = []

    def slow(*given: object, **more: object) -> object:
        calls.append(1)
        return gae(*given, **more)

    monkeypatch.setattr("benchmarks.floor0.gae", slow)
    mathematics(2, 8)()
    assert calls == [1]
