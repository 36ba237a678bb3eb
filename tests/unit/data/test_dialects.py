"""The formats of other tools: rows as those tools write them, and what is refused."""

from pathlib import Path

import pytest

from tests.dialects import (
    ALPACA,
    ARGILLA,
    CASES,
    GPT,
    STUDIO,
    TREE,
    Row,
    argilla,
    read,
    reply,
)
from truing.data.formats import DataError
from truing.data.schema import (
    Comparison,
    Demonstration,
    Label,
    Ranking,
    Record,
    Steps,
)


@pytest.mark.parametrize("case", CASES)
def test_rows_as_their_tools_write_them(case: str, tmp_path: Path) -> None:
    kind, row, wanted = CASES[case]
    found = [tuple(vars(record).values())[: len(wanted[0])] for record in read(tmp_path, kind, row)]
    assert found == wanted


def test_ties_of_a_ranking(tmp_path: Path) -> None:
    names = ("answer1", "answer2", "answer3")
    value = [{"value": n, "rank": r} for n, r in zip(names, (5, 2, 5), strict=True)]
    (ranking,) = read(tmp_path, Ranking, argilla(value, *names))
    assert ranking.ranks == (1, 0, 1)
    pairs = read(tmp_path, Comparison, argilla(value, *names))
    assert [(p.chosen, p.rejected) for p in pairs] == [("two", "one"), ("two", "three")]


def test_a_pair_of_a_ranking_keeps_what_is_about_its_two(tmp_path: Path) -> None:
    row = {
        "prompt": "Q?",
        "completions": ["a", "b", "c"],
        "ranks": [1, 0, 2],
        "scores": [5, 9, 1],
        "provenance": {"extra": {"finish_reason": ["stop", "length", "stop"], "who": [1, 2, 3]}},
    }
    pairs = read(tmp_path, Comparison, row)
    assert [p.provenance.extra["scores"] for p in pairs] == [[9, 5], [9, 1], [5, 1]]
    assert pairs[0].provenance.extra["finish_reason"] == ["length", "stop"]
    assert pairs[0].provenance.extra["who"] == [1, 2, 3]
    assert pairs.notes["ranking read as its pairs, ties left out"] == 1


def test_loose_messages_grow_the_tree_that_whole_ones_make(tmp_path: Path) -> None:
    loose: list[Row] = []

    def fell(node: Row, parent: str | None) -> None:
        own = {k: v for k, v in node.items() if k != "replies"}
        loose.append({"message_tree_id": "t", "parent_id": parent, **own})
        for each in node.get("replies", ()):
            fell(each, node["message_id"])

    fell(TREE["prompt"], None)  # type: ignore[arg-type]
    for kind in (Ranking, Demonstration):
        whole = read(tmp_path, kind, TREE).rows
        # Children may come before their parents; siblings keep their order.
        assert read(tmp_path, kind, *loose[1:], loose[0]).rows == whole
    lost = reply("lost", parent_id="gone", message_tree_id="u")
    found = read(tmp_path, Demonstration, *loose, lost)
    assert found.noted["message that hangs below no root in the file: left out"] == (8,)


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    notes = read(tmp_path, Comparison, ARGILLA).notes
    assert notes["responses discarded or in draft: left out"] == 1
    assert notes["answers to 'preference' that make no comparison"] == 1
    assert read(tmp_path, Comparison, STUDIO).notes["annotations that were skipped: left out"] == 1
    empty = {**STUDIO, "annotations": []}
    found = read(tmp_path, Comparison, empty, STUDIO)
    assert found.noted["task without a judgement of this kind: left out"] == (1,)
    assert found.notes["read as labelstudio"] == 1
    with pytest.raises(DataError, match=r"no row of this labelstudio file.*without a judgement"):
        read(tmp_path, Comparison, empty)


# --- what cannot be read, or written, is refused --------------------------------------------------

