"""What a dataset is like: each figure on rows small enough to count by hand."""

from truing.data.profile import lines, profile
from truing.data.schema import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Prompt,
    Provenance,
    Ranking,
    Record,
    Steps,
)

ANN, BOB = Provenance(author="ann", order=(0, 1)), Provenance(author="bob", order=(1, 0))
PAIRS: list[Record] = [
    Comparison("Why?", "because", "so", provenance=ANN),
    Comparison("why? ", "So", "because", provenance=BOB),
    Comparison("How?", "thus", "thus!", provenance=BOB),
    Comparison(" WHY?", "Because", "so", provenance=Provenance(simulated=True)),
]


def test_pairs() -> None:
    told = profile(PAIRS)
    assert told["rows"] == 4
    assert told["distinct_prompts"] == 2  # case and white space aside
    assert told["repeated_rows"] == 1  # the first and the last
    assert told["chosen_characters"] == {"median": 5.5, "mean": 5.0, "longest": 7}  # 7 2 4 7
    assert told["rejected_characters"]["mean"] == 4.0  # 2 7 5 2
    assert told["chosen_longer"] == 0.5
    assert told["authors"] == 2
    assert told["simulated"] == 0.25
    assert told["chosen_shown_first"] == 0.333


def test_equal_lengths_count_a_half() -> None:
    assert profile([Comparison("q", "ab", "cd")])["chosen_longer"] == 0.5


def test_leakage_is_of_prompts_and_of_rows() -> None:
    held_out: list[Record] = [
        Comparison("WHY?", "because", "so"),  # the row itself
        Comparison("why?", "never", "so"),  # its prompt
        Comparison("When?", "now", "later"),
    ]
    told = profile(PAIRS, held_out)
    assert told["evaluation_rows"] == 3
    assert told["evaluation_prompts_trained_on"] == 2
    assert told["evaluation_rows_trained_on"] == 1
    assert "evaluation_rows" not in profile(PAIRS)


def test_a_judgement_the_other_way_round_is_no_repeat() -> None:
    swapped = Comparison("Why?", "so", "because")
    assert profile([PAIRS[0], swapped])["repeated_rows"] == 0
    up, down = Label("q", "a", True), Label("q", "a", False)
    assert profile([up, down, up])["repeated_rows"] == 1


def test_texts_to_model_share_no_prompt() -> None:
    """Their prompts are all empty, which is no leak."""
    told = profile([Demonstration("", "one")], [Demonstration("", "two")])
    assert told["evaluation_prompts_trained_on"] == 0


def test_rankings() -> None:
    told = profile([Ranking("q", ("aaa", "b", "cc"), (1, 0, 1)), Ranking("r", ("a", "b"), (0, 0))])
    assert told["answers_ranked"] == {"median": 2.5, "mean": 2.5, "longest": 3}
    assert told["pairs"] == 4
    assert told["pairs_tied"] == 0.5  # two of four
    assert told["chosen_characters"]["longest"] == 1  # of the best answers: the tie has none
    assert "pairs" not in profile([Ranking("r", ("a", "bb"), (1, 0))])


def test_labels_steps_demonstrations_and_prompts() -> None:
    told = profile([Label("q", "aa", True), Label("q", "b", False), Label("r", "c", True)])
    assert told["labels_true"] == 0.667
    assert told["completion_characters"]["longest"] == 2
    told = profile([Steps("q", ("a", "b"), (True, False)), Steps("r", ("c",), (True,))])
    assert (told["steps"], told["steps_right"]) == (3, 0.667)
    turns = (Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Hu"))
    told = profile([Demonstration(turns, "x")])
    assert told["prompt_characters"]["longest"] == 8  # with a new line between turns
    assert profile([Prompt("q"), Prompt("q")]).keys() == {
        *("rows", "distinct_prompts", "repeated_rows", "prompt_characters")
    }


def test_lines_read_as_words() -> None:
    told = lines(profile(PAIRS))
    assert told["chosen longer"] == "50.0%"
    assert told["chosen characters"] == "median 5.5, mean 5, longest 7"
    assert told["rows"] == 4
