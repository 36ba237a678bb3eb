"""The mathematics of PPO takes a small share of the model's time (benchmarks/floor0.py)."""

from statistics import median
from time import sleep

import pytest
from benchmarks.floor0 import BOUND, Times, by_turns, mathematics, measured, ten_million

from truing.algorithms import gae


def test_a_model_of_ten_million() -> None:
    assert sum(p.numel() for p in ten_million().parameters()) == pytest.approx(10e6, rel=0.06)


def test_the_mathematics_takes_less_than_its_bound() -> None:
    """64 rows of 1,024 tokens, against a model that reads one row of 256: a 256th of the tokens,
    and for each of them less attention than it would pay in a long row."""
    other = mathematics(64, 1024)
    few = [
        Times(256 * t.model, s.mathematics)
        for t in measured(1, 256, 1, 3)
        for s in [by_turns([lambda: None], other)]
    ]
    assert median(t.share for t in few) < BOUND


def test_both_are_timed() -> None:
    """Two parts of 20 ms, and the other of 30 ms behind each: a share of 3/4."""
    found = by_turns([lambda: sleep(0.02)] * 2, lambda: sleep(0.03))
    assert found.model >= 0.04
    assert found.mathematics >= 0.03
    # A busy machine sleeps longer, and not always as much longer.
    assert found.share == pytest.approx(0.75, rel=0.5)


def test_the_work_is_that_of_the_house(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bite: a slow estimate is part of what is timed."""
    calls: list[int] = []

    def slow(*given: object, **more: object) -> object:
        calls.append(1)
        return gae(*given, **more)

    monkeypatch.setattr("benchmarks.floor0.gae", slow)
    mathematics(2, 8)()
    assert calls == [1]
