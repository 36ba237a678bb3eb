"""Rates and means: golden values, laws, coverage by simulation, and agreement with statsmodels."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from truing.keys import generator
from truing.stats import ratings
from truing.stats.ratings import (
    agreement_ceiling,
    distinct_n,
    length_controlled_win_rate,
    mean,
    numbered,
    pair_accuracy,
    paired_difference,
    proportion,
    rate,
    win_rate,
)

# ---------------------------------------------------------------- golden values


def test_mean_golden() -> None:
    # 1, 2, 3, 6: mean 3, squared deviations 4+1+0+9 = 14, s² = 14/3, se = √(14/12) = 1.0801234;
    # t(0.975, 3) = 3.1824463, reach 3.4374349.
    assert mean([1, 2, 3, 6]) == pytest.approx((3, -0.4374349, 6.4374349, 4), abs=1e-6)


def test_mean_golden_clustered() -> None:
    # prompts {1, 3}, {4, 4}, {2, 4}: mean 3; deviations per prompt −2+0, 1+1, −1+1 = −2, 2, 0.
    # se² = 3/2 · (4+4+0)/36 = 1/3; t(0.975, 2) = 4.3026527; reach 4.3026527/√3 = 2.4841377.
    got = mean([1, 3, 4, 4, 2, 4], ["a", "a", "b", "b", "c", "c"])
    assert got == pytest.approx((3, 0.5158623, 5.4841377, 6), abs=1e-6)


def test_proportion_golden() -> None:
    # Wilson, 8 of 10, z² = 3.8414588: centre (0.8 + 0.19207294)/1.38414588 = 0.71674086,
    # reach √(0.384145880·0.16 + 0.19207294²)/1.38414588 = 0.22657707.
    got = proportion([1] * 8 + [0] * 2)
    assert got[:3] == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)


def test_rate_golden_clustered() -> None:
    # Prompts with wins 2/2, 2/2, 0/2: p = 2/3. With a winning and a losing prompt of 2 rows:
    # guess (4+2)/10 = 0.6; deviation sums 0.8, 0.8, −1.2 and 0.8, −1.2, their squares sum to 4.8;
    # n_eff = 6 · 0.24 · 10 / 4.8 = 3 prompts. With t(0.975, 2)² = 18.512821 for z² and n = 3:
    # centre (2/3 + 3.0854702)/7.1709403 = 0.5232419;
    # reach √(18.512821·(2/9)/3 + 3.0854702²)/7.1709403 = 3.3002191/7.1709403 = 0.4602212.
    got = rate([1, 1, 1, 1, 0, 0], [1, 1, 2, 2, 3, 3])
    assert got == pytest.approx((2 / 3, 0.0630207, 0.9834632, 6), abs=1e-6)


def test_win_rate_golden() -> None:
    got = win_rate([3, 2, 1, 5], [1, 2, 4, 4])  # win, tie, loss, win
    assert (got.value, got.n, got.ties) == (0.625, 4, 1)
    assert win_rate([3, 2, 1, 5], [1, 2, 4, 4], tie=1.0).ties == 2


def test_length_controlled_golden() -> None:
    # Longer by 1: 3 of 4 won; shorter by 1: 1 of 4 won. s = 1, x = ±tanh 1 = ±0.7615942, and one
    # tie is added at each end: 3.5 of 5 and 1.5 of 5. θ + γx = ln(3.5/1.5) = 0.8472979 at both
    # ends with opposite sign, so θ = 0 (rate ½) and γ = 0.8472979/0.7615942 = 1.1125320.
    got = length_controlled_win_rate([1, 1, 1, 0, 0, 0, 0, 1], [2] * 4 + [1] * 4, [1] * 4 + [2] * 4)
    assert got.value == pytest.approx(0.5, abs=1e-9)
    assert got.length_effect == pytest.approx(1.1125320, abs=1e-6)


def test_distinct_n_golden() -> None:
    # bigrams ab, bc, ca, ab | ab: 3 different of 5; words a, b | a: 2 different of 3
    assert distinct_n(["abcab", "ab"], 2) == pytest.approx(3 / 5)
    assert distinct_n([["a", "b"], ["a"]], 1) == pytest.approx(2 / 3)
    assert distinct_n(["a", ""], 2) == 0.0


def test_numbered_golden() -> None:
    assert numbered(["b", ("b",), "b", 2, "a", 2.0]) == [0, 1, 0, 2, 3, 2]
    assert numbered([]) == []


def test_pair_accuracy_and_ceiling_golden() -> None:
    assert pair_accuracy([0.2, -1, 0, 3]).value == 0.625  # 1 + 0 + ½ + 1 of 4
    assert agreement_ceiling([0.9, 0.5, 0.7]).value == pytest.approx(0.7)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("seed", range(5))
def test_clusters_of_size_one_are_plain(seed: int) -> None:
    rng = generator(seed, "plain")
    x_N, win_N = rng.normal(size=30), rng.choice([0.0, 0.5, 1.0], 30)
    assert mean(x_N, rng.permutation(30)) == pytest.approx(mean(x_N))
    assert rate(win_N, rng.permutation(30)) == pytest.approx(rate(win_N))


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_row_add_nothing(seed: int) -> None:
    rng = generator(seed, "copies")
    x_N, win_N, key_M = rng.normal(size=12), rng.choice([0.0, 1.0], 12), np.repeat(np.arange(12), 5)
    assert mean(np.repeat(x_N, 5), key_M)[:3] == pytest.approx(mean(x_N)[:3])
    once, copied = rate(win_N), rate(np.repeat(win_N, 5), key_M)
    assert copied.value == pytest.approx(once.value)
    # Wider only by Student's quantile: the effective number of rows is the number of prompts.
    assert copied.low <= once.low
    assert once.high <= copied.high
    naive = rate(np.repeat(win_N, 5))
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_scaling_and_shift() -> None:
    rng = generator(1, "scale")
    x_N, key_N = rng.normal(size=40), rng.integers(0, 9, 40)
    value, low, high, _ = mean(x_N, key_N)
    moved = mean(3 * x_N + 2, key_N)
    assert moved[:3] == pytest.approx((3 * value + 2, 3 * low + 2, 3 * high + 2))
    flipped = mean(-x_N, key_N)
    assert flipped[:3] == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("seed", range(5))
def test_swap_mirrors(seed: int) -> None:
    rng = generator(seed, "swap")
    a_N, b_N, key_N = rng.integers(0, 4, 50), rng.integers(0, 5, 50), rng.integers(0, 12, 50)
    there, back = win_rate(a_N, b_N, cluster_N=key_N), win_rate(b_N, a_N, cluster_N=key_N)
    assert back[:3] == pytest.approx((1 - there.value, 1 - there.high, 1 - there.low))
    assert back.ties == there.ties
    win_N = 0.5 + 0.5 * np.sign(a_N - b_N)
    length_N, other_N = rng.integers(5, 40, (2, 50))
    one = length_controlled_win_rate(win_N, length_N, other_N, key_N)
    two = length_controlled_win_rate(1 - win_N, other_N, length_N, key_N)
    assert two[:3] == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low))
    assert two.length_effect == pytest.approx(one.length_effect)


def test_paired_difference_is_the_mean_of_differences() -> None:
    rng = generator(2, "paired")
    a_N, b_N, key_N = rng.normal(size=30), rng.normal(size=30), rng.integers(0, 9, 30)
    assert paired_difference(a_N, b_N, key_N) == mean(a_N - b_N, key_N)
    # What both share cancels: a common term of any size leaves the interval alone.
    common_N = 100 * rng.normal(size=30)
    shifted = paired_difference(a_N + common_N, b_N + common_N, key_N)
    assert shifted == pytest.approx(paired_difference(a_N, b_N, key_N))


def test_order_of_rows_and_names_of_prompts_do_not_matter() -> None:
    rng = generator(3, "order")
    win_N, key_N, order = rng.choice([0.0, 1.0], 40), rng.integers(0, 9, 40), rng.permutation(40)
    names = np.array([f"prompt {k}" for k in key_N])
    assert rate(win_N[order], names[order]) == pytest.approx(rate(win_N, key_N))
    assert mean(win_N[order], names[order]) == pytest.approx(mean(win_N, key_N))


# ---------------------------------------------------------------- where all rows agree


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("each", [1, 4])
def test_agreeing_rows_still_have_an_interval(value: float, each: int) -> None:
    got = rate(np.full(100 * each, value), np.repeat(np.arange(100), each))
    assert 0 <= got.low <= value <= got.high <= 1
    assert 0.005 < got.high - got.low < 0.05
    # Unanimous: Wilson's end for 100 prompts, 1 − z²/(100+z²) with z² = 3.84 (t² = 3.94).
    if value == 1.0:
        assert got.low == pytest.approx(1 - 3.9 / 103.9, abs=1e-3)


def test_more_ties_never_jump() -> None:
    # One win among ties and none at all are nearly the same evidence.
    none = rate(np.full(500, 0.5))
    one = rate(np.r_[1.0, np.full(499, 0.5)])
    assert one.high - one.low == pytest.approx(none.high - none.low, rel=0.35)


def test_length_control_without_any_length_is_the_raw_rate() -> None:
    win_N, key_N = [1, 1, 0.5, 0, 1, 0], [0, 0, 1, 1, 2, 2]
    for a, b in [(7, 7), (9, 7)]:
        got = length_controlled_win_rate(win_N, [a] * 6, [b] * 6, key_N)
        assert got[:4] == rate(win_N, key_N)
        assert f"differs in length by {a - b}" in got.reason
    assert length_controlled_win_rate(win_N, [1, 2, 3, 4, 5, 6], [6] * 6).reason == ""


def test_length_control_stays_finite_when_separated() -> None:
    length_N = np.r_[np.full(50, 10), np.full(50, 20)]
    all_won = length_controlled_win_rate(np.ones(100), length_N, length_N[::-1])
    assert 0.9 < all_won.low < all_won.value < all_won.high < 1
    longer_won = length_controlled_win_rate(length_N == 20, length_N, length_N[::-1])
    assert longer_won.value == pytest.approx(0.5, abs=1e-6)
    assert longer_won.length_effect > 3


def test_length_control_removes_the_length_and_nothing_else() -> None:
    rng = generator(0, "length")
    gap_N = np.round(rng.normal(8, 10, 20_000))
    s = gap_N.std()
    chance_N = 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(gap_N / s))))
    win_N = (rng.random(20_000) < chance_N).astype(float)
    got = length_controlled_win_rate(win_N, 100 + gap_N, np.full(20_000, 100))
    # Some three and a half standard errors at 20,000 rows.
    assert got.value == pytest.approx(1 / (1 + np.exp(-0.4)), abs=0.012)
    assert win_N.mean() > got.value + 0.05


# ---------------------------------------------------------------- coverage by simulation


def _covered(truth: float, intervals: list) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def test_coverage_of_the_mean() -> None:
    # 20 prompts with 3 rows each that share two thirds of their variance.
    rng = generator(0, "coverage mean")
    x_SN = np.repeat(rng.normal(size=(1000, 20)), 3, axis=1) + 0.7 * rng.normal(size=(1000, 60))
    key_N = np.repeat(np.arange(20), 3)
    assert 0.92 < _covered(0.0, [mean(x_N, key_N) for x_N in x_SN]) < 0.98
    # Bite: the same rows taken as independent cover far too rarely.
    assert _covered(0.0, [mean(x_N) for x_N in x_SN]) < 0.85


@pytest.mark.parametrize("truth", [0.5, 0.78, 0.95])
def test_coverage_of_a_plain_rate(truth: float) -> None:
    rng = generator(0, "coverage rate")
    won_SN = rng.random((1000, 40)) < truth
    assert 0.92 < _covered(truth, [proportion(won_N) for won_N in won_SN]) < 0.985


def test_coverage_of_a_rate_with_ties() -> None:
    rng = generator(0, "coverage ties")
    win_SN = rng.choice([0.0, 0.5, 1.0], size=(1000, 40), p=[0.15, 0.4, 0.45])
    assert 0.92 < _covered(0.65, [rate(win_N) for win_N in win_SN]) < 0.98


def test_coverage_of_a_clustered_rate() -> None:
    # 30 prompts, 4 samples each; a prompt's own chance is Beta(1.4, 0.6): mean 0.7.
    rng = generator(0, "coverage clusters")
    chance_SG = rng.beta(1.4, 0.6, size=(1000, 30))
    won_SN = rng.random((1000, 120)) < np.repeat(chance_SG, 4, axis=1)
    key_N = np.repeat(np.arange(30), 4)
    assert 0.92 < _covered(0.7, [rate(won_N, key_N) for won_N in won_SN]) < 0.98
    assert _covered(0.7, [rate(won_N) for won_N in won_SN]) < 0.9


def test_coverage_of_the_length_controlled_rate() -> None:
    rng = generator(0, "coverage length")
    gap_SN = rng.choice([-6.0, -2.0, 2.0, 6.0], size=(400, 80))
    x_SN = np.tanh(gap_SN / gap_SN.std(axis=1, keepdims=True))
    win_SN = rng.random((400, 80)) < 1 / (1 + np.exp(-(0.6 + x_SN)))
    flat_N = np.full(80, 20.0)
    got = [
        length_controlled_win_rate(win_N, flat_N + gap_N, flat_N)
        for win_N, gap_N in zip(win_SN, gap_SN, strict=True)
    ]
    assert 0.92 < _covered(1 / (1 + np.exp(-0.6)), got) < 0.985


# ---------------------------------------------------------------- other implementations


@pytest.mark.parametrize("seed", range(3))
def test_equals_statsmodels_and_scipy(seed: int) -> None:
    rng = generator(seed, "reference")
    x_N, key_N = rng.normal(size=45), rng.integers(0, 11, 45)
    fit = sm.OLS(x_N, np.ones(45)).fit(cov_type="cluster", cov_kwds={"groups": key_N}, use_t=True)
    assert mean(x_N, key_N)[:3] == pytest.approx((fit.params[0], *fit.conf_int()[0]), rel=1e-10)
    low, high = stats.ttest_1samp(x_N, 0).confidence_interval(0.9)
    assert mean(x_N, level=0.9)[1:3] == pytest.approx((low, high), rel=1e-10)
    won_N = rng.random(45) < 0.8
    wilson = proportion_confint(won_N.sum(), 45, method="wilson")
    assert proportion(won_N)[1:3] == pytest.approx(wilson, rel=1e-10)
    none = proportion(np.zeros(45))
    assert none[1:3] == pytest.approx(proportion_confint(0, 45, method="wilson"), abs=1e-12)


def test_mean_equals_the_papers_double_sum() -> None:
    # Miller 2024: SE² = Σ_c Σ_i Σ_j (s_i − s̄)(s_j − s̄) / n² over pairs inside one cluster.
    rng = generator(4, "miller")
    x_N, key_N = rng.normal(size=20), np.repeat([0, 1, 2, 3], [2, 5, 6, 7])
    total = 0.0
    for i in range(20):
        for j in range(20):
            if key_N[i] == key_N[j]:
                total += (x_N[i] - x_N.mean()) * (x_N[j] - x_N.mean())
    error = np.sqrt(total / 400 * 4 / 3)
    reach = stats.t.ppf(0.975, 3) * error
    assert mean(x_N, key_N).high == pytest.approx(x_N.mean() + reach, rel=1e-10)


def test_length_control_equals_weighted_newton() -> None:
    # The same quasi-likelihood maximised by plain Newton steps on wins and losses of half weight.
    rng = generator(5, "newton")
    gap_N = rng.integers(-9, 15, 60)
    win_N = rng.choice([0.0, 0.5, 1.0], 60, p=[0.3, 0.2, 0.5])
    t = np.tanh(1.0)
    x_M, y_M = np.r_[np.tanh(gap_N / gap_N.std()), t, -t], np.r_[win_N, 0.5, 0.5]
    design = np.stack([np.ones(62), x_M], 1)
    beta = np.zeros(2)
    for _ in range(30):
        p_M = 1 / (1 + np.exp(-design @ beta))
        bread = (design * (p_M * (1 - p_M))[:, None]).T @ design
        beta = beta + np.linalg.solve(bread, design.T @ (y_M - p_M))
    inverse = np.linalg.inv(bread)
    score = design * (y_M - p_M)[:, None]
    error = np.sqrt((inverse @ (score.T @ score) @ inverse)[0, 0] * 62 / 61 * 61 / 60)
    got = length_controlled_win_rate(win_N, 50 + gap_N, np.full(60, 50))
    assert got.value == pytest.approx(1 / (1 + np.exp(-beta[0])), abs=1e-7)
    reach = stats.t.ppf(0.975, 59) * error
    assert got.low == pytest.approx(1 / (1 + np.exp(reach - beta[0])), abs=1e-6)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean([]), "one row of numbers"),
        (lambda: mean([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: mean([1.0, float("nan")]), "number 1 is nan"),
        (lambda: mean([1.0]), "at least two prompts, got 1"),
        (lambda: mean([1.0, 2.0], [7, 7]), "at least two prompts, got 1"),
        (lambda: rate([1.0, 0.0], [7, 7]), "at least two prompts, got 1"),
        (lambda: mean([1.0, 2.0], [7]), "2 rows"),
        (lambda: mean([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: rate([0.0, 1.2]), "0 to 1.2"),
        (lambda: proportion([0.5, 1]), "0 or 1"),
        (lambda: win_rate([1, 2], [1, 2, 3]), "a has 2, b has 3"),
        (lambda: win_rate([1, 2], [1, 2], tie=-1), "negative"),
        (lambda: paired_difference([1, 2], [1]), "a has 2, b has 1"),
        (lambda: length_controlled_win_rate([0.7, 1], [1, 2], [2, 1]), "0.5 for a tie"),
        (lambda: length_controlled_win_rate([0, 1], [1, 2], [2]), "length_b has 1"),
        (lambda: distinct_n(["ab"], 0), "at least 1"),
    ],
)
def test_bad_input_is_refused(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


# ---------------------------------------------------------------- bite


def test_a_forgotten_cluster_or_tie_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the function and the golden tests must fail: they are not blind."""
    with monkeypatch.context() as patch:
        patch.setattr(ratings, "_groups", lambda _key, n, *, least: (np.arange(n), n))
        for golden in (test_mean_golden_clustered, test_rate_golden_clustered):
            with pytest.raises(AssertionError):
                golden()
    with monkeypatch.context() as patch:
        patch.setattr(ratings, "_wins", lambda a, b, tie: np.greater(a, b).astype(float))
        with pytest.raises(AssertionError):
            test_win_rate_golden()


