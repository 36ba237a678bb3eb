"""Who may look at whom: within each prompt while it is read, and one new token a slot thereafter.

A response's token looks at its prompt, whose keys lie in one place for all responses to it, and at
the response so far. The scores of both stand side by side before the softmax, so the result is that
of one sequence. In torch for any device and number format, and by `kernels.c` where that can run.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from truing.generation.cache import Slots
from truing.generation.llama import Llama
from truing.models.attention import attend
from truing.models.layers import kernels
from truing.models.varlen import Pieces, fits, look


class Reading:
    """Prompts side by side in one flat row; each token looks back within its own."""

    def __init__(
        self, model: Llama, slots: Slots, rows: Sequence[int], turn: tuple[Tensor, Tensor]
    ) -> None:
        self.model, self.slots, self.rows = model, slots, rows
        self.sizes = [int(slots.width[row]) for row in rows]
        device = turn[0].device
        at_N = torch.cat([torch.arange(size) for size in self.sizes]).to(device)
        self.turn = tuple(table[at_N] for table in turn)
        self.at_N = at_N
        ends = torch.tensor(self.sizes).cumsum(0)
        table = torch.stack([ends - torch.tensor(self.sizes), ends, 0 * ends, 0 * ends], 1)
        self.table, self.pieces = table[None, None], None
        if fits(device, slots.own.dtype, model.dim):
            self.pieces = Pieces.of(self.sizes, device)
            sizes = torch.tensor(self.sizes)
            self.row_N = torch.tensor(self.rows).repeat_interleave(sizes).to(device)

    def __call__(self, layer: int, qkv_NHD: Tensor) -> Tensor:
        heads, groups, scale = self.model.heads, self.model.groups, self.model.scale
        q, k = rotated(qkv_NHD[:, : heads + groups], *self.turn).split([heads, groups], 1)
        v = qkv_NHD[:, heads + groups :]
        if self.pieces is not None:  # all at once
            for i, each in enumerate((k, v)):
                self.slots.prompts[layer, i][self.row_N, :, self.at_N] = each
            places = self.pieces, self.pieces
            return look(q, k, v, *places, scale=scale)[0].flatten(1)
        for i, each in enumerate((k, v)):
            for row, part in zip(self.rows, each.split(self.sizes), strict=True):
                self.slots.prompts[layer, i, row, :, : len(part)] = part.transpose(0, 1)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        if q.device.type == "cpu":
            return attend(None, q, k, v, self.table, scaling=scale)[0][0].flatten(1)
        rows = zip(*(x.split(self.sizes, 2) for x in (q, k, v)), strict=True)
        seen = [
            F.scaled_dot_product_attention(
                *row, is_causal=True, scale=scale, enable_gqa=heads != groups
            )
            for row in rows
        ]
        return torch.cat(seen, 2)[0].transpose(0, 1).flatten(1)


class Writing:
    """One new token in each slot in use, in torch.

    The slots of a prompt lie together for its part of the scores, filled up to as many as the
    prompt with most has; the rest is masked. ``members_PM`` are the slots of each prompt, and slot
    s is the ``place_S[s]``-th of its own.
    """

    def __init__(self, model: Llama, slots: Slots, turn: tuple[Tensor, Tensor]) -> None:
        self.model, self.slots, device = model, slots, slots.own.device
        count, prompts = len(slots), len(slots.known)
        length, prompt = slots.length[:count], slots.prompt[:count]
        width = slots.width[:prompts]
        self.wide, self.long = int(width.max()), int(length.max()) + 1
        self.at_S, self.length_S, self.prompt_S = (
            x.to(device) for x in (torch.arange(count), length, prompt)
        )
        at_S = (length + width[prompt]).to(device)
        self.turn = tuple(table[at_S] for table in turn)
        same_SS = (prompt[:, None] == prompt).tril(-1)
        place = same_SS.sum(-1)
        members = torch.zeros(prompts, int(place.max()) + 1, dtype=torch.long)
        members[prompt, place] = torch.arange(count)
        self.place_S, self.members_PM = place.to(device), members.to(device)
        beyond = (
            torch.arange(self.wide) >= width[prompt, None],
            torch.arange(self.long) > length[:, None],
        )
        self.beyond_S11T = torch.cat(beyond, 1)[:, None, None].to(device)

    def __call__(self, layer: int, qkv_NHD: Tensor) -> Tensor:
        heads, groups, count = self.model.heads, self.model.groups, len(self.at_S)
        prompts, most = self.members_PM.shape
        turned = rotated(qkv_NHD[:, : heads + groups], *self.turn)
        q_SGRD = turned[:, :heads].unflatten(1, (groups, -1)) * self.model.scale
        keys, values = self.slots.own[layer]
        keys[self.at_S, :, self.length_S] = turned[:, heads:]
        values[self.at_S, :, self.length_S] = qkv_NHD[:, heads + groups :]
        own_k, own_v = keys[:count, :, : self.long], values[:count, :, : self.long]
        prompt_k, prompt_v = self.slots.prompts[layer, :, :prompts, :, : self.wide]
        q_PGND = q_SGRD[self.members_PM].transpose(1, 2).flatten(2, 3)
        prompt_PGMRT = (q_PGND @ prompt_k.mT).unflatten(2, (most, -1))
        prompt_SGRT = prompt_PGMRT[self.prompt_S, :, self.place_S]
        score_SGRT = torch.cat([prompt_SGRT, q_SGRD @ own_k.mT], -1)
        score_SGRT.masked_fill_(self.beyond_S11T, -torch.inf)
        exact = torch.promote_types(score_SGRT.dtype, torch.float32)
        share_SGRT = score_SGRT.softmax(-1, dtype=exact).to(score_SGRT.dtype)
        of_prompt, of_own = share_SGRT.split([self.wide, self.long], -1)
        seen_SGRD = of_own @ own_v
        of_prompt_PGNT = of_prompt[self.members_PM].transpose(1, 2).flatten(2, 3)
        seen_PGMRD = (of_prompt_PGNT @ prompt_v).unflatten(2, (most, -1))
        seen_SGRD += seen_PGMRD[self.prompt_S, :, self.place_S]
        return seen_SGRD.flatten(1)


class Kernel:
    """The same by `kernels.c`, which needs neither masks nor filling."""

    def __init__(self, model: Llama, slots: Slots, turn: tuple[Tensor, Tensor]) -> None:
        assert model.kernels is not None
        self.kernels, self.model, self.slots = model.kernels, model, slots
        count = len(slots)
        prompt = slots.prompt[:count]
        at = slots.length[:count] + slots.width[prompt]
        self.cos, self.sin = (table[at] for table in turn)
        self.order = prompt.argsort()
        self.out = slots.own.new_empty(count, model.heads * model.dim)
        room, width = slots.own.shape[-2], slots.prompts.shape[-2]
        threads = min(torch.get_num_threads(), count)
        self.spare = slots.own.new_empty(threads, room + width)
        self.sizes = (count, model.heads, model.groups, room, width, room + width, threads)

    def __call__(self, layer: int, qkv_NHD: Tensor) -> Tensor:
        slots = self.slots
        kept = (*slots.own[layer], *slots.prompts[layer])
        book = (self.order, slots.length, slots.prompt, slots.width, self.spare)
        tensors = (self.out, qkv_NHD, self.cos, self.sin, *kept, *book)
        self.kernels.attend(*tensors, *self.sizes)
        return self.out


def rotated(x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Rotary positions: each pair (d, d + D/2) of a head turned by its angle; of many tokens in one
    call, where there is a function for it."""
    if (ways := kernels(x_NHD, cos_ND, sin_ND)) is not None:
        return ways.turn([x_NHD.contiguous()[None]], cos_ND, sin_ND, back=False)[0][0]
    one, two = x_NHD.chunk(2, -1)
    cos_N1D, sin_N1D = cos_ND.unsqueeze(1), sin_ND.unsqueeze(1)
    return x_NHD * cos_N1D + torch.cat([-two, one], -1) * sin_N1D
