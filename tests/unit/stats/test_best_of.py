"""Best of n and clear pairs: golden values, equality with brute force, laws, bites."""

import math
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from tests.algorithms.reference import bites
from truing.keys import generator
from truing.stats.best_of import best_of_n, best_of_n_kl, best_of_n_law, gap_probability


def check_estimator(f: Callable[..., float]) -> None:
    # Gold in the order of the scores: 3, 1, 5, 2. Of two out of four: C(1,1), C(2,1), C(3,1) of
    # C(4,2) = 6 pairs are won by the second, third and fourth: (1 + 2 * 5 + 3 * 2) / 6.
    assert f([5, 1, 2, 3], [3, 2, 4, 1], 2) == pytest.approx(17 / 6, abs=1e-9)
    random = generator(1, "best of n")
    for count, n in ((5, 3), (6, 1), (6, 6), (7, 2)):
        gold = random.normal(size=count)
        # Some equal scores, which are taken as likely to be the one.
        score = random.integers(0, 4, size=count)
        wanted = [np.mean([gold[i] for i in part if score[i] == max(score[list(part)])])
                  for part in combinations(range(count), n)]  # fmt: skip
        assert f(gold, score, n) == pytest.approx(np.mean(wanted), abs=1e-9)
        # Laws: one is a draw, all are the best; a constant comes through.
        assert f(gold, score, 1) == pytest.approx(gold.mean(), abs=1e-9)
        assert f(gold + 1, score, n) == pytest.approx(f(gold, score, n) + 1, abs=1e-9)
        assert f(gold, gold, count) == pytest.approx(gold.max(), abs=1e-9)


def test_the_estimator_is_that_of_all_ways_and_bites() -> None:
    check_estimator(best_of_n)
    mutants: dict[str, Any] = {
        "lowest": lambda g, s, n: best_of_n(g, -np.asarray(s), n),
        "gold's own order": lambda g, s, n: best_of_n(g, g, n),
        "one more": lambda g, s, n: best_of_n(g, s, min(n + 1, len(g))),
        "best of all": lambda g, s, n: best_of_n(g, s, len(g)),
        "ties by place": lambda g, s, n: best_of_n(g, np.argsort(np.argsort(s, kind="stable")), n),
    }
    bites(check_estimator, mutants)


def test_many_samples_are_no_trouble() -> None:
    gold = np.arange(20_000.0)
    # The mean of the highest of n out of 0 .. N - 1 is n (N + 1) / (n + 1) - 1.
    assert best_of_n(gold, gold, 999) == pytest.approx(999 * 20_001 / 1000 - 1, rel=1e-6)


def check_law(f: Callable[..., Any]) -> None:
    # F = 0.2, 0.5, 1 from the lowest: squares 0.04, 0.25, 1.
    assert f([0.5, 0.2, 0.3], [9, 1, 4], 2) == pytest.approx([0.75, 0.04, 0.21], abs=1e-12)
    random = generator(2, "best of n")
    for size, n in ((4, 3), (5, 2), (3, 5)):
        p = random.dirichlet(np.ones(size))
        score = random.integers(0, 3, size=size)
        wanted = np.zeros(size)
        for draws in product(range(size), repeat=n):
            top = [i for i in draws if score[i] == max(score[list(draws)])]
            for i in top:
                wanted[i] += p[list(draws)].prod() / len(top)
        assert f(p, score, n) == pytest.approx(wanted, abs=1e-12)
        assert f(p, score, 1) == pytest.approx(p, abs=1e-12)
        assert f(p, score, n).sum() == pytest.approx(1, abs=1e-12)
    # What is never drawn is never the best, alone at its score or not: 0.3^2 and 1 - 0.3^2.
    assert f([0.3, 0, 0.7, 0], [1, 1, 4, 9], 2) == pytest.approx([0.09, 0, 0.91, 0], abs=1e-12)
    # What rounding leaves above 1 does not grow with n.
    assert f([0.5, 0.5 + 9e-10], [1, 2], 10**6).sum() == pytest.approx(1, abs=1e-12)


def test_the_law_is_that_of_all_draws_and_bites() -> None:
    check_law(best_of_n_law)
    mutants: dict[str, Any] = {
        "lowest": lambda p, s, n: best_of_n_law(p, -np.asarray(s), n),
        "one more": lambda p, s, n: best_of_n_law(p, s, n + 1),
        "power of p": lambda p, s, n: np.asarray(p) ** n / (np.asarray(p) ** n).sum(),
        "ties by place": lambda p, s, n: best_of_n_law(
            p, np.argsort(np.argsort(s, kind="stable")), n
        ),
    }
    bites(check_law, mutants)


