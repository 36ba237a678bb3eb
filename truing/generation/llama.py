"""The Llama family, read from the live model's weights: a page of linear algebra.

What `transformers` computes, with fewer and larger products: queries, keys and values are one,
gate and up another, and every token stands in one flat row, whatever sequence it belongs to.
`attention` knows which token may look at which.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from truing.generation.cache import Slots
from truing.generation.kernels import Kernels, compiled
from truing.models.layers import FAMILY, kernels
from truing.models.products import is_linear, linear

# The ways to rotate that depend on the position alone.
ROTATIONS = ("default", "linear", "llama3", "yarn")
# Weights are copied into joint ones up to this many bytes; beyond, a copy costs more than it saves.
JOINED = 2**30
# A GPU copies them in no time: there it is up to such a share of its memory.
JOINED_SHARE = 1 / 16


class Attention(Protocol):
    """Rotates queries and keys, remembers keys and values, and looks."""

    def __call__(self, layer: int, qkv_NHD: Tensor) -> Tensor:
        """Queries, keys and values of N tokens in one -> what each token saw, (N, heads * D)."""
        ...


# A sum of two, or of one, and its norm.
Norm = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Block(NamedTuple):
    """One layer's functions."""

    before: Norm
    qkv: Callable[[Tensor], Tensor]
    turned: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    between: Norm
    gate_up: Callable[[Tensor], Tensor]
    gate: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]

    @property
    def products(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return self.qkv, self.out, self.gate_up, self.down


class Llama:
    """A network of the family as it is now: to be made anew when weights or adapters change."""

    def __init__(self, core: Any) -> None:
        config, body = core.config, core.base_model
        attention = body.layers[0].self_attn
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.dim, self.layers = attention.head_dim, config.num_hidden_layers
        self.scale = attention.scaling
        self.body = body
        on_cpu = body.device.type == "cpu"
        plain = on_cpu and body.dtype == torch.float32
        self.kernels: Kernels | None = compiled(self.dim) if plain else None
        self.on_gpu: Any = None if on_cpu else kernels(body.embed_tokens.weight)
        join = joined if _joins(body) else side_by_side
        self.blocks = [self._block(layer, join) for layer in body.layers]
        self.norm = self._added(body.norm)

    def _block(self, layer: Any, join: "Join") -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        qkv, out, gate_up, down = map(join, _readers(layer))
        return Block(
            before=self._added(layer.input_layernorm),
            qkv=qkv,
            turned=self._head_norms(attention),
            out=out,
            between=self._added(layer.post_attention_layernorm),
            gate_up=gate_up,
            gate=self._gate(mlp.act_fn),
            down=down,
        )

    def _head_norms(self, attention: Any) -> Callable[[Tensor], Tensor]:
        """Qwen3 norms each head's query and key."""
        if not hasattr(attention, "q_norm"):
            return lambda qkv_NHD: qkv_NHD
        q_norm, k_norm = self._norm(attention.q_norm), self._norm(attention.k_norm)
        sizes = [self.heads, self.groups, self.groups]

        def normed(qkv_NHD: Tensor) -> Tensor:
            q, k, v = qkv_NHD.split(sizes, 1)
            return torch.cat([q_norm(q), k_norm(k), v], 1)

        return normed

    def _norm(self, module: Any) -> Callable[[Tensor], Tensor]:
        """A root-mean-square norm; in float32 as one call. The family norms in float32 always, so
        in other formats its own way of rounding is kept."""
        weight, epsilon = module.weight, module.variance_epsilon
        if (home := self.on_gpu) is not None:
            return lambda x: home.norm(x, weight, epsilon)[0]
        if weight.dtype != torch.float32:
            return module
        if (own := self.kernels) is not None:
            return lambda x: own.norm(x, weight, epsilon)
        return lambda x: F.rms_norm(x, weight.shape, weight, epsilon)

    def _added(self, module: Any) -> Norm:
        """The norm of what was and what a layer adds to it; on a GPU as one call."""
        # By itself, not by this object: in a circle, copies of weights would outlive their use.
        norm, home = self._norm(module), self.on_gpu

        def normed(x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
            if more is None:
                return x, norm(x)
            if home is not None:
                return home.add_norm(x, more, module.weight, module.variance_epsilon)[:2]
            x = x + more
            return x, norm(x)

        return normed

    def _gate(self, act: Any) -> Callable[[Tensor], Tensor]:
        """Gate and up in a row -> act(gate) * up."""
        silu = self.body.config.hidden_act == "silu"
        if self.kernels is not None and silu:
            return self.kernels.gate
        home = self.on_gpu if silu else None

        def gated(x: Tensor) -> Tensor:
            gate, up = x.chunk(2, -1)
            if home is not None:
                return home.gate(gate, up)
            return act(gate) * up

        return gated

    def hidden(self, ids_N: Tensor, attention: Attention, ends: Tensor | None = None) -> Tensor:
        """Final hidden states (N, hidden) of N tokens, or of the ``ends`` among them alone."""
        x, more = self.body.embed_tokens(ids_N), None
        for i, block in enumerate(self.blocks):
            x, normed = block.before(x, more)
            qkv_NHD = block.qkv(normed).view(len(x), -1, self.dim)
            seen = attention(i, block.turned(qkv_NHD))
            if ends is not None and i == len(self.blocks) - 1:
                x, seen = x[ends], seen[ends]
            x, normed = block.between(x, block.out(seen))
            more = block.down(block.gate(block.gate_up(normed)))
        return self.norm(x, more)[1]

    def slots(self, **sizes: int) -> Slots:
        """Empty slots for this model."""
        like, masked = self.body.embed_tokens.weight, self.kernels is None
        return Slots(like, self.layers, self.groups, self.dim, masked=masked, **sizes)

    def rotations(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, dim) of all positions, by the model's own module."""
        like = self.body.embed_tokens.weight
        cos, sin = self.body.rotary_emb(like, torch.arange(length, device=like.device)[None])
        return cos[0], sin[0]


def known(core: Any, length: int) -> bool:
    """Whether this model, by its config, is one of the family for sequences of ``length``."""
    config = core.config
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    window = getattr(config, "sliding_window", None)
    return (
        config.model_type in FAMILY
        and rotation in ROTATIONS
        and (window is None or length <= window)
    )


def copied(core: Any) -> int:
    """Bytes of the joint weights that a `Llama` of this model, one of the family, makes."""
    body = core.base_model
    groups = [group for layer in body.layers for group in _readers(layer)] if _joins(body) else []
    bases = [
        getattr(module, "base_layer", module).weight
        for group in groups
        # One layer by itself is read where it lies.
        if len(group) > 1 or not is_linear(group[0])
        for module in group
    ]
    return sum(weight.numel() * weight.element_size() for weight in bases)


def _joins(body: Any) -> bool:
    """Whether the weights are few enough to be copied."""
    most, device = JOINED, body.device
    if device.type == "cuda":
        most = JOINED_SHARE * torch.cuda.get_device_properties(device).total_memory
    return sum(p.numel() * p.element_size() for p in body.layers.parameters()) <= most


def _readers(layer: Any) -> list[list[Any]]:
    """A layer's linear layers, those together that read the same."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]


# Some linear layers that read the same input -> one function that gives their outputs in a row.
Join = Callable[[list[Any]], Callable[[Tensor], Tensor]]


def side_by_side(modules: list[Any]) -> Callable[[Tensor], Tensor]:
    """Each by its own forward; no weights are copied."""
    if len(modules) == 1:
        return modules[0]
    return lambda x: torch.cat([module(x) for module in modules], -1)


class Joint(NamedTuple):
    """The product with a weight (out, in), and a bias (out,) if there is one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def joined(modules: list[Any]) -> Callable[[Tensor], Tensor]:
    """One product with their weights in a row, LoRA adapters added to them."""
    found = [own for module in modules if (own := _weight(module)) is not None]
    if len(found) < len(modules):
        return side_by_side(modules)
    weight: Tensor = torch.cat(found) if len(found) > 1 else found[0]
    biases = [getattr(module, "bias", None) for module in modules]
    if all(bias is None for bias in biases):
        return Joint(weight, None)
    pairs = zip(biases, found, strict=True)
    return Joint(weight, torch.cat([w.new_zeros(len(w)) if b is None else b for b, w in pairs]))


def _weight(module: Any) -> Tensor | None:
    """The weight that a linear layer multiplies by, or None where it does something else."""
    if is_linear(module):
        return module.weight
    base = getattr(module, "base_layer", None)
    if not is_linear(base) or not hasattr(module, "get_delta_weight"):
        return None
    if module.disable_adapters or module.merged:
        return base.weight
    deltas = [module.get_delta_weight(a) for a in module.active_adapters if a in module.lora_A]
    if any(delta.dtype != base.weight.dtype for delta in deltas):
        return None  # rounded to the weight's format, an adapter's small updates were lost
    return base.weight + sum(deltas) if deltas else base.weight
