"""What lies between the matrix products of the Llama family's layers, on a CPU.

Where the products are fast (AMX, AVX512-BF16), norms, gates and rotations take much of a step in
torch, which goes over memory many times for each. `layers.c` does so once each way, in float32 and
in bfloat16. The transformers modules stay what they are; only their class becomes one that asks
`layers.c` first.
"""

import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from truing.models.native import built, call

SOURCE = Path(__file__).with_name("layers.c")
# Models by transformers' names for them: their norms, gates and rotations are alike.
FAMILY = ("llama", "mistral", "qwen2", "qwen3")
_library = partial(built, SOURCE)


def fits(first: Tensor, *others: Tensor) -> bool:
    """Whether `layers.c` computes with such tensors."""
    kind = first.dtype
    alike = all(x.device.type == "cpu" and x.dtype == kind for x in (first, *others))
    return alike and _library(kind) is not None


class _Norm(torch.autograd.Function):
    """x (..., H) over its root mean square, times a weight (H,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        out, width = torch.empty_like(x), x.shape[-1]
        scale = x.new_empty(x.shape[:-1], dtype=torch.float32)
        sizes = scale.numel(), width, torch.get_num_threads()
        call(_library(x.dtype).norm, out, scale, x, weight, epsilon, *sizes)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        into, threads = torch.empty_like(x), torch.get_num_threads()
        parts = torch.zeros(threads, len(weight))
        sizes = scale.numel(), len(weight), threads
        tensors = into, parts, grads[0].contiguous(), scale, x, weight
        call(_library(x.dtype).norm_back, *tensors, *sizes)
        return into, parts.sum(0).to(weight.dtype), None


class _Gate(torch.autograd.Function):
    """silu(gate) * up, both of one shape."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        call(_library(gate.dtype).gate, out, gate, up, gate.numel(), torch.get_num_threads())
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        gate, up = ctx.saved_tensors
        into = torch.empty_like(gate), torch.empty_like(up)
        sizes = gate.numel(), torch.get_num_threads()
        call(_library(gate.dtype).gate_back, *into, grads[0].contiguous(), gate, up, *sizes)
        return into


class _Rotate(torch.autograd.Function):
    """Heads (B, N, heads, D) turned by angles whose cosines and sines are (B, N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _rotated(grads[0], *ctx.saved_tensors, back=True), None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool) -> Tensor:
    x = x.contiguous()
    out, (heads, dim) = torch.empty_like(x), x.shape[2:]
    sizes = cosine.numel() // dim, heads, dim // 2, int(back), torch.get_num_threads()
    call(_library(x.dtype).rotate, out, x, cosine, sine, *sizes)
    return out


def _rotating(original: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' rotation of queries and keys (B, heads, N, D), by `layers.c` where it fits."""

    @wraps(original)
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        alike = cos.shape == sin.shape == q[:, 0].shape == k[:, 0].shape
        if more or named or not alike or not fits(q, k, cos, sin):
            return original(q, k, cos, sin, *more, **named)
        turns = cos.contiguous(), sin.contiguous()
        turned: list[Any] = [_Rotate.apply(x.transpose(1, 2), *turns) for x in (q, k)]
        return tuple(x.transpose(1, 2) for x in turned)

    return rotate


@cache
def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of the same name that tries `layers.c` first."""
    original = kind.forward

    def norm(self: Any, hidden_states: Tensor) -> Any:
        if not fits(hidden_states, self.weight):
            return original(self, hidden_states)
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)

    def mlp(self: Any, x: Tensor) -> Any:
        gate, up = self.gate_proj(x), self.up_proj(x)
        opened: Any = _Gate.apply(gate, up) if fits(gate, up) else self.act_fn(gate) * up
        return self.down_proj(opened)

    forward = norm if kind.__name__.endswith("RMSNorm") else mlp
    more = {"forward": forward, "__module__": kind.__module__, "fused": True}
    return type(kind.__name__, (kind,), more)


def fuse(core: Any) -> None:
    """Have a network of the family ask `layers.c`; any other, and what others have replaced in it,
    stays as it is."""
    family = core.config.model_type
    start = f"transformers.models.{family}."
    home: Any = sys.modules.get(f"{start}modeling_{family}")
    if family not in FAMILY or home is None:  # code of its own may go by such a name
        return
    for module in core.modules():
        kind = type(module)
        others = not kind.__module__.startswith(start) or "forward" in vars(module)
        if others or hasattr(kind, "fused"):
            continue
        gated = kind.__name__.endswith("MLP") and core.config.hidden_act == "silu"
        if kind.__name__.endswith("RMSNorm") or gated:
            module.__class__ = _fused(kind)
    if not hasattr(home.apply_rotary_pos_emb, "__wrapped__"):
        home.apply_rotary_pos_emb = _rotating(home.apply_rotary_pos_emb)
