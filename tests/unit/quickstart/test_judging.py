"""What the annotators' comparisons become: rankings, extremes, and the negative controls."""

from itertools import combinations

from truing.data.schema import Comparison, Provenance
from truing.quickstart.judging import Judged, extremes, mislabel, rankings
from truing.quickstart.plan import Plan
from truing.worlds.annotators import Labelled

BY = Provenance(source="model", author="annotator-07", simulated=True, order=(1, 0))


def compared(prompt: str, *pairs: str) -> list[Comparison]:
    """Comparisons of replies of one letter each: "ab" says that a was chosen over b."""
    return [Comparison(prompt, chosen, rejected, provenance=BY) for chosen, rejected in pairs]


def test_a_ranking_counts_the_comparisons_won() -> None:
    (only,) = rankings(compared("p", "ab", "ca", "ad", "cb", "db", "cd"))
    # c won three, a two, d one, b none.
    assert dict(zip(only.completions, only.ranks, strict=True)) == {"c": 0, "a": 1, "d": 2, "b": 3}
    assert (only.provenance.simulated, only.provenance.author) == (True, "panel")
    assert only.provenance.extra == {"comparisons": 6}
    assert only.provenance.order == ()


def test_equal_wins_share_a_rank_and_a_circle_says_nothing() -> None:
    (only,) = rankings([*compared("p", "ab", "ac", "bc", "cb"), *compared("q", "xy", "yz", "zx")])
    assert (only.prompt, dict(zip(only.completions, only.ranks, strict=True))) == (
        "p",
        {"a": 0, "b": 1, "c": 1},
    )


def test_extremes_are_the_best_and_the_worst() -> None:
    rows = rankings([*compared("p", "ab", "ac", "bc"), *compared("q", "yx")])
    found = extremes(rows)
    assert [(c.prompt, c.chosen, c.rejected) for c in found] == [("p", "a", "c"), ("q", "y", "x")]
    assert all(c.provenance.simulated for c in found)


def test_controls_turn_labels_round() -> None:
    rows = [
        Labelled(c, 0.8) for c in compared("p", *("".join(x) for x in combinations("abcdefg", 2)))
    ]
    true = Judged(rows, [1.0] * len(rows))
    assert mislabel(true, "panel", 0) == true
    flipped = mislabel(true, "flipped", 0)
    assert [(c.chosen, c.rejected) for c in flipped.comparisons] == [
        (c.rejected, c.chosen) for c in true.comparisons
    ]
    assert flipped.gold_margins == [-1.0] * len(rows)
    shuffled = mislabel(true, "shuffled", 0)
    assert shuffled == mislabel(true, "shuffled", 0) != mislabel(true, "shuffled", 1)
    # 21 fair coins: fewer than 4 or more than 17 heads come once in 600 seeds.
    assert 4 <= sum(m < 0 for m in shuffled.gold_margins) <= 17


def test_no_two_uses_share_a_prompt() -> None:
    plan = Plan(demonstrations=40, ranked=30, held_out_pairs=20, prompts=20, watched=10)
    train = [c.prompt for c in (*plan.demonstrated(), *plan.compared())]
    test = [c.prompt for c in (*plan.evaluated(), *plan.compared_held_out(), *plan.looked_at())]
    assert len({*train, *test}) == len(train) + len(test) == 120
