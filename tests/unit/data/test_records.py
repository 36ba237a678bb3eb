"""Columns -> records: every set of columns, every conversion, every broken row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from truing.data.formats import DataError, Dataset, load
from truing.data.schema import (
    Comparison,
    Demonstration,
    Label,
    Message,
    Prompt,
    Provenance,
    Ranking,
    Record,
)

USER: dict[str, Any] = {"role": "user", "content": "Q?"}
BOT: dict[str, Any] = {"role": "assistant", "content": "A."}
PAIR = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}
RANKED = {"prompt": "Q?", "completions": ["b", "a", "c"], "ranks": [1, 0, 1]}
THUMB = {"prompt": "Q?", "completion": "A.", "label": True}


def read(tmp_path: Path, kind: type[Record], *rows: dict[str, Any]) -> Dataset[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load(path, kind)


COLUMNS: dict[str, tuple[dict[str, Any], Record]] = {
    "prompt, completion": ({"prompt": "Q?", "completion": "A."}, Demonstration("Q?", "A.")),
    "aliases": ({"question": "Q?", "answer": "A."}, Demonstration("Q?", "A.")),
    "messages": (
        {"messages": [USER, BOT, USER, BOT]},
        Demonstration((Message(**USER), Message(**BOT), Message(**USER)), (Message(**BOT),)),
    ),
    "messages after the answer": (
        {"messages": [USER, BOT, USER]},
        Demonstration((Message(**USER),), (Message(**BOT),)),
    ),
    "text": ({"text": "Once."}, Demonstration("", "Once.")),
    "best of a pair": (PAIR, Demonstration("Q?", "good")),
    "best of a ranking": (RANKED, Demonstration("Q?", "a")),
    "best, beside a lone chosen": (
        RANKED | {"chosen": "a"},
        Demonstration("Q?", "a", Provenance(extra={"chosen": "a"})),
    ),
    "pair": (PAIR, Comparison("Q?", "good", "bad")),
    "pair with margin": (PAIR | {"margin": 2}, Comparison("Q?", "good", "bad", 2.0)),
    "ranking": (RANKED, Ranking("Q?", ("b", "a", "c"), (1, 0, 1))),
    "ranks from one": (RANKED | {"ranks": [3, 1, 2]}, Ranking("Q?", ("b", "a", "c"), (2, 0, 1))),
    "pair as ranking": (
        PAIR | {"margin": 2},
        Ranking("Q?", ("good", "bad"), (0, 1), Provenance(extra={"margin": 2.0})),
    ),
    "thumb": (THUMB, Label("Q?", "A.", True)),
    "thumb as a number": (THUMB | {"label": 0}, Label("Q?", "A.", False)),
    "prompt of a pair": (PAIR, Prompt("Q?")),
    "prompt of messages": ({"messages": [USER, BOT]}, Prompt((Message(**USER),))),
    "prompt of a question": ({"messages": [USER]}, Prompt((Message(**USER),))),
    "prompt of a thumb": (THUMB, Prompt("Q?")),
    "prompt of text": ({"text": "Once."}, Prompt("Once.")),
    "prompt with key": ({"prompt": "Q?", "key": 9}, Prompt("Q?", 9)),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns(case: str, tmp_path: Path) -> None:
    row, expected = COLUMNS[case]
    assert read(tmp_path, type(expected), row).rows == (expected,)


@pytest.mark.parametrize(
    ("kind", "row", "needed"),
    [
        (Comparison, THUMB, "chosen + rejected"),
        (
            Ranking,
            {"completions": ["a"], "votes": [True]},
            "completions + ranks or chosen + rejected",
        ),
        (Label, {"text": "a"}, "prompt + completion + label or chosen + rejected"),
        (
            Demonstration,
            {"prompt": "Q?"},
            "prompt + completion or messages or chosen + rejected or completions + ranks or text",
        ),
        (Prompt, {"query_id": 3}, "chosen + rejected or messages or prompt or text"),
    ],
)
def test_other_columns_are_refused(
    kind: type[Record], row: dict[str, Any], needed: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"the columns \[.*needed: {re.escape(needed)}\. No"):
        read(tmp_path, kind, row)


BAD: dict[str, tuple[type[Record], dict[str, Any], str]] = {
    "no chosen": (Comparison, {"prompt": "Q?", "rejected": "b"}, "'chosen': it is missing"),
    "null": (Comparison, PAIR | {"rejected": None}, "'rejected': it is missing or null"),
    "true": (Comparison, PAIR | {"rejected": True}, r"'rejected': true \(bool\) came"),
    "number": (Comparison, PAIR | {"prompt": 3}, r"'prompt': 3 \(int\) came"),
    "no prompt": (Comparison, {"chosen": "a", "rejected": "b"}, "'prompt': it is missing or null"),
    "no turns": (Comparison, PAIR | {"chosen": []}, "'chosen': a list of length 0"),
    "margin": (Comparison, PAIR | {"margin": float("nan")}, "'margin': NaN"),
    "margin true": (Comparison, PAIR | {"margin": True}, "'margin': true"),
    "empty prompt": (Demonstration, {"prompt": "", "completion": "A."}, "an empty prompt"),
    "text list": (Demonstration, {"text": ["a"]}, "'text': a list of length 1"),
    "half a row": (Demonstration, {"completion": "A.", "text": "t"}, "'prompt': it is missing"),
    "thumbs": (Demonstration, THUMB, "'label': thumbs up and down"),
    "no answer": (Demonstration, {"messages": [BOT, USER]}, "no assistant's turn"),
    "role": (Demonstration, {"messages": [{"role": "me", "content": "x"}]}, "the role 'me'"),
    "content": (Demonstration, {"messages": [USER | {"content": [1]}]}, "list of length 1"),
    "string turn": (Demonstration, {"messages": ["Q?"]}, "a list with the text 'Q\\?'"),
    "messages text": (Demonstration, {"messages": "Q?"}, "'messages': text came"),
    "one answer": (Ranking, RANKED | {"completions": ["a"]}, "needed: a list of two or more"),
    "answer": (Ranking, RANKED | {"completions": ["a", 1, "c"]}, r"'completions\[1\]': 1 \(int\)"),
    "few ranks": (Ranking, RANKED | {"ranks": [0, 1]}, r"'ranks': \[0, 1\].*3 whole numbers"),
    "float ranks": (Ranking, RANKED | {"ranks": [0, 1.5, 2]}, "'ranks': .*whole numbers"),
    "true ranks": (Ranking, RANKED | {"ranks": [0, True, 2]}, "'ranks': .*whole numbers"),
    "negative": (Ranking, RANKED | {"ranks": [0, -1, 2]}, "the best 0"),
    "label": (Label, THUMB | {"label": "yes"}, "'label': the text 'yes' came; needed: true"),
    "label 2": (Label, THUMB | {"label": 2}, r"'label': 2 \(int\)"),
    "simulated": (Label, THUMB | {"simulated": "no"}, "'simulated': the text 'no'"),
    "source": (Label, THUMB | {"provenance": {"source": "me"}}, "'provenance.source': 'me' came"),
    "order": (Label, THUMB | {"provenance": {"order": ["a"]}}, "'provenance.order'"),
    "round": (Label, THUMB | {"provenance": {"round": True}}, "'provenance.round': True.*: int"),
    "extra": (Label, THUMB | {"a": 1, "provenance": {"extra": {"a": 2}}}, "provenance.extra too"),
    "prompt text": (Prompt, {"prompt": " "}, "'prompt': an empty prompt"),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_rows_are_named(case: str, tmp_path: Path) -> None:
    kind, bad, message = BAD[case]
    examples = (example for example, record in COLUMNS.values() if type(record) is kind)
    good = next(row for row in examples if bad.keys() & row.keys())
    with pytest.raises(DataError, match=rf"rows.jsonl, row 2, field .*{message}"):
        read(tmp_path, kind, good, bad)


def test_left_out_rows_are_counted_with_their_numbers(tmp_path: Path) -> None:
    same = PAIR | {"rejected": "good"}
    data = read(tmp_path, Comparison, same, PAIR, same, PAIR | {"chosen": " ", "rejected": ""})
    assert data.rows == (Comparison("Q?", "good", "bad"),)
    assert data.notes == {"chosen equals rejected: left out": 3}
    assert data.noted == {"chosen equals rejected: left out": (1, 3, 4)}
    assert data.row_numbers == (2,)
    ranked = read(tmp_path, Ranking, RANKED, RANKED | {"completions": ["a", "a", "a"]})
    assert ranked.noted == {"all answers equal: left out": (2,)}
    texts = read(tmp_path, Demonstration, {"text": " \n"}, {"text": "Once."})
    assert texts.noted == {"empty text: left out": (1,)}


def test_all_left_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row could be used \(chosen equals rejected"):
        read(tmp_path, Comparison, PAIR | {"rejected": "good"})


NOTED: dict[str, tuple[type[Record], dict[str, Any], str]] = {
    "empty answer": (Comparison, PAIR | {"rejected": " "}, "empty answer: kept"),
    "empty in a ranking": (
        Ranking,
        RANKED | {"completions": ["", "a", "b"]},
        "empty answer: kept",
    ),
    "empty completion": (Demonstration, {"prompt": "Q?", "completion": ""}, "empty answer: kept"),
    "extra": (Comparison, PAIR | {"votes": [1, 2]}, "column kept as extra: votes"),
    "prompts keep none": (Prompt, {"prompt": "Q?", "id": "a"}, "column not kept: id"),
    "alias": (
        Ranking,
        {"prompt": "Q?", "responses": ["a", "b"], "ranks": [0, 1]},
        "column 'responses' read as 'completions'",
    ),
    "ranks": (
        Ranking,
        RANKED | {"ranks": [1, 2, 3]},
        "ranks moved so that the best is 0",
    ),
    "equal answers": (
        Ranking,
        RANKED | {"completions": ["a", "b", "b"]},
        "some answers equal: kept",
    ),
    "last turns": (
        Demonstration,
        {"messages": [USER, BOT, USER]},
        "turns after the assistant's last: not used",
    ),
    "message fields": (
        Demonstration,
        {"messages": [USER | {"name": "Ann"}, BOT]},
        "message field not kept: name",
    ),
    "pair": (Demonstration, PAIR, "best answer read as demonstration, the others not used"),
}


@pytest.mark.parametrize("case", NOTED)
def test_doubts_are_noted(case: str, tmp_path: Path) -> None:
    kind, row, note = NOTED[case]
    data = read(tmp_path, kind, row)
    assert data.notes == {note: 1}
    assert len(data) == 1


def test_repeats_are_noted_whoever_judged(tmp_path: Path) -> None:
    rows = [PAIR, PAIR | {"rejected": "worse"}, PAIR | {"provenance": {"author": "ann"}}]
    data = read(tmp_path, Comparison, *rows)
    assert data.noted == {"repeats an earlier row: kept": (3,)}
    assert len(data) == 3


def test_unknown_columns_and_foreign_provenance_are_kept(tmp_path: Path) -> None:
    for foreign in ("a web page", {"author": "ann", "site": "a web page"}):
        row = PAIR | {"votes": [1, 2], "note": None, "provenance": foreign}
        [record] = read(tmp_path, Comparison, row)
        assert record.provenance == Provenance(extra={"votes": [1, 2], "provenance": foreign})


def test_simulated_is_never_lost(tmp_path: Path) -> None:
    marks = [{"simulated": True}, {"provenance": {"simulated": True}}, {"simulated": False}]
    data = read(tmp_path, Comparison, *(PAIR | {"chosen": str(i)} | m for i, m in enumerate(marks)))
    assert [row.provenance.simulated for row in data] == [True, True, False]
    both = PAIR | {"simulated": False, "provenance": {"simulated": True}}
    assert read(tmp_path, Comparison, both)[0].provenance.simulated


def test_rows_of_two_forms_in_one_file(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?", "completion": "A."}, {"text": "Once."}, {"messages": [USER, BOT]}]
    data = read(tmp_path, Demonstration, *rows)
    assert [row.prompt for row in data] == ["Q?", "", (Message("user", "Q?"),)]


def test_prompt_keys(tmp_path: Path) -> None:
    data = read(tmp_path, Prompt, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "key": "x"})
    assert [row.key for row in data] == [0, 1, 2]
    assert data.notes == {"column not kept: key": 1}
    with pytest.raises(DataError, match="the same key"):
        read(tmp_path, Prompt, {"prompt": "a", "key": 1}, {"prompt": "b"})


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needed: .*'Comparison'"):
        read(tmp_path, Message, PAIR)  # pyright: ignore[reportArgumentType]
