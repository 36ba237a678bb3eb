"""A layer of the Llama family as one function, each way, for a GPU.

Module by module a layer is dozens of nodes of a graph, and to go through them can take the host
longer than the kernels take. Here it is one: the same kernels in the same order, sums of what runs
beside each other in the pass that makes them, and what opens the gate computed again instead of
kept. Modules that are not as their family has them (adapters, hooks, other number formats) go
their own way.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from truing.models import gpu, varlen
from truing.models.products import changed, is_plain

KERNELS = "truing.models.layers_gpu"


class Facts(NamedTuple):
    """What a layer's function must know besides tensors; ``epsilons``: of its two norms, and of
    those of queries and keys where it has them."""

    ways: Any
    plan: varlen.Plan
    dim: int
    scale: float
    epsilons: tuple[float, ...]


class Weights(NamedTuple):
    """A layer's parameters: of norms the weight; of linear layers the weight (out, in), and the
    bias (out,) of those that have one."""

    norm: Tensor
    norm_behind: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    out_bias: Tensor | None
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


class _Whole(torch.autograd.Function):
    """What a layer makes of x (N, H), with angles whose cosines and sines are (1, N, D)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor, facts: Facts, *weights: Tensor | None
    ) -> Tensor:
        w, ways = Weights(*weights), facts.ways  # pyright: ignore
        normed, scale = ways.norm(x, w.norm, facts.epsilons[0])
        q = F.linear(normed, w.query, w.query_bias)
        k = F.linear(normed, w.key, w.key_bias)
        v = F.linear(normed, w.value, w.value_bias)
        raw_q, raw_k, v = (each.view(len(x), -1, facts.dim) for each in (q, k, v))
        q, k, scales = raw_q, raw_k, (None, None)
        if w.query_norm is not None:
            q, q_scale = ways.norm(q, w.query_norm, facts.epsilons[2])
            k, k_scale = ways.norm(k, w.key_norm, facts.epsilons[3])
            scales = q_scale, k_scale
        q, k = (each[0] for each in ways.turn([q[None], k[None]], cosine, sine, back=False))
        seen, total = varlen.seen_of(q, k, v, facts.plan, facts.scale)
        behind = F.linear(seen.flatten(1), w.out, w.out_bias)
        middle, normed_behind, scale_behind = ways.add_norm(
            x, behind, w.norm_behind, facts.epsilons[1]
        )
        gate = F.linear(normed_behind, w.gate, w.gate_bias)
        up = F.linear(normed_behind, w.up, w.up_bias)
        out = F.linear(ways.gate(gate, up), w.down, w.down_bias)
        # Raw queries and keys are read again only where they are normed.
        raw = (raw_q, raw_k) if w.query_norm is not None else (None, None)
        kept = x, cosine, sine, normed, scale, *raw, *scales, q, k, v, seen, total
        ctx.save_for_backward(*kept, middle, normed_behind, scale_behind, gate, up, *weights)
        ctx.facts = facts
        return out.add_(middle)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (
            x, cosine, sine, normed, scale, raw_q, raw_k, q_scale, k_scale, q, k, v, seen, total,
            middle, normed_behind, scale_behind, gate, up, *weights,
        ) = ctx.saved_tensors  # fmt: skip
        w, facts, wants = Weights(*weights), ctx.facts, Weights(*ctx.needs_input_grad[4:])
        ways, ahead, found = facts.ways, grads[0].contiguous(), dict[str, Tensor | None]()
        told = ahead @ w.down, gate, up
        of_gate, of_up, *opened = ways.gate_back(*told, again=bool(wants.down))
        # Where the weight is frozen, nobody reads what it read.
        _learn(found, wants, opened[0] if opened else up, down=ahead)
        del told, opened
        of_normed = _before((of_gate, w.gate), (of_up, w.up))
        _learn(found, wants, normed_behind, gate=of_gate, up=of_up)
        del of_gate, of_up
        of_middle, found["norm_behind"] = ways.norm_back(
            of_normed, middle, w.norm_behind, scale_behind, ahead
        )
        _learn(found, wants, seen.flatten(1), out=of_middle)
        of_seen = (of_middle @ w.out).view_as(seen)
        told = q, k, v, seen, total, facts.plan, facts.scale
        of_q, of_k, of_v = varlen.slopes_of(of_seen, *told)
        turned = ways.turn([of_q[None], of_k[None]], cosine, sine, back=True)
        of_q, of_k = (each[0] for each in turned)
        if raw_q is not None:
            of_q, found["query_norm"] = ways.norm_back(of_q, raw_q, w.query_norm, q_scale)
            of_k, found["key_norm"] = ways.norm_back(of_k, raw_k, w.key_norm, k_scale)
        of_q, of_k, of_v = (each.flatten(1) for each in (of_q, of_k, of_v))
        of_normed = _before((of_q, w.query), (of_k, w.key), (of_v, w.value))
        _learn(found, wants, normed, query=of_q, key=of_k, value=of_v)
        of_x, found["norm"] = ways.norm_back(of_normed, x, w.norm, scale, of_middle)
        told = (found.get(name) if wanted else None for name, wanted in wants._asdict().items())
        return of_x, None, None, None, *told


