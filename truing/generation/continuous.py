"""Continuous batching: a response that ends leaves its slot, and the next one waiting takes it."""

from collections import deque
from collections.abc import Collection, Sequence
from itertools import groupby

import torch
from torch import Tensor

from truing.data.layout import sent
from truing.generation.attention import Kernel, Reading, Writing
from truing.generation.cache import Slots
from truing.generation.decode import Decode, decodes
from truing.generation.draw import choose
from truing.generation.engine import Counts, Sampling
from truing.generation.llama import Llama
from truing.generation.replay import Replay
from truing.generation.response import Response
from truing.models.model import Policy
from truing.models.precision import HALF

# Prompts are read together up to so many tokens, which bounds the memory that reading takes.
READ = {"cpu": 2048, "cuda": 32_768}


def read_at_once(device: torch.device) -> int:
    """Most tokens of prompts that are read together, unless one prompt alone has more."""
    return READ.get(device.type, READ["cpu"])


class Continuous:
    """A model of the Llama family at work on as many responses as there are slots."""

    def __init__(
        self, policy: Policy, model: Llama, slots: Slots, counts: Counts, *, trial: bool = False
    ) -> None:
        self.policy, self.model, self.slots, self.counts = policy, model, slots, counts
        self.turn = model.rotations(slots.own.shape[-2] + slots.prompts.shape[-2])
        self.decode = Decode(model, slots) if decodes(model) else None
        self.writing = Writing if model.kernels is None else Kernel
        on_gpu = slots.own.device.type == "cuda"
        self.replay = Replay(model, slots, self.turn, trial=trial) if on_gpu else None

    def answer(
        self, responses: Sequence[Response], sampling: Sampling, stops: Collection[int]
    ) -> None:
        """Fill the responses; those to one prompt stand side by side."""
        waiting, live = deque(responses), list[Response]()
        self.counts.slots_refilled += max(0, len(responses) - self.slots.own.shape[2])
        hidden_SH = self.slots.own.new_empty(0, self.policy.core.config.hidden_size)
        while waiting or live:
            hidden_SH = torch.cat([hidden_SH, *self._admit(waiting, live)])
            uniform_S = torch.tensor([r.uniform for r in live], dtype=torch.float64)
            token_S, logp_S = choose(
                self.policy.logits(hidden_SH), sent(uniform_S, hidden_SH.device), sampling
            )
            # In one: a GPU is waited for once.
            found = torch.stack([token_S.double(), logp_S]).tolist()
            for response, token, logp in zip(live, *found, strict=True):
                response.add(int(token), logp)
            kept = list(range(len(live)))
            for slot in reversed(range(len(live))):
                if live[slot].ended(stops):
                    self.slots.close(slot)
                    live[slot], kept[slot] = live[-1], kept[-1]
                    live.pop()
                    kept.pop()
            if live:
                if len(kept) < len(token_S):
                    token_S = token_S[sent(torch.tensor(kept), token_S.device)]
                hidden_SH = self.step(token_S)
            else:
                hidden_SH = hidden_SH[:0]

    def _admit(self, waiting: deque[Response], live: list[Response]) -> list[Tensor]:
        """Fill the free slots, and give the hidden states that their first tokens come from."""
        slots, counts = self.slots, self.counts
        room = min(len(waiting), slots.own.shape[2] - len(live))
        if not room:
            return []
        slots.forget(but=waiting[0].prompt)
        new = [waiting.popleft() for _ in range(room)]
        unread: list[int] = []
        for prompt, group in groupby(new, key=lambda response: response.prompt):
            seen = prompt in slots.known
            row = slots.known.index(prompt) if seen else slots.learn(prompt)
            unread += [] if seen else [row]
            count = len(list(group))
            counts.prefix_tokens_saved += (count if seen else count - 1) * len(prompt)
            for _ in range(count):
                slots.open(row)
        self.read(unread)
        live += new
        rows = slots.prompt[len(slots) - room : len(slots)].tolist()
        return [torch.stack([slots.ends[row] for row in rows])]

    def read(self, rows: Sequence[int]) -> None:
        """Keys, values and ends of new prompts, some at a time."""
        slots, start = self.slots, 0
        most = read_at_once(slots.own.device)
        while start < len(rows):
            end, size = start + 1, int(slots.width[rows[start]])
            while end < len(rows) and size + slots.width[rows[end]] <= most:
                size += int(slots.width[rows[end]])
                end += 1
            part = rows[start:end]
            ids = torch.tensor([i for row in part for i in slots.known[row]])
            reading = Reading(self.model, slots, part, self.turn)
            last = (slots.width[part].cumsum(0) - 1).to(slots.own.device)
            hidden_PH = self.model.hidden(ids.to(slots.own.device), reading, last)
            for row, hidden_H in zip(part, hidden_PH, strict=True):
                slots.ends[row] = hidden_H
            self.counts.prompt_tokens += size
            start = end

    def step(self, token_S: Tensor) -> Tensor:
        """Hidden states (S, H) after one more token in each slot."""
        if self.replay is not None:
            hidden_SH = self.replay.step(token_S)
            self.counts.replayed += 1
        elif self.decode is not None and len(token_S) <= Decode.most:
            hidden_SH = self.decode(token_S, Kernel(self.model, self.slots, self.turn))
            self.counts.whole += 1
        else:
            hidden_SH = self.model.hidden(token_S, self.writing(self.model, self.slots, self.turn))
        self.slots.length[: len(self.slots)] += 1
        self.counts.steps += 1
        self.counts.tokens += len(token_S)
        return hidden_SH


def agrees(policy: Policy, model: Llama) -> bool:
    """Whether this way gives the network's own hidden states: tried out on six tokens, of which
    three are a prompt of two responses."""
    vocabulary = policy.core.config.vocab_size
    ids = [i % vocabulary for i in range(1, 7)]
    like = policy.core.base_model.embed_tokens.weight
    slots = model.slots(slots=2, prompts=1, room=3, width=3)
    trial = Continuous(policy, model, slots, Counts(), trial=True)
    trial.read([slots.learn(tuple(ids[:3]))])
    for _ in range(2):
        slots.open(0)
    steps = [trial.step(torch.tensor([i, i], device=like.device)) for i in ids[3:]]
    ours = torch.stack([slots.ends[0].expand(2, -1), *steps]).float()
    inputs = torch.tensor([ids], device=like.device)
    theirs = policy.core.base_model(input_ids=inputs, use_cache=False).last_hidden_state[0, 2:]
    # 16 bits round their sums in another order; else only the last digits may differ.
    tolerance = 2e-2 if like.dtype in HALF else 1e-5
    wanted = theirs.float().unsqueeze(1).expand_as(ours)
    return bool((ours - wanted).norm() <= tolerance * wanted.norm())
