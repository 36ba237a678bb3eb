"""Which test answers for which duty of a function on floor 0, and what that test really does.

A test file ends in a table: function names, and for each duty a test, a tuple of tests, or in words
why it is not owed:

    DUTIES = {
        "dpo cdpo": {
            "golden law bite": test_golden_values_and_laws_hold_and_bite,
            "gradient": "plain numbers",
        },
    }

Rows add up over files. Tests are called here by their parametrisations, without pytest, while every
function on floor 0 notes its calls: a table is counted, not believed.
"""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch

TESTS = Path(__file__).resolve().parents[1]
# What each room owes. "library": equality with scipy or statsmodels, or with brute force.
OWED = {
    "truing.algorithms": ("golden", "law", "bite", "gradient", "invariance", "loop", "refusal"),
    "truing.stats": ("golden", "law", "library", "refusal"),
}
WORDS = {word for words in OWED.values() for word in words}
# Duties that can be declared away, and what is then held to be so.
EXCUSED = ("gradient", "invariance", "refusal")

Test = Callable[..., None]
Table = Mapping[str, Mapping[str, Any]]


class Case(NamedTuple):
    """A test with the values of one parametrisation."""

    test: Test
    values: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.test.__module__.rpartition('.')[2]}::{self.test.__name__}"


class Call(NamedTuple):
    """A call of a function: what it was called inside of, with what, and whether it refused it."""

    name: str
    inside: tuple[str, ...]
    arguments: dict[str, Any]
    refused: bool


# --- the functions --------------------------------------------------------------------------------


def modules_of(room: str) -> list[ModuleType]:
    package = importlib.import_module(room)
    names = [found.name for found in pkgutil.iter_modules(package.__path__, room + ".")]
    return [importlib.import_module(name) for name in names]


def functions_of(module: ModuleType) -> dict[str, FunctionType]:
    """Functions and methods that stand in a module: ``dpo``, ``_moments``, ``Moments.after``."""
    found: dict[str, FunctionType] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = vars(module)[node.name]
        elif isinstance(node, ast.ClassDef):
            members = vars(vars(module)[node.name])
            for line in node.body:
                if isinstance(line, ast.FunctionDef):
                    member = members[line.name]
                    member = member.fget if isinstance(member, property) else member
                    found[f"{node.name}.{line.name}"] = member
    return found


def public(room: str) -> list[str]:
    """What a room offers: its ``__all__``, or whatever its files do not hide."""
    offered = getattr(importlib.import_module(room), "__all__", None)
    names = (n for module in modules_of(room) for n in functions_of(module))
    return list(offered or (n for n in names if n[0] != "_" and "." not in n))


def everything(room: str) -> dict[str, FunctionType]:
    """All functions of a room; a helper by its file too, ``ranking:_check_ranks``."""
    found, offered = dict[str, FunctionType](), public(room)
    for module in modules_of(room):
        file = module.__name__.rpartition(".")[2]
        for name, function in functions_of(module).items():
            found[name if name.partition(".")[0] in offered else f"{file}:{name}"] = function
    return found


