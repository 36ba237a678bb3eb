"""What `layers` computes on a GPU, in Triton: each goes over its memory once each way.

All sums are float32, in whatever 16 or 32 bits the numbers lie. Triton comes with torch where there
is a GPU it can serve; with TRITON_INTERPRET=1 its kernels run on any machine, as the tests do.
"""

# What Triton compiles is its own language, which only looks like Python.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers that a program holds at once.
TILE = 2048
# Programs that share out the rows where each sums up something of its own.
SHARERS = 512


@triton.jit
def _norm(x_at, more_at, sum_at, weight_at, out_at, scale_at, rows, width, epsilon,
          ADDS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDE)
    here = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    x = tl.load(x_at + at, mask=here, other=0.0)
    if ADDS:
        more = tl.load(more_at + at, mask=here, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + more).to(x.dtype)
        tl.store(sum_at + at, x, mask=here)
    exact = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(exact * exact, 1) / width + epsilon)
    tl.store(scale_at + row, scale, mask=row < rows)
    weight = tl.load(weight_at + column, mask=column < width, other=0.0)
    # Rounded between the two products, as the family does.
    normed = (exact * scale[:, None]).to(x.dtype).to(tl.float32)
    out = normed * weight.to(tl.float32)[None, :]
    tl.store(out_at + at, out.to(x.dtype), mask=here)


