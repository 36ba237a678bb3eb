"""Float32 matrix products for which this CPU knows a better way than torch takes: `products.c`.

Of a few rows, as a decode step has them: each weight is read once, on any CPU with AVX-512. Of
many, where the CPU multiplies bytes in tiles (AMX), many times as fast as float32: up to 768
numbers of a row become whole ones of three digits of 8 bits, in one unit, and eight of the nine
products of digits are summed without error. Numbers far above the mean have a fourth digit. So
each number is rounded once, where the float32 product of the CPU's library rounds each sum: errors
are of one size. Of two digits there are four products, which keep 16 bits. Elsewhere, and without a
C compiler, torch multiplies.

Differs from torch: by digits, a sum with an infinite number is NaN; numbers below 1e-30 lose bits,
and so do those that are small beside their row: each is known to 2e-6 of the mean size or better.
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
STRIP, MOST = 16, 3
_digits: ContextVar[int] = ContextVar("digits", default=0)


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
def cutting(digits: int) -> Iterator[None]:
    """Multiply inside by numbers of 2 or 3 digits, where there are `tiles`; 0: not at all."""
    token = _digits.set(digits)
    try:
        yield
    finally:
        _digits.reset(token)


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


def multiply(out: Tensor, left: Tensor, right: Tensor, digits: int, *, more: bool = False) -> None:
    """out (M, N) becomes left (M, K) times the transposed right (N, K), or with ``more`` grows by
    it; by digits where that pays."""
    if not digits or not _made([out], [left], [right], digits, more):
        out.addmm_(left, right.T, beta=int(more))


def _made(
    outs: list[Tensor], left: list[Tensor], right: list[Tensor], digits: int, more: bool = False
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
    sizes = left[0].shape[1], digits, int(more), torch.get_num_threads()
    return bool(call(library().product, ctypes.addressof(task), *sizes))


def product(left: Tensor, right: Tensor, digits: int, bias: Tensor | None = None) -> Tensor:
    """left (M, K) times the transposed right (N, K), and a bias (N,): (M, N)."""
    if not digits or not _fits(left, right):
        return nn.functional.linear(left, right, bias)
    out = left.new_empty(len(left), len(right))
    multiply(out, left, right, digits)
    return out if bias is None else out.add_(bias)


def _products(left: list[Tensor], right: list[Tensor], digits: int) -> list[Tensor]:
    """Each on one side times the transposed one on the other."""
    pairs = list(zip(left * len(right), right * len(left), strict=True))
    outs = [x.new_empty(len(x), len(y)) for x, y in pairs]
    if not _made(outs, left, right, digits):
        for out, (x, y) in zip(outs, pairs, strict=True):
            multiply(out, x, y, digits)
    return outs


class _Linears(torch.autograd.Function):
    """x (N, in) times each of some transposed weights (out, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, digits: int, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.digits = digits
        return tuple(_products([x], list(weights), digits))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        slopes, digits = [grad.contiguous() for grad in grads], ctx.digits
        wants_x, _, *wants = ctx.needs_input_grad
        of_x = torch.empty_like(x) if wants_x else None
        if of_x is not None:  # summed from the last on, as where each is a layer by itself
            for i in reversed(range(len(weights))):
                multiply(of_x, slopes[i], weights[i].T, digits, more=i + 1 < len(weights))
        wanted = [slope.T for slope, wants_it in zip(slopes, wants, strict=True) if wants_it]
        made = iter(_products(wanted, [x.T], digits) if wanted else [])
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


def linears(x: Tensor, layers: Sequence[Any]) -> list[Tensor]:
    """What each of some linear layers makes of the same x; those that are ours by one function,
    which reads it once."""
    if all(map(is_plain, layers)):
        made = _together(x, [(layer.weight, layer.bias) for layer in layers])
        if made:
            return made
    return [layer(x) for layer in layers]


def _together(x: Tensor, parameters: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """Linear layers by cut products; none, where these do not fit."""
    digits = digits_here()
    if not digits or torch.is_autocast_enabled(x.device.type):
        return []
    flat, weights = x.reshape(-1, x.shape[-1]), [weight for weight, _ in parameters]
    if not all(_fits(flat, weight) for weight in weights):
        return []
    made: Any = _Linears.apply(flat, digits, *weights)
    made = [out.view(*x.shape[:-1], -1) for out in made]
    biases = [bias for _, bias in parameters]
    return [out if bias is None else out + bias for out, bias in zip(made, biases, strict=True)]


def changed(module: nn.Module) -> bool:
    """Whether others have replaced or hooked what a module does."""
    ahead = module._forward_hooks or module._forward_pre_hooks
    back = module._backward_hooks or module._backward_pre_hooks
    return bool("forward" in vars(module) or ahead or back)


def is_plain(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer of ours and nothing more."""
    return type(module) is Linear and not changed(module)


def digits_here() -> int:
    """Of how many digits numbers are multiplied here; 0 where products are torch's."""
    return _digits.get()


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
