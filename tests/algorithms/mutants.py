"""Mutants of every function on floor 0, made from its source, against the tests that answer for it.

    python -m tests.algorithms.mutants [FUNCTION ...]

prints the matrix mutant by test: ``x`` an assertion failed, ``!`` another error, ``.`` the test
passed. A row of dots is a survivor: the tests would not notice if the function were changed so.
"""

import ast
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from time import perf_counter
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import pytest
import torch

from tests.algorithms.duties import (
    Case,
    Record,
    compiled,
    definition,
    everything,
    house,
    replaced,
)

# Mutants that are no mistake, by function and change, and why nothing can tell them apart.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("centering", "first: chosen_N, rejected_N = rejected_N, chosen_N"): "a sum has no order",
    ("plackett_luce", "0.0 -> 1.0"): "what fills is cut off before any sum, if only it is finite",
    ("k2", "first: logp_BT, ref_logp_BT = ref_logp_BT, logp_BT"): "a square has no sign",
}

# A mutant may make a loop endless.
PATIENCE = 20.0
# Exchanged one for the other, as methods and as functions.
PARTNERS = {
    **{"sum": "mean", "max": "min", "maximum": "minimum", "any": "all", "amax": "amin"},
    **{"argmax": "argmin", "softmax": "log_softmax", "logsigmoid": "softplus", "cummax": "cummin"},
}
PARTNERS |= {other: one for one, other in PARTNERS.items()}
# Methods that can be left out: what they are called on takes their place.
DROPPED = (
    *("masked_fill", "clamp", "clamp_min", "clamp_max", "detach", "square", "sqrt", "exp", "expm1"),
    *("log", "log1p", "abs", "sign", "flip", "cumsum", "bool", "nan_to_num", "neg", "sigmoid"),
    *("softmax", "log_softmax", "reciprocal", "round", "float"),
)
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In},
}


class Mutant(NamedTuple):
    """A function with one change, told as it stands in the source."""

    function: str
    change: str
    code: CodeType


# --- making them ----------------------------------------------------------------------------------


class _Exchange(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().visit(node)


def exchanged(tree: ast.FunctionDef, old: ast.AST, new: ast.AST) -> ast.FunctionDef:
    """A copy of the tree with another node in the place of ``old``."""
    memo: dict[int, Any] = {}
    copy = deepcopy(tree, memo)
    _Exchange(memo[id(old)], new).visit(copy)
    return copy


def sites(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that can be changed: not prose, and not what an error says."""
    for child in ast.iter_child_nodes(node):
        prose = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if prose or isinstance(child, ast.Raise | ast.JoinedStr | ast.arguments):
            continue
        yield child
        if not _negative(child):
            yield from sites(child)


def _negative(node: ast.AST) -> bool:
    """A number below 0, which is one site and not two."""
    return isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)


def negated(value: ast.expr) -> ast.expr:
    """A result turned over: a list from behind, the first part of several, or minus it."""
    match value:
        case ast.Call(func=ast.Name(name), args=[first, *rest], keywords=more) if name[0].isupper():
            return ast.Call(value.func, [negated(first), *rest], more)
        case ast.Tuple(elts=[first, *rest]):
            return ast.Tuple([negated(first), *rest], ast.Load())
        case ast.List() | ast.ListComp():
            return ast.parse(f"({ast.unparse(value)})[::-1]", mode="eval").body
        case ast.Compare() | ast.BoolOp():
            return ast.UnaryOp(ast.Not(), value)
        case _:
            return ast.UnaryOp(ast.USub(), value)


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node by mistake."""
    match node:
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Name) or (
            value.id != "self"
        ):
            yield ast.Return(negated(value))
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(op)](), right)  # type: ignore[arg-type]
        case ast.BoolOp(op, values):
            yield ast.BoolOp(OPERATORS[type(op)](), values)  # type: ignore[arg-type]
        case ast.UnaryOp(ast.USub(), ast.Constant()):
            yield ast.Constant(0)
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                swapped = [*ops[:i], OPERATORS[type(op)](), *ops[i + 1 :]]
                yield ast.Compare(left, swapped, comparators)  # type: ignore[arg-type]
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Call():
            yield from _calls(node)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.If(test, [ast.Raise()], []):
            yield ast.Pass()
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case _:
            pass


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    match node:
        case ast.Call(ast.Attribute(_, "where"), [_, one, other]):
            yield from (one, other)
        case ast.Call(ast.Attribute(owner, name) as function):
            if name in PARTNERS:
                partner = ast.Attribute(owner, PARTNERS[name], function.ctx)
                yield ast.Call(partner, node.args, node.keywords)
            if name in DROPPED and ast.unparse(owner) not in ("torch", "F", "math"):
                yield owner
            elif name in DROPPED and node.args:
                yield node.args[0]
        case ast.Call(ast.Name(name)):
            if name in ("min", "max", "any", "all"):
                yield ast.Call(ast.Name(PARTNERS[name], ast.Load()), node.args, node.keywords)
            if name in ("reversed", "sorted", "abs"):
                yield node.args[0]
        case _:
            pass


