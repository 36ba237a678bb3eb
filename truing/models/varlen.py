"""Attention of texts that lie one behind the other, on a GPU: all spans of a row in two calls.

torch's flash kernel reads pieces of any lengths in one launch. So the spans of a row
(`truing.data.layout.spans`) are one call, each looking at itself, and those that look at a
prompt elsewhere a second one; the two are put together by the logarithms of their sums.

Source: as in `truing.models.attention`. The kernel has 16-bit formats only: `fits` says where.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from truing.models.precision import HALF

_forward: Any = torch.ops.aten._flash_attention_forward
_backward: Any = torch.ops.aten._flash_attention_backward


class Pieces(NamedTuple):
    """Pieces of a row: where each begins, and the last ends, (N + 1,) int32; most tokens of one."""

    begins: Tensor
    longest: int

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device) -> "Pieces":
        begins = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)
        return cls(begins, max(sizes, default=0))


class Plan(NamedTuple):
    """The calls that a table of spans comes to: ``own`` of all spans; then that of the cells
    ``asking_A``, in pieces, to the cells ``asked_P`` of their prompts, as many pieces."""

    own: Pieces
    asking_A: Tensor
    askers: Pieces
    asked_P: Tensor
    prompts: Pieces

    @classmethod
    def of(cls, table: Tensor, device: torch.device) -> "Plan":
        rows: list[list[int]] = table[0, 0].tolist()
        # Neighbours that look at the same prompt are one piece.
        looks = [(key, list(each)) for key, each in groupby(rows, lambda row: row[2:]) if key[1]]
        askers = [range(each[0][0], each[-1][1]) for _, each in looks]
        prompts = [range(*key) for key, _ in looks]

        def cells(pieces: Sequence[range]) -> tuple[Tensor, Pieces]:
            parts = [np.arange(piece.start, piece.stop) for piece in pieces]
            flat = torch.from_numpy(np.concatenate(parts or [np.arange(0)]))
            return flat.to(device), Pieces.of(list(map(len, pieces)), device)

        own = Pieces.of([stop - start for start, stop, *_ in rows], device)
        return cls(own, *cells(askers), *cells(prompts))


# Every layer of a pass has the same table: its plan is made, and sent to the device, once.
_plans = WeakTensorKeyDictionary()


def plan_of(table: Tensor, device: torch.device) -> Plan:
    """The plan of a table of spans."""
    found: Any = _plans.get(table)
    if found is None or found.own.begins.device != device:
        found = _plans[table] = Plan.of(table, device)
    return cast(Plan, found)


def fits(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel takes heads of this ``width`` in this number format on this device."""
    if device.type != "cuda" or dtype not in HALF or width % 8 or width > 256:
        return False
    made = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    return made and torch.cuda.get_device_capability(device) >= (8, 0)


def look(
    query_NHD: Tensor,
    key_MGD: Tensor,
    value_MGD: Tensor,
    queries: Pieces,
    keys: Pieces,
    *,
    causal: bool,
    scale: float,
    used: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the queries of each piece see of the keys of its fellow, (N, H, D), and the logarithms
    of their sums, (H, N) in float32. H is a multiple of G. ``used``: int32, how many keys of each
    piece count, where that is not up to the next one."""
    places = queries.begins, keys.begins, queries.longest, keys.longest
    seen, total, *_ = _forward(
        query_NHD, key_MGD, value_MGD, *places, 0.0, causal, False, scale=scale, seqused_k=used
    )
    return seen, total


def _slopes(
    ahead: Tensor, inputs: Sequence[Tensor], seen: Tensor, total: Tensor,
    queries: Pieces, keys: Pieces, *, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values of a `look`, where ``seen`` and ``total`` may hold more
    than it gave."""
    places = queries.begins, keys.begins, queries.longest, keys.longest
    # The state of random numbers, which without dropout is not read.
    nothing = torch.zeros(2, dtype=torch.uint64, device=seen.device), seen.new_empty(0)
    return _backward(ahead, *inputs, seen, total, *places, 0.0, causal, *nothing, scale=scale)


class Varlen(torch.autograd.Function):
    """Attention by spans: queries (N, H, D), keys and values (N, G, D) -> (N, H, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float
    ) -> Tensor:
        seen, total = look(query, key, value, plan.own, plan.own, causal=True, scale=scale)
        asking, asked = plan.asking_A, plan.asked_P
        if len(asking):
            parts = query[asking], key[asked], value[asked]
            places = plan.askers, plan.prompts
            other, more = look(*parts, *places, causal=False, scale=scale)
            seen[asking] = merged(seen[asking], total[:, asking], other, more)
            total[:, asking] = torch.logaddexp(total[:, asking], more)
        ctx.save_for_backward(query, key, value, seen, total)
        ctx.plan, ctx.scale = plan, scale
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, seen, total = ctx.saved_tensors
        plan, scale, ahead = ctx.plan, ctx.scale, grads[0].contiguous()
        inputs = query, key, value
        places = plan.own, plan.own
        own = _slopes(ahead, inputs, seen, total, *places, causal=True, scale=scale)
        asking, asked = plan.asking_A, plan.asked_P
        if len(asking):
            parts = query[asking], key[asked], value[asked]
            places = plan.askers, plan.prompts
            known = seen[asking], total[:, asking].contiguous()
            more = _slopes(ahead[asking], parts, *known, *places, causal=False, scale=scale)
            for into, where, slope in zip(own, (asking, asked, asked), more, strict=True):
                into[where] += slope  # no cell twice
        return *own, None, None


def merged(one_NHD: Tensor, total_HN: Tensor, other_NHD: Tensor, more_HN: Tensor) -> Tensor:
    """What was seen in two looks, as one: each by its share of the sum."""
    share_NH1 = torch.sigmoid(total_HN - more_HN).T.unsqueeze(-1)
    exact = share_NH1.dtype
    return torch.lerp(other_NHD.to(exact), one_NHD.to(exact), share_NH1).to(one_NHD.dtype)
