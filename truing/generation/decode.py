"""A decode step of a few responses as one call of `decode.c`.

Between the calls of a step Python takes as long as the work itself, and the other threads fall
asleep. Of more rows the products are others, and what is between them weighs less.
"""

from typing import Any

import torch
from torch import Tensor

from truing.generation.attention import Kernel
from truing.generation.cache import Slots
from truing.generation.llama import Joint, Llama
from truing.models.products import FEW


class Decode:
    """Steps of up to ``most`` slots of a model that has a way to take them (`decodes`)."""

    most = FEW.stop - 1

    def __init__(self, model: Llama, slots: Slots) -> None:
        assert model.kernels is not None
        config, body = model.body.config, model.body
        self.kernels, self.slots, self.embed = model.kernels, slots, body.embed_tokens
        # Where the weights lie; what is to stay alive as long as this does.
        self.kept = [weights for layer in zip(body.layers, model.blocks, strict=True)
                     for weights in _weights(*layer)]  # fmt: skip
        self.table = torch.tensor([0 if w is None else w.data_ptr() for w in self.kept])
        self.last, self.epsilon = body.norm.weight, body.norm.variance_epsilon
        self.threads = torch.get_num_threads()
        heads, groups, dim = model.heads, model.groups, model.dim
        hidden, inner = config.hidden_size, config.intermediate_size
        _, _, count, _, room, _ = slots.own.shape
        known, width = slots.prompts.shape[2], slots.prompts.shape[4]
        self.sizes = hidden, inner, heads, groups, count, known, room, width, self.threads
        each = hidden + 2 * (heads + groups) * dim + inner
        rows = min(self.most, count)
        self.spare = slots.own.new_empty(rows * each + self.threads * (room + width))

    def __call__(self, token_S: Tensor, now: Kernel) -> Tensor:
        """Hidden states (S, H) after one more token in each slot in use, as ``now`` finds them."""
        slots, x_SH = self.slots, self.embed(token_S)
        out_SH = torch.empty_like(x_SH)
        tensors = out_SH, x_SH, self.spare, self.table, self.last
        book = now.order, slots.length, slots.prompt, slots.width
        sizes = len(self.kept) // KINDS, len(x_SH), *self.sizes
        turn = now.cos, now.sin, slots.own, slots.prompts
        self.kernels.decode(*tensors, self.epsilon, *turn, *book, *sizes)
        return out_SH


# Weights of a layer.
KINDS = 12


def _weights(layer: Any, block: Any) -> list[Tensor | None]:
    """A layer's weights in the order of `decode.c`."""
    attention = layer.self_attn
    qkv, out, gate_up, down = block.products
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return [
        layer.input_layernorm.weight,
        *qkv,
        *(None if norm is None else norm.weight for norm in norms),
        *out,
        layer.post_attention_layernorm.weight,
        *gate_up,
        *down,
    ]


def decodes(model: Llama) -> bool:
    """Whether all of a model is as `decode.c` takes it."""
    body = model.body
    if model.kernels is None or not model.kernels.whole or body.config.hidden_act != "silu":
        return False
    if not all(isinstance(p, Joint) for block in model.blocks for p in block.products):
        return False
    norms = [module for module in body.modules() if hasattr(module, "variance_epsilon")]
    layers = zip(body.layers, model.blocks, strict=True)
    weights = [weight for layer in layers for weight in _weights(*layer) if weight is not None]
    return len({norm.variance_epsilon for norm in norms}) == 1 and all(
        weight.is_contiguous() and weight.dtype == torch.float32 for weight in weights
    )
