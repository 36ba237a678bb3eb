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
    """``samples`` trajectories for each prompt. ``keys`` (default 0, 1, ...) name their draws."""
    names = range(len(prompts)) if keys is None else keys
    requests = [
        Request(encoder.prompt(prompt), key, i)
        for prompt, key in zip(prompts, names, strict=True)
        for i in range(samples)
    ]
    flat = LocalEngine(policy, batch_size=batch_size).generate(requests, sampling)
    return [flat[i : i + samples] for i in range(0, len(flat), samples)]