def _normed(
    x: Tensor, more: Tensor | None, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, width = x.contiguous(), x.shape[-1]
    rows, out = x.numel() // width, torch.empty_like(x)
    total = x if more is None else torch.empty_like(x)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    tile = _tile(width)
    _norm[(triton.cdiv(rows, tile["ROWS"]),)](
        x, x if more is None else more.contiguous(), total, weight, out, scale, rows, width,
        epsilon, ADDS=more is not None, **tile,
    )  # fmt: skip
    return total, out, scale


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x (..., H) over its root mean square, times a weight (H,); and 1 over it (...)."""
    return _normed(x, None, weight, epsilon)[1:]


def add_norm(
    x: Tensor, more: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A sum, and the `norm` of it."""
    return _normed(x, more, weight, epsilon)


@triton.jit
def _norm_back(ahead_at, more_at, x_at, weight_at, scale_at, into_at, part_at, rows, width, steps,
               ADDS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    column = tl.arange(0, WIDE)
    inside = column < width
    weight = tl.load(weight_at + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    part = tl.zeros((WIDE,), dtype=tl.float32)
    for step in range(steps):
        first = (step * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * ROWS
        row = first + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * width + column[None, :]
        x = tl.load(x_at + at, mask=here, other=0.0).to(tl.float32)
        ahead = tl.load(ahead_at + at, mask=here, other=0.0).to(tl.float32)
        scale = tl.load(scale_at + row, mask=row < rows, other=0.0)[:, None]
        normed = x * scale
        part += tl.sum(ahead * normed, 0)
        slope = ahead * weight
        mean = tl.sum(slope * normed, 1)[:, None] / width
        into = (slope - normed * mean) * scale
        if ADDS:
            into += tl.load(more_at + at, mask=here, other=0.0).to(tl.float32)
        tl.store(into_at + at, into.to(into_at.dtype.element_ty), mask=here)
    tl.store(part_at + tl.program_id(0) * width + column, part, mask=inside)


def norm_back(
    ahead: Tensor, x: Tensor, weight: Tensor, scale: Tensor, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight of a `norm`; that of x on top of ``more``, which comes to x by
    another way."""
    rows, width = scale.numel(), len(weight)
    into, tile = torch.empty_like(x), _tile(width)
    blocks = triton.cdiv(rows, tile["ROWS"])
    programs = max(1, min(SHARERS, blocks))
    parts = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    ahead = ahead.contiguous()
    added = ahead if more is None else more.contiguous()
    _norm_back[(programs,)](
        ahead, added, x, weight, scale, into, parts, rows, width, triton.cdiv(blocks, programs),
        ADDS=more is not None, **tile,
    )  # fmt: skip
    return into, parts.sum(0).to(weight.dtype)


def _tile(width: int) -> dict[str, int]:
    """Rows and columns of what a program holds of rows of this width, and its warps."""
    wide = triton.next_power_of_2(width)
    rows = max(1, TILE // wide)
    return {"ROWS": rows, "WIDE": wide, "num_warps": min(16, max(4, rows * wide // 512))}


@triton.jit
def _gate(gate_at, up_at, out_at, gate_apart, up_apart, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = column < width
    gate = tl.load(gate_at + row * gate_apart + column, mask=here, other=0.0)
    up = tl.load(up_at + row * up_apart + column, mask=here, other=0.0).to(tl.float32)
    exact = gate.to(tl.float32)
    # Rounded between the two, as the family does.
    opened = (exact * tl.sigmoid(exact)).to(gate.dtype).to(tl.float32)
    tl.store(out_at + row * width + column, (opened * up).to(gate.dtype), mask=here)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both (..., I), of which only the rows need lie as a whole."""
    shape, width = gate.shape, gate.shape[-1]
    gate, up = (x.reshape(-1, width) for x in (gate, up))
    gate, up = (x if x.stride(-1) == 1 else x.contiguous() for x in (gate, up))
    out = gate.new_empty(shape)
    grid = len(gate), triton.cdiv(width, 1024)
    _gate[grid](gate, up, out, gate.stride(0), up.stride(0), width, BLOCK=1024)
    return out


@triton.jit
def _gate_back(ahead_at, gate_at, up_at, gates_at, ups_at, open_at, count,
               AGAIN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    ahead, gate, up = (
        tl.load(ahead_at + at, mask=here, other=0.0).to(tl.float32),
        tl.load(gate_at + at, mask=here, other=0.0).to(tl.float32),
        tl.load(up_at + at, mask=here, other=0.0).to(tl.float32),
    )
    open = tl.sigmoid(gate)
    slope = ahead * up * open * (1.0 + gate * (1.0 - open))
    tl.store(gates_at + at, slope.to(gates_at.dtype.element_ty), mask=here)
    tl.store(ups_at + at, (ahead * gate * open).to(ups_at.dtype.element_ty), mask=here)
    if AGAIN:
        kind = open_at.dtype.element_ty
        tl.store(open_at + at, ((gate * open).to(kind).to(tl.float32) * up).to(kind), mask=here)


def gate_back(
    ahead: Tensor, gate: Tensor, up: Tensor, *, again: bool = False
) -> tuple[Tensor, ...]:
    """The gradients of both inputs, contiguous, of a `gate`; with ``again`` its output as well."""
    outs = [torch.empty_like(gate) for _ in range(3 if again else 2)]
    count = gate.numel()
    grid = (triton.cdiv(count, 1024),)
    # Of two, the last stands for the third, which is not written.
    told = ahead.contiguous(), gate, up, *outs[:2], outs[-1]
    _gate_back[grid](*told, count, AGAIN=again, BLOCK=1024)
    return tuple(outs)


@triton.jit
def _turn(x_at, y_at, cosine_at, sine_at, x_out, y_out, x_heads, y_heads, x_parts, dim, half,
          BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    cell, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if part < x_parts:
        _turn_part(x_at, cosine_at, sine_at, x_out, cell, part, x_heads, dim, half,
                   BACK, HEADS, HALF)  # fmt: skip
    else:
        _turn_part(y_at, cosine_at, sine_at, y_out, cell, part - x_parts, y_heads, dim, half,
                   BACK, HEADS, HALF)  # fmt: skip


@triton.jit
def _turn_part(x_at, cosine_at, sine_at, out_at, cell, part, heads, dim, half,
               BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    head = part * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, HALF)
    angle, at = cell * dim + d, (cell * heads + head[:, None]) * dim + d[None, :]
    inside = d < half
    here = (head < heads)[:, None] & inside[None, :]
    one = tl.load(x_at + at, mask=here, other=0.0).to(tl.float32)
    two = tl.load(x_at + at + half, mask=here, other=0.0).to(tl.float32)
    cosine_one = tl.load(cosine_at + angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    cosine_two = tl.load(cosine_at + angle + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    sine_one = tl.load(sine_at + angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    sine_two = tl.load(sine_at + angle + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    if BACK:
        first, second = one * cosine_one + two * sine_two, two * cosine_two - one * sine_one
    else:
        first, second = one * cosine_one - two * sine_one, two * cosine_two + one * sine_two
    kind = out_at.dtype.element_ty
    tl.store(out_at + at, first.to(kind), mask=here)
    tl.store(out_at + at + half, second.to(kind), mask=here)


def turn(xs: Sequence[Tensor], cosine: Tensor, sine: Tensor, *, back: bool) -> list[Tensor]:
    """One or two tensors of heads (B, N, heads, D), each with as many as it has, turned by angles
    whose cosines and sines are (B, N, D); ``back`` is the gradient's way."""
    xs = [x.contiguous() for x in xs]
    outs, heads, dim = [torch.empty_like(x) for x in xs], [x.shape[-2] for x in xs], xs[0].shape[-1]
    wide = triton.next_power_of_2(dim // 2)
    together = min(triton.next_power_of_2(max(heads)), max(1, 1024 // wide))
    parts = [triton.cdiv(count, together) for count in heads]
    grid = cosine.numel() // dim, sum(parts)
    sizes: dict[str, Any] = {"BACK": back, "HEADS": together, "HALF": wide}
    # Of one alone, the last stands for the other as well, of which no part is done.
    _turn[grid](
        xs[0], xs[-1], cosine, sine, outs[0], outs[-1], heads[0], heads[-1], parts[0], dim,
        dim // 2, **sizes,
    )  # fmt: skip
    return outs
