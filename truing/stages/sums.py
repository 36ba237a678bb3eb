"""Metrics on their way: sums and counts, which micro-batches and ranks just add up."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from truing.data.layout import Layout

# A metric's sum and the count it is a mean over.
Sums = dict[str, tuple[Tensor, Tensor]]


def add_sums(into: Sums, more: Sums) -> None:
    for name, (total, count) in more.items():
        old = into.get(name)
        into[name] = (total, count) if old is None else (old[0] + total, old[1] + count)


def gather_sums(accelerator: Accelerator, sums: Sums) -> Sums:
    """The sums of all ranks together."""
    if accelerator.num_processes == 1:
        return sums
    flat = torch.stack([torch.stack([t.float(), c.float()]) for t, c in sums.values()])
    flat = accelerator.reduce(flat, reduction="sum")
    return {name: (flat[i, 0], flat[i, 1]) for i, name in enumerate(sums)}  # pyright: ignore


def means(sums: Sums) -> dict[str, float]:
    """The metrics; one that nothing counted for is left out, since 0 would be a figure."""
    return {name: float(total) / float(n) for name, (total, n) in sums.items() if float(n)}


def stat(values: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum and count of some values, for a metric that is their (weighted) mean."""
    values = values.detach()
    if weight is None:
        return values.sum(), torch.tensor(float(values.numel()), device=values.device)
    return (values * weight).sum(), weight.sum()


def of_layouts(layouts: Iterable[Layout], world: int) -> Sums:
    """What a rank's layouts of one step held: tokens, the share of the cells that held none, and
    tokens of prompts that were not read again. The first and last are sums over all ranks."""
    tokens = cells = saved = 0
    for layout in layouts:
        tokens, cells = tokens + layout.tokens, cells + layout.cells
        saved += layout.saved
    one = torch.ones(()) / world
    return {
        "tokens/forwarded": (torch.tensor(float(tokens)), one),
        "tokens/filling": (torch.tensor(float(cells - tokens)), torch.tensor(float(cells))),
        "tokens/prefix_saved": (torch.tensor(float(saved)), one),
    }
