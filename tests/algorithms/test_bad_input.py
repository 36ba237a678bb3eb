"""What no function on floor 0 takes: probes made from the arguments of its own tests.

Names carry shapes (``logp_BT``), and so say which sides of two tensors are one: each such side is
cut in one of them. Numbers become NaN, masks empty, groups single. What comes back must be a
ValueError that says what came, or a reason in one of the tables here.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.algorithms.duties import house, public
from truing.algorithms import dpo, whiten

# A mask of zeros that means something, and what.
EMPTY = {
    "sequence_sum": "the sum of no token is 0",
    "sequence_mean": "the mean of no token is 0, as its docstring says",
    "gae": "an episode without a step has no advantage, nor anything that is paid for one",
}
# Numbers that may be 0 or less, though others of their name must not.
SIGNED: dict[tuple[str, str], str] = {}
# A single response to a prompt, or a ranking of one, that means something.
SINGLE: dict[str, str] = {}

Arguments = dict[str, Any]


class Probe(NamedTuple):
    """Arguments that no function should take, and a word that the refusal must contain."""

    what: str
    arguments: Arguments
    said: str


def sides(name: str, x: Tensor) -> list[str]:
    """The letters of a tensor's sides, ``logp_BT`` -> B, T; by number where they do not fit."""
    letters = name.rpartition("_")[2]
    if letters.isupper() and len(letters) == x.dim():
        return list(letters)
    return [str(side) for side in range(x.dim())]


def tensors(arguments: Arguments) -> dict[str, Tensor]:
    return {n: x for n, x in arguments.items() if isinstance(x, Tensor) and x.dim()}


def shapes(arguments: Arguments) -> Iterator[Probe]:
    given = tensors(arguments)
    for name, x in given.items():
        for side, letter in enumerate(sides(name, x)):
            shared = [n for n, y in given.items() if letter in sides(n, y)]
            if len(shared) > 1 and x.shape[side] > 1:
                for size in sorted({1, x.shape[side] - 1}):
                    cut = arguments | {name: x.narrow(side, 0, size)}
                    yield Probe(f"{name} cut to {size} along {letter}", cut, str(size))


def numbers(name: str, arguments: Arguments) -> Iterator[Probe]:
    for key, value in arguments.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Probe(f"{key} nan", arguments | {key: math.nan}, "nan")
            for wrong in (0.0, -1.0) if key in ("beta", "clip") else ():
                if (name, key) not in SIGNED:
                    yield Probe(f"{key} {wrong}", arguments | {key: wrong}, str(wrong))


def masks(name: str, arguments: Arguments) -> Iterator[Probe]:
    for key, x in tensors(arguments).items():
        if key.startswith("mask") and name not in EMPTY:
            yield Probe(f"{key} of zeros", arguments | {key: torch.zeros_like(x)}, "")


def groups(name: str, arguments: Arguments) -> Iterator[Probe]:
    given = tensors(arguments)
    for letter in "GK" if name not in SINGLE else "":
        cut = {n: x for n, x in given.items() if sides(n, x)[-1:] == [letter]}
        if cut:
            single = {n: x.narrow(-1, 0, 1) for n, x in cut.items()}
            yield Probe(f"{letter} of one", arguments | single, "1")


def probes(name: str, arguments: Arguments) -> list[Probe]:
    found = [*shapes(arguments), *numbers(name, arguments)]
    return [*found, *masks(name, arguments), *groups(name, arguments)]


def odd(arguments: Arguments) -> list[Probe]:
    """What may have a meaning or may not, and is refused in words if it has none."""
    given = tensors(arguments)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "nothing": lambda x: x[:0],
        "a side less": lambda x: x[0],
        "scalars": lambda x: x.flatten()[0],
        "a side more": lambda x: x[None],
        "no column": lambda x: x[..., :0],
    }
    return [
        Probe(what, arguments | {n: form(x) for n, x in given.items()}, "")
        for what, form in forms.items()
    ]


def taken(function: Callable[..., Any], tried: list[Probe]) -> list[str]:
    """Probes that are not refused with a ValueError that says what came."""
    found: list[str] = []
    for probe in tried:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                function(**probe.arguments)
        except ValueError as error:
            if probe.said not in str(error):
                found.append(f"{probe.what}: does not say {probe.said!r}: {error}")
        except Exception as error:
            found.append(f"{probe.what}: {type(error).__name__}: {error}")
        else:
            found.append(f"{probe.what}: taken")
    return found


def size(arguments: Arguments) -> int:
    return sum(x.numel() for x in tensors(arguments).values())


