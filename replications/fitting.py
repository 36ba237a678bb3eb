"""Fitting to samples."""

from collections.abc import Callable

import torch
from torch import Tensor


def fitted(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where ``loss``, a mean, is least, by L-BFGS: to the digits that matter beside the noise of
    samples. `truing.conformance.spaces.least` goes on to rounding, which takes many times longer.
    """
    point = start.detach().clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [point],
        max_iter=300,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def step() -> Tensor:
        solver.zero_grad()
        total = loss(point)
        total.backward()
        return total

    solver.step(step)
    return point.detach()