def definition(function: FunctionType) -> ast.FunctionDef:
    """The syntax of a function, bare of what is evaluated where it is defined."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list, node.returns = [], None
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    if arguments.kwarg:
        arguments.kwarg.annotation = None
    arguments.defaults = []
    arguments.kw_defaults = [None for _ in arguments.kwonlyargs]
    return node


def compiled(node: ast.FunctionDef) -> CodeType:
    """Code to put in the place of a function's own: so every name, table and partial that holds
    the function holds the changed one."""
    tree = ast.fix_missing_locations(ast.Module([node], []))
    space: dict[str, Any] = {}
    exec(compile(tree, f"<changed {node.name}>", "exec"), space)
    return space[node.name].__code__


@contextmanager
def replaced(function: FunctionType, code: CodeType) -> Iterator[None]:
    kept, function.__code__ = function.__code__, code
    try:
        yield
    finally:
        function.__code__ = kept


# --- the tables -----------------------------------------------------------------------------------


def files_with_tables() -> list[ModuleType]:
    """Test files that may hold tables, but not those that read them."""
    files = sorted({*TESTS.glob("algorithms/test_*.py"), *TESTS.glob("unit/stats/test_*.py")})
    files = [f for f in files if "\nDUTIES = {" in f.read_text(encoding="utf-8")]
    names = [".".join(f.relative_to(TESTS.parent).with_suffix("").parts) for f in files]
    return [importlib.import_module(name) for name in names]


def tables() -> list[Table]:
    return [module.DUTIES for module in files_with_tables()]


def declared(given: Iterable[Table]) -> dict[str, dict[str, list[Any]]]:
    """Function -> duty -> its tests, and in words why there are none. Raises ValueError for a word
    that is no duty, and for what is neither."""
    found: dict[str, dict[str, list[Any]]] = {}
    for table in given:
        for names, duties in table.items():
            for (words, what), name in product(duties.items(), names.split()):
                for word in words.split():
                    if word not in WORDS:
                        raise ValueError(f"{name}: {word!r} is no duty; there are {sorted(WORDS)}")
                    row = found.setdefault(name, {}).setdefault(word, [])
                    row.extend(what if isinstance(what, tuple) else (what,))
    return found


def cases(test: Test) -> list[Case]:
    """The test with each of its parametrisations. Raises ValueError for one that needs more."""
    grids: list[list[dict[str, Any]]] = []
    for mark in getattr(test, "pytestmark", ()):
        if mark.name != "parametrize":
            raise ValueError(f"{test.__name__} is marked {mark.name}: it cannot answer for a duty")
        names, rows = mark.args[:2]
        names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        rows = [getattr(row, "values", row) if isinstance(row, tuple) else row for row in rows]
        grids.append(
            [dict(zip(names, row if len(names) > 1 else (row,), strict=True)) for row in rows]
        )
    found = [Case(test, {k: v for part in row for k, v in part.items()}) for row in product(*grids)]
    if not hasattr(test, "hypothesis"):
        asked = set(inspect.signature(test).parameters)
        if found and asked - found[0].values.keys():
            raise ValueError(f"{test.__name__} takes a fixture: it cannot answer for a duty")
    return found


# --- what the tests do ----------------------------------------------------------------------------


@contextmanager
def watched(functions: Mapping[str, FunctionType]) -> Iterator[list[Call]]:
    """Each call of the functions is noted in the list, while the block lasts."""
    calls: list[Call] = []
    stack: list[str] = []

    @contextmanager
    def note(name: str, arguments: dict[str, Any]) -> Iterator[None]:
        inside, given, refused = tuple(stack), dict(arguments), False
        stack.append(name)
        try:
            yield
        except ValueError:
            refused = True
            raise
        finally:
            stack.pop()
            calls.append(Call(name, inside, given, refused))

    kept = {name: function.__code__ for name, function in functions.items()}
    try:
        for name, function in functions.items():
            function.__globals__["_note"] = note
            node = definition(function)
            within = ast.parse(f"with _note({name!r}, locals()): pass").body[0]
            assert isinstance(within, ast.With)
            within.body, node.body = node.body, [within]
            function.__code__ = compiled(node)
        yield calls
    finally:
        for name, function in functions.items():
            function.__code__ = kept[name]
            function.__globals__.pop("_note", None)


def witnesses() -> dict[str, FunctionType]:
    """What a test must use for some duties: the loops, `bites`, and torch's check of gradients."""
    found = {"gradcheck": torch.autograd.gradcheck}
    for file in sorted((TESTS / "algorithms").glob("reference*.py")):
        module = importlib.import_module(f"tests.algorithms.{file.stem}")
        found |= {f"loop {n}": f for n, f in functions_of(module).items()}
    found["bites"] = found.pop("loop bites")
    return found


Record = dict[str, list[tuple[Case, list[Call]]]]


