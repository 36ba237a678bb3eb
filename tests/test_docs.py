"""The docs are held to the code: commands parse, links resolve, everything named is there."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts import make_docs, readme_figures
from truing import algorithms
from truing.cli import COMMANDS
from truing.config import ConfigError, parse
from truing.data.batch import NAMED_TEMPLATES
from truing.data.records import READERS
from truing.retired import GROUP_NAMES, GROUP_RETIRED, ONLINE_NAMES, ONLINE_RETIRED
from truing.rewards import RULES
from truing.stages import online, scoring
from truing.stages.preference import RECIPES
from truing.worlds.annotators import FAULTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
RECIPE_FILES = sorted((ROOT / "recipes").glob("*/*.yaml"))
ONLINE_CODE = "".join(
    (ROOT / "truing" / "stages" / f"{name}.py").read_text(encoding="utf-8")
    for name in ("online", "estimate", "objective")
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What must not stand in a public repository: places and words of one machine, hosts of packages,
# numbers of a tracker, work left undone. Spelt so that they do not match themselves.
PRIVATE = re.compile(
    r"/wor[k]/|/roo[t]/|/opt/pyp[i]|pyp[i]\.org|pythonhoste[d]|download\.pytorc[h]|[i]ssue #\d|"
    r"TOD[O]|FIXM[E]"
)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str) -> str:
    """The ``sh`` blocks of a page, one after the other."""
    return "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


def commands(lines: str) -> Iterator[list[str]]:
    """The words of each command; comments are left out, ``&&`` parts two."""
    for line in lines.replace("\\\n", " ").splitlines():
        for part in line.partition(" #")[0].split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def check_command(words: list[str]) -> None:
    """Raises unless the command would be understood, here in the root of the project."""
    if words[:3] == ["accelerate", "launch", "-m"]:
        words = words[3:]
    if words[0] == "truing":
        name, *rest = words[1:]
        if name == "doctor" and rest[0] in COMMANDS:
            name, *rest = rest
        if rest and f"{name} {rest[0]}" in COMMANDS:
            name, rest = f"{name} {rest[0]}", rest[1:]
        if name != "--version":
            parse(COMMANDS[name].config, rest, prog=f"truing {name}")
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif words[0] == "python":
        script = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        assert (ROOT / script).is_file(), words
    else:
        assert words[0] in ("python3", ".venv/bin/pip"), words


@pytest.mark.parametrize("file", PAGES, ids=lambda p: p.name)
def test_commands_on_a_page_parse(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = file.read_text(encoding="utf-8")
    for words in commands(blocks(text)):
        check_command(words)
    # And in running text: `truing dpo`, `truing dpo --help`.
    for name in re.findall(r"`(?:accelerate launch -m )?truing ([\w-]+)", text):
        known = {word for command in COMMANDS for word in (command, command.split()[0])}
        assert name in known or name.startswith("--"), name


@pytest.mark.parametrize("file", RECIPE_FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_commands_in_a_recipe_parse(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = re.findall(r"^#   (truing .*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for words in commands("\n".join(lines)):
        check_command(words)


def test_a_wrong_command_is_seen() -> None:
    (words,) = commands(blocks("Try\n```sh\ntruing dpo --bet 1   # no\n```\n"))
    with pytest.raises(ConfigError, match="Did you mean --beta"):
        check_command(words)
    for wrong in (["make", "coffee"], ["python", "no.py"], ["rm", "-r"], ["truing", "dop"]):
        with pytest.raises((AssertionError, KeyError)):
            check_command(wrong)


def anchors(text: str) -> set[str]:
    """The names under which a page's headings can be linked to."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("file", PAGES, ids=lambda p: p.name)
