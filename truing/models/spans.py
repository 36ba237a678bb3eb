"""Attention over the spans of a row on a CPU with AVX-512: `spans.c`, all spans and heads at once.

torch's kernel does the same a span at a time, which takes longer, and for keys of fewer heads than
queries have it needs copies. Both ways sum in float32.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truing.models.native import built, call

SOURCE = Path(__file__).with_name("spans.c")
# Heads are read in registers of 16 numbers; of wider ones a block would not stay in the cache.
LANES, WIDEST = 16, 256
_library = partial(built, SOURCE)


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `Spans` computes with query (1, H, N, D), key and value (1, G, N, D)."""
    kind, (heads, _, width) = query.dtype, query.shape[1:]
    alike = all(x.device.type == "cpu" and x.dtype == kind for x in (query, key, value))
    return (
        alike
        and key.shape == value.shape
        and heads % key.shape[1] == 0
        and width % LANES == 0
        and 0 < width <= WIDEST
        and _library(kind) is not None
    )


def _given(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, late: Tensor | None, scale: float
) -> list[Any]:
    """What both ways of `spans.c` are given behind their own."""
    laid = [(x, x.stride(1), x.stride(2)) for x in (query, key, value)]
    heads, cells, width = query.shape[1:]
    begins = 0 if late is None else late
    sizes = table.shape[2], heads, key.shape[1], cells, width
    return [
        *(x for one in laid for x in one),
        table,
        begins,
        *sizes,
        scale,
        torch.get_num_threads(),
    ]


class Spans(torch.autograd.Function):
    """query (1, H, N, D), key and value (1, G, N, D), each shared by H / G heads, and the table
    (1, 1, S, 4) of their spans -> (1, N, H, D); of each span, with ``late`` (S,), from so many
    queries on alone: what is seen before them, and what its gradient comes to, is anything."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor,
        scale: float,
        late: Tensor | None = None,
    ) -> Tensor:
        # A head's numbers must lie side by side.
        query, key, value = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)
        )
        table = table.contiguous()
        one, heads, cells, width = query.shape
        seen = query.new_empty(one, cells, heads, width)
        total = query.new_empty(heads, cells, dtype=torch.float32)
        given = _given(query, key, value, table, late, scale)
        if not call(_library(query.dtype).see, seen, total, *given):
            raise MemoryError("no memory for attention")
        ctx.save_for_backward(query, key, value, table, seen, total)
        ctx.scale, ctx.late = scale, late
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, table, seen, total = ctx.saved_tensors
        shapes = [x.transpose(1, 2).shape for x in (query, key, value)]
        into = [torch.empty(shape, dtype=torch.float32) for shape in shapes]
        tensors = *into, grads[0].contiguous(), seen, total
        given = _given(query, key, value, table, ctx.late, ctx.scale)
        if not call(_library(query.dtype).see_back, *tensors, *given):
            raise MemoryError("no memory for attention's gradients")
        return *(x.to(query.dtype).transpose(1, 2) for x in into), None, None, None
