"""The rules of the house, read from the source text alone (docs/design.md says why they are there).

A rule is a function from {path: text} to a list of violations, so that each can be shown a house
that breaks it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
House = dict[str, str]

# Rooms of truing/ and their floors. A file imports from lower floors and from its own room only;
# STAIRS adds what else it may see on its own floor.
FLOORS = {
    **dict.fromkeys(("algorithms", "stats"), 0),
    **dict.fromkeys(("config", "console", "keys", "lineage", "retired", "run", "writing"), 1),
    **dict.fromkeys(("settings", "settings_judging", "settings_online"), 1),
    "settings_group": 1,
    "settings_collect": 1,
    "settings_conformance": 1,
    "settings_web": 1,
    "settings_preference": 1,
    "settings_reward": 1,
    **dict.fromkeys(("data", "models"), 2),
    **dict.fromkeys(("generation", "rewards"), 3),
    **dict.fromkeys(("evaluate", "feedback", "stages"), 4),
    **dict.fromkeys(("conformance", "doctor", "verify", "worlds"), 5),
    "quickstart": 6,
    **dict.fromkeys(("__main__", "cli", "web"), 7),
}
STAIRS = {
    "settings": ("config", "retired", "settings_preference", "settings_reward"),
    "settings_preference": ("config",),
    "settings_reward": ("config",),
    "settings_collect": ("config", "settings"),
    "settings_conformance": ("settings",),
    "settings_judging": ("config", "settings", "settings_reward"),
    "settings_web": ("config", "settings", "settings_collect", "settings_judging"),
    "settings_online": ("config", "retired", "settings", "settings_reward"),
    "settings_group": ("config", "retired", "settings_online"),
    "run": ("config", "console", "lineage", "writing"),
    "models": ("data",),
    "rewards": ("generation",),
    "__main__": ("cli",),
}
WORLD = sorted((ROOT / "truing" / "worlds").glob("[a-z]*.py"))
TORCH_FREE = (
    *("cli", "config", "console", "keys", "lineage", "run", "settings", "verify", "writing"),
    *("settings_group", "settings_judging", "settings_online", "settings_preference"),
    *("settings_collect", "settings_conformance", "settings_reward"),
    *("data.ledger", "feedback.campaigns", "feedback.export", "feedback.person"),
    *(f"doctor.{name}" for name in ("common", "history", "offline", "online", "outcome", "run")),
    *("data.schema", "data.formats", "evaluate.report", "evaluate.summary", "generation.engine"),
    *("stats.agreement", "stats.annotators", "stats.best_of", "stats.bounds", "stats.ratings"),
    *("feedback.assign", "feedback.pacing"),
    *(f"worlds.{p.stem}" for p in WORLD if p.stem != "measuring"),
)
FILE, FUNCTION, TOPIC, FOLDER = 400, 60, 25, 3500
TOLERANCE = 1e-3


def read(*folders: str) -> House:
    files = (f for folder in folders for f in sorted((ROOT / folder).rglob("*.py")))
    return {f.relative_to(ROOT).as_posix(): f.read_text(encoding="utf-8") for f in files}


def name_of(path: str) -> str:
    """truing/data/batch.py -> data.batch; truing/data/__init__.py -> data."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(parts[1:])


def own_imports(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Modules of truing that a syntax tree imports, such as data.batch; relative ones as ``.``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [i if i[len("truing.") :] in names else str(node.module) for i in inner]
            found = ["truing.."] if node.level else found
        else:
            continue
        yield from (f[len("truing.") :] for f in found if f.split(".")[0] == "truing")


def graph(house: House) -> dict[str, set[str]]:
    names = {name_of(path) for path in house}
    return {name_of(p): set(own_imports(ast.parse(text), names)) for p, text in house.items()}


def floors(house: House) -> list[str]:
    """Imports that climb, cross into another room of the same floor, or have no floor at all."""
    bad: list[str] = []
    for name, wanted in graph(house).items():
        room = name.split(".")[0]
        if room and room not in FLOORS:
            bad.append(f"{name} stands on no floor: give {room!r} one in FLOORS")
            continue
        for other in wanted:
            theirs = other.split(".")[0]
            below = FLOORS.get(theirs, 9) < FLOORS.get(room, -1)
            stairs = any(other == s or other.startswith(s + ".") for s in STAIRS.get(room, ()))
            if not (below or stairs or (theirs == room and theirs in FLOORS)):
                bad.append(f"{name} must not import {other or 'truing'}")
    return bad


def circles(house: House) -> list[str]:
    edges, bad, done = graph(house), list[str](), set[str]()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            bad.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for other in edges.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())
    return bad


