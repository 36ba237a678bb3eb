"""How a campaign and its people get on: when it will end, and when somebody should rest."""

import math
from collections.abc import Collection, Sequence
from statistics import median
from typing import Literal, NamedTuple

from numpy.typing import ArrayLike

from truing.feedback.assign import MINUTE, Past, Policy
from truing.stats.ratings import mean


class Forecast(NamedTuple):
    """``answers`` still to come, re-tests and gold included; ``days`` at the present pace, between
    ``soonest`` and ``latest`` (inf where the pace may be nought); ``cost`` of them."""

    answers: float
    days: float
    soonest: float
    latest: float
    cost: float


def forecast(
    policy: Policy,
    open_slots: int,
    per_day_D: ArrayLike,
    *,
    seconds: float = 0.0,
    hourly: float = 0.0,
    each: float = 0.0,
    level: float = 0.95,
) -> Forecast:
    """When a campaign will be done, and what the rest of it will cost.

    ``open_slots``: first passes still wanted, sum of overlap - judged over open items. Of all
    answers the share ``1 - retest_share - gold_share`` fills a slot. ``per_day_D``: answers on each
    of the last D >= 2 days (days off are 0); the interval of their mean (Student's t over days)
    bounds the days left. cost = answers * (each + hourly * seconds / 3600), ``seconds`` the mean
    active time of an answer, ``hourly`` and ``each`` in the campaign's money.
    Raises ValueError for negative numbers and fewer than two days.
    """
    if min(open_slots, seconds, hourly, each) < 0:
        told = f"open_slots {open_slots}, seconds {seconds}, hourly {hourly}, each {each}"
        raise ValueError(f"{told} came: none can be negative")
    answers = open_slots / (1 - policy.retest_share - policy.gold_share)
    pace = mean(per_day_D, level=level)
    days, soonest, latest = (_ratio(answers, p) for p in (pace.value, pace.high, pace.low))
    cost = answers * (each + hourly * seconds / 3600)
    return Forecast(answers, days, soonest, latest, cost)


def _ratio(answers: float, pace: float) -> float:
    if answers == 0:
        return 0.0
    return answers / pace if pace > 0 else math.inf


def nudge(
    recent: Collection[Past],
    *,
    minutes: float = 50.0,
    pause: float = 10.0,
    late: int = 20,
) -> Literal["", "long", "hasty"]:
    """Whether to suggest a break, and why.

    *long*: ``minutes`` of active time since the last pause of ``pause`` minutes between answers.
    *hasty*: in the last ``late`` answers the median speed (tokens per active second) is twice that
    of the answers before, and the share of re-tests that repeat the first answer is lower. Each
    part needs ``late`` answers with a speed and a re-test, or it says nothing: speed alone may be
    practice. A nudge is advice to a person, never a reason to drop an answer.
    """
    pasts = sorted(recent, key=lambda p: p.time)
    session = 0.0
    for i, past in enumerate(pasts):
        # The gap is from one answer to the start of work on the next.
        gap = past.time - past.active - pasts[i - 1].time if i else 0.0
        session = past.active + (session if gap < pause * MINUTE else 0.0)
    if session >= minutes * MINUTE:
        return "long"
    before, after = (_pace(p) for p in (pasts[:-late], pasts[-late:]))
    if not (before and after) or min(before.timed, after.timed) < late:
        return ""
    hasty = after.speed >= 2 * before.speed and after.agreed < before.agreed
    return "hasty" if hasty else ""


class _Pace(NamedTuple):
    timed: int
    speed: float
    agreed: float


def _pace(pasts: Sequence[Past]) -> _Pace | None:
    speeds = [p.tokens / p.active for p in pasts if p.active > 0 and p.tokens > 0]
    agreed = [p.agreed for p in pasts if p.agreed is not None]
    if not speeds or not agreed:
        return None
    return _Pace(len(speeds), median(speeds), sum(agreed) / len(agreed))
