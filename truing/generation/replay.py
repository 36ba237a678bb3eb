"""A step of all slots on a GPU: in shapes that stay, recorded once as a graph and replayed.

A step is hundreds of small kernels, and to launch each takes longer than its work. What changes
from step to step stands in tensors that stay where they are, so the GPU can go through all of them
by itself. Graphs read the weights in place, and so are of one `Llama`.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from truing.generation.attention import rotated
from truing.generation.cache import Slots
from truing.generation.llama import Llama
from truing.models.varlen import Pieces, fits, look, merged

# Besides the step of all slots there is one of a quarter of them, and so on: few cost less.
SHRINK = 4


class Replay:
    """Steps of one new token in each slot in use. Where there is no GPU, nothing is recorded, and
    each is computed as it is; nor is a ``trial``, for which that would take too long."""

    def __init__(
        self, model: Llama, slots: Slots, turn: tuple[Tensor, Tensor], *, trial: bool = False
    ) -> None:
        self.model, self.slots, self.turn = model, slots, turn
        device, count = slots.own.device, slots.own.shape[2]
        self.token_S, self.length_S, self.prompt_S = (
            torch.zeros(count, dtype=torch.long, device=device) for _ in range(3)
        )
        self.width_P = torch.ones(slots.prompts.shape[2], dtype=torch.long, device=device)
        self.sizes = [count]
        while self.sizes[-1] > SHRINK:
            self.sizes.append(-(-self.sizes[-1] // SHRINK))
        self.steps: dict[int, Callable[[], Tensor]] = {}
        self.pool = None if trial or device.type != "cuda" else torch.cuda.graph_pool_handle()

    def step(self, token_S: Tensor) -> Tensor:
        """Hidden states (S, H) after one more token in each slot in use."""
        slots, count = self.slots, len(self.slots)
        size = min(size for size in self.sizes if size >= count)
        # A slot that is not in use goes through the step as well, as an empty one: what it leaves
        # behind is overwritten by the first token of whatever takes it.
        self.length_S[count:size] = 0
        for into, values in (
            (self.token_S, token_S),
            (self.length_S, slots.length[:count]),
            (self.prompt_S, slots.prompt[:count]),
            (self.width_P, slots.width[: len(slots.known)]),
        ):
            into[: len(values)] = values
        if size not in self.steps:
            self.steps[size] = self._recorded(size)
        return self.steps[size]()[:count].clone()

    def _recorded(self, size: int) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            return self.model.hidden(self.token_S[:size], Steady(self, size))

        if self.pool is None:
            return compute
        # Once beforehand, aside: what is made at the first call must not be recorded.
        aside = _aside()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, self.pool, aside, capture_error_mode="thread_local"):
            hidden_SH = compute()

        def replay() -> Tensor:
            graph.replay()
            return hidden_SH

        return replay


@cache
def _aside() -> "torch.cuda.Stream":
    """The stream to record on: libraries keep a workspace for each that they see."""
    return torch.cuda.Stream()


class Steady:
    """One new token in each of the first ``size`` slots, whatever they hold, without a look at it
    from outside the GPU: `truing.generation.attention.Writing` in shapes that stay."""

    def __init__(self, replay: Replay, size: int) -> None:
        self.model, self.slots = replay.model, replay.slots
        own, prompts = self.slots.own, self.slots.prompts
        self.size, device = size, own.device
        self.at_S = torch.arange(size, device=device)
        self.length_S, self.prompt_S = replay.length_S[:size], replay.prompt_S[:size]
        width_S = replay.width_P[self.prompt_S]
        self.cos_S1D, self.sin_S1D = (
            table[self.length_S + width_S].unsqueeze(1) for table in replay.turn
        )
        room, width = own.shape[-2], prompts.shape[-2]
        self.flash = fits(device, own.dtype, own.shape[-1])
        if self.flash:
            # Keys of a slot, or of a prompt, lie head behind head: the first one's places count.
            groups, repeats = self.model.groups, self.model.heads // self.model.groups
            places = torch.arange(size + 1, device=device)
            self.queries = Pieces((places * repeats).int(), repeats)
            self.places = (
                Pieces((places * groups * room).int(), room),
                Pieces((F.pad(self.prompt_S, (0, 1)) * groups * width).int(), width),
            )
            self.used = (self.length_S + 1).int(), width_S.int()
        else:
            seen = (
                torch.arange(width, device=device) < width_S[:, None],
                torch.arange(room, device=device) <= self.length_S[:, None],
            )
            self.seen_S11T = torch.cat(seen, 1)[:, None, None]

    def __call__(self, layer: int, qkv_NHD: Tensor) -> Tensor:
        heads, groups = self.model.heads, self.model.groups
        turned = rotated(qkv_NHD[:, : heads + groups], self.cos_S1D, self.sin_S1D)
        keys, values = self.slots.own[layer]
        keys[self.at_S, :, self.length_S] = turned[:, heads:]
        values[self.at_S, :, self.length_S] = qkv_NHD[:, heads + groups :]
        query_SGRD = turned[:, :heads].unflatten(1, (groups, -1))
        return (self._by_flash if self.flash else self._by_mask)(layer, query_SGRD)

    def _by_mask(self, layer: int, query_SGRD: Tensor) -> Tensor:
        own, prompts = self.slots.own[layer], self.slots.prompts[layer]
        key, value = (
            torch.cat([prompts[i][self.prompt_S], own[i, : self.size]], 2) for i in range(2)
        )
        return F.scaled_dot_product_attention(
            query_SGRD, key, value, attn_mask=self.seen_S11T, scale=self.model.scale
        ).flatten(1)

    def _by_flash(self, layer: int, query_SGRD: Tensor) -> Tensor:
        # Queries that share a key are a piece: what the kernel would make of them for itself.
        query = query_SGRD.transpose(1, 2).flatten(0, 1)
        (seen, total), (other, more) = (
            look(
                query, _lying(kept[layer, 0]), _lying(kept[layer, 1]), self.queries, places,
                causal=False, scale=self.model.scale, used=used,
            )
            for kept, places, used in zip(
                (self.slots.own, self.slots.prompts), self.places, self.used, strict=True
            )
        )  # fmt: skip
        both = merged(seen, total, other, more)
        return both.unflatten(0, (self.size, -1)).transpose(1, 2).flatten(1)


def _lying(kept: Tensor) -> Tensor:
    """Keys or values (N, groups, room, dim) as rows (M, groups, dim) of which row
    ``n * groups * room + t`` is token t of n: nothing is moved."""
    count, groups, room, dim = kept.shape
    rows = ((count - 1) * groups + 1) * room
    return kept.as_strided((rows, groups, dim), (dim, room * dim, 1))
