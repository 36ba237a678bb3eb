"""A step of all slots on a GPU: in shapes that stay, recorded once as a graph and replayed.

A step is hundreds of small kernels, and to launch each takes longer than its work. What changes
from step to step stands in tensors that stay where they are, so the GPU can go through all of them
by itself. Graphs read the weights in place, and so are of one `Llama`.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from truing.data.layout import sent_into
from truing.generation.attention import rotated
from truing.generation.cache import Slots
from truing.generation.llama import Llama
from truing.models.gpu import kernels

# Besides the step of all slots there is one of a quarter of them, and so on: few cost less. Where
# that would be fewer than so many, it does not pay: to read the weights takes as long for one.
SHRINK, FEWEST = 4, 16
KERNELS = "truing.generation.attend_gpu"


class Replay:
    """Steps of one new token in each slot in use. Where there is no GPU, nothing is recorded, and
    each is computed as it is; nor is a ``trial``, for which that would take too long."""

    def __init__(
        self, model: Llama, slots: Slots, turn: tuple[Tensor, Tensor], *, trial: bool = False
    ) -> None:
        self.model, self.slots, self.turn = model, slots, turn
        device, count = slots.own.device, slots.own.shape[2]
        self.token_S = torch.zeros(count, dtype=torch.long, device=device)
        # Of each slot its length and its prompt, and each prompt's width: sent in one.
        self.told = torch.cat([slots.length, slots.prompt, slots.width]).to(device)
        self.length_S, self.prompt_S, self.width_P = self.told.split(
            [count, count, len(slots.width)]
        )
        self.sizes = [count]
        while self.sizes[-1] >= SHRINK * FEWEST:
            self.sizes.append(-(-self.sizes[-1] // SHRINK))
        self.attention = way(slots.own)
        self.steps: dict[int, Callable[[], Tensor]] = {}
        self.pool = None if trial or device.type != "cuda" else torch.cuda.graph_pool_handle()

    def step(self, token_S: Tensor) -> Tensor:
        """Hidden states (S, H) after one more token in each slot in use."""
        slots, count = self.slots, len(self.slots)
        size = min(size for size in self.sizes if size >= count)
        self.token_S[:count] = token_S
        told = torch.cat([slots.length, slots.prompt, slots.width])
        # A slot that is not in use goes through the step as well, as an empty one: what it leaves
        # behind is overwritten by the first token of whatever takes it.
        told[count : len(slots.length)] = 0
        sent_into(self.told, told)
        if self.pool is None:
            return self._computed(size)[:count].clone()
        if size not in self.steps:
            self.steps[size] = self._recorded(size)
        return self.steps[size]()[:count].clone()

    def _computed(self, size: int) -> Tensor:
        return self.model.hidden(self.token_S[:size], self.attention(self, size))

    def _recorded(self, size: int) -> Callable[[], Tensor]:
        # Once beforehand, aside: what is made at the first call must not be recorded.
        aside = _aside()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._computed(size)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, self.pool, aside, capture_error_mode="thread_local"):
            hidden_SH = self._computed(size)

        def replay() -> Tensor:  # without a road back to the model: that is to go with its sampler
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
        self.length_S, self.prompt_S = replay.length_S[:size], replay.prompt_S[:size]
        self.width_P, self.width_S = replay.width_P, replay.width_P[self.prompt_S]
        at_S = self.length_S + self.width_S
        self.cos_SD, self.sin_SD = (table[at_S] for table in replay.turn)


class Fused(Steady):
    """By `attend_gpu`."""

    def __call__(self, layer: int, qkv_NHD: Tensor) -> Tensor:
        kept = self.slots.own[layer], self.slots.prompts[layer]
        places = self.length_S, self.prompt_S, self.width_P
        turn = self.cos_SD, self.sin_SD
        return import_module(KERNELS).attend(qkv_NHD, turn, *kept, places, self.model.scale)


class Masked(Steady):
    """By torch, under a mask, with all keys copied side by side."""

    def __init__(self, replay: Replay, size: int) -> None:
        super().__init__(replay, size)
        room, width = self.slots.own.shape[-2], self.slots.prompts.shape[-2]
        self.at_S = torch.arange(size, device=self.length_S.device)
        seen = (
            torch.arange(width, device=self.at_S.device) < self.width_S[:, None],
            torch.arange(room, device=self.at_S.device) <= self.length_S[:, None],
        )
        self.seen_S11T = torch.cat(seen, 1)[:, None, None]

    def __call__(self, layer: int, qkv_NHD: Tensor) -> Tensor:
        heads, groups = self.model.heads, self.model.groups
        turned = rotated(qkv_NHD[:, : heads + groups], self.cos_SD, self.sin_SD)
        own, prompts = self.slots.own[layer], self.slots.prompts[layer]
        own[0][self.at_S, :, self.length_S] = turned[:, heads:]
        own[1][self.at_S, :, self.length_S] = qkv_NHD[:, heads + groups :]
        query_SGRD = turned[:, :heads].unflatten(1, (groups, -1))
        key, value = (
            torch.cat([prompts[i][self.prompt_S], own[i, : len(self.at_S)]], 2) for i in range(2)
        )
        return F.scaled_dot_product_attention(
            query_SGRD, key, value, attn_mask=self.seen_S11T, scale=self.model.scale
        ).flatten(1)


def way(own: Tensor) -> type[Fused | Masked]:
    """How the slots with such keys are read."""
    return Masked if kernels(KERNELS, own) is None else Fused
