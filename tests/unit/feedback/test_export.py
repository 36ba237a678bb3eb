"""What an export says of its judgements, and how it writes them."""

import hashlib
import json
from collections import Counter
from json import encoder
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.ledgers import SKIP, TIE, Team, better
from truing.cli import main
from truing.data.formats import load
from truing.data.ledger import Answer, Ledger, Told
from truing.data.ledger.reading import Said
from truing.data.schema import Comparison
from truing.feedback import export
from truing.feedback.card import Tally


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(out: str, *flags: str) -> None:
    words = ("collect", "export", "l.sqlite", "--campaign", "replies", "--output-dir", out)
    assert main([*words, *flags]) == 0


def criticised(ledger: Ledger) -> Team:
    """Critiques of the same submission, of a later one, of an import; of a tie and of a skip."""
    made = Team(ledger, items=3, people=2, wanted=2)
    for item, who, said, later in (
        (1, 0, [better(1), why("Shorter,"), why("and right.")], []),
        (1, 1, [better(2)], [why("Kinder.")]),
        (2, 0, [TIE, why("Both wrong.")], []),
        (2, 1, [SKIP, why("Not mine."), Answer("flag", {"reason": "broken"})], []),
    ):
        lease = ledger.lease(item, made.people[who], (2 * item - 1, 2 * item))
        for answers in filter(None, (said, later)):
            ledger.submit(lease.id, made.people[who], answers, token=made.token())
    for who, said in ((0, [better(5), why("As imported.")]), (1, [better(5)])):
        told = Told(3, made.people[who], tuple(said), "elsewhere", shown=(5, 6))
        ledger.record(made.id, [told])
    return made


