"""`truing conformance`: this package's losses, or one of your own, against exact optima."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from truing import console
from truing.conformance.checks import Check, Row, checks, direct_checks, found
from truing.conformance.direct import DIRECT, DirectLoss
from truing.conformance.spaces import draw
from truing.rewards import imported
from truing.settings import ConformanceConfig


def run(config: ConformanceConfig) -> list[Row]:
    """Measure and print every check. Raises ValueError where one fails."""
    asked: Iterable[Check] = checks(quick=config.quick)
    if config.module is not None:
        given = imported(config.module, "the loss", "log-probs of chosen and rejected responses")
        loss = tried(config.module, given)
        asked = direct_checks(config.module, DIRECT[config.against]._replace(loss=loss))
    rows = list(measured(asked))
    failed = [f"{row.check.algorithm} ({row.check.level})" for row in rows if not row.passed]
    if failed:
        raise ValueError(f"{len(failed)} of {len(rows)} checks failed: {', '.join(failed)}")
    console.say(f"[green]all {len(rows)} checks passed[/green]")
    return rows


def measured(asked: Iterable[Check]) -> Iterator[Row]:
    """The rows, each printed as soon as it is known."""
    console.say(
        f"[bold]{'algorithm':<30} {'level':<20}{'distance':>10}{'bar':>8}   nearest broken variant"
        "[/bold]"
    )
    for check in asked:
        start = time.monotonic()
        row = found(check)
        colour, word = ("green", "pass") if row.passed else ("red", "FAIL")
        console.say(
            f"{console.plain(check.algorithm):<30} {check.level:<20}{row.distance:>10.1e}"
            f"{check.bar:>8.0e}   {row.nearest} {row.nearest_distance:.1e}   "
            f"[{colour}]{word}[/{colour}] [dim]{time.monotonic() - start:.1f} s[/dim]"
        )
        console.say(f"  [dim]target: {console.plain(check.target)}[/dim]")
        yield row


def tried(name: str, function: Any) -> DirectLoss:
    """A loss of the user's. Raises ValueError unless it gives a loss for each pair, in float64, and
    the same for a pair wherever it stands."""
    rows = list(draw("probe", 4, 4))
    try:
        loss_B = function(*rows, beta=0.5)
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called ({error}); needed: fn(logp_chosen_B, logp_rejected_B, "
            "ref_logp_chosen_B, ref_logp_rejected_B, *, beta) -> loss_B"
        ) from None
    if not isinstance(loss_B, torch.Tensor) or loss_B.shape != rows[0].shape:
        came = tuple(loss_B.shape) if isinstance(loss_B, torch.Tensor) else type(loss_B).__name__
        raise ValueError(f"{name} gave {came} for 4 pairs; needed: one loss for each, unreduced")
    turned = function(*(row.flip(0) for row in rows), beta=0.5).flip(0)
    if not torch.allclose(turned, loss_B, atol=1e-12, rtol=0):
        raise ValueError(
            f"{name} gives a pair another loss when other pairs stand elsewhere: the loss of a "
            "pair must not depend on its neighbours"
        )
    return function
