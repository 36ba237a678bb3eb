"""One new token in each slot on a GPU, in Triton: turned, remembered, and what it sees, in one go.

A program does the heads of a slot that share a key. It reads the prompt's keys and the response's
once, where they lie, and sums in float32.
"""

# What Triton compiles is its own language, which only looks like Python.
# pyright: reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

# Keys that are looked at together, and their bytes, of which a program holds two or three times as
# many, and of values too. Rows of queries that the matrix unit takes at the least.
TOGETHER, BYTES, LEAST = 64, 2**14, 16


@triton.jit
def _turned(at, cosine, sine, half, d, here):
    """Heads by their angles: each pair (d, d + D/2)."""
    x = tl.load(at + d, mask=here, other=0.0).to(tl.float32)
    # Of the other of the pair, which of the first half is taken off.
    fellow = tl.where(d < half, d + half, d - half)
    other = tl.load(at + fellow, mask=here, other=0.0).to(tl.float32)
    return x * cosine + tl.where(d < half, -other, other) * sine


@triton.jit
def _look(query, keys, values, count, scale, most, mass, seen, d, inside,
          dim: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    """What was ``seen`` so far, with the mass of its exponentials beyond ``most``, and then of
    ``count`` further keys."""
    for start in range(0, count, TOGETHER):
        t = start + tl.arange(0, TOGETHER)
        here = (t < count)[:, None] & inside[None, :]
        at = t[:, None] * dim + d[None, :]
        key = tl.load(keys + at, mask=here, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where((t < count)[None, :], score, -float("inf"))
        now = tl.maximum(most, tl.max(score, 1))
        share = tl.exp(score - now[:, None])
        shrink = tl.exp(most - now)
        value = tl.load(values + at, mask=here, other=0.0)
        more = tl.dot(share.to(value.dtype), value, input_precision="ieee")
        seen = seen * shrink[:, None] + more
        mass, most = mass * shrink + tl.sum(share, 1), now
    return most, mass, seen


@triton.jit
def _attend(qkv_at, cosine_at, sine_at, own_at, prompt_at, length_at, row_at, width_at, out_at,
            heads, groups, room, wide, own_values, prompt_values, scale, dim: tl.constexpr,
            ROWS: tl.constexpr, DIM: tl.constexpr, TOGETHER: tl.constexpr):  # fmt: skip
    slot, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    repeats = heads // groups
    row, d = tl.arange(0, ROWS), tl.arange(0, DIM)
    inside = d < dim
    cosine = tl.load(cosine_at + slot * dim + d, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sine_at + slot * dim + d, mask=inside, other=0.0).to(tl.float32)
    token_at = qkv_at + slot * (heads + 2 * groups) * dim
    here = (row < repeats)[:, None] & inside[None, :]
    head = (group * repeats + row)[:, None]
    kind = out_at.dtype.element_ty
    query = _turned(
        token_at + head * dim, cosine[None, :], sine[None, :], dim // 2, d[None, :], here
    ).to(kind)
    key = _turned(token_at + (heads + group) * dim, cosine, sine, dim // 2, d, inside).to(kind)
    value = tl.load(token_at + (heads + groups + group) * dim + d, mask=inside, other=0.0)
    length = tl.load(length_at + slot)
    prompt = tl.load(row_at + slot)
    own_at += (slot * groups + group) * room * dim
    prompt_at += (prompt * groups + group) * wide * dim
    tl.store(own_at + length * dim + d, key, mask=inside)
    tl.store(own_at + own_values + length * dim + d, value, mask=inside)
    # Its own key first, which need not be read again.
    most = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
    mass = tl.full((ROWS,), 1.0, tl.float32)
    seen = tl.zeros((ROWS, DIM), tl.float32) + value.to(tl.float32)[None, :]
    most, mass, seen = _look(
        query, prompt_at, prompt_at + prompt_values, tl.load(width_at + prompt), scale,
        most, mass, seen, d, inside, dim, TOGETHER,
    )  # fmt: skip
    most, mass, seen = _look(
        query, own_at, own_at + own_values, length, scale,
        most, mass, seen, d, inside, dim, TOGETHER,
    )  # fmt: skip
    out = seen / mass[:, None]
    tl.store(out_at + (slot * heads + head) * dim + d[None, :], out.to(kind), mask=here)


def attend(
    qkv_SHD: Tensor,
    turn_SD: tuple[Tensor, Tensor],
    own: Tensor,
    prompts: Tensor,
    places: tuple[Tensor, Tensor, Tensor],
    scale: float,
) -> Tensor:
    """What a new token of each slot sees, (S, heads * D).

    qkv (S, heads + 2 groups, D) before they are turned; cosines and sines (S, D); own
    (2, slots, groups, room, D) and prompts (2, P, groups, width, D), the keys and values of a
    layer, of which the new ones are written; places: of each slot how many tokens it has, (S,), and
    the row of its prompt, (S,), and of each prompt how many it has, (P,), all int64.
    """
    (count, _, dim), (groups, room) = qkv_SHD.shape, own.shape[2:4]
    heads = qkv_SHD.shape[1] - 2 * groups
    out = qkv_SHD.new_empty(count, heads * dim)
    wide = max(LEAST, triton.next_power_of_2(dim))
    each = wide * own.element_size()
    together = max(LEAST, min(TOGETHER, BYTES // each))
    _attend[(count, groups)](
        qkv_SHD.contiguous(), *turn_SD, own, prompts, *places, out,
        heads, groups, room, prompts.shape[3], own.stride(0), prompts.stride(0), scale, dim,
        ROWS=max(LEAST, triton.next_power_of_2(heads // groups)),
        DIM=wide, TOGETHER=together, num_warps=4, num_stages=3 if together * each < BYTES else 2,
    )  # fmt: skip
    return out