def example(name: str) -> Arguments | None:
    """The arguments with which the tests call a function that hold most tensors, large ones."""
    calls = [c for done in house()[2].values() for _, calls in done for c in calls]
    taken = [c.arguments for c in calls if c.name == name and not c.refused]
    taken = [a for a in taken if tensors(a)]
    return max(taken, key=lambda a: (len(tensors(a)), size(a)), default=None)


FUNCTIONS = public("truing.algorithms")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_is_refused(name: str) -> None:
    arguments = example(name)
    if arguments is None:
        assert all(not tensors(a) for a in _all_arguments(name)), "no example was found"
        return
    assert taken(house()[0][name], probes(name, arguments)) == []


def _all_arguments(name: str) -> list[Arguments]:
    calls = [c for done in house()[2].values() for _, calls in done for c in calls]
    return [c.arguments for c in calls if c.name.partition(".")[0] == name]


def hidden(function: Callable[..., Any], arguments: Arguments) -> list[str]:
    """Tensors that may be all NaN without a word and without a NaN in the result."""
    found: list[str] = []
    for key, x in tensors(arguments).items():
        if not x.is_floating_point() or key.startswith("mask"):
            continue
        try:
            result = function(**(arguments | {key: torch.full_like(x, math.nan)}))
        except ValueError as error:
            if not re.search("nan|finite", str(error)):
                found.append(f"{key}: {error}")
            continue
        first = result if isinstance(result, Tensor) else result[0]
        if not bool(first.isnan().any()):
            found.append(f"{key} is hidden")
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_odd_shapes_mean_something_or_are_refused(name: str) -> None:
    arguments = example(name)
    found = taken(house()[0][name], odd(arguments)) if arguments else []
    assert [line for line in found if not line.endswith(": taken")] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_is_refused_or_stays(name: str) -> None:
    """A tensor of NaN goes through, for the training loop to stop at, or is refused: not hidden."""
    assert hidden(house()[0].get(name, dpo), example(name) or {}) == []


def test_the_probes_bite() -> None:
    two, on = torch.zeros(3, 4), torch.ones(3, 4)

    def careless(x_BT: Tensor, mask_BT: Tensor, *, beta: float) -> Tensor:
        return beta * (x_BT * mask_BT).sum(-1)

    tried = probes("careless", {"x_BT": two, "mask_BT": on, "beta": 0.5})
    assert len(tried) == 2 * 4 + 3 + 1
    found = taken(careless, tried)
    assert len(found) == len(tried)
    assert "mask_BT cut to 1 along T: taken" in found
    assert any(line.startswith("x_BT cut to 2 along B: RuntimeError") for line in found)
    # One that is refused is told so, and one that says too little is not enough.
    assert taken(whiten, masks("whiten", {"x_BT": two, "mask_BT": on})) == []

    def mute(*_: Any, **__: Any) -> None:
        raise ValueError("wrong")

    assert "does not say 'nan'" in taken(mute, tried)[8]
    pair = {"x_BT": two, "mask_BT": on}
    assert hidden(lambda x_BT, mask_BT: x_BT.nan_to_num(), pair) == ["x_BT is hidden"]
    assert hidden(mute, pair) == ["x_BT: wrong"]
    assert hidden(whiten, pair) == []


def test_sides_are_read_off_names() -> None:
    assert sides("logits_BTV", torch.zeros(2, 3, 4)) == ["B", "T", "V"]
    assert sides("logp_BT", torch.zeros(3)) == sides("x", torch.zeros(3)) == ["0"]
    # The vocabulary belongs to the logits alone: it may have any size.
    pair = {"logits_BTV": torch.zeros(2, 3, 4), "target_BT": torch.zeros(2, 3)}
    assert not any("along V" in probe.what for probe in shapes(pair))
    group = {"reward_PG": torch.zeros(3, 4)}
    assert [p.what for p in probes("f", group)] == ["G of one"]


def test_reasons_are_for_what_is_taken() -> None:
    """Each entry of the tables is of what a function does take, with a result that means it."""
    assert len([probe for n in FUNCTIONS for probe in probes(n, example(n) or {})]) > 200
    functions = house()[0]
    for name, reason in EMPTY.items():
        arguments = example(name)
        assert arguments is not None
        blank = {n: 0 * x for n, x in tensors(arguments).items() if n.startswith("mask")}
        assert bool((functions[name](**(arguments | blank)) == 0).all()), reason
    for name, reason in SINGLE.items():
        (probe,) = groups("", example(name) or {})
        assert functions[name](**probe.arguments) is not None, reason
    for (name, key), reason in SIGNED.items():
        assert functions[name](**((example(name) or {}) | {key: 0.0})) is not None, reason
