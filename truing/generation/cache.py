"""The keys and values of the responses in work: a prompt's once, each response's in a slot."""

import torch
from torch import Tensor


class Slots:
    """Room for ``slots`` responses of up to ``room`` tokens, to prompts of up to ``width``.

    own: (layers, 2, slots, groups, room, dim), keys and values. prompts: the same for as many
    prompts of ``width``. Slots in use, and prompts, are always the first ones: where one is freed,
    the last moves into it. length: tokens of each response in its slot. prompt: the row of its
    prompt. width: tokens of each prompt; known: the prompts; ends: their last hidden states.
    ``masked``: whether it is read beyond these lengths, under a mask; if not, a CPU's memory is
    taken from the system only as it is written to.
    """

    def __init__(
        self, like: Tensor, layers: int, groups: int, dim: int,
        *, slots: int, prompts: int, room: int, width: int, masked: bool,
    ) -> None:  # fmt: skip
        # Zeros, for where a mask hides what was never written, nothing times NaN would be NaN.
        make = like.new_zeros if masked else like.new_empty
        self.own = make(layers, 2, slots, groups, room, dim)
        self.prompts = make(layers, 2, prompts, groups, width, dim)
        self.length = torch.zeros(slots, dtype=torch.long)
        self.prompt = torch.zeros(slots, dtype=torch.long)
        self.width = torch.zeros(prompts, dtype=torch.long)
        self.used = 0
        self.known: list[tuple[int, ...]] = []
        self.ends: list[Tensor] = []

    def __len__(self) -> int:
        return self.used

    def forget(self, *, but: tuple[int, ...]) -> None:
        """Let go of prompts that no slot answers, except ``but``."""
        for row in reversed(range(len(self.known))):
            in_use = self.prompt[: self.used]
            if self.known[row] == but or bool((in_use == row).any()):
                continue
            last = len(self.known) - 1
            end = int(self.width[last])
            if row < last:
                self.prompts[:, :, row, :, :end] = self.prompts[:, :, last, :, :end]
                in_use[in_use == last] = row
            self.width[row] = end
            self.known[row], self.ends[row] = self.known[last], self.ends[last]
            self.known.pop()
            self.ends.pop()

    def learn(self, prompt: tuple[int, ...]) -> int:
        """A row for a new prompt, whose keys, values and end are to be written."""
        self.width[len(self.known)] = len(prompt)
        self.known.append(prompt)
        self.ends.append(torch.empty(0))
        return len(self.known) - 1

    def open(self, prompt: int) -> None:
        """Take the next slot for a response to the prompt in this row."""
        self.length[self.used], self.prompt[self.used] = 0, prompt
        self.used += 1

    def close(self, slot: int) -> None:
        """Free a slot: the last one in use moves into it."""
        self.used -= 1
        if slot < self.used:
            end = int(self.length[self.used])
            self.own[:, :, slot, :, :end] = self.own[:, :, self.used, :, :end]
            self.length[slot] = self.length[self.used]
            self.prompt[slot] = self.prompt[self.used]
