"""What a campaign's judgements say in numbers, kept until they change: a million take seconds."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request

from truing.data.ledger import Ledger
from truing.data.ledger.columns import Columns, columns, head, open_slots
from truing.feedback.pacing import Forecast, forecast
from truing.feedback.rules import Rules
from truing.stats.agreement import (
    Alpha,
    Disagreement,
    PairOfPeople,
    alpha,
    by_pair,
    percent_agreement,
    system_win_rate,
    to_adjudicate,
)
from truing.stats.annotators import Judgements, Profile, profiles
from truing.stats.ratings import Interval, WinRate
from truing.web.pages import ledger_of

DAYS = 14  # of which the pace is the mean
PANEL = 12  # people of whom each two are compared; more make no readable table
# What took a second is not made anew within twenty, whatever was judged meanwhile.
SLOW, REST, LONGEST = 1.0, 20.0, 600.0


class Wins(NamedTuple):
    a: str
    b: str
    rate: WinRate


class Numbers(NamedTuple):
    """The figures of a campaign, or of one round. ``people``: with a number as their name.
    ``reason``: why there is no agreement. ``other``: judgements left out, as no person made them;
    ``simulated``: those that are in it though a program made them. ``at``: when, in ms."""

    n: int
    rounds: list[int]
    percent: Interval | None
    alpha: Alpha | None
    reason: str
    pairs: list[PairOfPeople]
    disputes: list[Disagreement]
    people: dict[int, Profile]
    wins: list[Wins]
    other: int
    simulated: int
    at: int


class Kept:
    """Results by key, each with what it was made from, and how long it took."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.made = clock, 0
        self._lock, self._locks = threading.Lock(), dict[Any, threading.Lock]()
        self._kept: dict[Any, tuple[int, float, float, Any]] = {}

    def get(self, key: Any, state: int, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or gave: while ``state`` is the same, or as long as a new one would
        cost too much of the computer's time."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key in self._kept:
                known, at, cost, value = self._kept[key]
                rest = min(REST * cost, LONGEST) if cost >= SLOW else 0.0
                if known == state or self.clock() - at < rest:
                    return value
            start = self.clock()
            value = make()
            end = self.clock()
            self._kept[key] = state, end, end - start, value
            self.made += 1
            return value

    def forget(self, campaign_id: int) -> None:
        """Make a campaign's figures anew when they are next asked for: a lead changed them."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == campaign_id]:
                self._kept.pop(key, None)


def numbers_of(request: Request, campaign_id: int, round: int | None = None) -> Numbers:
    """The figures of a campaign, from what is kept or made anew."""
    ledger = ledger_of(request)
    kept: Kept = request.app.state.kept
    with ledger.reading() as c:
        state = head(c, campaign_id)
    return kept.get((campaign_id, round), state, lambda: made(ledger, campaign_id, round))


def made(ledger: Ledger, campaign_id: int, round: int | None = None) -> Numbers:
    """The figures, made anew."""
    with ledger.reading(snapshot=True) as c:
        rows = columns(c, campaign_id)
    rounds = [int(r) for r in np.unique(rows.round_N)]
    if round is not None:
        rows = rows.take(rows.round_N == round)
    rows = rows.take(_last_words(rows))
    other = int((~rows.human_N).sum())
    rows = rows.take(rows.human_N)
    first = rows.take((rows.pass_N == 1) & rows.work_N)
    percent, all_, reason, pairs = _agreement(first)
    return Numbers(
        n=len(rows.item_N),
        rounds=rounds,
        percent=percent,
        alpha=all_,
        reason=reason,
        pairs=pairs,
        disputes=_disputes(first),
        people=_people(rows),
        wins=_wins(first),
        other=other,
        simulated=int(rows.simulated_N.sum()),
        at=ledger.now(),
    )


def _last_words(rows: Columns) -> Any:
    """Of what one person said of one item in one pass, the last: an import may hold several."""
    n = len(rows.item_N)
    people = int(rows.annotator_N.max(initial=0)) + 1
    code_N = (rows.item_N * people + rows.annotator_N) * 2 + rows.pass_N - 1
    _, last = np.unique(code_N[::-1], return_index=True)
    kept = np.zeros(n, np.bool_)
    kept[n - 1 - last] = True
    return kept


def _agreement(rows: Columns) -> tuple[Interval | None, Alpha | None, str, list[PairOfPeople]]:
    side_N = np.sign(rows.value_N)
    try:
        percent = percent_agreement(side_N, rows.item_N, rows.prompt_N)
        all_ = alpha(side_N, rows.item_N, rows.prompt_N, distance="nominal")
    except ValueError as error:
        reason = str(error) if len(side_N) else "nobody has judged a pair or given a thumb yet"
        return None, None, reason, []
    pairs = list[PairOfPeople]()
    if len(np.unique(rows.annotator_N)) <= PANEL:
        pairs = by_pair(side_N, rows.item_N, rows.annotator_N, rows.prompt_N, distance="nominal")
    return percent, all_, all_.reason, pairs


def _disputes(rows: Columns) -> list[Disagreement]:
    """Items whose judgements take different sides, the furthest apart first, those aside that a
    lead has decided."""
    if not len(rows.item_N):
        return []
    apart = to_adjudicate(np.sign(rows.value_N), rows.item_N)
    named = (Disagreement(int(each.item), each.distance, each.n) for each in apart)
    return [each for each in named if each.item not in rows.decided]


def _people(rows: Columns) -> dict[int, Profile]:
    """Each one's figures, where pairs were judged; those with most trouble first."""
    rows = rows.take(rows.length_N2[:, 1] > 0)
    if not len(rows.item_N):
        return {}
    return {
        int(profile.name): profile
        for profile in profiles(
            Judgements(
                rows.item_N,
                rows.annotator_N,
                rows.value_N,
                rows.shown_N,
                prompt_N=rows.prompt_N,
                pass_N=rows.pass_N,
                both_bad_N=rows.both_bad_N,
                length_N2=rows.length_N2,
                seconds_N=rows.seconds_N,
                tokens_N=rows.read_N / 4,  # what is compared is people, not tokenizers
                gold_N=np.where(rows.work_N, np.nan, rows.gold_N),
            )
        )
    }


def _wins(rows: Columns) -> list[Wins]:
    """Every two systems that were compared, and how often the first won."""
    rows = rows.take(rows.length_N2[:, 1] > 0)
    names = [rows.system_I2[place] for place in rows.row_N.tolist()]
    two = sorted({(min(x), max(x)) for x in set(names) if x[0] != x[1] and all(x)})
    first, second = [x[0] for x in names], [x[1] for x in names]
    value_N, prompts = np.sign(rows.value_N), rows.prompt_N
    return [
        Wins(a, b, system_win_rate(value_N, first, second, prompts, a=a, b=b)) for a, b in two[:20]
    ]


# --- when it will be done -------------------------------------------------------------------------


def per_day(tallies: Sequence[Any], today: str) -> list[int]:
    """Answers on each whole day since the first, at most DAYS of them; days off are 0."""
    days = dict[np.datetime64, int]()
    for row in tallies:
        day = np.datetime64(row["day"])
        days[day] = days.get(day, 0) + row["done"]
    end = np.datetime64(today)
    begin = max(min(days, default=end), end - DAYS)
    return [days.get(day, 0) for day in np.arange(begin, end)]


def outlook(
    ledger: Ledger, campaign_id: int, rules: Rules, today: str, hourly: float, each: float
) -> tuple[Forecast | None, float]:
    """The forecast (None before there are two whole days), and seconds of work per answer."""
    tallies = ledger.tallies(campaign_id)
    done, spent = sum(r["done"] for r in tallies), sum(r["active_ms"] for r in tallies)
    seconds = spent / 1000 / done if done else 0.0
    days = per_day(tallies, today)
    if len(days) < 2:
        return None, seconds
    with ledger.reading() as c:
        wanted = open_slots(c, campaign_id)
    told = {"seconds": seconds, "hourly": hourly, "each": each}
    return forecast(rules.policy(), wanted, days, **told), seconds