def openings(function: FunctionType) -> Iterator[str]:
    """Statements that, put in front of a function, exchange or drop what it was given."""
    notes = function.__annotations__
    code = function.__code__
    names = [n for n in code.co_varnames[: code.co_argcount] if n != "self"]
    if len(names) > 1 and notes.get(names[0]) == notes.get(names[1]):
        yield f"{names[0]}, {names[1]} = {names[1]}, {names[0]}"
    keywords = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
    for name in (*names, *keywords):
        kind = notes.get(name)
        if kind is bool:
            yield f"{name} = not {name}"
        elif kind is int:
            yield f"{name} = {name} + 1"
        elif kind is float:
            yield f"{name} = 1.0"
        elif type(None) in getattr(kind, "__args__", ()):
            yield f"{name} = None"


def shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else text[:87] + "..."


def mutants_of(name: str, function: FunctionType) -> list[Mutant]:
    """Every mutant of a function; changes that read alike are numbered."""
    tree = definition(function)
    found = [("first: " + line, _opened(tree, line)) for line in openings(function)]
    for node in sites(tree):
        for variant in variants(node):
            change = f"{shown(node)} -> {shown(variant)}"
            found.append((change, exchanged(tree, node, variant)))
    counts: dict[str, int] = {}
    mutants: list[Mutant] = []
    for change, broken in found:
        counts[change] = counts.get(change, 0) + 1
        again = f" ({counts[change]})" if counts[change] > 1 else ""
        mutants.append(Mutant(name, change + again, compiled(broken)))
    return mutants


def _opened(tree: ast.FunctionDef, line: str) -> ast.FunctionDef:
    copy = deepcopy(tree)
    copy.body[:0] = ast.parse(line).body
    return copy


# --- trying them ----------------------------------------------------------------------------------


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("the mutant does not end")


def outcome(mutant: Mutant, function: FunctionType, tries: Iterable[Case]) -> str:
    """``x`` where an assertion fails, ``!`` for another error, ``.`` where all cases pass."""
    before = signal.signal(signal.SIGALRM, _too_long)
    with replaced(function, mutant.code), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            for case in tries:
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
                case.test(**case.values)
        except (AssertionError, pytest.fail.Exception):
            return "x"
        except pytest.skip.Exception:
            return "."
        except Exception:
            return "!"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return "."


class Row(NamedTuple):
    """A mutant and what each test made of it."""

    mutant: Mutant
    cells: dict[str, str]

    @property
    def survives(self) -> bool:
        return "x" not in self.cells.values() and "!" not in self.cells.values()


