"""Files, rows and preference data that cannot be used."""

import gzip
import json
from typing import Any

from tests.mistakes.bench import OUT, PAIRS, ROWS, RUN, Bench, Case

LINE = json.dumps(ROWS[0]) + "\n"


def holding(name: str, content: str | bytes) -> Case:
    """Demonstrations in a file of this name."""
    return lambda b: b.train("sft", b.file(name, content))


def with_row(row: Any, stage: str = "sft", good: Any = ROWS[0]) -> Case:
    """A dataset whose second row is this one."""
    return lambda b: b.train(stage, b.rows([good, row]))


def only(rows: list[Any], stage: str, *more: object) -> Case:
    return lambda b: b.train(stage, b.rows(rows), *more)


def near_name(b: Bench) -> list[str]:
    b.rows(ROWS, "demonstrations.jsonl")
    return b.train("sft", "demonstration.jsonl")


def split_that_is_not_there(b: Bench) -> list[str]:
    b.rows(ROWS, "data/train.jsonl")
    return b.train("sft", "data", "--dataset-train-split", "validation")


def two_files_of_a_split(b: Bench) -> list[str]:
    b.rows(ROWS, "data/train.jsonl")
    b.file("data/train.csv", "prompt,completion\np, a\n")
    return b.train("sft", "data")


def folder_without_data(b: Bench) -> list[str]:
    b.file("data/README.md", "x")
    return b.train("sft", "data")


def saved_and_damaged(b: Bench) -> list[str]:
    b.file("data/state.json", "{}")
    return b.train("sft", "data")


RANKING: dict[str, Any] = {"prompt": "p", "completions": [" a", " b", " c"], "ranks": [0, 1, 2]}
TURN = {"role": "user", "content": "p"}

CASES: dict[str, Case] = {
    "file-missing": near_name,
    "folder-without-data": folder_without_data,
    "datasets-damaged": saved_and_damaged,
    "file-empty": holding("rows.jsonl", ""),
    "file-unknown-format": holding("rows.txt", LINE),
    "json-empty-list": holding("rows.json", "[]"),
    "json-one-object": holding("rows.json", LINE),
    "json-broken": holding("rows.jsonl", LINE + LINE + '{"prompt": "p2", "completion": \n'),
    "not-utf8": holding("rows.jsonl", LINE.encode() + b'{"prompt": "caf\xe9"}\n'),
    "key-twice": holding("rows.jsonl", LINE + '{"prompt": "p", "prompt": "q"}\n'),
    "gz-damaged": holding("rows.jsonl.gz", gzip.compress(LINE.encode() * 9, mtime=0)[:-12]),
    "parquet-that-is-none": holding("rows.parquet", LINE),
    "csv-cells": holding("rows.csv", "prompt,completion\np0,a\np1,on the inn, said he\n"),
    "csv-columns-twice": holding("rows.csv", "prompt,prompt\np0,a\n"),
    "row-no-object": with_row(["p1", "a"]),
    "field-missing": with_row({"prompt": "p1"}),
    "field-null": with_row({"prompt": "p1", "completion": None}),
    "field-number": with_row({"prompt": "p1", "completion": 7}),
    "prompt-empty": with_row({"prompt": " ", "completion": "a"}),
    "columns-wrong": only([{"input": "p", "output": "a"}], "sft"),
    "role-unknown": with_row(
        {"messages": [TURN, {"role": "bot", "content": "a"}]},
        good={"messages": [TURN, {"role": "assistant", "content": "a"}]},
    ),
    "messages-no-answer": only([{"messages": [TURN]}], "sft"),
    "thumbs-as-demonstrations": only([{**ROWS[0], "label": False}], "sft"),
    "keys-shared": lambda b: b.sample(prompts=[{"prompt": p, "key": 7} for p in "ab"]),
    "split-unknown": split_that_is_not_there,
    "split-ambiguous": two_files_of_a_split,
    "split-of-a-file": lambda b: b.sft("--dataset-test-split", "validation"),
    "dataset-not-on-the-hub": lambda b: b.train("sft", "nobody/nothing-here"),
    "pairs-all-equal": only([{**p, "rejected": p["chosen"]} for p in PAIRS], "dpo"),
    "pairs-mixed-forms": with_row(
        {"prompt": "p", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]},
        "dpo",
        PAIRS[0],
    ),
    "probability-below-half": with_row({**PAIRS[1], "chosen_probability": 0.3}, "reward", PAIRS[0]),
    "ratings-missing": only(PAIRS, "reward", "--loss-type", "regression"),
    "margin-nan": with_row({**PAIRS[1], "margin": float("nan")}, "reward", PAIRS[0]),
    "ranks-misfit": with_row({**RANKING, "ranks": [0, 1]}, "reward", RANKING),
    "ranking-of-one": with_row({**RANKING, "completions": [" a"]}, "reward", RANKING),
    "held-out-one-prompt": lambda b: b.train(
        "reward",
        b.rows(PAIRS),
        "--eval-dataset-name",
        b.rows([{**PAIRS[0], "rejected": f" b{i}"} for i in range(3)], "held_out.jsonl"),
    ),
    "samples-one-each": lambda b: [
        *("compare", "--samples", b.rows(ROWS), "--reward", "length", "--output-file", OUT),
    ],
    "bench-without-pairs": lambda b: ["reward-bench", "length", "--dataset-name", b.rows(ROWS)],
    "winrate-one-prompt": lambda b: b.winrate(b.tiny, b.tiny, ROWS[:1]),
    "safety-prompts-twice": lambda b: b.safety(b.tiny, 0.5, [*ROWS, *ROWS[:2]]),
    "safety-trained-on": lambda b: [b.ran(b.sft()), *b.safety(RUN, 0.5)][1:],
    "safety-not-shown": lambda b: b.safety(b.tiny, 0.5),
}
