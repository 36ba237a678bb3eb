"""A network's last layer, taken no further than where its hidden states are read.

The last layer makes keys and values of every cell. Its queries, and all that comes of them, matter
only where a state is read: where a token is scored, or a sequence ends. Of a pair that is scored
those are two cells of some hundreds; of a prompt with its response, all but the prompt. The module
stays what it is; only its class becomes one that can leave cells out.
"""

import sys
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn, searchsorted
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from truing.data.layout import Kept
from truing.models.layers import home_of, untouched


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
            number = searchsorted(self.kept.cells_M[: self.kept.count], number)
        found = self.hidden_NH.index_select(0, number.reshape(-1))
        return found.view(*number.shape, -1)


def _seen(attention: Any, x_1NH: Tensor, named: dict[str, Any], kept: Kept) -> Tensor:
    """What the family's attention makes of x for the cells that are kept, (1, M, H)."""
    width, cells_M = attention.head_dim, kept.cells_M
    q, k, v = (
        project(x).view(1, x.shape[1], -1, width)
        for project, x in (
            (attention.q_proj, x_1NH.index_select(1, cells_M)),
            (attention.k_proj, x_1NH),
            (attention.v_proj, x_1NH),
        )
    )
    if hasattr(attention, "q_norm"):  # Qwen3
        q, k = attention.q_norm(q), attention.k_norm(k)
    # Queries stand where their cells do. Those in between see what nobody reads.
    own = slice(kept.count)
    q = q.new_zeros(1, x_1NH.shape[1], *q.shape[2:]).index_copy(1, cells_M[own], q[:, own])
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    q, k = rotate(q.transpose(1, 2), k.transpose(1, 2), *named["position_embeddings"])
    told = {"scaling": attention.scaling, "late": kept.late_S}
    look = ALL_ATTENTION_FUNCTIONS["sdpa"]
    seen, _ = look(attention, q, k, v.transpose(1, 2), named["attention_mask"], **told)
    return attention.o_proj(seen.index_select(1, cells_M).flatten(2))


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


def narrow(core: Any) -> None:
    """Have a network of the family leave out cells in its last layer, when it is told which are
    kept; any other, and what others have replaced in it, stays as it is."""
    home = home_of(core)
    if home is not None and hasattr(core.base_model, "layers"):
        last = core.base_model.layers[-1]
        if untouched(last, home) and untouched(last.self_attn, home):
            last.__class__ = _narrowing(type(last))