def reaching(
    name: str, record: Record, tests: Iterable[str] | None = None
) -> dict[str, list[Case]]:
    """The cases, by test, in which a function is called; of the named tests alone if given."""
    found: dict[str, list[Case]] = {}
    for test in record if tests is None else tests:
        hits = [case for case, calls in record[test] if any(c.name == name for c in calls)]
        if hits:
            found[test] = hits
    return found


def matrix(
    name: str, function: FunctionType, tests: Mapping[str, list[Case]], *, whole: bool = True
) -> list[Row]:
    """Each mutant against each test; unless it is to be ``whole``, only until one test kills it.

    A result that is turned over meets every test all the same: `toothless` asks for it.
    """
    rows: list[Row] = []
    for mutant in mutants_of(name, function):
        row = Row(mutant, {})
        for test, tries in tests.items():
            if whole or row.survives or turned(mutant):
                row.cells[test] = outcome(mutant, function, tries)
        rows.append(row)
    return rows


def turned(mutant: Mutant) -> bool:
    return mutant.change.startswith("return ")


def answering(name: str) -> dict[str, list[Case]]:
    """The declared tests of a function; of a helper, all declared ones that reach it."""
    _, duties, record = house()
    owner = name.partition(".")[0]
    if owner not in duties:
        return reaching(name, record)
    tests = [t for row in duties[owner].values() for t in row if callable(t)]
    return reaching(name, record, dict.fromkeys(Case(t, {}).name for t in tests))


def survivors(rows: Iterable[Row]) -> list[str]:
    """Mutants that no test kills and no reason excuses, and reasons that excuse nothing."""
    rows = list(rows)
    found = [
        f"{row.mutant.function} survives: {row.mutant.change}"
        for row in rows
        if row.survives and row.mutant[:2] not in EQUIVALENT
    ]
    alive = {row.mutant[:2] for row in rows if row.survives}
    here = {row.mutant.function for row in rows}
    idle = [key for key in EQUIVALENT if key[0] in here and key not in alive]
    return found + [f"EQUIVALENT excuses what is killed or not made: {key}" for key in idle]


def toothless(name: str, rows: Iterable[Row], duties: Mapping[str, list[Any]]) -> list[str]:
    """Duties whose tests do not notice by themselves that the function is turned over."""
    signs = [row for row in rows if turned(row.mutant) and row.mutant[:2] not in EQUIVALENT]
    found: list[str] = []
    for word in ("golden", "bite", "gradient", "loop", "library"):
        named = [Case(t, {}).name for t in duties.get(word, ()) if callable(t)]
        for row in signs:
            tests = [test for test in named if test in row.cells]
            if tests and not any(row.cells[test] in "x!" for test in tests):
                change = row.mutant.change
                found.append(f"{name}: {word!r} is to be shown by {tests}, which pass at {change}")
    return found


def drawn(name: str, rows: Iterable[Row]) -> str:
    rows = list(rows)
    tests = list(rows[0].cells) if rows else []
    lines = [f"== {name}", *(f"   {i}: {test}" for i, test in enumerate(tests))]
    for row in rows:
        excuse = EQUIVALENT.get(row.mutant[:2], "SURVIVES") if row.survives else ""
        cells = "".join(row.cells.values())
        lines.append(f"   {cells}  {row.mutant.change}" + (f"   [{excuse}]" if excuse else ""))
    return "\n".join(lines)


def mutated() -> list[str]:
    """The functions that are put to this test, private ones too."""
    return list(everything("truing.algorithms"))


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    start, functions = perf_counter(), house()[0]
    bad: list[str] = []
    count = 0
    for name in names or mutated():
        rows = matrix(name, functions[name], answering(name))
        print(drawn(name, rows), flush=True)
        bad += survivors(rows) + toothless(name, rows, house()[1].get(name.split(".")[0], {}))
        count += len(rows)
    print(f"{count} mutants, {len(bad)} faults, {perf_counter() - start:.0f} s", *bad, sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
