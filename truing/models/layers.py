"""What lies between the matrix products of the Llama family's layers: norms, gates, rotations.

torch goes over memory many times for each; where products are fast, on a GPU or a CPU with AMX,
that takes much of a step. Here each goes over it once each way, on a CPU by `layers_c`, on a GPU
by `layers_gpu`. The transformers modules stay what they are; only their class becomes one that
asks these first.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from truing.models import gpu, layers_c
from truing.models.products import digits_here, is_plain, linears, multiply, product

# Models by transformers' names for them: their norms, gates and rotations are alike.
FAMILY = ("llama", "mistral", "qwen2", "qwen3")


class Kernels(Protocol):
    """`layers_c` and `layers_gpu`: what they compute, of contiguous tensors of one format."""

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]: ...

    def norm_back(
        self, ahead: Tensor, x: Tensor, weight: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]: ...

    def gate(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def gate_back(
        self, ahead: Tensor, gate: Tensor, up: Tensor, *, again: bool = False
    ) -> tuple[Tensor, ...]: ...

    def turn(
        self, xs: Sequence[Tensor], cosine: Tensor, sine: Tensor, *, back: bool
    ) -> list[Tensor]: ...


def kernels(first: Tensor, *others: Tensor) -> Kernels | None:
    """What computes with such tensors in place of torch, if anything does."""
    kind, place = first.dtype, first.device
    if any(x.device != place or x.dtype != kind for x in others):
        return None
    if place.type != "cpu":
        return gpu.kernels("truing.models.layers_gpu", first)
    return layers_c if layers_c.fits(kind) else None


class _Norm(torch.autograd.Function):
    """x (..., H) over its root mean square, times a weight (H,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, ways: Kernels) -> Tensor:
        x, weight, ctx.ways = x.contiguous(), weight.contiguous(), ways
        out, scale = ways.norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.ways.norm_back(grads[0].contiguous(), *ctx.saved_tensors), None, None


class _Gate(torch.autograd.Function):
    """silu(gate) * up, both of one shape."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, ways: Kernels) -> Tensor:
        gate, up, ctx.ways = gate.contiguous(), up.contiguous(), ways
        ctx.save_for_backward(gate, up)
        return ways.gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.ways.gate_back(grads[0].contiguous(), *ctx.saved_tensors), None


class _Opened(torch.autograd.Function):
    """silu(gate) * up, both (N, I), times a transposed weight (out, I). The first is computed again
    on the way back: to keep it until then would take as much memory as either of the two."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, digits: int, ways: Kernels
    ) -> Tensor:
        gate, up, ctx.digits, ctx.ways = gate.contiguous(), up.contiguous(), digits, ways
        ctx.save_for_backward(gate, up, weight)
        return product(ways.gate(gate, up), weight, digits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        slope, of_opened, of_weight = grads[0].contiguous(), torch.empty_like(gate), None
        multiply(of_opened, slope, weight.T, ctx.digits)
        wanted = ctx.needs_input_grad[2]
        of_gate, of_up, *opened = ctx.ways.gate_back(of_opened, gate, up, again=wanted)
        if wanted:
            of_weight = torch.empty_like(weight)
            multiply(of_weight, slope.T, opened[0].T, ctx.digits)
        return of_gate, of_up, of_weight, None, None


def _learns(layer: nn.Module, read: Tensor) -> bool:
    """Whether a layer that reads this is plain, of one format with it, and may learn."""
    alike = is_plain(layer) and layer.weight.dtype == read.dtype
    return alike and torch.is_grad_enabled() and not torch.is_autocast_enabled(read.device.type)


def _down(gate: Tensor, up: Tensor, layer: Any, ways: Kernels) -> Tensor:
    """What a plain layer makes of silu(gate) * up, where both learn."""
    flat = (x.reshape(-1, x.shape[-1]) for x in (gate, up))
    made: Any = _Opened.apply(*flat, layer.weight, digits_here(), ways)
    made = made.view(*gate.shape[:-1], len(layer.weight))
    return made if layer.bias is None else made + layer.bias


class _Rotate(torch.autograd.Function):
    """Queries (B, N, heads, D) and keys (B, N, groups, D), both turned by angles whose cosines and
    sines are (B, N, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor, ways: Kernels
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cosine, sine)
        ctx.ways = ways
        both = query.contiguous(), key.contiguous()
        return tuple(ways.turn(both, cosine, sine, back=False))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        both = [grad.contiguous() for grad in grads]
        return *ctx.ways.turn(both, *ctx.saved_tensors, back=True), None, None, None


def _rotating(original: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' rotation of queries and keys (B, heads, N, D), by `kernels` where they can."""

    @wraps(original)
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        alike = cos.shape == sin.shape == q[:, 0].shape == k[:, 0].shape
        ways = kernels(q, k)
        if more or named or not alike or ways is None or not _of_a_kind(q, cos, sin):
            return original(q, k, cos, sin, *more, **named)
        turns = cos.contiguous(), sin.contiguous(), ways
        turned: Any = _Rotate.apply(q.transpose(1, 2), k.transpose(1, 2), *turns)
        return tuple(x.transpose(1, 2) for x in turned)

    return rotate


def _of_a_kind(x: Tensor, cosine: Tensor, sine: Tensor) -> bool:
    """Whether the angles are in a format that heads can be turned by. Under autocast they may be in
    float32, on a GPU: what is turned by them is rounded afterwards."""
    if cosine.dtype == sine.dtype == x.dtype:
        return True
    on_cpu = x.device.type == "cpu"
    return cosine.dtype == sine.dtype and not on_cpu and torch.is_autocast_enabled(x.device.type)


@cache
def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of the same name that asks `kernels` first."""
    original = kind.forward

    def norm(self: Any, hidden_states: Tensor) -> Any:
        ways = kernels(hidden_states, self.weight)
        if ways is None:
            return original(self, hidden_states)
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon, ways)

    def mlp(self: Any, x: Tensor) -> Any:
        gate, up = linears(x, [self.gate_proj, self.up_proj])
        ways, down = kernels(gate, up), self.down_proj
        if ways and _learns(down, gate):
            return _down(gate, up, down, ways)
        opened: Any = _Gate.apply(gate, up, ways) if ways else self.act_fn(gate) * up
        return down(opened)

    forward = norm if kind.__name__.endswith("RMSNorm") else mlp
    more = {"forward": forward, "__module__": kind.__module__, "fused": True}
    return type(kind.__name__, (kind,), more)


def home_of(core: Any) -> Any:
    """The transformers module that a network of the family comes from; None for any other."""
    family = core.config.model_type
    # Code of its own may go by such a name.
    return sys.modules.get(f"transformers.models.{family}.modeling_{family}" * (family in FAMILY))


def untouched(module: nn.Module, home: Any) -> bool:
    """Whether a module is as its home has it: neither others nor we have replaced anything."""
    kind = type(module)
    replaced = "forward" in vars(module) or hasattr(kind, "fused")
    return kind.__module__.startswith(f"{home.__package__}.") and not replaced


def fuse(core: Any) -> None:
    """Have a network of the family ask `kernels`; any other, and what others have replaced in it,
    stays as it is."""
    if (home := home_of(core)) is None:
        return
    for module in core.modules():
        kind = type(module)
        gated = kind.__name__.endswith("MLP") and core.config.hidden_act == "silu"
        if untouched(module, home) and (gated or kind.__name__.endswith("RMSNorm")):
            module.__class__ = _fused(kind)
    if not hasattr(home.apply_rotary_pos_emb, "__wrapped__"):
        home.apply_rotary_pos_emb = _rotating(home.apply_rotary_pos_emb)
