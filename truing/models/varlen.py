"""Attention of texts that lie one behind the other, on a GPU: all spans of a row in one call.

torch's flash kernel reads pieces of any lengths in one launch, and where it is causal it counts
from the end of queries and keys alike. So a span (`truing.data.layout.spans`) is a piece of
queries, and its keys are those of the prompt that it looks at elsewhere, copied in front of its
own.

The kernel has 16-bit formats only: `fits` says where.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from truing.data.layout import Numbers, sent
from truing.models.precision import HALF

_forward: Any = torch.ops.aten._flash_attention_forward
_backward: Any = torch.ops.aten._flash_attention_backward


class Pieces(NamedTuple):
    """Pieces of a row: where each begins, and the last ends, (N + 1,) int32; most tokens of one."""

    begins: Tensor
    longest: int

    @classmethod
    def of(cls, sizes: Sequence[int] | Numbers, device: torch.device) -> "Pieces":
        begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return cls(sent(torch.from_numpy(begins), device), int(max(sizes, default=0)))


class Plan(NamedTuple):
    """The call that a table of spans comes to: pieces of queries and of keys. Where a prompt is
    looked at from elsewhere, ``keys_K`` are the cells whose keys are read, one behind the other:
    ``own_N`` says where each cell's own key stands there, ``copies_C`` where the further ones do,
    and ``copied_C`` of which cells those are, some ``often`` more than once."""

    queries: Pieces
    keys: Pieces
    keys_K: Tensor | None = None
    own_N: Tensor | None = None
    copies_C: Tensor | None = None
    copied_C: Tensor | None = None
    often: bool = False

    @classmethod
    def of(cls, table: Tensor, device: torch.device) -> "Plan":
        start_S, stop_S, top_S, end_S = table[0, 0].numpy().T
        queries = Pieces.of(stop_S - start_S, device)
        if not end_S.any():
            return cls(queries, queries)
        runs = np.stack([top_S, end_S, start_S, stop_S], 1).reshape(-1, 2)
        read = np.concatenate([np.arange(*run) for run in runs])
        own = np.repeat(np.arange(len(runs)) % 2 == 1, runs[:, 1] - runs[:, 0])
        places = read, own.nonzero()[0], (~own).nonzero()[0], read[~own]
        often = len(read[~own]) > len(np.unique(read[~own]))
        keys = Pieces.of(stop_S - start_S + end_S - top_S, device)
        keys_K, own_N, copies_C, copied_C = (sent(torch.from_numpy(x), device) for x in places)
        return cls(queries, keys, keys_K, own_N, copies_C, copied_C, often)


# Every layer of a pass has the same table: its plan is made, and sent to the device, once.
_plans = WeakTensorKeyDictionary()


def plan_of(table: Tensor, device: torch.device) -> Plan:
    """The plan of a table of spans."""
    found: Any = _plans.get(table)
    if found is None or found.queries.begins.device != device:
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
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What the queries of each piece see of the keys of its fellow up to themselves, the last of
    both being the same cell: (N, H, D), and the logarithms of their sums, (H, N) in float32. H is a
    multiple of G."""
    places = queries.begins, keys.begins, queries.longest, keys.longest
    seen, total, *_ = _forward(
        query_NHD, key_MGD, value_MGD, *places, 0.0, True, False, scale=scale
    )
    return seen, total


def seen_of(
    query_NHD: Tensor, key_NGD: Tensor, value_NGD: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor]:
    """What the cells of a row see by a plan, and the logarithms of their sums, as of `look`."""
    read = key_NGD, value_NGD
    if plan.keys_K is not None:
        read = key_NGD[plan.keys_K], value_NGD[plan.keys_K]
    return look(query_NHD, *read, plan.queries, plan.keys, scale=scale)


def slopes_of(
    ahead_NHD: Tensor,
    query_NHD: Tensor,
    key_NGD: Tensor,
    value_NGD: Tensor,
    seen_NHD: Tensor,
    total_HN: Tensor,
    plan: Plan,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value from that of what is seen, with what `seen_of` gave."""
    if plan.keys_K is not None:
        key_NGD, value_NGD = key_NGD[plan.keys_K], value_NGD[plan.keys_K]
    places = plan.queries.begins, plan.keys.begins, plan.queries.longest, plan.keys.longest
    # The state of random numbers, which without dropout is not read.
    nothing = _state(seen_NHD.device), seen_NHD.new_empty(0)
    of_query, *others = _backward(
        ahead_NHD.contiguous(), query_NHD, key_NGD, value_NGD, seen_NHD, total_HN, *places, 0.0,
        True, *nothing, scale=scale,
    )  # fmt: skip
    of_key, of_value = (_gathered(slope, plan) for slope in others)
    return of_query, of_key, of_value


@cache
def _state(device: torch.device) -> Tensor:
    return torch.zeros(2, dtype=torch.uint64, device=device)


class Varlen(torch.autograd.Function):
    """Attention by spans: queries (N, H, D), keys and values (N, G, D) -> (N, H, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float
    ) -> Tensor:
        seen, total = seen_of(query, key, value, plan, scale)
        ctx.save_for_backward(query, key, value, seen, total)
        ctx.plan, ctx.scale = plan, scale
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, seen, total = ctx.saved_tensors
        told = query, key, value, seen, total, ctx.plan, ctx.scale
        return *slopes_of(grads[0], *told), None, None


def _gathered(slope_KGD: Tensor, plan: Plan) -> Tensor:
    """The gradient of all cells' keys, from that of the keys that were read."""
    if plan.own_N is None or plan.copies_C is None or plan.copied_C is None:
        return slope_KGD
    own_NGD, more_CGD = slope_KGD[plan.own_N], slope_KGD[plan.copies_C]
    if not plan.often:
        return own_NGD.index_add_(0, plan.copied_C, more_CGD)
    # Of many, 16 bits would lose what each adds.
    exact = torch.promote_types(own_NGD.dtype, torch.float32)
    total_NGD = own_NGD.to(exact).index_add_(0, plan.copied_C, more_CGD.to(exact))
    return total_NGD.to(own_NGD.dtype)
