"""`layers.c`: what `layers` computes on a CPU, in float32 and in bfloat16."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from truing.models.native import built, call

_library = partial(built, Path(__file__).with_name("layers.c"))


def fits(dtype: torch.dtype) -> bool:
    """Whether it could be built for numbers of this format."""
    return _library(dtype) is not None


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x (..., H) over its root mean square, times a weight (H,); and 1 over it (...)."""
    out, width = torch.empty_like(x), x.shape[-1]
    scale = x.new_empty(x.shape[:-1], dtype=torch.float32)
    sizes = scale.numel(), width, torch.get_num_threads()
    call(_library(x.dtype).norm, out, scale, x, weight, epsilon, *sizes)
    return out, scale


def norm_back(ahead: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight of a `norm`."""
    into, threads = torch.empty_like(x), torch.get_num_threads()
    parts = torch.zeros(threads, len(weight))
    sizes = scale.numel(), len(weight), threads
    call(_library(x.dtype).norm_back, into, parts, ahead, scale, x, weight, *sizes)
    return into, parts.sum(0).to(weight.dtype)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both of one shape."""
    out = torch.empty_like(gate)
    call(_library(gate.dtype).gate, out, gate, up, gate.numel(), torch.get_num_threads())
    return out


def gate_back(
    ahead: Tensor, gate: Tensor, up: Tensor, *, again: bool = False
) -> tuple[Tensor, ...]:
    """The gradients of both inputs of a `gate`; with ``again`` its output as well."""
    outs = [torch.empty_like(gate) for _ in range(3 if again else 2)]
    sizes = gate.numel(), torch.get_num_threads()
    told = *outs[:2], outs[2] if again else 0, ahead, gate, up
    call(_library(gate.dtype).gate_back, *told, *sizes)
    return tuple(outs)


def turn(xs: Sequence[Tensor], cosine: Tensor, sine: Tensor, *, back: bool) -> list[Tensor]:
    """Heads (B, N, heads, D), of each as many as it has, turned by angles whose cosines and sines
    are (B, N, D); ``back`` is the gradient's way."""
    outs = [torch.empty_like(x) for x in xs]
    for out, x in zip(outs, xs, strict=True):
        heads, dim = x.shape[2:]
        sizes = cosine.numel() // dim, heads, dim // 2, int(back), torch.get_num_threads()
        call(_library(x.dtype).rotate, out, x, cosine, sine, *sizes)
    return outs