def late_imports(house: House) -> list[str]:
    """Imports of our own inside functions; the table of commands in cli.py may load late."""
    return [
        f"{path}:{function.lineno} imports {name} inside {function.name}"
        for path, text in house.items()
        for function in functions(text)
        for name in own_imports(function, set())
        if name_of(path) != "cli"
    ]


def functions(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]


def lengths(house: House) -> list[str]:
    bad = [f"{p} has {n} lines" for p, t in house.items() if (n := len(t.splitlines())) > FILE]
    for path, text in house.items():
        for f in functions(text):
            if (n := (f.end_lineno or 0) - f.lineno + 1) > FUNCTION:
                bad.append(f"{path}:{f.lineno} {f.name} has {n} lines")
    return bad


def settings_of(house: House) -> ast.Module:
    """The files of settings, as one."""
    texts = [t for p, t in house.items() if p.startswith("truing/settings")]
    return ast.parse("\n".join(texts))


def topics(house: House) -> list[str]:
    """Topics of settings with too many fields of their own."""
    return [
        f"{node.name} has {n} fields: split it by topic"
        for node in ast.walk(settings_of(house))
        if isinstance(node, ast.ClassDef)
        if (n := sum(isinstance(line, ast.AnnAssign) for line in node.body)) > TOPIC
    ]


def tolerances(house: House) -> list[str]:
    """Tolerances that would let a wrong result pass, unless a comment beside them says why."""
    bad: list[str] = []
    for path, text in house.items():
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.keyword) or node.arg not in ("abs", "rel", "atol", "rtol"):
                continue
            loose = isinstance(node.value, ast.Constant) and float(node.value.value) > TOLERANCE
            if loose and not any("# " in line for line in lines[node.lineno - 4 : node.lineno]):
                bad.append(f"{path}:{node.lineno} {node.arg} is wide, and no comment says why")
    return bad


def idle_settings(house: House) -> list[str]:
    """Settings that nothing reads, so that setting them changes nothing."""
    read = {name for text in house.values() for name in readings(ast.parse(text))}
    fields = [
        line.target.id
        for node in ast.walk(settings_of(house))
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if not ast.unparse(line.annotation).startswith("ClassVar")
    ]
    return [f"nothing acts on the setting {name}" for name in fields if name not in read]


def readings(tree: ast.AST) -> Iterator[str]:
    """Settings that a file reads: ``config.x``, ``getattr(config, "x")``, ``self.x`` in a property
    of the settings, and the fields of `Loading`, which are taken over by their names."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name):
                if ast.unparse(owner).endswith(("config", "planned")):
                    yield name
            case ast.Call(func=ast.Name("getattr"), args=[_, ast.Constant(str(name)), *_]):
                yield name
            case ast.FunctionDef(decorator_list=[ast.Name("property")]):
                inside = (n for n in ast.walk(node) if isinstance(n, ast.Attribute))
                yield from (n.attr for n in inside if ast.unparse(n.value) == "self")
            case ast.ClassDef(name="Loading", body=body):
                lines = (line for line in body if isinstance(line, ast.AnnAssign))
                yield from (ast.unparse(line.target) for line in lines)
            case _:
                pass


def code_lines(text: str) -> int:
    """Lines of code. Prose is not counted: nobody should save lines by explaining less."""
    prose = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(x.strip()) and x.strip()[0] != "#" and n not in prose for n, x in lines)


def folders(house: House) -> list[str]:
    """Folders of more code than one sitting reads, each counted by the files in it."""
    sizes: dict[str, int] = {}
    for path, text in house.items():
        folder = path.rsplit("/", 1)[0]
        sizes[folder] = sizes.get(folder, 0) + code_lines(text)
    return [f"{f} has {n} lines of code" for f, n in sizes.items() if n > FOLDER]


def readme_tree(text: str) -> dict[str, str]:
    """File -> its line in the tree of README.md, from the block that starts with ``truing/``."""
    block = re.search(r"```\ntruing/\n(.*?)```", text, re.DOTALL)
    assert block, "README.md needs a block that begins with truing/"
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        name, _, about = line.strip().partition(" ")
        folders = folders[: (len(line) - len(line.lstrip())) // 2 - 1]
        if name.endswith("/"):
            folders.append(name)
        elif name:
            found["".join(folders) + name] = about.strip()
    return found


def on_disk() -> set[str]:
    """The files of truing/, without those that only open a room and without the base's weights."""
    root = ROOT / "truing"
    names = {f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file()}
    return {n for n in names if not re.search(r"__pycache__|__init__\.py$|^worlds/base/", n)}


HOUSES: dict[Callable[[House], list[str]], House] = {
    floors: read("truing"),
    circles: read("truing"),
    late_imports: read("truing"),
    lengths: read("truing", "scripts", "examples", "replications", "benchmarks", "tests"),
    folders: read("truing"),
    topics: read("truing"),
    idle_settings: read("truing"),
    tolerances: read("tests"),
}


