"""Datasets: round trips, hashes, export, no torch, and the real files of the field."""

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.data.dialogue import blank, is_transcript
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

KINDS: list[type[Record]] = [Prompt, Demonstration, Comparison, Ranking, Label, Steps]

# --- round trips ----------------------------------------------------------------------------------

words = st.text().filter(lambda text: not blank(text) and not is_transcript(text))
said = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), words)
replies = st.builds(lambda text: (Message("assistant", text),), words)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
values = st.recursive(
    st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
provenances = st.builds(
    Provenance,
    source=st.sampled_from(["human", "ai", "verifier", "model", "unknown"]),
    author=st.text(),
    simulated=st.booleans(),
    guideline=st.text(),
    round=st.integers(0, 9),
    order=st.lists(st.integers(0, 5)).map(tuple),
    time=st.text(),
    extra=st.dictionaries(st.text(), values, max_size=3),
)


def texts(draw: st.DrawFn, count: int) -> tuple[Any, list[Any]]:
    """A prompt and ``count`` different answers, all strings or all turns."""
    if draw(st.booleans()):
        return draw(words), draw(st.lists(words, min_size=count, max_size=count, unique=True))
    prompt = tuple(draw(st.lists(said, min_size=1, max_size=3)))
    return prompt, draw(st.lists(replies, min_size=count, max_size=count, unique=True))


@st.composite
def datasets_of_one_kind(draw: st.DrawFn) -> list[Record]:
    kind, rows = draw(st.sampled_from(KINDS)), list[Record]()
    for key in range(draw(st.integers(1, 4))):
        prompt, answers = texts(draw, 3)
        made = draw(provenances)
        if kind is Comparison:
            margin = draw(st.none() | st.floats(allow_nan=False, allow_infinity=False))
            rows.append(Comparison(prompt, answers[0], answers[1], margin, made))
        elif kind is Ranking:
            ranks = draw(st.permutations([0, 1, 1]))
            rows.append(Ranking(prompt, tuple(answers), tuple(ranks), made))
        elif kind is Label:
            rows.append(Label(prompt, answers[0], draw(st.booleans()), made))
        elif kind is Steps:
            steps = tuple(draw(st.lists(words, min_size=1, max_size=3)))
            right = tuple(draw(st.booleans()) for _ in steps)
            rows.append(Steps(draw(words), steps, right, made))
        elif kind is Demonstration and draw(st.booleans()):
            rows.append(Demonstration("", draw(words), made))
        elif kind is Demonstration:
            rows.append(Demonstration(prompt, answers[0], made))
        else:
            rows.append(Prompt(prompt, key))
    return rows


@settings(max_examples=60, deadline=None)
@given(rows=datasets_of_one_kind(), suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".json"]))
def test_what_is_saved_is_loaded(rows: list[Record], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(rows, Path(folder) / "new" / f"rows{suffix}")
        data = load(path, type(rows[0]))
        first = path.read_bytes()
        assert save(rows, path).read_bytes() == first
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert list(data) == rows
    assert data.sha256 == Dataset(tuple(rows), "memory").sha256
    assert not any("left out" in note or "column" in note for note in data.notes)


columns = ["prompt", "completion", "messages", "text", "chosen", "rejected"]
columns += ["margin", "completions", "ranks", "label", "labels", "scores"]
any_value = st.none() | values | st.lists(st.sampled_from([0, 1, "a", {"role": "user"}]))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.lists(st.dictionaries(st.sampled_from(columns), any_value | words), max_size=4),
)
def test_any_row_is_read_counted_or_refused(kind: type[Record], rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        try:
            data = load(path, kind)
        except DataError as error:
            assert "rows.jsonl" in str(error)  # noqa: PT017
            return
    left_out = {n for note, which in data.noted.items() if "left out" in note for n in which}
    assert len(data) + len(left_out) == len(rows)


# --- hash, slices, summary, export ----------------------------------------------------------------

PAIRS = (
    Comparison("Q?", "a", "b", 0.5, Provenance(author="ann", extra={"votes": [1, 2], "a": 1})),
    Comparison("R?", "c", "d", provenance=Provenance("ai", simulated=True)),
)


def test_rows_in_trl_columns() -> None:
    assert [to_row(pair) for pair in PAIRS] == [
        {
            "prompt": "Q?",
            "chosen": "a",
            "rejected": "b",
            "margin": 0.5,
            "provenance": {"author": "ann", "extra": {"votes": [1, 2], "a": 1}},
        },
        {
            "prompt": "R?",
            "chosen": "c",
            "rejected": "d",
            "simulated": True,
            "provenance": {"source": "ai", "simulated": True},
        },
    ]
    turns = (Message("user", "Q?"),)
    assert to_row(Prompt(turns, 3)) == {"prompt": [{"role": "user", "content": "Q?"}], "key": 3}
    assert to_row(Demonstration("", "Once.")) == {"text": "Once."}
    assert to_row(Label("Q?", "a", False)) == {"prompt": "Q?", "completion": "a", "label": False}


def test_the_hash_is_of_the_content_not_of_the_format(tmp_path: Path) -> None:
    rows = [to_row(pair) for pair in PAIRS]
    ordered = json.dumps({"data": rows}, sort_keys=True)
    (tmp_path / "a.json").write_text(ordered, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    save(PAIRS, tmp_path / "a.jsonl")
    hashes = {load(path, Comparison).sha256 for path in tmp_path.iterdir()}
    assert hashes == {Dataset(PAIRS, "").sha256}
    for other in (PAIRS[::-1], PAIRS[:1], (PAIRS[0].swap(), PAIRS[1])):
        assert Dataset(other, "").sha256 not in hashes


def test_slices_and_summary(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "a", "rejected": "ab"[i % 2]} for i in range(20)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load(path, Comparison)
    first = data.take(3)
    assert [pair.prompt for pair in first] == ["1?", "3?", "5?"]
    assert first.row_numbers == (2, 4, 6)
    assert first.sha256 != data.sha256
    assert len(data.take(99)) == len(data) == 10
    assert data[1:3][0] == data[1]
    with pytest.raises(ValueError, match="0 rows were asked for"):
        data.take(0)
    assert data.summary() == (
        f"{path}: 10 comparisons, sha256 {data.sha256[:12]}\n"
        "  chosen equals rejected: left out: 10 (rows 1, 3, 5, 7, 9, ...)"
    )


def test_saved_bytes_hold_no_date(tmp_path: Path) -> None:
    """Bytes 4 to 8 of a gzip file are the time of writing (RFC 1952, section 2.3)."""
    assert save(PAIRS, tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)


def test_save_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 rows for this name"):
        save([], tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"2 rows for this name.*\.jsonl"):
        save(PAIRS, tmp_path / "a.csv")
    unwritable = [Label("Q?", "a", True, Provenance(extra={"what": object()}))]
    save(PAIRS, tmp_path / "a.jsonl")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(unwritable, tmp_path / "a.jsonl")
    assert len(load(tmp_path / "a.jsonl", Comparison)) == 2  # what stood there still stands


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, truing.data.formats; print('torch' in sys.modules, 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- the real files -------------------------------------------------------------------------------

PCR = ".prompt_chosen_rejected.jsonl.gz"
HH = "Human/Assistant transcript read as messages"
SAME, EMPTY = "chosen equals rejected: left out", "empty answer: kept"
REPEAT = "repeats an earlier row: kept"
STORIES = "text/tinystories/tinystories_"
RANKINGS = "preferences/oasst_sample/oasst_rankings.prompt_responses_ranks.jsonl.gz"

# File, kind, rows as published, and the notes apart from those about columns.
REAL: list[tuple[str, type[Record], int, dict[str, int]]] = [
    ("hh/harmless_base_test.original.jsonl.gz", Comparison, 1847, {HH: 1847, EMPTY: 4}),
    (f"hh/harmless_base_test{PCR}", Comparison, 1847, {HH: 1847, EMPTY: 4}),
    (
        "hh/hh_test_two_objectives.original.jsonl.gz",
        Comparison,
        3226,
        {HH: 3226, EMPTY: 6, SAME: 2},
    ),
    (f"hh/hh_test_two_objectives{PCR}", Comparison, 3226, {HH: 3226, EMPTY: 6, SAME: 2}),
    (f"oasst_sample/oasst_pairs{PCR}", Comparison, 754, {}),
    (RANKINGS, Ranking, 212, {}),
    (f"pandalm/pandalm_testset_majority{PCR}", Comparison, 711, {EMPTY: 42, REPEAT: 85}),
    (f"llmbar/llmbar{PCR}", Comparison, 1200, {SAME: 1, EMPTY: 1, REPEAT: 7}),
    (f"finegrained_rlhf/qa_feedback_dev{PCR}", Comparison, 2616, {}),
    (f"open_instruct_human_eval/tulu1_human_judgements{PCR}", Comparison, 622, {REPEAT: 49}),
    (f"hhh_alignment/hhh_alignment{PCR}", Comparison, 221, {}),
    (f"{STORIES}cased_train.jsonl.gz", Demonstration, 2203, {}),
    (f"{STORIES}cased_valid.jsonl.gz", Demonstration, 113, {}),
    ("verifiable/gsm8k/gsm8k_train.prompt_completion.jsonl.gz", Demonstration, 2000, {}),
    ("verifiable/gsm8k/gsm8k_test.original.jsonl.gz", Demonstration, 500, {}),
    ("verifiable/countdown/countdown_test.original.jsonl.gz", Prompt, 500, {}),
]


@pytest.mark.parametrize("case", REAL, ids=lambda case: f"{Path(case[0]).name}")
def test_real_files(case: tuple[str, type[Record], int, dict[str, int]], shared_data: Path) -> None:
    name, kind, rows, notes = case
    path = shared_data / name
    data = load(path if path.exists() else shared_data / "preferences" / name, kind)
    assert {k: n for k, n in data.notes.items() if not k.startswith("column ")} == notes
    assert len(data) == rows - notes.get(SAME, 0)


def test_hh_is_the_same_whole_or_cut(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "preferences" / "hh"
    whole = load(folder / "harmless_base_test.original.jsonl.gz", Comparison)
    cut = load(folder / f"harmless_base_test{PCR}", Comparison)
    assert whole.sha256 == cut.sha256
    turns = [pair.chosen[-1] for pair in whole if not isinstance(pair.chosen, str)]
    assert {turn.role for turn in turns if isinstance(turn, Message)} == {"assistant"}
    again = load(save(whole, tmp_path / "again.jsonl.gz"), Comparison)
    assert again.rows == whole.rows


def test_real_rankings_hold_their_pairs(shared_data: Path) -> None:
    """The pairs of this set were made from its rankings: each must be found there, best first."""
    rankings = load(shared_data / RANKINGS, Ranking)
    order = {
        (ranking.prompt, answer): rank
        for ranking in rankings
        for answer, rank in zip(ranking.completions, ranking.ranks, strict=True)
    }
    pairs = load(shared_data / f"preferences/oasst_sample/oasst_pairs{PCR}", Comparison)
    for pair in pairs:
        gap = order[pair.prompt, pair.rejected] - order[pair.prompt, pair.chosen]
        assert gap == pair.provenance.extra["rank_gap"]


def test_a_response_that_is_true_is_refused(shared_data: Path, tmp_path: Path) -> None:
    """A real file in which a few answers are the JSON value true."""
    name = "preferences/pandalm/pandalm_testset_3_annotators.original.jsonl.gz"
    lines = gzip.decompress((shared_data / name).read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    first = 1 + next(i for i, r in enumerate(rows) if True in (r["response1"], r["response2"]))
    path = tmp_path / "votes.jsonl"
    renamed = (
        {"prompt": r["instruction"], "chosen": r["response1"], "rejected": r["response2"]}
        for r in rows
    )
    path.write_text("".join(json.dumps(r) + "\n" for r in renamed), encoding="utf-8")
    with pytest.raises(DataError, match=rf"row {first}, field .*true \(bool\) came"):
        load(path, Comparison)
