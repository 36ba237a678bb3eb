"""The formats of other tools: round trips, rows as those tools write them, refusals, real files."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

Row = dict[str, Any]


def said(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def turns(*texts: str) -> tuple[Message, ...]:
    """The user's turn, the assistant's, and so on."""
    roles = ("user", "assistant")
    return tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]


def bot(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def read(tmp_path: Path, kind: type[Record], *rows: Row) -> Dataset[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load(path, kind)


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


# --- rows as those tools write them ---------------------------------------------------------------

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
GPT = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
ULTRA = {
    "source": "made",
    "instruction": "Q?",
    "models": ["m1", "m2", "m3"],
    "completions": [
        {
            "model": f"m{i}",
            "response": text,
            "fine-grained_score": score,
            "overall_score": 10 - i,
            "annotations": {"honesty": {"Rating": rating, "Rationale": "so"}},
        }
        for i, (text, score, rating) in enumerate(
            [("low", 2.5, "2"), ("high", 4.75, "N/A"), ("middle", 3.0, "3")], start=1
        )
    ],
}


def reply(text: str, rank: int | None = None, **more: Any) -> Row:
    return {"message_id": text, "text": text, "role": "assistant", "rank": rank} | more


TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": {
        "message_id": "q",
        "text": "Q?",
        "role": "prompter",
        "replies": [
            reply("second", 1, replies=[]),
            reply("spam", 2, review_result=False),
            reply(
                "first",
                0,
                replies=[
                    {"text": "More?", "role": "prompter", "message_id": "m",
                     "replies": [reply("only")]},
                    {"text": "Thanks", "role": "prompter", "message_id": "n", "replies": []},
                ],
            ),
        ],
    },
}  # fmt: skip
STUDIO = {
    "id": 7,
    "data": {"prompt": "Q?", "answer1": "one", "answer2": "two", "topic": "x"},
    "annotations": [
        {
            "completed_by": 2,
            "was_cancelled": False,
            "created_at": "2026-01-01",
            "lead_time": 12.5,
            "result": [{"type": "pairwise", "value": {"selected": "right"}}],
        },
        {"completed_by": {"id": 3, "email": "c"}, "was_cancelled": True, "result": []},
    ],
    "predictions": [],
}
ARGILLA = {
    "id": "r1",
    "fields": {"instruction": "Q?", "response-1": "one", "response-2": "two"},
    "metadata": {},
    "suggestions": {},
    "responses": {
        "preference": [
            {"value": "response-2", "user_id": "ann"},
            {"value": "response-1", "user_id": "bob", "status": "discarded"},
            {"value": "tie", "user_id": "cy"},
        ]
    },
    "vectors": {},
}
FLAT = {
    "id": "r1",
    "status": "completed",
    "instruction": "Q?",
    "response-1": "one",
    "response-2": "two",
    "preference.responses": ["response-2", "response-1"],
    "preference.responses.users": ["ann", "bob"],
    "preference.responses.status": ["submitted", "draft"],
    "preference.suggestion": "response-1",
}
SEEN = Provenance("human", "ann", order=(1, 0))


def studio(form: str, value: Row, data: Row | None = None) -> Row:
    shown = data or {"prompt": "Q?", "response": "one"}
    who = {"completed_by": 2, "result": [{"type": form, "value": value}]}
    return {"data": shown, "annotations": [who]}


def argilla(value: Any, *answers: str) -> Row:
    shown = {"prompt": "Q?", **dict(zip(answers, ("one", "two", "three"), strict=False))}
    return {"fields": shown, "responses": {"q": [{"value": value, "user_id": "ann"}]}}


ANN, TWO = Provenance("human", "ann"), Provenance("human", "2")
CASES: dict[str, tuple[type[Record], Row, list[Any]]] = {
    "alpaca": (Demonstration, ALPACA, [(turns("Add.\n1 2"), bot("3"))]),
    "alpaca with all": (
        Demonstration,
        ALPACA | {"system": "S", "history": [["a", "b"]]},
        [((Message("system", "S"), *turns("a", "b", "Add.\n1 2")), bot("3"))],
    ),
    "alpaca pair": (
        Comparison,
        {"instruction": "Q?", "chosen": "a", "rejected": "b"},
        [(turns("Q?"), bot("a"), bot("b"))],
    ),
    "alpaca pair of old": (
        Comparison,
        {"instruction": "Q?", "output": ["a", "b"]},
        [(turns("Q?"), bot("a"), bot("b"))],
    ),
    "alpaca thumb": (Label, ALPACA | {"kto_tag": False}, [(turns("Add.\n1 2"), bot("3"), False)]),
    "alpaca with a text column": (
        Demonstration,
        ALPACA | {"text": "Add. 1 2 3"},
        [(turns("Add.\n1 2"), bot("3"))],
    ),
    "sharegpt": (Demonstration, {"conversations": GPT}, [(turns("Q?"), bot("A."))]),
    "sharegpt system": (
        Demonstration,
        {"conversations": GPT, "system": "S"},
        [((Message("system", "S"), *turns("Q?")), bot("A."))],
    ),
    "sharegpt pair": (
        Comparison,
        {"conversations": GPT[:1], "chosen": GPT[1], "rejected": {"from": "gpt", "value": "B."}},
        [(turns("Q?"), bot("A."), bot("B."))],
    ),
    "sharegpt thumb": (
        Label,
        {"conversations": GPT, "kto_tag": True},
        [(turns("Q?"), bot("A."), True)],
    ),
    "ultrafeedback": (
        Ranking,
        ULTRA,
        [(turns("Q?"), (bot("low"), bot("high"), bot("middle")), (2, 0, 1))],
    ),
    "ultrafeedback pairs": (
        Comparison,
        ULTRA,
        [
            (turns("Q?"), bot("high"), bot("middle")),
            (turns("Q?"), bot("high"), bot("low")),
            (turns("Q?"), bot("middle"), bot("low")),
        ],
    ),
    "ultrafeedback best": (Demonstration, ULTRA, [(turns("Q?"), bot("high"))]),
    "tree": (Ranking, TREE, [(turns("Q?"), (bot("second"), bot("first")), (1, 0))]),
    "tree pairs": (Comparison, TREE, [(turns("Q?"), bot("first"), bot("second"))]),
    "tree demonstrations": (
        Demonstration,
        TREE,
        [(turns("Q?"), bot("first")), (turns("Q?", "first", "More?"), bot("only"))],
    ),
    "label studio": (
        Comparison,
        STUDIO,
        [("Q?", "two", "one", None, Provenance(
            "human", "2", order=(1, 0), time="2026-01-01", extra={"topic": "x", "lead_time": 12.5}
        ))],
    ),
    "label studio prompt": (Prompt, STUDIO, [("Q?",)]),
    "label studio ranker": (
        Ranking,
        studio("ranker", {"ranker": {"rank": ["b", "a"]}},
               {"prompt": "Q?", "items": [{"id": "a", "body": "one"}, {"id": "b", "html": "two"}]}),
        [("Q?", ("one", "two"), (1, 0), TWO)],
    ),
    "label studio thumb": (
        Label, studio("choices", {"choices": ["Thumbs down"]}), [("Q?", "one", False, TWO)]
    ),
    "label studio choice of two": (
        Comparison,
        studio("choices", {"choices": ["output_2"]},
               {"prompt": "Q?", "output_1": "one", "output_2": "two"}),
        [("Q?", "two", "one", None, Provenance("human", "2", order=(1, 0)))],
    ),
    "label studio edit": (
        Demonstration, studio("textarea", {"text": ["better"]}), [("Q?", "better", TWO)]
    ),
    "label studio edit as pair": (
        Comparison, studio("textarea", {"text": ["better"]}), [("Q?", "better", "one", None, TWO)]
    ),
    "argilla": (Comparison, ARGILLA, [("Q?", "two", "one", None, SEEN)]),
    "argilla of the hub": (Comparison, FLAT, [("Q?", "two", "one", None, SEEN)]),
    "argilla names": (
        Ranking,
        argilla(["response-2", "response-1"], "response-1", "response-2"),
        [("Q?", ("one", "two"), (1, 0), ANN)],
    ),
    "argilla thumb": (Label, argilla("good", "response"), [("Q?", "one", True, ANN)]),
    "argilla text": (Demonstration, argilla("better", "response"), [("Q?", "better", ANN)]),
    "scores": (
        Ranking,
        {"prompt": "Q?", "completions": ["a", "b", "c"], "scores": [0.5, 2, 0.5]},
        [("Q?", ("a", "b", "c"), (1, 0, 1))],
    ),
    "steps": (
        Steps,
        {"prompt": "Q?", "completions": ["one", "two"], "labels": [True, False]},
        [("Q?", ("one", "two"), (True, False))],
    ),
}  # fmt: skip


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
