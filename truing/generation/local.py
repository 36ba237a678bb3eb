"""Sampling from the live policy.

A model of the Llama family runs by `llama.Llama` in slots that are refilled as responses end; any
other by transformers, in batches. The uniform number behind each token has its own key, so neither
batching nor order changes what is sampled (beyond float rounding of the logits).
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from truing.generation.cache import Slots
from truing.generation.continuous import Continuous, agrees
from truing.generation.engine import Counts, Request, Sampling, Trajectory
from truing.generation.llama import Llama, known
from truing.generation.response import Response
from truing.generation.stock import Stock
from truing.keys import uniforms
from truing.models import precision
from truing.models.memory import release
from truing.models.model import Policy, evaluating

# The share of free memory that the cache may take: the rest is for what is computed.
SHARE = 0.5


class LocalEngine:
    """Samples from a `Policy` in this process, up to ``batch_size`` responses at a time.

    ``counts`` says what was done, and by which path.
    """

    def __init__(self, policy: Policy, *, batch_size: int = 128) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self.counts = Counts()
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

        Raises ValueError when a prompt leaves no room for a response in the model's context, or
        when the keys and values of a single response would not fit into memory.
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
        if not requests:
            return []
        responses = [self._response(request, sampling) for request in requests]
        # Like lengths are worked on together, so little is filling; equal prompts lie together.
        order = sorted(responses, key=_sort_key)
        with evaluating(self.policy), precision.decoding():
            model = self._family(order)
            if model is None:
                self.counts.path = "transformers"
                stock = Stock(self.policy, self.counts)
                for start in range(0, len(order), self.batch_size):
                    stock.answer(order[start : start + self.batch_size], sampling, self.stops)
                    release(self.policy.device)
            else:
                self.counts.path = "llama"
                slots = self._slots(model, order)
                Continuous(self.policy, model, slots, self.counts).answer(
                    order, sampling, self.stops
                )
        release(self.policy.device)
        return [r.trajectory(self.stops, self.policy.version, sampling) for r in responses]

    def _response(self, request: Request, sampling: Sampling) -> Response:
        """Its length is limited as asked for, and to what the context has room for."""
        room = (self.policy.context or sys.maxsize) - len(request.prompt_ids)
        limit = min(sampling.max_completion_length, room)
        key = (request.prompt_key, request.sample)
        return Response(request, limit, uniforms(sampling.seed, sampling.stream, [key], limit)[0])

    def _family(self, responses: Sequence[Response]) -> Llama | None:
        """The model's weights in the fast path, if it is of the family and agrees with itself."""
        longest = max(len(r.prompt) + r.limit for r in responses)
        if not known(self.policy.core, longest):
            return None
        policy, model = self.policy, Llama(self.policy.core)
        if policy.core is policy.network:
            agreed = policy.tried("sampler", lambda: agrees(policy, model))
        else:  # what adapters do shows only when they have learnt something
            agreed = agrees(policy, model)
        return model if agreed else None

    def _slots(self, model: Llama, responses: Sequence[Response]) -> Slots:
        """As many slots as are wanted and fit into memory."""
        like = self.policy.core.base_model.embed_tokens.weight
        # A response's last token is never fed back.
        room = max(1, max(r.limit for r in responses) - 1)
        width = max(len(r.prompt) for r in responses)
        each = 2 * model.layers * model.groups * model.dim * (room + width) * like.element_size()
        free = SHARE * free_memory(like.device)
        count = min(self.batch_size, len(responses), int(free / each))
        if not count:
            raise ValueError(
                f"the keys and values of one response of {room + 1} tokens to a prompt of {width} "
                f"take {each / 2**20:.0f} MB, and {free / 2**20:.0f} MB are free for them: lower "
                f"max_completion_length, or shorten the prompts, by a factor of {each / free:.2g}"
            )
        prompts = min(count, len({r.prompt for r in responses}))
        return model.slots(slots=count, prompts=prompts, room=room, width=width)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that a CPU has: its cache takes only what it fills."""
    if device.type == "cuda":
        # What torch keeps for its next tensors is free as well.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sort_key(response: Response) -> tuple[int, tuple[int, ...], int]:
    return -len(response.prompt), response.prompt, response.request.sample
