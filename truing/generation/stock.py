"""Any causal language model through transformers: prefill once a prompt, then one token a step.

Three things make it quick without leaving transformers' models: the cache grows in place instead
of being copied at every step, requests that share a prompt share its prefill, and rows that have
ended leave the batch.
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from truing.generation.draw import choose
from truing.generation.engine import Counts, Sampling
from truing.generation.response import Response
from truing.models.model import Policy

# Positions added to the cache whenever it is full.
BLOCK = 64
# Rows that have ended leave the batch together, once fewer than this share of it goes on: each
# leaving copies the cache.
WORTH_KEEPING = 0.75


class GrowingLayer(DynamicLayer):
    """One layer's keys and values in buffers with room to grow: a step writes, it does not copy."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        added = key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.used, self.is_initialized = 0, True
            self.room_k, self.room_v = (_room(s, added + BLOCK) for s in (key_states, value_states))
        elif self.used + added > self.room_k.shape[-2]:
            length = self.used + added + BLOCK
            self.room_k, self.room_v = _grown(self.room_k, length), _grown(self.room_v, length)
        end = self.used + added
        self.room_k[:, :, self.used : end] = key_states
        self.room_v[:, :, self.used : end] = value_states
        self.used = end
        self.keys, self.values = self.room_k[:, :, :end], self.room_v[:, :, :end]
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows of the batch."""
        self.room_k, self.room_v = self.room_k[rows], self.room_v[rows]
        self.keys, self.values = self.room_k[:, :, : self.used], self.room_v[:, :, : self.used]


def _room(like: Tensor, length: int) -> Tensor:
    return like.new_zeros(*like.shape[:2], length, like.shape[-1])


def _grown(buffer: Tensor, length: int) -> Tensor:
    larger = _room(buffer, length)
    larger[:, :, : buffer.shape[-2]] = buffer
    return larger


class Stock:
    """A batch of responses that begin together, by the network's own forward."""

    def __init__(self, policy: Policy, counts: Counts) -> None:
        self.policy, self.counts = policy, counts

    def answer(
        self, responses: Sequence[Response], sampling: Sampling, stops: Collection[int]
    ) -> None:
        """Fill the responses."""
        with _attending(self.policy):
            cache, mask, hidden = self._prefill([r.prompt for r in responses])
            rows = list(responses)
            while True:
                on = [not (r.ids and r.ended(stops)) for r in rows]
                # What a row says that has ended, but not left yet, is not kept.
                numbers = [r.uniform if o else 0.0 for r, o in zip(rows, on, strict=True)]
                uniform_B = torch.tensor(numbers, dtype=torch.float64, device=mask.device)
                token, logp = choose(self.policy.logits(hidden), uniform_B, sampling)
                for r, o, t, p in zip(rows, on, token.tolist(), logp.tolist(), strict=True):
                    if o:
                        r.add(t, p)
                keep = [i for i, r in enumerate(rows) if not r.ended(stops)]
                if not keep:
                    return
                if len(keep) < WORTH_KEEPING * len(rows):
                    rows = [rows[i] for i in keep]
                    index = torch.tensor(keep, device=mask.device)
                    token, mask = token[index], mask[index]
                    for layer in cache.layers:
                        layer.select(index)  # pyright: ignore[reportAttributeAccessIssue]
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                hidden = self._step(token.unsqueeze(1), mask, cache)
                self.counts.steps += 1
                self.counts.tokens += len(keep)

    def _prefill(self, wanted: list[tuple[int, ...]]) -> tuple[Cache, Tensor, Tensor]:
        """Cache, attention mask and last hidden state; each distinct prompt is read once."""
        prompts = list(dict.fromkeys(wanted))
        width, read = max(map(len, prompts)), sum(map(len, prompts))
        self.counts.prompt_tokens += read
        self.counts.prefix_tokens_saved += sum(map(len, wanted)) - read
        fill = int(self.policy.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        ids = torch.tensor([[fill] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        ids, mask = ids.to(self.policy.device), mask.to(self.policy.device)
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        hidden = self._step(ids, mask, cache)
        if len(prompts) < len(wanted):
            index = {p: i for i, p in enumerate(prompts)}
            rows = torch.tensor([index[p] for p in wanted], device=mask.device)
            for layer in cache.layers:
                layer.select(rows)  # pyright: ignore[reportAttributeAccessIssue]
            mask, hidden = mask[rows], hidden[rows]
        return cache, mask, hidden

    def _step(self, ids: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        # A row that has ended but not left yet may go beyond the context: what it says is not kept.
        last = (self.policy.context or sys.maxsize) - 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0, max=last)[:, -ids.shape[1] :]
        output = self.policy.core.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]


@contextmanager
def _attending(policy: Policy) -> Iterator[None]:
    """On a CPU, plain products inside: torch's fused attention is slow for a single query.

    Not in float64, whose masked scores would overflow in their float32 softmax.
    """
    config = policy.core.config
    before = config._attn_implementation
    double = policy.core.dtype == torch.float64
    if policy.device.type == "cpu" and before == "sdpa" and not double:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