def test_links_resolve(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        place = (file.parent / path).resolve() if path else file
        assert place.exists(), f"{file.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), target


def test_the_page_of_settings_is_up_to_date() -> None:
    assert page("config.md") == make_docs.render(), "run `make docs`"
    for name, command in COMMANDS.items():
        assert f"`truing {name}`" in page("config.md")
        for field in command.config.model_fields:
            assert f"| `{field}` |" in page("config.md")


def test_every_command_is_explained() -> None:
    prose = README + "".join(page(f.name) for f in PAGES if f.parent.name == "docs")
    prose = prose.replace(page("config.md"), "")
    for name in COMMANDS:
        assert f"truing {name}" in prose, name
    for name in ("quickstart", "test", "check", "docs", "slow", "base"):
        assert f"make {name}" in prose + (ROOT / "CONTRIBUTING.md").read_text(), name


def test_every_method_stands_in_the_index() -> None:
    named = set(re.findall(r"`(\w+)`", page("algorithms.md")))
    wanted = {*algorithms.__all__, *RECIPES, *online.RECIPES, *scoring.RECIPES, "process"}
    assert wanted - named == set()


def test_every_entry_of_every_table_is_explained() -> None:
    for name in RECIPES:
        assert f"`{name}`" in page("dpo.md")
    for name in online.RECIPES:
        named = page("ppo.md") + page("reinforce.md") + page("grpo.md")
        assert f"| `{name}`" in named or f"truing {name}" in page("ppo.md")
    for name in [*RULES, *scoring.RECIPES, "process"]:
        assert f"`{name}`" in page("reward.md")
    for name in NAMED_TEMPLATES:
        assert f"`{name}`" in page("data.md")
    for columns in {c for readers in READERS.values() for needs in readers for c in needs}:
        assert f"`{columns}`" in page("data.md")
    for fault in FAULTS:
        assert f"| {fault} |" in page("world.md")
    for folder in {file.parent.name for file in RECIPE_FILES} - {"quickstart"}:
        assert any(folder in f.read_text(encoding="utf-8") for f in [*PAGES, *RECIPE_FILES])


def test_every_detail_of_ppo_names_a_test_that_is_there() -> None:
    rows = re.findall(r"^\| (?!detail|---)(.*) \| (.*) \| (.*) \|$", page("ppo-details.md"), re.M)
    assert len(rows) > 50
    for detail, _, held in rows:
        for file, test in re.findall(r"`([\w/]+\.py)::(\w+)`", held):
            folder = ROOT / "tests" if file.startswith("algorithms/") else ROOT / "tests" / "unit"
            assert f"\ndef {test}(" in (folder / file).read_text(encoding="utf-8"), (detail, test)
        assert held == "-" or "::" in held, detail


def test_every_name_of_trl_is_translated() -> None:
    names = [*ONLINE_NAMES, *ONLINE_RETIRED, *GROUP_NAMES, *GROUP_RETIRED]
    for name in names:
        assert f"`{name}`" in page("config.md")
    for metric in re.findall(r'"((?:objective|policy|loss|val|critic)/[\w]+)"', ONLINE_CODE):
        assert f"`{metric}`" in page("ppo.md"), metric


def public_files() -> list[Path]:
    """The text files of the project, tools' own folders and finished runs aside."""
    aside = {".git", ".venv", "runs", "build", "__pycache__", "truing.egg-info"}
    kinds = {".py", ".md", ".yaml", ".toml", ".txt", ".j2", ""}
    return [
        file
        for file in ROOT.rglob("*")
        if file.is_file()
        and file.suffix in kinds
        and not aside & set(file.relative_to(ROOT).parts)
        and not any(p.startswith(".") and p != ".ci" for p in file.relative_to(ROOT).parts)
    ]


def test_nothing_private_is_told() -> None:
    files = public_files()
    assert {ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "truing" / "cli.py"} <= set(files)
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not (found := PRIVATE.search(text)), f"{file}: {found and found[0]!r}"
        # In code the word has its own meaning (a fixture's scope, a sitting of an annotator).
        if file.suffix != ".py":
            assert "sessio" + "n" not in text.lower(), file
    for told in ("see /wo" + "rk/main", "closes iss" + "ue #7"):
        assert PRIVATE.search(told)


def test_ci_does_what_the_readme_says() -> None:
    told = [" ".join(words) for words in commands(blocks(README))][:2]
    assert told == ["make quickstart", "make test"]
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in told:
        assert re.search(rf"^part {command}( OUT=\S+)?$", run, re.MULTILINE), command


def test_the_constraints_name_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert pinned["torch"] == "2.13.0"
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        need = Requirement(text)
        assert need.specifier.contains(Version(pinned.pop(need.name.lower()))), text
    assert not pinned, "a constraint on something that is no direct dependency"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {project['version']}" in changes
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "The Truing authors" in licence


def summary(seed: int, wins: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `readme_figures` reads of a run's summary.json and of its first stage's run.json."""
    x = {"value": wins, "low": wins - 0.04, "high": wins + 0.04}
    both = {"sft": {"value": 0.1}, "dpo": {"value": 0.46}, "ppo": {"value": 0.38}}
    contests = ("dpo_vs_sft", "ppo_vs_sft", "sft_vs_base", "best_of_n_vs_sft", "chosen_vs_sft")
    figures = {
        "seed": seed,
        "prompts": 500,
        "win_rate": dict.fromkeys(contests, x),
        "gold": both,
        "length": {"sft": {"value": 41.2}, "dpo": {"value": 38.0}, "ppo": {"value": 40.0}},
        "facts": {name: {"all": {"all": value}} for name, value in both.items()},
        "reward_accuracy": {**x, "ceiling": 0.7},
        "kl": {"dpo": {"value": 7.25}, "ppo": {"value": 3.0}},
        "overoptimisation": {"gold": {"start": -0.5, "best": 0.1, "end": -2.0}},
        "seconds": {"total": 330.0},
        "peak_mb": 1536.0,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
    machine = {"platform": "Linux-6.1-x86_64-with-glibc2.36", "cpus": 2, "threads": 2}
    return figures, {"created": "2026-11-21T10:00:00.000+00:00", "machine": machine}


def test_the_table_of_figures_shows_every_seed() -> None:
    table = readme_figures.table([summary(0, 0.7), summary(1, 0.65)])
    assert table.startswith("| | seed 0 | seed 1 |\n")
    assert "| **DPO beats SFT**, by gold | 70 % (66 to 74) | 65 % (61 to 69) |" in table
    assert "| gold reward, SFT → DPO, PPO | 0.10 → 0.46, 0.38 | 0.10 → 0.46, 0.38 |" in table
    assert "| -0.50 → 0.10 → -2.00 |" in table
    assert "| peak memory | 1.5 GB | 1.5 GB |" in table
    assert "Measured 2026-11-21 on Linux x86_64, 2 CPUs, 2 threads, torch 2.13.0" in table


def test_the_readme_holds_the_rows_that_the_script_writes() -> None:
    start, end = readme_figures.START, readme_figures.END
    assert README.count(start) == README.count(end) == 1
    block = README.partition(start)[2].partition(end)[0]
    labels = re.findall(r"^\| (?!\|)(\S.*?) \|", block, re.MULTILINE)
    assert labels in ([], list(readme_figures.ROWS))
    for mark in ("<!-- real -->", "<!-- /real -->"):
        assert page("real-data.md").count(mark) == 1
