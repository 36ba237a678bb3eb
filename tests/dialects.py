"""Rows as other tools write them, and what must be read of each."""

import json
from pathlib import Path
from typing import Any

from truing.data.formats import Dataset, load
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
