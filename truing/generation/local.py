"""Sampling from the live policy: prefill once for each prompt, then one token a step.

Three things make it quick without leaving transformers' models: the cache grows in place instead
of being copied at every step, requests that share a prompt share its prefill, and rows that have
ended leave the batch. The uniform number behind each token has its own key, so neither batching nor
order changes what is sampled (beyond float rounding of the logits).
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from truing.generation.engine import Request, Sampling, Trajectory
from truing.keys import uniforms
from truing.models import precision
from truing.models.memory import release
from truing.models.model import Policy, evaluating

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


class LocalEngine:
    """Samples from a `Policy` in this process, ``batch_size`` responses at a time."""

    def __init__(self, policy: Policy, *, batch_size: int = 128) -> None:
        self.policy = policy
        self.batch_size = batch_size
        config = policy.core.config.get_text_config()
        layer_types = getattr(config, "layer_types", None) or ["full_attention"]
        if set(layer_types) != {"full_attention"}:
            raise ValueError(
                f"{type(policy.core).__name__} mixes attention kinds {sorted(set(layer_types))}; "
                "local sampling handles full attention: serve the model and sample from the server"
            )
        generation = getattr(policy.core, "generation_config", None)
        stop: Any = getattr(generation, "eos_token_id", None)
        stops = stop if isinstance(stop, list) else [stop]
        self.stops = {int(s) for s in [*stops, policy.tokenizer.eos_token_id] if s is not None}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Trajectory]:
        """One trajectory for each request, in their order.

        Raises ValueError when a prompt leaves no room for a response in the model's context.
        """
        context = self.policy.context
        for request in requests:
            if not request.prompt_ids:
                raise ValueError("a prompt of no tokens cannot be continued: give it a BOS token")
            if context is not None and len(request.prompt_ids) >= context:
                raise ValueError(
                    f"a prompt of {len(request.prompt_ids)} tokens leaves no room for a response "
                    f"in a context of {context}: shorten the prompts or leave this one out"
                )
        # Like lengths share a batch, so little of it is filling; equal prompts lie together.
        order = sorted(range(len(requests)), key=lambda i: _sort_key(requests[i]))
        done: dict[int, Trajectory] = {}
        with evaluating(self.policy), precision.decoding(), _attending(self.policy):
            for start in range(0, len(order), self.batch_size):
                chunk = order[start : start + self.batch_size]
                batch = [requests[i] for i in chunk]
                done.update(zip(chunk, self._batch(batch, sampling), strict=True))
                release()
        return [done[i] for i in range(len(requests))]

    def _batch(self, requests: list[Request], sampling: Sampling) -> list[Trajectory]:
        cache, mask, hidden = self._prefill(requests)
        limits = torch.tensor([self._limit(r, sampling) for r in requests])
        longest = int(limits.max())
        keys = [(r.prompt_key, r.sample) for r in requests]
        draws = torch.from_numpy(uniforms(sampling.seed, sampling.stream, keys, longest))
        stops = torch.tensor(sorted(self.stops))
        rows = torch.arange(len(requests))  # the request that each row of the batch answers
        going = torch.ones_like(rows, dtype=torch.bool)
        ids: list[list[int]] = [[] for _ in requests]
        logps: list[list[float]] = [[] for _ in requests]
        for step in range(longest):
            token, logp = choose(
                self.policy.logits(hidden), draws[rows, step].to(mask.device), sampling
            )
            drawn = token.cpu()
            told = zip(rows.tolist(), going.tolist(), drawn.tolist(), logp.tolist(), strict=True)
            for i, on, t, p in told:
                if on:
                    ids[i].append(t)
                    logps[i].append(p)
            going &= ~torch.isin(drawn, stops) & (limits[rows] > step + 1)
            if not bool(going.any()):
                break
            if int(going.sum()) < WORTH_KEEPING * len(going):
                keep = going.nonzero().squeeze(-1)
                rows, going = rows[keep], going[keep]
                keep = keep.to(mask.device)
                token, mask = token[keep], mask[keep]
                for layer in cache.layers:
                    layer.select(keep)  # pyright: ignore[reportAttributeAccessIssue]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            hidden = self._step(token.unsqueeze(1), mask, cache)
        return [
            self._trajectory(r, i, p, sampling)
            for r, i, p in zip(requests, ids, logps, strict=True)
        ]

    def _limit(self, request: Request, sampling: Sampling) -> int:
        """Most tokens of a response: as asked for, and no more than the context has room for."""
        room = (self.policy.context or sys.maxsize) - len(request.prompt_ids)
        return min(sampling.max_completion_length, room)

    def _prefill(self, requests: list[Request]) -> tuple[Cache, Tensor, Tensor]:
        """Cache, attention mask and last hidden state; each distinct prompt is read once."""
        prompts = list(dict.fromkeys(r.prompt_ids for r in requests))
        width = max(map(len, prompts))
        fill = int(self.policy.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        ids = torch.tensor([[fill] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        ids, mask = ids.to(self.policy.device), mask.to(self.policy.device)
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        hidden = self._step(ids, mask, cache)
        if len(prompts) < len(requests):
            index = {p: i for i, p in enumerate(prompts)}
            rows = torch.tensor([index[r.prompt_ids] for r in requests], device=mask.device)
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

    def _trajectory(
        self, request: Request, ids: list[int], logps: list[float], sampling: Sampling
    ) -> Trajectory:
        start = len(request.prompt_ids)
        return Trajectory(
            prompt_key=request.prompt_key,
            sample=request.sample,
            ids=(*request.prompt_ids, *ids),
            roles=(0,) * start + (1,) * len(ids),
            logps=tuple(logps),
            turns=((start, start + len(ids)),),
            finish="stop" if ids and ids[-1] in self.stops else "length",
            version=self.policy.version,
            sampling=sampling,
        )


@contextmanager
def _attending(policy: Policy) -> Iterator[None]:
    """On a CPU, plain products inside: torch's fused attention is slow for a single query."""
    config = policy.core.config
    before = config._attn_implementation
    if policy.device.type == "cpu" and before == "sdpa":
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def _sort_key(request: Request) -> tuple[int, tuple[int, ...], int]:
    return -len(request.prompt_ids), request.prompt_ids, request.sample


def choose(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The token each uniform number picks, and its log-prob at the sampling temperature.

    Inverse transform: the first token whose cumulative probability exceeds the number. Sums in
    float64, so that a vocabulary of 200k tokens loses nothing. Shapes: (B, V), (B,) -> (B,), (B,).
    """
    if sampling.temperature == 0:
        token_B = logits_BV.argmax(-1)
        logp_BV = logits_BV.log_softmax(-1)
        return token_B, logp_BV.gather(-1, token_B[:, None]).squeeze(-1)
    logp_BV = (logits_BV / sampling.temperature).log_softmax(-1)
    mass_BV = logp_BV.double().exp()
    if sampling.top_p < 1:
        sorted_BV, order_BV = mass_BV.sort(-1, descending=True)
        outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p
        mass_BV = mass_BV.masked_fill(outside_BV.gather(-1, order_BV.argsort(-1)), 0.0)
    sums_BV = mass_BV.cumsum(-1)
    threshold_B1 = (uniform_B * sums_BV[:, -1]).unsqueeze(-1)
    token_B = torch.searchsorted(sums_BV, threshold_B1, right=True).squeeze(-1)
    token_B = token_B.clamp(max=logits_BV.shape[-1] - 1)
    return token_B, logp_BV.gather(-1, token_B[:, None]).squeeze(-1)