# Which test answers for which duty (tests/algorithms/duties.py); test_libraries.py has the others.
DUTIES = {
    "mean": {
        "golden": (test_mean_golden, test_mean_golden_clustered),
        "law": (test_clusters_of_size_one_are_plain, test_scaling_and_shift),
        "library": (test_equals_statsmodels_and_scipy, test_mean_equals_the_papers_double_sum),
    },
    "rate": {"golden": test_rate_golden_clustered, "law": test_copies_of_a_row_add_nothing},
    "proportion": {"golden": test_proportion_golden, "library": test_equals_statsmodels_and_scipy},
    "win_rate": {"golden": test_win_rate_golden, "law": test_swap_mirrors},
    "paired_difference": {"law": test_paired_difference_is_the_mean_of_differences},
    "pair_accuracy agreement_ceiling": {"golden": test_pair_accuracy_and_ceiling_golden},
    "length_controlled_win_rate": {
        "golden": test_length_controlled_golden,
        "law": (test_swap_mirrors, test_length_control_without_any_length_is_the_raw_rate),
        "library": test_length_control_equals_weighted_newton,
    },
    "numbered": {"golden": test_numbered_golden, "refusal": "whatever has a hash is a name"},
    "distinct_n": {"golden": test_distinct_n_golden},
    "mean rate proportion win_rate paired_difference length_controlled_win_rate distinct_n": {
        "refusal": test_bad_input_is_refused,
    },
}
