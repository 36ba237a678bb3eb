"""A function of the user's in the place of ours: one signature for each stage, and its rows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from truing.conformance import checks, scores
from truing.conformance.direct import DIRECT
from truing.conformance.online import RIGHT, Knobs
from truing.conformance.rows import FIXED, Check
from truing.conformance.spaces import fixed, forest, tree
from truing.conformance.unit import UNITS, Function, Unit

Rows = Callable[..., Iterator[Check]]


class Kind(NamedTuple):
    """What a function stands against. ``takes``: its signature; ``unit``: the numbers it is first
    tried with; ``rows``: its checks, ``rows(name, function, quick=...)``."""

    takes: str
    unit: Unit
    rows: Rows


def only_unit(name: str, function: Function, *, quick: bool, against: str) -> Iterator[Check]:
    yield checks.unit_check(name, function, UNITS[against][1])


def direct_rows(name: str, function: Function, *, quick: bool, against: str) -> Iterator[Check]:
    yield from only_unit(name, function, quick=quick, against=against)
    yield from checks.direct_checks(name, DIRECT[against]._replace(loss=function))


# On all judgements, and how each may be put together wrongly.
JUDGED: dict[str, tuple[Callable[..., Tensor], dict[str, dict[str, Any]], bool]] = {
    "bradley_terry": (
        scores.pairs,
        {"pair swapped": {"swapped": True}, "differences doubled": {"scale": 2.0}},
        False,
    ),
    "soft_bradley_terry": (
        scores.labelled,
        {"label of the other side": {"label": lambda p: 1 - p}},
        False,
    ),
    "plackett_luce": (scores.orders, {"order turned over": {"turned": True}}, False),
    "regression": (scores.rated, {}, True),
}


def reward_rows(name: str, function: Function, *, quick: bool, against: str) -> Iterator[Check]:
    yield from only_unit(name, function, quick=quick, against=against)
    of, wrong, constant = JUDGED[against]
    far = partial(scores.distance, constant=constant)
    broken = {
        what: partial(far, partial(of, loss=function, **turn)) for what, turn in wrong.items()
    }
    broken["the score of another response"] = partial(
        far, lambda score_K: of(score_K.roll(1), loss=function)
    )
    yield Check(
        f"{name}, five responses",
        "population",
        "the true scores" + ("" if constant else ", up to a constant"),
        FIXED,
        partial(far, partial(of, loss=function)),
        broken,
    )


def online_rows(
    name: str, function: Function, *, quick: bool, against: str, kind: str, part: str
) -> Iterator[Check]:
    yield from only_unit(name, function, quick=quick, against=against)
    base: Knobs = RIGHT._replace(**{part: function})
    if part != "surrogate":
        yield from (checks.at_optimum(name, kind, make(), base) for make in (tree, fixed, forest))
    yield checks.sampled(name, kind, tree(), base, quick=quick)


DIRECT_TAKES = (
    "fn(logp_chosen_B, logp_rejected_B, ref_logp_chosen_B, ref_logp_rejected_B, *, beta) -> loss_B"
)
TAKES: dict[str, tuple[str, Rows]] = {
    "bradley_terry": ("fn(score_chosen_B, score_rejected_B) -> loss_B", reward_rows),
    "soft_bradley_terry": (
        "fn(score_first_B, score_second_B, p_first_wins_B) -> loss_B",
        reward_rows,
    ),
    "plackett_luce": ("fn(score_PK, rank_PK) -> loss_P, rank 0 being the best", reward_rows),
    "regression": ("fn(score_B, rating_B) -> loss_B", reward_rows),
    "gae": (
        "fn(reward_BT, value_BT, mask_BT, *, gamma, lam) -> advantage_BT",
        partial(online_rows, kind="ppo", part="estimate"),
    ),
    "rloo": (
        "fn(reward_PG) -> advantage_PG",
        partial(online_rows, kind="rloo", part="compare"),
    ),
    "ppo": (
        "fn(logp_BT, old_logp_BT, advantage_BT, *, clip) -> loss_BT",
        partial(online_rows, kind="ppo", part="surrogate"),
    ),
    "value": ("fn(value_BT, old_value_BT, return_BT, *, clip) -> loss_BT", only_unit),
}
KINDS: dict[str, Kind] = {
    **{name: Kind(DIRECT_TAKES, UNITS[name][1], direct_rows) for name in DIRECT if name in UNITS},
    "hinge": Kind(DIRECT_TAKES, UNITS["hinge"][1], only_unit),
    **{name: Kind(takes, UNITS[name][1], rows) for name, (takes, rows) in TAKES.items()},
}


def own_checks(name: str, function: Any, against: str, *, quick: bool) -> Iterator[Check]:
    """The checks of a function of the user's, once `tried`."""
    kind = KINDS[against]
    yield from kind.rows(name, tried(name, function, against), quick=quick, against=against)


def tried(name: str, function: Any, against: str) -> Function:
    """A function of the user's. Raises ValueError unless it takes what its place gives, gives one
    finite number for each row (or token), the same wherever that row stands, and lets gradients
    through where it is a loss."""
    kind = KINDS[against]
    unit = kind.unit
    leaves = [x.clone().requires_grad_() for x in unit.inputs[: len(unit.slopes)]]
    inputs = (*leaves, *unit.inputs[len(leaves) :])
    found = _called(name, function, kind, inputs)
    wanted = unit.value(*unit.inputs, **unit.options).shape
    if not isinstance(found, Tensor) or found.shape != wanted:
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        given = ", ".join(str(tuple(x.shape)) for x in unit.inputs)
        raise ValueError(
            f"{name} gave {came} for inputs of shapes {given}; needed: {tuple(wanted)}, one number "
            f"for each, unreduced: {kind.takes}"
        )
    if not bool(found.isfinite().all()):
        odd = found[~found.isfinite()][0].item()
        raise ValueError(f"{name} gave {odd} for ordinary numbers; needed: finite ones")
    if leaves and not found.requires_grad:
        raise ValueError(
            f"{name} gives a loss that no gradient leads out of: compute it from its inputs by "
            "torch operations, without detach(), item() or numpy"
        )
    turned = _called(name, function, kind, tuple(x.flip(0) for x in unit.inputs))
    if not torch.allclose(turned.flip(0).double(), found.detach().double(), atol=1e-6, rtol=0):
        raise ValueError(
            f"{name} gives a row another number when other rows stand elsewhere: what a row gets "
            "must not depend on its neighbours (a mean or deviation over the batch is a step of "
            "its own)"
        )
    return function


def _called(name: str, function: Any, kind: Kind, inputs: tuple[Tensor, ...]) -> Any:
    try:
        return function(*inputs, **kind.unit.options)
    except (TypeError, RuntimeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be called ({type(error).__name__}: {error}); needed: {kind.takes}"
        ) from error