def _before(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of what linear layers read, of theirs and their weights."""
    (first, weight), *others = pairs
    total = first @ weight
    for slope, weight in others:
        total.addmm_(slope, weight)
    return total


def _learn(found: dict[str, Tensor | None], wants: Weights, read: Tensor, **slopes: Tensor) -> None:
    """The gradients of linear layers' parameters, where they are wanted, from what they ``read``
    and the slopes of what they made of it, by their names."""
    for name, slope in slopes.items():
        if getattr(wants, name):
            found[name] = slope.T @ read
        if getattr(wants, f"{name}_bias"):
            found[f"{name}_bias"] = slope.sum(0)


def weights_of(layer: Any) -> Weights | None:
    """A layer's parameters where all of it is as its family has it; else None."""
    attention, mlp, norms = layer.self_attn, layer.mlp, norms_of(layer)
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    ours = all(hasattr(type(m), "fused") and not changed(m) for m in (attention, mlp, *norms))
    if not ours or not all(map(is_plain, linears)):
        return None
    of_norms = [norm.weight for norm in norms]
    of_norms += [None] * (4 - len(of_norms))
    return Weights(*of_norms, *(m.weight for m in linears), *(m.bias for m in linears))


def norms_of(layer: Any) -> list[Any]:
    """A layer's norms, and behind them those of queries and keys, if any."""
    attention = layer.self_attn
    more = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
    return [layer.input_layernorm, layer.post_attention_layernorm, *more]


def kernels(like: Tensor) -> Any:
    """What computes with such tensors on a GPU, if anything does."""
    return gpu.kernels(KERNELS, like)


def served(layer: Any, x_1NH: Tensor, named: dict[str, Any]) -> bool:
    """Whether what a layer is given is what its function takes: half-precision numbers on a GPU, in
    one row by a table of spans, and nothing remembered."""
    table = named.get("attention_mask")
    if table is None or table.dtype != torch.long or named.get("past_key_values") is not None:
        return False
    fits = varlen.fits(x_1NH.device, x_1NH.dtype, layer.self_attn.head_dim)
    return fits and not torch.is_autocast_enabled(x_1NH.device.type)


def through(layer: Any, x_1NH: Tensor, named: dict[str, Any]) -> Tensor | None:
    """What a layer makes of x (1, N, H), or None where it must go module by module; ``named`` as
    transformers gives it to layers."""
    ways = kernels(x_1NH)
    if ways is None or not served(layer, x_1NH, named):
        return None
    weights, (cosine, sine) = weights_of(layer), named["position_embeddings"]
    read: Sequence[Tensor | None] = [*(weights or ()), cosine, sine]
    if weights is None or any(each is not None and each.dtype != x_1NH.dtype for each in read):
        return None
    attention = layer.self_attn
    epsilons = tuple(norm.variance_epsilon for norm in norms_of(layer))
    plan = varlen.plan_of(named["attention_mask"], x_1NH.device)
    facts = Facts(ways, plan, attention.head_dim, attention.scaling, epsilons)
    x_NH, turn = x_1NH.squeeze(0).contiguous(), (cosine.contiguous(), sine.contiguous())
    made: Any = _Whole.apply(x_NH, *turn, facts, *weights)
    return made.unsqueeze(0)
