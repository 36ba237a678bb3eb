"""Completions of prompts by a policy: the step from texts to trajectories."""

from collections.abc import Sequence

from truing.data.batch import Encoder
from truing.data.schema import Text
from truing.generation.engine import Request, Sampling, Trajectory
from truing.generation.local import LocalEngine
from truing.models.model import Policy


def complete(
    policy: Policy,
    encoder: Encoder,
    prompts: Sequence[Text],
    sampling: Sampling,
    *,
    keys: Sequence[int] | None = None,
    samples: int = 1,
    batch_size: int = 128,
) -> list[list[Trajectory]]:
    """``samples`` trajectories for each prompt. ``keys`` (default 0, 1, ...) name their draws.

    Raises ValueError for a prompt that leaves no room for a response, by its number from 1.
    """
    names = range(len(prompts)) if keys is None else keys
    encoded = [encoder.prompt(prompt) for prompt in prompts]
    for number, ids in enumerate(encoded, start=1):
        if policy.context is not None and len(ids) >= policy.context:
            raise ValueError(
                f"prompt {number} of {len(prompts)} has {len(ids)} tokens, which leaves no room "
                f"for a response in a context of {policy.context}: shorten it, or leave it out"
            )
    requests = [
        Request(ids, key, i)
        for ids, key in zip(encoded, names, strict=True)
        for i in range(samples)
    ]
    flat = LocalEngine(policy, batch_size=batch_size).generate(requests, sampling)
    return [flat[i : i + samples] for i in range(0, len(flat), samples)]
