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
    flat = accelerator.reduce(_together(sums).to(accelerator.device), reduction="sum")
    return {name: (flat[i, 0], flat[i, 1]) for i, name in enumerate(sums)}  # pyright: ignore


def means(sums: Sums) -> dict[str, float]:
    """The metrics; one that nothing counted for is left out, since 0 would be a figure."""
    both = _together(sums).tolist() if sums else []
    return {name: total / n for name, (total, n) in zip(sums, both, strict=True) if n}


def _together(sums: Sums) -> Tensor:
    """Sums and counts (N, 2) as float64 on the CPU; those of a GPU are awaited once."""
    each = [number.detach().reshape(()) for pair in sums.values() for number in pair]
    floats = [number if number.is_floating_point() else number.float() for number in each]
    far = [i for i, number in enumerate(floats) if number.device.type != "cpu"]
    if far:
        device = floats[far[0]].device
        read = torch.stack([floats[i].to(device) for i in far]).cpu()
        for i, number in zip(far, read, strict=True):
            floats[i] = number
    return torch.stack([number.double() for number in floats]).view(-1, 2)


def stat(
    values: Tensor, weight: Tensor | None = None, *, on: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum and count of some values, for a metric that is their (weighted) mean; of those alone
    that a mask says are ``on``."""
    values = values.detach()
    if on is not None:
        # To take them out, how many there are would be asked of a GPU first, which takes waiting.
        return values.masked_fill(~on, 0.0).sum(), on.sum().float()
    if weight is None:
        # Made where the values are, for to send it there would wait for a GPU too.
        return values.sum(), torch.full((), float(values.numel()), device=values.device)
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
