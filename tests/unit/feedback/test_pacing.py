"""Forecast and breaks: golden values with their arithmetic, limits, and what must not be said."""

import math
from collections.abc import Iterator

import pytest

from truing.feedback.assign import Past, Policy
from truing.feedback.pacing import forecast, nudge

MINUTE = 60.0


def test_golden_forecast() -> None:
    # 180 slots are 90 % of all answers: 200. Days of 30, 50 and 40: mean 40, s = 10,
    # t(2) at 95 % = 4.302653, reach 4.302653 * 10 / sqrt(3) = 24.8414: 15.1586 to 64.8414 a day.
    # 200 answers of 90 s at 24 an hour are 5 hours, 120; and 0.10 each, 20.
    policy = Policy(retest_share=0.06, gold_share=0.04)
    got = forecast(policy, 180, [30, 50, 40], seconds=90, hourly=24, each=0.1)
    assert got == pytest.approx((200, 5, 200 / 64.8414, 200 / 15.1586, 140), rel=1e-5)
    even = forecast(policy, 180, [40, 40, 40])
    assert even.soonest == even.days == even.latest == pytest.approx(5)


def test_a_forecast_says_when_it_knows_nothing() -> None:
    policy = Policy(retest_share=0.0)
    assert forecast(policy, 0, [3, 0], each=1) == (0, 0, 0, 0, 0)
    assert forecast(policy, 9, [0, 0]).days == math.inf
    some = forecast(policy, 9, [0, 6])
    assert some.days == pytest.approx(3)
    assert some.latest == math.inf
    # More days, the same pace: a narrower forecast.
    wide, narrow = (forecast(policy, 90, [4, 8] * n) for n in (2, 20))
    assert wide.soonest < narrow.soonest < narrow.days < narrow.latest < wide.latest


@pytest.mark.parametrize(
    ("slots", "days", "said"),
    [(-1, [1, 2], "none can be negative"), (5, [3], "at least two"), (5, [], "one row of numbers")],
)
def test_a_forecast_refuses(slots: int, days: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        forecast(Policy(), slots, days)


def work(
    n: int,
    *,
    start: float = 0.0,
    active: float = 60.0,
    tokens: int = 300,
    agreed: bool | None = None,
) -> Iterator[Past]:
    """``n`` answers, one right after the other; every fifth is a re-test."""
    for i in range(n):
        told = agreed if i % 5 == 0 else None
        yield Past(i, start + (i + 1) * active, active=active, tokens=tokens, agreed=told)


def test_an_hour_of_work_calls_for_a_break_and_a_pause_starts_anew() -> None:
    assert nudge([]) == nudge([*work(49)]) == ""
    assert nudge([*work(50)]) == "long"
    later = work(30, start=49 * MINUTE + 10 * MINUTE)
    assert nudge([*work(49), *later]) == ""
    sooner = work(30, start=49 * MINUTE + 9 * MINUTE)
    assert nudge([*work(49), *sooner]) == "long"
    # The clock alone is no work: an hour at the screen with five minutes of activity.
    idle = [Past(i, i * 9 * MINUTE, active=30.0) for i in range(10)]
    assert nudge(idle) == ""
    # As stored, or otherwise.
    assert nudge([*work(50)][::-1]) == "long"


def test_haste_is_twice_the_speed_and_less_agreement() -> None:
    def after(active: float, agreed: bool | None, before: bool | None = True, n: int = 20) -> str:
        first = [*work(20, agreed=before)]
        return nudge([*first, *work(n, start=20 * MINUTE, active=active, agreed=agreed)], late=n)

    assert after(30, agreed=False) == "hasty"
    assert after(31, agreed=False) == ""
    # Fast and as true to oneself as before is practice; so it is where nothing tells.
    assert after(20, agreed=True) == after(20, agreed=None) == after(20, False, before=None) == ""
    assert after(20, agreed=False, before=False) == ""
    # Too few answers before to compare with.
    assert nudge([*work(10, agreed=True), *work(20, start=900, active=10, agreed=False)]) == ""