def test_it_is_no_further_away_than_the_bound() -> None:
    random = generator(3, "best of n")
    for size, n in product((2, 8, 50), (1, 2, 4, 64)):
        p, score = random.dirichlet(np.ones(size)), random.normal(size=size)
        law = best_of_n_law(p, score, n)
        there = law > 0
        kl = float(law[there] @ np.log(law[there] / p[there]))
        assert -1e-12 <= kl <= best_of_n_kl(n) + 1e-12
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75, abs=1e-12)
    # Where each response is rare the bound is reached.
    many = best_of_n_law(np.ones(100_000) / 100_000, np.arange(100_000), 4)
    assert many @ np.log(many * 100_000) == pytest.approx(best_of_n_kl(4), abs=1e-4)


def check_gap(f: Callable[..., Any]) -> None:
    # 1 / (1 + e^-1), 1 / (1 + e^-3) and a half.
    assert f([2, 6, 1], [0, 0, 1], temperature=2) == pytest.approx(
        [0.73105858, 0.95257413, 0.5], abs=1e-8
    )
    random = generator(4, "gaps")
    a, b = random.normal(size=9), random.normal(size=9)
    wanted = [math.exp(x / 0.3) / (math.exp(x / 0.3) + math.exp(y / 0.3)) for x, y in zip(a, b)]  # noqa: B905
    assert f(a, b, temperature=0.3) == pytest.approx(wanted, abs=1e-12)
    assert f(a, b, temperature=0.3) + f(b, a, temperature=0.3) == pytest.approx(np.ones(9))


def test_how_sure_a_reward_is_and_bites() -> None:
    check_gap(gap_probability)
    mutants: dict[str, Any] = {
        "exchanged": lambda a, b, temperature: gap_probability(b, a, temperature=temperature),
        "temperature dropped": lambda a, b, temperature: gap_probability(a, b, temperature=1),
        "times": lambda a, b, temperature: gap_probability(a, b, temperature=1 / temperature),
        "sum": lambda a, b, temperature: gap_probability(
            a, -np.asarray(b), temperature=temperature
        ),
    }
    bites(check_gap, mutants)
    assert gap_probability([1e6], [0], temperature=1e-3).tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: best_of_n([], [], 1), r"gold of shape \(0,\) came"),
        (lambda: best_of_n([1.0, math.nan], [1, 2], 1), "finite numbers are needed"),
        (lambda: best_of_n([1.0], [1, 2], 1), "1 gold values and 2 scores came"),
        (lambda: best_of_n([1.0, 2.0], [1, 2], 3), "n is 3: it must be from 1 .* 2"),
        (lambda: best_of_n([1.0, 2.0], [1, 2], 0), "n is 0"),
        (lambda: best_of_n_law([0.5, 0.4], [1, 2], 2), r"add up to 0.9"),
        (lambda: best_of_n_law([0.5, 0.5 + 1.5e-9], [1, 2], 2), "from 0 and to 1 is needed"),
        (lambda: best_of_n_law([1.5, -0.5], [1, 2], 2), r"from 0 and to 1 is needed"),
        (lambda: best_of_n_law([1.0], [1, 2], 2), "1 probabilities and 2 scores"),
        (lambda: best_of_n_law([1.0], [1], 0), "n is 0: at least one draw"),
        (lambda: best_of_n_kl(0), "n is 0: at least one draw"),
        (lambda: gap_probability([1.0], [0.0], temperature=0), "must be positive, got 0"),
        (lambda: gap_probability([1.0], [0.0, 1.0], temperature=1), "1 higher and 2 lower"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "best_of_n": {"golden law library": test_the_estimator_is_that_of_all_ways_and_bites},
    "best_of_n_law": {"golden law library": test_the_law_is_that_of_all_draws_and_bites},
    "best_of_n_kl": {"golden law library": test_it_is_no_further_away_than_the_bound},
    "gap_probability": {"golden law library": test_how_sure_a_reward_is_and_bites},
    "best_of_n best_of_n_law best_of_n_kl gap_probability": {"refusal": test_what_is_refused},
}
