"""Attention over one row of many texts, span by span: no filling, no mask, nothing computed twice.

transformers hands whatever 4-dimensional mask it is given to each layer's attention function, as it
is. In place of a mask it is given a table of integers (1, 1, S, 4), by `truing.data.layout.spans`:
a span's first cell, the cell behind its last, and the same of the prompt in front of it, which
stands elsewhere in the row (0, 0 where it has none). A cell sees those before it in its span, and
all of that prompt. What it sees of both is put together by the logarithms of their sums, which
torch's kernel for CPUs returns. All spans at once are done on a GPU by `varlen`, and on a CPU,
where it can be built, by `spans.c`.

Source: the sums of blocks as in FlashAttention (Dao et al. 2022, arXiv:2205.14135, section 3.1).
Differs: a mask over the row gives the same numbers, but in time with the square of the row.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from truing.models.precision import HALF
from truing.models.spans import Spans, serves
from truing.models.varlen import Varlen, fits, plan_of

_forward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# What may change attention besides, by the names of transformers: with one of them, it is not ours.
FOREIGN = ("softcap", "position_bias", "s_aux", "sliding_window")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    late: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention by the name of sdpa: where the mask is a table of `spans`, by spans.

    query, key, value (1, H, N, D); result (1, N, H, D). With ``late`` (S,) nobody reads what a
    span's queries before its so-many-th see. RuntimeError for what spans cannot do.
    """
    if attention_mask is None or attention_mask.dtype != torch.long:
        options: dict[str, Any] = {"dropout": dropout, "scaling": scaling, **more}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    odd = [name for name in FOREIGN if more.get(name) is not None]
    if odd or dropout or query.shape[-1] != value.shape[-1] or len(query) != 1:
        raise RuntimeError(f"no attention by spans with {odd or 'this'}")
    if torch.is_autocast_enabled(query.device.type):
        # As sdpa itself does it: positions turn queries and keys in float32, values are not.
        to = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(to), key.to(to), value.to(to)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type != "cpu":
        if not fits(query.device, query.dtype, query.shape[-1]):
            raise RuntimeError(f"no attention by spans in {query.dtype} on {query.device}")
        flat = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        seen: Any = Varlen.apply(*flat, plan_of(attention_mask, query.device), scale)
        return seen[None], None
    if serves(query, key, value):
        made: Any = Spans.apply(query, key, value, attention_mask, scale, late)
        return made, None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    seen = _Spans.apply(query, key, value, attention_mask, scale)
    return seen.transpose(1, 2), None


class _Spans(torch.autograd.Function):
    """What `attend` computes by spans, (1, H, N, D), where `spans.c` does not."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float
    ) -> Tensor:
        one, heads, cells, width = query.shape
        # As the kernel itself has them: what follows reads (1, N, H, D).
        seen = query.new_empty(one, cells, heads, width).transpose(1, 2)
        found: list[Tensor] = []
        for start, stop, top, end in table[0, 0].tolist():
            part = slice(start, stop)
            own = query[:, :, part], key[:, :, part], value[:, :, part]
            out, total = _forward(*own, 0.0, True, scale=scale)
            if end:
                prompt = key[:, :, top:end], value[:, :, top:end]
                other, more = _forward(own[0], *prompt, 0.0, False, scale=scale)
                both = torch.logaddexp(total, more)
                shares = ((each - both).exp().unsqueeze(-1) for each in (total, more))
                ours, theirs = shares
                out, total = out * ours + other * theirs, both
            seen[:, :, part] = out
            found.append(total)
        ctx.save_for_backward(query, key, value, seen, table, *found)
        ctx.scale = scale
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, seen, table, *totals = cast(tuple[Tensor, ...], ctx.saved_tensors)
        kind, gradient_of_seen = query.dtype, grads[0]
        if kind in HALF:  # on a CPU the kernel's way back takes longer in 16 bits
            query, key, value, seen = (x.float() for x in (query, key, value, seen))
            gradient_of_seen = gradient_of_seen.float()
        before = [torch.empty_like(x) for x in (query, key, value)]
        for (start, stop, top, end), total in zip(table[0, 0].tolist(), totals, strict=True):
            part = slice(start, stop)
            ahead, own, out = gradient_of_seen[:, :, part], query[:, :, part], seen[:, :, part]
            views = [(slice(start, stop), True), (slice(top, end), False)][: 2 if end else 1]
            for place, causal in views:
                read = key[:, :, place], value[:, :, place]
                back = _backward(ahead, own, *read, out, total, 0.0, causal, scale=ctx.scale)
                # The span of a prompt comes before all that look at it.
                for into, where, gradient in zip(before, (part, place, place), back, strict=True):
                    if causal:
                        into[:, :, where] = gradient
                    else:
                        into[:, :, where] += gradient
        return *(x.to(kind) for x in before), None, None