def why(text: str) -> Answer:
    return Answer("critique", {"response": None}, text)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_critique_goes_with_its_judgement_or_is_counted(
    form: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open("l.sqlite") as ledger:
        criticised(ledger)
    exported("out", "--format", form)
    rows = load("out", Comparison)
    with Ledger.open("l.sqlite") as ledger:
        assert ledger.exports()[0]["rows_sha256"] == rows.sha256
    found = [(row.chosen, row.provenance.extra.get("critique")) for row in rows]
    assert found == [
        ("reply 0.0", "Shorter,\n\nand right."),
        ("reply 0.1", "Kinder."),
        ("reply 2.0", "As imported."),
        ("reply 2.0", None),
    ]
    counts = {
        "critiques of judgements that make no row": 2,
        "of kind skip, which makes no comparison": 1,
        "of kind flag, which makes no comparison": 1,
    }
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    card = Path("out/README.md").read_text(encoding="utf-8")
    for reason, count in counts.items():
        assert f"- {reason}: {count}\n" in card
        assert f"{reason} {count}" in shown


def test_votes_keep_the_critiques_of_their_authors(place: Path) -> None:
    with Ledger.open("l.sqlite") as ledger:
        criticised(ledger)
    exported("out", "--rows", "votes", "--ties", "half")
    first, _, last = load("out", Comparison)
    assert first.provenance.extra["critiques"] == ["Shorter,\n\nand right.", "Kinder."]
    assert last.provenance.extra["critiques"] == ["As imported.", None]
    assert "critiques of judgements that make no row: 1\n" in (place / "out/README.md").read_text()


# --- how it is written ----------------------------------------------------------------------------

PLAIN = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
VALUES: list[Any] = [
    *("", "plain", "é \U0001f600 \ud800", '"\\\n\0\x7f\u2028', None, True, False, 0, -(2**70)),
    *(0.1, -0.0, 1e300, 5e-324, float("inf"), float("-inf"), [], {}, [[], [{}]]),
    {"b": [1, 2.5, None, {"é": "ü"}], "a": {"z": [True, "x"], "y": ""}},
    [{"role": "user", "content": "Hi"}] * 3,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_are_encoded_as_json_does(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export.encoding(PLAIN)
    assert (
        made(value)
        == PLAIN.encode(value)
        == json.dumps(value, sort_keys=True, separators=(",", ":"))
    )
    monkeypatch.setattr(encoder, "c_make_encoder", None)
    plain = export.encoding(PLAIN)
    assert plain == PLAIN.encode
    assert plain(value) == made(value)
    row = {"prompt": "p", "a": value, "provenance": {"x": value}}
    assert export.canonical(row) == PLAIN.encode(row).encode() + b"\n"


def test_what_json_cannot_hold_is_refused_and_the_next_value_is_not() -> None:
    made = export.encoding(PLAIN)
    for _ in range(2):
        with pytest.raises(TypeError, match="not JSON serializable"):
            made({"a": [object()]})
        assert made({"a": [1]}) == '{"a":[1]}'


@pytest.mark.parametrize("lines", [1, 2, 3, 256])
@pytest.mark.parametrize("likely", ["none", "first", "third", "every"])
def test_a_file_is_its_rows_whatever_is_written_at_once(
    lines: int, likely: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LINES", lines)
    file = export._Lines(tmp_path / "train.jsonl")
    whole, records = b"", b""
    for number in range(7):
        row: dict[str, Any] = {"prompt": f"é {number}", "provenance": {"extra": {"item": number}}}
        record = json.loads(json.dumps(row))
        if number in {"none": (), "first": (0,), "third": (2, 5), "every": range(7)}[likely]:
            row["chosen_probability"] = 0.5
            record["provenance"]["extra"]["chosen_probability"] = 0.5
        whole += PLAIN.encode(row).encode() + b"\n"
        records += PLAIN.encode(record).encode() + b"\n"
        file.add(row)
    file.close()
    assert (tmp_path / "train.jsonl").read_bytes() == whole
    assert file.sha256 == hashlib.sha256(whole).hexdigest()
    assert file.rows_sha256 == hashlib.sha256(records).hexdigest()
    assert file.count == 7
    assert (file.sha256 == file.rows_sha256) == (likely == "none")


@pytest.mark.parametrize(
    ("rows", "held", "groups"),
    [(1, 10**6, 7), (3, 10**6, 3), (7, 10**6, 1), (8, 10**6, 1), (8, 1, 7)],
)
def test_a_parquet_file_is_its_rows_in_whatever_groups(
    rows: int, held: int, groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group ends after so many rows, or where they are long."""
    monkeypatch.setattr(export, "BATCH", rows)
    monkeypatch.setattr(export, "BYTES", held)
    file, lines = export._Groups(tmp_path / "a"), export._Lines(tmp_path / "b")
    whole = list[dict[str, Any]]()
    for number in range(7):
        told = {"source": "human", "time": "2026-01-02T03:04:05+00:00", "order": [1, 0]}
        extra = {"item": number, "share": number / 3, "models": ["a", None]}
        row: dict[str, Any] = {"prompt": f'é\n"{number}"', "chosen": "", "rejected": "\u2028"}
        whole.append(row | {"provenance": told | {"extra": extra}})
        if number == 4:  # a column that the first rows do not have
            whole[-1]["chosen_probability"] = 2 / 3
        for each in (file, lines):
            each.add(whole[-1])
    file.close()
    lines.close()
    read = pq.read_table(file.path)
    assert read.schema == export.schema_of(whole[0])
    assert [there(row) for row in read.to_pylist()] == whole
    assert pq.ParquetFile(file.path).num_row_groups == groups
    assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert file.rows_sha256 == lines.rows_sha256


def there(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what it does not tell."""
    found = {name: there(x) if isinstance(x, dict) else x for name, x in row.items()}
    return {name: value for name, value in found.items() if value is not None}


def test_what_the_card_counts_is_counted_judgement_by_judgement(place: Path) -> None:
    tally, sides = Tally(), ("train", "test")
    told = [
        Said(
            *(i, i, i % 3, "pairwise", "work", ("", "active")[i % 2], {}, None, []),
            *(0, (None, 4)[i % 2], 0, i % 2, ("human", "ai")[i % 4 == 0], i % 8 == 0, i % 5 == 0),
            *(0, None, "t"),
        )
        for i in range(40)
    ]
    for i, each in enumerate(told):
        tally.row(sides[i % 7 == 0], [each, each])
    tally.fold()
    tally.fold()  # nothing twice
    twice = [each for each in told for _ in range(2)]
    assert tally.guidelines == Counter(each.guideline_id for each in twice)
    assert tally.rounds == Counter(each.round for each in twice)
    assert tally.arms == Counter(each.arm or "none" for each in twice)
    assert tally.late == sum(each.late for each in twice) > 0
    who = (each.source + (", simulated" if each.simulated else "") for each in twice)
    assert tally.sources == Counter(who)
    for side in sides:
        mine = [each for i, each in enumerate(told) if sides[i % 7 == 0] == side]
        assert tally.people[side] == {each.annotator_id for each in mine}
        for person in range(3):
            own = [each for each in mine if each.annotator_id == person]
            assert tally.by[person][side] == 2 * len(own)
