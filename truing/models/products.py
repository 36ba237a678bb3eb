"""Float32 matrix products for which this CPU knows a better way than torch takes: `products.c`.

Of a few rows, as a decode step has them: each weight is read once, on any CPU with AVX-512. Of
many, where the CPU multiplies bfloat16 in tiles (AMX), many times as fast as float32: each number
is cut into three of bfloat16, which hold all of its bits, and their six products that matter are
summed, which is no less accurate than the float32 product of the CPU's library. Of two pieces there
are three products, which keep 16 bits. Elsewhere, and without a C compiler, torch multiplies.

Differs from torch: in pieces, a sum with an infinite number is NaN, and numbers below 1e-33 lose
bits.
"""

import ctypes
from collections.abc import Iterator, Sequence
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
# As products.c has them: rows of a strip, and most matrices of a side.
STRIP, MOST = 32, 3
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
    if not pieces or not _made([out], [left], [right], pieces, more):
        out.addmm_(left, right.T, beta=int(more))


def _made(
    outs: list[Tensor], left: list[Tensor], right: list[Tensor], pieces: int, more: bool = False
) -> bool:
    """Whether `products.c` made the products of each on one side with the one on the other side,
    which it cuts but once."""
    pairs = zip(left * len(right), right * len(left), strict=True)
    whole = all(len(x) % STRIP == 0 for x in (*left[:-1], *right[:-1]))
    placed = len(outs) <= MOST and all(out.is_contiguous() for out in outs)
    if not (whole and placed and all(_fits(*pair) for pair in pairs)):
        return False
    told = [out.data_ptr() for out in outs] + [0] * (MOST - len(outs))
    for side in (left, right):
        told += [number for x in side for number in (x.data_ptr(), *x.stride(), len(x))]
        told += [0] * 4 * (MOST - len(side))
    task = (ctypes.c_int64 * len(told))(*told)
    sizes = left[0].shape[1], pieces, int(more), torch.get_num_threads()
    return bool(call(library().product, ctypes.addressof(task), *sizes))


def product(left: Tensor, right: Tensor, pieces: int, bias: Tensor | None = None) -> Tensor:
    """left (M, K) times the transposed right (N, K), and a bias (N,): (M, N)."""
    if not pieces or not _fits(left, right):
        return nn.functional.linear(left, right, bias)
    out = left.new_empty(len(left), len(right))
    multiply(out, left, right, pieces)
    return out if bias is None else out.add_(bias)


def _products(left: list[Tensor], right: list[Tensor], pieces: int) -> list[Tensor]:
    """Each on one side times the transposed one on the other."""
    pairs = list(zip(left * len(right), right * len(left), strict=True))
    outs = [x.new_empty(len(x), len(y)) for x, y in pairs]
    if not _made(outs, left, right, pieces):
        for out, (x, y) in zip(outs, pairs, strict=True):
            multiply(out, x, y, pieces)
    return outs


class _Linears(torch.autograd.Function):
    """x (N, in) times each of some transposed weights (out, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pieces: int, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.pieces = pieces
        return tuple(_products([x], list(weights), pieces))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        slopes, pieces = [grad.contiguous() for grad in grads], ctx.pieces
        wants_x, _, *wants = ctx.needs_input_grad
        of_x = None
        if wants_x:  # summed from the last on, as where each is a layer by itself
            for slope, weight in zip(slopes[::-1], weights[::-1], strict=True):
                part = product(slope, weight.T, pieces)
                of_x = part if of_x is None else of_x.add_(part)
        wanted = [slope.T for slope, wants_it in zip(slopes, wants, strict=True) if wants_it]
        made = iter(_products(wanted, [x.T], pieces) if wanted else [])
        return of_x, None, *(next(made) if wants_it else None for wants_it in wants)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's linear, x (..., in) and weight (out, in) -> (..., out)."""
    if torch.is_inference_mode_enabled() and _are_few(x, weight):
        out = x.new_empty(len(x), len(weight))
        sizes = len(x), *weight.shape, torch.get_num_threads()
        call(library().few, out, x, weight, *sizes)
        return out if bias is None else out.add_(bias)
    made = _together(x, [(weight, bias)])
    return made[0] if made else nn.functional.linear(x, weight, bias)


def linears(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """What each of some linear layers makes of the same x; those that are ours by one function,
    which reads it once."""
    ours = [layer for layer in layers if type(layer) is Linear and not _changed(layer)]
    if len(ours) == len(layers):
        made = _together(x, [(layer.weight, layer.bias) for layer in ours])
        if made:
            return made
    return [layer(x) for layer in layers]


def _together(x: Tensor, parameters: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """Linear layers by cut products; none, where these do not fit."""
    pieces = pieces_here()
    if not pieces or torch.is_autocast_enabled(x.device.type):
        return []
    flat, weights = x.reshape(-1, x.shape[-1]), [weight for weight, _ in parameters]
    if not all(_fits(flat, weight) for weight in weights):
        return []
    made: Any = _Linears.apply(flat, pieces, *weights)
    made = [out.view(*x.shape[:-1], -1) for out in made]
    biases = [bias for _, bias in parameters]
    return [out if bias is None else out + bias for out, bias in zip(made, biases, strict=True)]


def _changed(layer: nn.Module) -> bool:
    """Whether others have replaced or hooked what a layer does."""
    return bool("forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks)


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
