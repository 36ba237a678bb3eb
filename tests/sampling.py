"""What the tests of sampling share: requests, and what trainer and transformers say to them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.data.layout import Tokens, padded
from truing.generation.engine import Request, Trajectory
from truing.models.model import Policy, logp

PROMPTS = [(5, 6, 7), (1,), (9, 8, 7, 6, 5, 4, 3), (2, 2), (5, 6, 7)]
REQUESTS = [Request(ids, key, i) for key, ids in enumerate(PROMPTS) for i in range(2)]


def trained_logps(policy: Policy, done: Sequence[Trajectory], temperature: float) -> Tensor:
    rows = [Tokens(t.prompt_ids, t.response_ids) for t in done]
    return logp(policy, padded(rows), temperature).detach()


def agree(policy: Policy, done: Sequence[Trajectory], temperature: float) -> None:
    """The recorded log-probs are the trainer's: the ratio is 1."""
    for row, one in zip(trained_logps(policy, done, temperature), done, strict=True):
        wanted = row[: len(one.logps)]
        found = torch.tensor(one.logps, dtype=wanted.dtype)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def greedy_of_transformers(
    policy: Policy, requests: Sequence[Request], length: int
) -> list[tuple[int, ...]]:
    """Prompts and what `generate` says to each, one by one."""
    found: list[tuple[int, ...]] = []
    for request in requests:
        ids = policy.core.generate(
            torch.tensor([request.prompt_ids]), do_sample=False, max_new_tokens=length
        )
        found.append(tuple(ids[0].tolist()))
    return found
