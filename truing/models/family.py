"""The Llama family's layers where they read by spans: what they read they read once, and the last
layer goes no further than where its hidden states are read.

The last layer makes keys and values of every cell. Its queries, and all that comes of them, matter
only where a state is read: where a token is scored, or a sequence ends. Of a pair that is scored
those are two cells of some hundreds; of a prompt with its response, all but the prompt. Modules
stay what they are; only their class becomes one that can do so.
"""

import sys
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from truing.data.layout import Kept
from truing.models.layers import home_of, untouched
from truing.models.products import linears
from truing.models.whole import kernels, through, weights_of


class States(NamedTuple):
    """Final hidden states: of all cells of a layout's rows, one behind the other, or of those that
    were ``kept``."""

    hidden_NH: Tensor
    columns: int
    kept: Kept | None = None

    def at(self, row: Tensor, column: Tensor) -> Tensor:
        """Those of the cells at these rows and columns, (..., H)."""
        number = row * self.columns + column
        if self.kept is not None:
            number = torch.searchsorted(self.kept.cells_M[: self.kept.count], number)
        found = self.hidden_NH.index_select(0, number.reshape(-1))
        return found.view(*number.shape, found.shape[-1])


def _seen(attention: Any, x_1NH: Tensor, named: dict[str, Any], kept: Kept | None) -> Tensor:
    """What the family's attention makes of x (1, N, H), for cells that are kept (1, M, H)."""
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    if kept is None:
        made = linears(x_1NH, layers)
    else:
        made = [layers[0](x_1NH.index_select(1, kept.cells_M)), *linears(x_1NH, layers[1:])]
    q, k, v = (x.unflatten(-1, (-1, attention.head_dim)) for x in made)
    if hasattr(attention, "q_norm"):  # Qwen3
        q, k = attention.q_norm(q), attention.k_norm(k)
    if kept is not None:
        # Queries stand where their cells do. Those in between see what nobody reads.
        own, room = slice(kept.count), q.new_zeros(1, x_1NH.shape[1], *q.shape[2:])
        q = room.index_copy(1, kept.cells_M[own], q[:, own])
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    q, k = rotate(q.transpose(1, 2), k.transpose(1, 2), *named["position_embeddings"])
    told = {"scaling": attention.scaling, "late": None if kept is None else kept.late_S}
    look = ALL_ATTENTION_FUNCTIONS["sdpa"]
    seen, _ = look(attention, q, k, v.transpose(1, 2), named["attention_mask"], **told)
    seen = seen if kept is None else seen.index_select(1, kept.cells_M)
    return attention.o_proj(seen.flatten(2))


@cache
def _spanning(kind: type[nn.Module]) -> type[nn.Module]:
    """The attention of the same name that reads once where it reads by spans."""
    original = kind.forward

    def forward(self: Any, hidden_states: Tensor, **named: Any) -> Any:
        table = named.get("attention_mask")
        if table is None or table.dtype != torch.long or named.get("past_key_values") is not None:
            return original(self, hidden_states, **named)
        return _seen(self, hidden_states, named, None), None

    more = {"forward": forward, "__module__": kind.__module__, "fused": True}
    return type(kind.__name__, (kind,), more)


@cache
def _wholly(kind: type[nn.Module]) -> type[nn.Module]:
    """The layer of the same name that goes as one function where it is told to and can."""
    original = kind.forward

    def forward(self: Any, hidden_states: Tensor, whole: bool = False, **named: Any) -> Any:
        made = through(self, hidden_states, named) if whole else None
        return original(self, hidden_states, **named) if made is None else made

    more = {"forward": forward, "__module__": kind.__module__, "fused": True}
    return type(kind.__name__, (kind,), more)


@cache
def _narrowing(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of the same name whose forward knows of cells that are ``kept``."""
    original = kind.forward

    def forward(self: Any, hidden_states: Tensor, kept: Kept | None = None, **named: Any) -> Any:
        if kept is None:
            return original(self, hidden_states, **named)
        seen = _seen(self.self_attn, self.input_layernorm(hidden_states), named, kept)
        x = hidden_states.index_select(1, kept.cells_M) + seen
        return x + self.mlp(self.post_attention_layernorm(x))

    more = {"forward": forward, "__module__": kind.__module__, "fused": True}
    return type(kind.__name__, (kind,), more)


def span(core: Any) -> None:
    """Have a network of the family read once, its layers as one function where there is one, and
    leave out cells in the last when it is told which are kept; any other, and what others have
    replaced in it, stays as it is."""
    home = home_of(core)
    if home is None or not hasattr(core.base_model, "layers"):
        return
    layers = core.base_model.layers
    for layer in layers:
        if untouched(layer.self_attn, home):
            layer.self_attn.__class__ = _spanning(type(layer.self_attn))
            if untouched(layer, home):
                layer.__class__ = _wholly(type(layer))
                if layer is layers[-1]:
                    layer.__class__ = _narrowing(type(layer))


def goes_whole(core: Any, position_ids: Tensor, attention_mask: Tensor) -> bool:
    """Whether the layers of a network of the family may go as one function: where the first was
    seen to give so what its modules give, each way, of random states at such positions, told apart
    by such a table of spans."""
    layers = getattr(core.base_model, "layers", ())
    if not layers or not hasattr(type(layers[0]), "fused") or weights_of(layers[0]) is None:
        return False
    like, draw = core.base_model.embed_tokens.weight, torch.Generator().manual_seed(0)
    if kernels(like) is None:
        return False
    with torch.inference_mode(False), torch.enable_grad():
        drawn = torch.randn(*position_ids.shape, like.shape[1], generator=draw)
        x_1NH = drawn.to(like.device, like.dtype).requires_grad_()
        turn = core.base_model.rotary_emb(x_1NH, position_ids)
        named = {"attention_mask": attention_mask, "position_embeddings": turn}
        # A key's bias has next to no gradient: what there is of it is rounding.
        told = layers[0].named_parameters()
        own = [p for n, p in told if p.requires_grad and not n.endswith("k_proj.bias")]
        found: list[list[Tensor]] = []
        for whole in (True, False):
            try:
                made = layers[0].forward(x_1NH, whole=whole, **named)
                slopes = torch.autograd.grad(made.float().square().mean(1).sum(), [x_1NH, *own])
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a compiler of kernels may raise
                return False
            found.append([made, *slopes])
    # 16 bits round their sums in another order.
    pairs = ((one.float(), other.float()) for one, other in zip(*found, strict=True))
    return all(bool((one - other).norm() <= 5e-2 * other.norm()) for one, other in pairs)
