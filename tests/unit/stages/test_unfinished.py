"""A response that was cut when it was sampled is never taught to end there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.schema import Comparison, Demonstration, Ranking
from truing.feedback import collect
from truing.models.model import load_policy
from truing.settings_judging import CompareConfig
from truing.stages.preference import encode_pairs
from truing.stages.sft import encode_rows

Write = Callable[..., str]
NOTE = "responses cut when sampled: no end is learnt"
SAMPLES = [
    {"prompt": "p", "completion": "a b c", "finish_reason": "length"},
    {"prompt": "p", "completion": "a", "finish_reason": "stop"},
    {"prompt": "q", "completion": "a b", "finish_reason": "stop"},
    {"prompt": "q", "completion": "b", "finish_reason": "length"},
    {"prompt": "r", "completion": "a b"},
    {"prompt": "r", "completion": "b"},
]


@pytest.fixture
def encoder(tiny: Path) -> Encoder:
    return Encoder(load_policy(tiny).tokenizer)


@pytest.fixture
def compared(tmp_path: Path, jsonl: Write) -> str:
    config = CompareConfig(
        samples=jsonl("samples", SAMPLES), reward="length", output_file=str(tmp_path / "c.jsonl")
    )
    return str(collect.compare(config))


def test_samples_as_demonstrations(encoder: Encoder, jsonl: Write) -> None:
    rows = encode_rows(load(jsonl("samples", SAMPLES), Demonstration), encoder)
    ended = [row.response[-1] == encoder.eos for row in rows]
    assert ended == [False, True, True, False, True, True]
    assert encoder.counts == {NOTE: 2}
    assert [encoder.decode(row.response) for row in rows] == [s["completion"] for s in SAMPLES]


def test_comparisons_of_samples(encoder: Encoder, compared: str) -> None:
    rows = load(compared, Comparison)
    assert [row.provenance.extra["finish_reason"] for row in rows] == [
        ["length", "stop"],
        ["stop", "length"],
        ["unknown", "unknown"],
    ]
    pairs = encode_pairs(rows, encoder)
    ended = [[side.response[-1] == encoder.eos for side in pair[:2]] for pair in pairs]
    assert ended == [[False, True], [True, False], [True, True]]
    assert encoder.counts == {NOTE: 2}
    turned = rows[0].swap()
    assert turned.provenance.extra["finish_reason"] == ["stop", "length"]
    assert turned.swap() == rows[0]


def test_the_best_of_a_comparison_or_ranking(encoder: Encoder, compared: str, jsonl: Write) -> None:
    chosen = encode_rows(load(compared, Demonstration), encoder)
    assert [row.response[-1] == encoder.eos for row in chosen] == [False, True, True]
    ranked = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 0, 2]}
    file = jsonl("ranked", [{**ranked, "finish_reason": ["stop", "length", "stop"]}])
    assert load(file, Ranking)[0].provenance.extra["finish_reason"] == ["stop", "length", "stop"]
    (best,) = encode_rows(load(file, Demonstration), encoder)
    assert best.response[-1] != encoder.eos
    assert encoder.decode(best.response) == "b"
