"""What an export says of its judgements, and how it writes them."""

from pathlib import Path

import pytest

from tests.ledgers import SKIP, TIE, Team, better
from truing.cli import main
from truing.data.formats import load
from truing.data.ledger import Answer, Ledger, Told
from truing.data.schema import Comparison


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