@pytest.mark.parametrize("rule", HOUSES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Callable[[House], list[str]]) -> None:
    assert HOUSES[rule], "no file was read"
    assert rule(HOUSES[rule]) == []


# For each rule, houses that break it, and what must be said of them.
BROKEN: list[tuple[Callable[[House], list[str]], House, str]] = [
    (floors, {"truing/stats/a.py": "import truing.config"}, "stats.a must not import config"),
    (floors, {"truing/data/a.py": "from truing.models.model import M"}, "data.a must not import"),
    (floors, {"truing/data/a.py": "from truing.models import model", "truing/models/model.py": ""},
     "data.a must not import models.model"),
    (floors, {"truing/stages/a.py": "from truing.evaluate.report import r"}, "evaluate.report"),
    (floors, {"truing/evaluate/a.py": "from truing.worlds.gold import gold"}, "worlds.gold"),
    (floors, {"truing/generation/a.py": "from truing import rewards", "truing/rewards.py": ""},
     "generation.a must not import rewards"),
    (floors, {"truing/data/a.py": "from . import batch"}, "data.a must not import"),
    (floors, {"truing/data/a.py": "from truing import __version__"}, "must not import truing"),
    (floors, {"truing/helpers.py": ""}, "give 'helpers' one in FLOORS"),
    (circles, {"truing/data/a.py": "from truing.data import b",
               "truing/data/b.py": "from truing.data.c import x",
               "truing/data/c.py": "import truing.data.a"}, "data.a -> data.b -> data.c -> data.a"),
    (late_imports, {"truing/run.py": "def f():\n    from truing.data import batch"}, "inside f"),
    (lengths, {"truing/a.py": "x = 1\n" * 401}, "truing/a.py has 401 lines"),
    (lengths, {"truing/a.py": "def f():\n" + "    x = 1\n" * 60}, "f has 61 lines"),
    (folders, {f"truing/a/{i}.py": "# why\n" + "x = 1\n" * 400 for i in range(9)},
     "truing/a has 3600 lines of code"),
    (topics, {"truing/settings.py": "class T:\n" + "".join(f"    x{i}: int\n" for i in range(26))},
     "T has 26 fields"),
    (idle_settings, {"truing/settings.py": "class T:\n    lr: int"}, "the setting lr"),
    (idle_settings, {"truing/settings.py": "class T:\n    lr: int",
                     "truing/stages/a.py": "# lr is the rate\nprint(step.lr, 'lr')"}, "setting lr"),
    (tolerances, {"tests/a.py": "f(1, abs=0.01)"}, "tests/a.py:1 abs is wide"),
    (tolerances, {"tests/a.py": "# why\n\n\n\nf(1, rtol=1e6)"}, "tests/a.py:5 rtol is wide"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "house", "said"), BROKEN)
def test_a_broken_rule_is_seen(rule: Callable[[House], list[str]], house: House, said: str) -> None:
    assert any(said in line for line in rule(house))


def test_what_is_allowed_is_not_called_broken() -> None:
    house = {
        "truing/worlds/a.py": "from truing.evaluate.records import Item",
        "truing/models/a.py": "from truing.data.batch import Layout",
        "truing/data/a.py": "from truing.data.schema import Message\nimport truing.stats.ratings",
        "truing/cli.py": "def f():\n    import truing.stages.sft",
    }
    assert floors(house) == late_imports(house) == circles(house) == []
    assert tolerances({"tests/a.py": "# Four standard errors.\nf(1, abs=0.04)"}) == []


def test_prose_is_no_code() -> None:
    assert code_lines('"""Prose."""\n\n# Why.\nx = 1  # one\ny = """\na"""\n') == 3


def test_labels_statistics_worlds_and_reports_load_without_torch() -> None:
    code = "import importlib, sys\nfor n in {}: importlib.import_module('truing.' + n)\n"
    code += "found = sorted({{'torch', 'transformers', 'accelerate'}} & set(sys.modules))\n"
    code = code.replace("{}", "{names}") + "assert not found, found"
    run = [sys.executable, "-c"]
    subprocess.run([*run, code.format(names=TORCH_FREE)], check=True)
    heavy = subprocess.run([*run, code.format(names=("models.precision",))], capture_output=True)
    assert b"torch" in heavy.stderr


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    tree = readme_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"missing": on_disk() - tree.keys(), "gone": tree.keys() - on_disk()} == {
        "missing": set(),
        "gone": set(),
    }
    assert [name for name, about in tree.items() if not about] == []


def test_the_reader_of_the_tree_reads_folders() -> None:
    text = "```\ntruing/\n  data/   records\n    a.py   one\n    base/  weights\n  b.py\n```"
    assert readme_tree(text) == {"data/a.py": "one", "b.py": ""}