def performed(tests: Iterable[Test], functions: Mapping[str, FunctionType]) -> Record:
    """Test (by the name of its cases) -> what each of its cases calls."""
    record: Record = {}
    with watched({**witnesses(), **functions}) as calls:
        for test in dict.fromkeys(tests):
            for case in cases(test):
                calls.clear()
                case.test(**case.values)
                record.setdefault(case.name, []).append((case, list(calls)))
    return record


@cache
def house() -> tuple[dict[str, FunctionType], dict[str, dict[str, list[Any]]], Record]:
    """All functions on floor 0, what is declared of them, and what the declared tests do."""
    functions = {n: f for room in OWED for n, f in everything(room).items()}
    duties = declared(tables())
    tests = [t for row in duties.values() for ts in row.values() for t in ts if callable(t)]
    return functions, duties, performed(tests, functions)


def belongs(name: str, owner: str) -> bool:
    """Whether a function is the named one, or a method of it."""
    return name == owner or name.startswith(owner + ".")


def shows(word: str, owner: str, calls: list[Call]) -> str:
    """What a test of a duty does not do, in words; empty where it does it."""
    direct = [c for c in calls if all(x in ("gradcheck", "bites") for x in c.inside)]
    own = [c for c in direct if belongs(c.name, owner)]
    if not own:
        return "never calls it itself"
    if word == "gradient" and not any("gradcheck" in c.inside for c in own):
        return "never calls it inside torch.autograd.gradcheck"
    if word == "bite" and not any("bites" in c.inside for c in own):
        return "never calls it inside reference.bites"
    if word == "loop" and not any(c.name.startswith("loop ") for c in calls):
        return "calls no function of tests/algorithms/reference*.py"
    if word == "refusal" and not any(c.refused for c in own):
        return "never makes it raise ValueError"
    if word == "invariance" and len(own) < 2:
        return "calls it once only"
    return ""


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors in an argument or a result."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for part in value for x in leaves(part)] if isinstance(value, tuple | list) else []


def differentiable(function: FunctionType, arguments: Mapping[str, Any]) -> bool:
    """Whether the result hangs by a gradient on a tensor that is given."""
    given = {
        n: x.detach().clone().requires_grad_()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for n, x in arguments.items()
    }
    return any(x.requires_grad for x in leaves(function(**given)))


def no_excuse(
    word: str, owner: str, functions: Mapping[str, FunctionType], calls: Iterable[Call]
) -> str:
    """Why a duty that was declared away is owed all the same; empty where it is not."""
    if word not in EXCUSED:
        return "is owed by every function"
    for call in calls:
        if not belongs(call.name, owner):
            continue
        if word == "refusal" and call.refused:
            return "can be shown: it raises ValueError in a declared test"
        if word == "invariance" and any(leaves(x) for x in call.arguments.values()):
            return "is owed by a function of tensors"
        if word != "gradient" or call.refused:
            continue
        if differentiable(functions[call.name], call.arguments):
            return "is owed: its result carries a gradient"
    return ""


def faults(
    room: str,
    names: Iterable[str],
    functions: Mapping[str, FunctionType],
    duties: Mapping[str, Mapping[str, list[Any]]],
    record: Record,
) -> list[str]:
    """Each duty of a room's functions that no test answers for, with what to do."""
    found: list[str] = []
    every = [call for done in record.values() for _, calls in done for call in calls]
    for owner, word in product(names, OWED[room]):
        row = duties.get(owner, {}).get(word, [])
        if not row:
            found.append(
                f"{room}.{owner} lacks the duty {word!r}: write a test and name it in the table "
                "DUTIES at the end of its test file (tests/algorithms/duties.py says how)"
            )
        for what in row:
            if isinstance(what, str):
                reason = no_excuse(word, owner, functions, every)
                said = f"{word!r} {reason}, but the table says {what!r}" if reason else ""
            else:
                done = [shows(word, owner, calls) for _, calls in record[Case(what, {}).name]]
                reason = "" if "" in done else done[0]
                said = f"{what.__name__} is to show {word!r}, but {reason}" if reason else ""
            if said:
                found.append(f"{room}.{owner}: {said}")
    return found
