"""The formats of other tools: what is written comes back, or is refused; the real files."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialects import (
    bot,
    turns,
)
from truing.data.dialects import DIALECTS
from truing.data.formats import DataError, Dataset, load, save, to_row
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

# --- round trips ----------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda t: bool(t.strip()) and "Human:" not in t and "Assistant:" not in t
)
provenances = st.builds(
    Provenance,
    source=st.sampled_from(["human", "ai", "verifier", "model", "unknown"]),
    author=words,
    simulated=st.booleans(),
    guideline=st.text(),
    time=st.text(),
    extra=st.dictionaries(st.sampled_from(["a", "note"]), st.integers() | st.text(), max_size=2),
)


@st.composite
def records(draw: st.DrawFn, kind: type[Record], dialect: str) -> Record:
    """A record of a kind, in the form that the dialect keeps: a conversation by turns."""
    asked = draw(st.lists(words, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1))
    if dialect == "ultrafeedback":
        asked = asked[:1]
    prompt = turns(*asked)
    if dialect in ("alpaca", "sharegpt") and draw(st.booleans()):
        prompt = (Message("system", draw(words)), *prompt)
    k = draw(st.integers(2, 5))
    answers = [bot(t) for t in draw(st.lists(words, min_size=k, max_size=k, unique=True))]
    who = draw(provenances)
    if kind is Demonstration:
        return Demonstration(prompt, answers[0], who)
    if kind is Label:
        return Label(prompt, answers[0], draw(st.booleans()), who)
    if kind is Comparison:
        shown = draw(st.sampled_from([(), (0, 1), (1, 0)]))
        margin = draw(st.none() | st.floats(-9, 9))
        who = Provenance(**{**vars(who), "order": shown})
        return Comparison(prompt, answers[0], answers[1], margin, who)
    ties = dialect != "labelstudio"
    scores = [draw(st.integers(1, 3)) if ties else i for i in range(k)]
    ranks = tuple(sorted(set(scores), reverse=True).index(s) for s in scores)
    if dialect == "ultrafeedback":
        told = {"models": [f"m{i}" for i in range(k)], "aspects": {"honesty": [2.0] * k}}
        who = Provenance(**{**vars(who), "extra": {**who.extra, "scores": scores, **told}})
    return Ranking(prompt, tuple(answers), ranks, who)


@pytest.mark.parametrize(
    ("dialect", "kind"),
    [(name, kind) for name, dialect in DIALECTS.items() for kind in dialect.write],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_a_dialect_writes_comes_back(
    dialect: str, kind: type[Record], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(records(kind, dialect), min_size=1, max_size=3))
    suffix = data.draw(st.sampled_from([".jsonl", ".jsonl.gz", ".json"]))
    with tempfile.TemporaryDirectory() as folder:
        path = save(rows, Path(folder) / f"rows{suffix}", dialect)
        assert list(load(path, kind)) == rows


def test_simulated_is_told_by_every_dialect() -> None:
    for name, dialect in DIALECTS.items():
        for kind in dialect.write:
            who = Provenance(simulated=True, extra={"scores": [1, 0]})
            made: Record = {
                Demonstration: Demonstration(turns("q"), bot("a"), who),
                Label: Label(turns("q"), bot("a"), True, who),
                Comparison: Comparison(turns("q"), bot("a"), bot("b"), None, who),
                Ranking: Ranking(turns("q"), (bot("a"), bot("b")), (0, 1), who),
            }[kind]
            assert to_row(made, name)["simulated"] is True


# --- what a dialect cannot hold is refused --------------------------------------------------------

PAIR = Comparison(turns("Q?"), bot("a"), bot("b"))
UNWRITABLE: list[tuple[str, Record, str]] = [
    ("hh", Label("Q?", "a", True), "row 1: a label for hh; needed: comparison"),
    ("hh", Comparison((Message("system", "S"), *turns("Q?")), bot("a"), bot("b")), "'system'"),
    ("hh", Comparison(turns("a\n\nHuman: b"), bot("a"), bot("b")), "turns that can be told apart"),
    ("alpaca", Demonstration(turns("Q?", "A."), bot("B.")), "sharegpt can hold these"),
    ("sharegpt", Demonstration(turns("Q?"), turns("x", "y")), "one assistant's turn"),
    ("ultrafeedback", Ranking("Q?", ("a", "b"), (0, 1)), "without scores"),
    ("openassistant", Comparison(turns("Q?", "A."), bot("B."), bot("C.")), "by turns"),
    ("labelstudio", Ranking("Q?", ("a", "b"), (0, 0)), "ties"),
    ("argilla", Prompt("Q?"), "row 1: a prompt for argilla"),
    ("nobody", PAIR, "'nobody' came; needed: one of"),
]


@pytest.mark.parametrize("case", UNWRITABLE, ids=lambda case: f"{case[0]}: {case[2][:20]}")
def test_what_a_dialect_cannot_hold_is_refused(
    case: tuple[str, Record, str], tmp_path: Path
) -> None:
    dialect, record, wanted = case
    with pytest.raises(DataError, match=wanted):
        save([record], tmp_path / "a.jsonl", dialect)
    assert not list(tmp_path.iterdir())


def test_plain_text_is_written_as_the_users_turn(tmp_path: Path) -> None:
    plain = Comparison("Q?", "a", "b")
    for name in ("hh", "alpaca", "sharegpt", "openassistant"):
        (back,) = load(save([plain], tmp_path / "a.jsonl", name), Comparison)
        assert back == PAIR
    for name in ("argilla", "labelstudio"):
        (back,) = load(save([plain], tmp_path / "a.jsonl", name), Comparison)
        assert back == plain


# --- the real files -------------------------------------------------------------------------------

OASST = "preferences/oasst_sample/oasst_"


def test_real_trees_hold_the_published_rankings(shared_data: Path) -> None:
    trees = load(shared_data / f"{OASST}en_100_trees.original.jsonl.gz", Ranking)
    published = load(shared_data / f"{OASST}rankings.prompt_responses_ranks.jsonl.gz", Ranking)

    def plain(rankings: Dataset[Ranking]) -> list[str]:
        return sorted(
            repr((r.prompt, sorted(zip(r.ranks, map(repr, r.completions), strict=True))))
            for r in rankings
        )

    assert len(trees) == len(published) == 212
    assert plain(trees) == plain(published)


def test_real_trees_hold_the_published_pairs(shared_data: Path) -> None:
    """754 pairs were published of the rankings; reading the trees as pairs finds the same."""
    trees = load(shared_data / f"{OASST}en_100_trees.original.jsonl.gz", Comparison)
    pairs = load(shared_data / f"{OASST}pairs.prompt_chosen_rejected.jsonl.gz", Comparison)
    found = {(p.prompt, p.chosen, p.rejected) for p in trees}
    assert found == {(p.prompt, p.chosen, p.rejected) for p in pairs}


def test_a_real_export_of_label_studio(shared_data: Path) -> None:
    folder = shared_data / "preferences" / "labelstudio_rlhf"
    pairs = load(folder / "ls_output_data.json", Comparison)
    tasks = json.loads((folder / "ls_output_data.json").read_text(encoding="utf-8"))
    assert len(pairs) == len(tasks) == 32
    for pair, task in zip(pairs, tasks, strict=True):
        side = task["annotations"][0]["result"][0]["value"]["selected"]
        left, right = task["data"]["answer1"], task["data"]["answer2"]
        assert (pair.chosen, pair.rejected)[:: 1 if side == "left" else -1] == (left, right)
        assert pair.provenance.order == ((0, 1) if side == "left" else (1, 0))
        assert pair.provenance.author == str(task["annotations"][0]["completed_by"])


def test_real_steps(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "preferences/roscoe_steps/roscoe_chains.prompt_completions_labels.jsonl.gz"
    chains = load(path, Steps)
    assert (len(chains), sum(len(c.labels) for c in chains)) == (187, 500)
    assert load(save(chains, tmp_path / "again.jsonl"), Steps).rows == chains.rows


def test_real_rankings_through_every_dialect_that_holds_them(
    shared_data: Path, tmp_path: Path
) -> None:
    rows = load(shared_data / f"{OASST}rankings.prompt_responses_ranks.jsonl.gz", Ranking).rows
    bare = [Ranking(r.prompt, r.completions, r.ranks) for r in rows]
    for name in ("openassistant", "argilla"):
        assert list(load(save(bare, tmp_path / "a.json", name), Ranking)) == bare
