"""Float32 matrix products for which this CPU knows a better way than torch takes: `products.c`.

Of a few rows, as a decode step has them: each weight is read once, on any CPU with AVX-512. Of
many, where the CPU multiplies bfloat16 in tiles (AMX), many times as fast as float32: each number
is cut into three of bfloat16, which hold all of its bits, and their six products that matter are
summed, which is no less accurate than the float32 product of the CPU's library. Of two pieces there
are three products, which keep 16 bits. Elsewhere, and without a C compiler, torch multiplies.

Differs from torch: in pieces, a sum with an infinite number is NaN, and numbers below 1e-33 lose
bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from truing.models.native import build, call

SOURCE = Path(__file__).with_name("products.c")
# A product of less work, or of a thin matrix, is not worth the cutting.
LEAST, THIN = 2**23, 64
# Rows of which a product is of a few, and numbers of a weight from which on that pays.
FEW, MANY = range(1, 49), 2**16
_pieces: ContextVar[int] = ContextVar("pieces", default=0)


@cache
def library() -> Any:
    """`products.c`, or None where it cannot be built."""
    return build(SOURCE)


@cache
def tiles() -> bool:
    """Whether the CPU has tiles and the system lets this process use them."""
    found = library()
    return found is not None and hasattr(found, "allowed") and bool(found.allowed())


@contextmanager
def cutting(pieces: int) -> Iterator[None]:
    """Cut what is multiplied inside into 2 or 3 pieces, where there are `tiles`; 0: not at all."""
    token = _pieces.set(pieces)
    try:
        yield
    finally:
        _pieces.reset(token)


def _fits(left: Tensor, right: Tensor) -> bool:
    """Whether a product of (M, K) and (N, K) is one for `products.c`."""
    (m, depth), n = left.shape, len(right)
    return (
        left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
        and min(m, n, depth) >= THIN
        and m * n * depth >= LEAST
        and 1 in left.stride()
        and 1 in right.stride()
        and tiles()  # asks for the right to use them, too
    )


def _are_few(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of x (M, K) and a weight (N, K) is one of a few rows."""
    return (
        x.dim() == 2
        and len(x) in FEW
        and weight.numel() >= MANY
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.is_contiguous()
        and weight.is_contiguous()
        and library() is not None
    )


def multiply(out: Tensor, left: Tensor, right: Tensor, pieces: int, *, more: bool = False) -> None:
    """out (M, N) becomes left (M, K) times the transposed right (N, K), or with ``more`` grows by
    it; cut into pieces where that pays."""
    if pieces and out.is_contiguous() and _fits(left, right):
        sides = (out, left, *left.stride(), right, *right.stride())
        sizes = len(left), len(right), left.shape[1], pieces, int(more), torch.get_num_threads()
        if call(library().product, *sides, *sizes):
            return
    out.addmm_(left, right.T, beta=int(more))


def product(left: Tensor, right: Tensor, pieces: int, bias: Tensor | None = None) -> Tensor:
    """left (M, K) times the transposed right (N, K), and a bias (N,): (M, N)."""
    if not pieces or not _fits(left, right):
        return nn.functional.linear(left, right, bias)
    out = left.new_empty(len(left), len(right))
    multiply(out, left, right, pieces)
    return out if bias is None else out.add_(bias)


class _Linear(torch.autograd.Function):
    """x (N, in) times the transposed weight (out, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pieces: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pieces = pieces
        return product(x, weight, pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        slope, pieces = grads[0].contiguous(), ctx.pieces
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        return (
            product(slope, weight.T, pieces) if wants_x else None,
            product(slope.T, x.T, pieces) if wants_weight else None,
            None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's linear, x (..., in) and weight (out, in) -> (..., out)."""
    if torch.is_inference_mode_enabled() and _are_few(x, weight):
        out = x.new_empty(len(x), len(weight))
        sizes = len(x), *weight.shape, torch.get_num_threads()
        call(library().few, out, x, weight, *sizes)
        return out if bias is None else out.add_(bias)
    if (pieces := pieces_here()) and not torch.is_autocast_enabled(x.device.type):
        flat = x.reshape(-1, x.shape[-1])
        if _fits(flat, weight):
            made: Any = _Linear.apply(flat, weight, pieces)
            made = made.view(*x.shape[:-1], len(weight))
            return made if bias is None else made + bias
    return nn.functional.linear(x, weight, bias)


def pieces_here() -> int:
    """Into how many pieces products are cut here; 0 where they are torch's."""
    return _pieces.get()


class Linear(nn.Linear):
    """torch's layer, by the `linear` above."""

    def forward(self, input: Tensor) -> Tensor:  # torch names it so
        return linear(input, self.weight, self.bias)


class Turned(Conv1D):
    """transformers' layer with a weight (in, out), which GPT-2 has, by the same."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


def is_linear(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's linear layer and nothing more."""
    return type(module) in (nn.Linear, Linear)


def adopt(network: nn.Module) -> None:
    """Make a network's linear layers ours; what others have replaced in them stays."""
    ours = {nn.Linear: Linear, Conv1D: Turned}
    for module in network.modules():
        if type(module) in ours and "forward" not in vars(module):
            module.__class__ = ours[type(module)]
