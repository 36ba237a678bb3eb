"""docs/errors.md, walked case by case: input, message, exit code, what is kept."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mistakes import CASES, OUT, RUN, Bench
from truing import cli, lineage

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
HEAD = "| case | input | message | exit code | kept |"


class Told(NamedTuple):
    """A row of the page."""

    case: str
    given: str
    message: str
    code: int
    kept: str


class Outcome(NamedTuple):
    """What came of a command in ``folder``: its exit code, what it printed, the files of before."""

    folder: Path
    code: int
    text: str
    before: dict[str, str]


def told(page: str) -> list[Told]:
    """The rows of all tables of cases. A bar inside a cell is written with a backslash."""
    rows: list[Told] = []
    inside = False
    for line in page.splitlines():
        if line == HEAD or not line.startswith("|"):
            inside = line == HEAD
        elif inside and not line.startswith("|---"):
            cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            case, given, message, code, kept = cells
            ticks = "``" if message.startswith("``") else "`"
            assert message.startswith(ticks), line
            assert message.endswith(ticks), line
            rows.append(Told(case, given, message.strip("`").strip(), int(code), kept))
    return rows


def vocabulary(page: str) -> set[str]:
    """What the page says that the last column may hold."""
    block = page.partition("| kept | what it means |")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| (\w[^|]+?) \|", block, re.MULTILINE))


def files(folder: Path) -> dict[str, str]:
    """The hash of each file, and the empty folders."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
    return {
        name: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for name, p in found.items()
        if "__pycache__" not in name
    }


def absent(text: str, message: str) -> list[str]:
    """The parts of a message, between its dots, that are not in the text, in their order."""
    text, missing = " ".join(text.split()), list[str]()
    for part in message.split("..."):
        words = " ".join(part.split())
        place = text.find(words)
        if place < 0:
            missing.append(words)
        else:
            text = text[place + len(words) :]
    return missing


def there_before(outcome: Outcome) -> bool:
    return any(name.split("/")[0] in (RUN, OUT) for name in outcome.before)


def unchanged(outcome: Outcome) -> bool:
    return files(outcome.folder) == outcome.before


def status(outcome: Outcome) -> str:
    info = json.loads((outcome.folder / RUN / "run.json").read_text(encoding="utf-8"))
    assert ("error" in info) == (info["status"] == "failed")
    assert (info["status"] == "finished") == (outcome.folder / RUN / "model").is_dir()
    assert not (outcome.folder / RUN / "lock").exists()
    return info["status"]


def checkpoints(outcome: Outcome) -> int:
    """How many there are, each as it was written."""
    there = sorted((outcome.folder / RUN).glob(f"{lineage.CHECKPOINTS}/*"))
    for checkpoint in there:
        lineage.check(checkpoint)
    return len(there)


def run_folder(state: str, *, saved: bool) -> Callable[[Outcome], bool]:
    return lambda outcome: status(outcome) == state and (checkpoints(outcome) > 0) == saved


def settings_alone(outcome: Outcome) -> bool:
    return {p.name for p in (outcome.folder / RUN).iterdir()} <= {"config.yaml"}


KEPT: dict[str, Callable[[Outcome], bool]] = {
    "nothing is written": lambda o: unchanged(o) and not there_before(o),
    "what was there, unchanged": lambda o: unchanged(o) and there_before(o),
    "the failed run folder": run_folder("failed", saved=False),
    "the failed run folder with its checkpoint": run_folder("failed", saved=True),
    "the stopped run folder with its checkpoint": run_folder("stopped", saved=True),
    "the finished run folder": run_folder("finished", saved=False),
    "the output file": lambda o: (o.folder / OUT).stat().st_size > 0 and not unchanged(o),
    "the settings alone": settings_alone,
}
ROWS = told(PAGE.read_text(encoding="utf-8"))


def meet(bench: Bench, case: str, capsys: pytest.CaptureFixture[str]) -> Outcome:
    """Make the input of a case, give its command and see what comes of it."""
    try:
        args = CASES[case](bench)
        before = files(bench.folder)
        capsys.readouterr()
        try:
            code = cli.main(args)
        except SystemExit as end:  # the parser's own way to end
            code = int(end.code or 0)
    finally:
        for undo in reversed(bench.after):
            undo()
    seen = capsys.readouterr()
    # Frames around what the parser says are no part of it.
    text = re.sub("[│╭╮╰╯─]", " ", f"{seen.out}\n{seen.err}")
    assert (code == 0) == (not seen.err), seen.err
    return Outcome(bench.folder, code, text, before)


def differs(row: Told, outcome: Outcome) -> list[str]:
    """Where an outcome is not what the page tells."""
    found = [f"not said: {part!r}" for part in absent(outcome.text, row.message)]
    found += ["a traceback"] if "Traceback" in outcome.text else []
    found += [f"exit code {outcome.code}"] if outcome.code != row.code else []
    return found + ([] if KEPT[row.kept](outcome) else [f"it is not so: {row.kept}"])


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    # Where rewards of one's own are looked for; given back after the case.
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("TRUING_DEBUG", raising=False)
    return Bench(tmp_path, tiny, monkeypatch)


# accelerate says so as well, where people see it beside our own message.
@pytest.mark.filterwarnings("ignore:.*no supported trackers:UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.case)
def test_it_is_as_the_page_says(
    row: Told, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert differs(row, meet(bench, row.case, capsys)) == []


def test_the_page_and_the_walk_have_the_same_cases() -> None:
    page, names = PAGE.read_text(encoding="utf-8"), [row.case for row in ROWS]
    assert len(names) > 45
    assert len(set(names)) == len(names)
    assert set(names) == set(CASES)
    assert {row.kept for row in ROWS} == set(KEPT) == vocabulary(page)
    assert {row.code for row in ROWS} == {0, 1, 2, 130}
    for row in ROWS:
        # A message of dots alone would agree with anything.
        assert len(row.message.replace("...", "").strip()) > 10, row.case
        # What is not understood is never acted upon.
        assert row.code != 2 or row.kept == "nothing is written"


def test_what_is_not_as_the_page_says_is_seen(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(row for row in ROWS if row.case == "file-empty")
    outcome = meet(bench, row.case, capsys)
    assert differs(row, outcome) == []
    reversed_parts = "needed: at least one row. ... it holds no rows"
    assert differs(row._replace(message=reversed_parts), outcome) == [
        "not said: 'it holds no rows'"
    ]
    assert differs(row._replace(code=0), outcome) == ["exit code 1"]
    kept = "what was there, unchanged"
    assert differs(row._replace(kept=kept), outcome) == [f"it is not so: {kept}"]
    bench.file(OUT, "half a li")
    assert differs(row, outcome) == ["it is not so: nothing is written"]


def test_a_run_folder_that_lost_its_checkpoint_is_seen(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = meet(bench, "diverged", capsys)
    saved, unsaved = (
        KEPT["the failed run folder with its checkpoint"],
        KEPT["the failed run folder"],
    )
    assert saved(outcome)
    assert not unsaved(outcome)
    (file,) = (bench.folder / RUN).glob(f"{lineage.CHECKPOINTS}/*/state.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not as it was written"):
        saved(outcome)
