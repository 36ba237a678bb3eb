"""What `head` makes of logits on a GPU, in Triton: they are read once, and their gradient takes
their place in one more pass, whatever bits they have; sums are float32.
"""

# What Triton compiles is its own language, which only looks like Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# Words of the vocabulary that a program looks at together.
WORDS = 4096


@triton.jit
def _scaled(raw, a, b, lowest, BENT: tl.constexpr):
    """``b a z``, or ``b tanh(a z)``, the impossible at ``lowest``; and how steep, over ``b a``."""
    raw = raw.to(tl.float32)
    steep = tl.full(raw.shape, 1.0, tl.float32)
    if BENT:
        bent = 1.0 - 2.0 / (tl.exp(2.0 * a * raw) + 1.0)
        z, steep = b * bent, 1.0 - bent * bent
    else:
        z = b * a * raw
    return tl.where(z < lowest, lowest, z), steep  # NaN stays


@triton.jit
def _read(z_at, target_at, total_at, logp_at, spread_at, words, a, b, lowest,
          BENT: tl.constexpr, SPREAD: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_at += row * words
    # Of each lane its greatest, the sum of exp(z - greatest) and that of z exp(z - greatest).
    most = tl.full((WORDS,), lowest, tl.float32)
    mass = tl.zeros((WORDS,), tl.float32)
    moment = tl.zeros((WORDS,), tl.float32)
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        here = word < words
        z, _ = _scaled(tl.load(z_at + word, mask=here, other=0.0), a, b, lowest, BENT)
        now = tl.where(here, tl.maximum(most, z), most)
        shrink = tl.exp(most - now)
        own = tl.where(here, tl.exp(z - now), 0.0)
        mass = mass * shrink + own
        if SPREAD:
            moment = moment * shrink + own * z
        most = now
    top = tl.max(most, 0)
    share = tl.exp(most - top)
    whole = tl.sum(mass * share, 0)
    total = top + tl.log(whole)
    tl.store(total_at + row, total)
    chosen, _ = _scaled(tl.load(z_at + tl.load(target_at + row)), a, b, lowest, BENT)
    tl.store(logp_at + row, chosen - total)
    if SPREAD:
        tl.store(spread_at + row, total - tl.sum(moment * share, 0) / whole)


def read(
    logits_NV: Tensor,
    target_N: Tensor,
    bend: tuple[float, float, bool],
    lowest: float,
    *,
    spread: bool,
) -> tuple[Tensor, ...]:
    """Of logits (N, V), scaled by ``bend`` (`truing.models.head.Scaling`): the logarithms of their
    sums (N,), the targets' log-probs and, with ``spread``, entropies; in float32. What is below
    ``lowest``, the impossible, counts as that."""
    rows, words = logits_NV.shape
    total_N, logp_N, spread_N = (
        torch.empty(rows, dtype=torch.float32, device=logits_NV.device) for _ in range(3)
    )
    _read[(rows,)](
        logits_NV, target_N, total_N, logp_N, spread_N, words, *bend[:2], lowest,
        BENT=bend[2], SPREAD=spread, WORDS=WORDS, num_warps=8,
    )  # fmt: skip
    return (total_N, logp_N, spread_N) if spread else (total_N, logp_N)


@triton.jit
def _slope(z_at, target_at, total_at, logp_at, entropy_at, spread_at, words, a, b, lowest,
           BENT: tl.constexpr, LOGP: tl.constexpr, SPREAD: tl.constexpr,
           WORDS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    here = word < words
    z_at += row * words
    raw = tl.load(z_at + word, mask=here, other=0.0)
    z, steep = _scaled(raw, a, b, lowest, BENT)
    log = z - tl.load(total_at + row)
    share = tl.exp(log)
    slope = tl.zeros((WORDS,), tl.float32)
    if LOGP:
        ahead = tl.load(logp_at + row)
        slope = tl.where(word == tl.load(target_at + row), ahead, 0.0) - ahead * share
    if SPREAD:
        slope -= tl.load(spread_at + row) * share * (log + tl.load(entropy_at + row))
    tl.store(z_at + word, (slope * a * b * steep).to(raw.dtype), mask=here)


def turn_into_slope(
    logits_NV: Tensor,
    target_N: Tensor,
    total_N: Tensor,
    *entropies: Tensor,
    towards: Sequence[Tensor | None],
    bend: tuple[float, float, bool],
    lowest: float,
) -> Tensor:
    """The gradient of logits, in their place, from those of log-probs and, where there is one, of
    entropies (each (N,), or None) that `read` gave."""
    rows, words = logits_NV.shape
    wanted = [*towards, None][:2]
    # What is not wanted is not read either: anything stands for it.
    logp_N, spread_N = (total_N if g is None else g.float().contiguous() for g in wanted)
    _slope[(rows, triton.cdiv(words, WORDS))](
        logits_NV, target_N, total_N, logp_N, entropies[0] if entropies else total_N, spread_N,
        words, *bend[:2], lowest, BENT=bend[2], LOGP=wanted[0] is not None,
        SPREAD=wanted[1] is not None, WORDS=WORDS, num_warps=8,
    )  # fmt: skip
    return logits_NV