BAD: dict[str, tuple[type[Record], Row, str]] = {
    "alpaca output": (Demonstration, ALPACA | {"output": 3}, r"row 2, field 'output': 3 \(int\)"),
    "alpaca history": (Demonstration, ALPACA | {"history": [["a"]]}, "row 2, field 'history'"),
    "alpaca tag": (Label, ALPACA | {"kto_tag": "yes"}, "row 2, field 'label': the text 'yes'"),
    "sharegpt role": (
        Demonstration,
        {"conversations": [{"from": "me", "value": "x"}]},
        "row 2, field 'conversations': .*'me' came; needed: a turn .from, value. from",
    ),
    "sharegpt turn": (Demonstration, {"conversations": ["x"]}, "row 2, field 'conversations'"),
    "sharegpt no rejected": (
        Comparison,
        {"conversations": GPT[:1], "chosen": GPT[1]},
        "row 2, field 'rejected': nothing came",
    ),
    "sharegpt thumb of nothing": (
        Label,
        {"conversations": GPT[:1], "kto_tag": True},
        "row 2, field 'conversations': they do not end with an answer",
    ),
    "ultrafeedback no score": (
        Ranking,
        {"instruction": "Q?", "completions": [{"response": "a"}, {"response": "b"}]},
        "row 2, field 'completions': some have no score",
    ),
    "tree role": (
        Ranking,
        TREE | {"prompt": {"text": "Q?", "role": "user"}},
        "row 2, field 'role': 'user' came; needed: one of",
    ),
    "argilla fields": (
        Comparison,
        ARGILLA | {"fields": {"a": "x", "b": "y"}},
        r"row 2, field 'fields': the fields \['a', 'b'\] came; needed: a prompt and answers",
    ),
    "argilla ranks": (
        Ranking,
        argilla([1, 2], "response-1", "response-2"),
        r"row 2, field 'q': a list with 1 \(int\) came",
    ),
    "studio result": (
        Comparison,
        STUDIO | {"annotations": [{"result": None}]},
        "row 2, field 'result': nothing came",
    ),
    "scores": (
        Ranking,
        {"prompt": "Q?", "completions": ["a", "b"], "scores": ["x", 1]},
        "row 2, field 'scores'",
    ),
    "few scores": (
        Ranking,
        {"prompt": "Q?", "completions": ["a", "b"], "scores": [1]},
        "row 2, field 'ranks'",
    ),
    "steps": (
        Steps,
        {"prompt": "Q?", "completions": ["a"], "labels": [True, True]},
        "row 2, field 'labels': a list of length 2 came; needed: a list of 1 labels",
    ),
    "step label": (
        Steps,
        {"prompt": "Q?", "completions": ["a"], "labels": ["good"]},
        r"row 2, field 'labels\[0\]'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused_with_its_row(case: str, tmp_path: Path) -> None:
    kind, row, wanted = BAD[case]
    good = next(r for n, (k, r, _) in CASES.items() if k is kind and _like(n, case))
    with pytest.raises(DataError, match=wanted):
        read(tmp_path, kind, good, row)


def _like(name: str, case: str) -> bool:
    theirs = {"studio": "label studio", "few": "scores", "step": "steps"}
    wanted = case.split()[0]
    return name.startswith(theirs.get(wanted, wanted))


def test_a_circle_of_messages_is_counted_and_a_name_twice_refused(tmp_path: Path) -> None:
    root = {"message_tree_id": "t", "message_id": "q", "text": "Q?", "role": "prompter"}
    answer = reply("a", message_tree_id="t", parent_id="q")
    ring = [{**root, "message_id": a, "parent_id": b, "role": "assistant"} for a, b in ("xy", "yx")]
    found = read(tmp_path, Demonstration, root, answer, *ring)
    assert sorted(found.noted["message that hangs below no root in the file: left out"]) == [3, 4]
    with pytest.raises(DataError, match=r"row 3, field 'message_id': row 2 has the same"):
        read(tmp_path, Demonstration, root, answer, answer)
