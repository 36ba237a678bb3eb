"""torch's attention kernel for pieces of any lengths, which only a GPU has, in plain torch."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def pieces(begins_q: Tensor, begins_k: Tensor) -> Iterator[tuple[slice, slice]]:
    """The cells of each piece's queries and keys."""
    both = (pairwise(begins.tolist()) for begins in (begins_q, begins_k))
    for asks, asked in zip(*both, strict=True):
        yield slice(*asks), slice(*asked)


def shares(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    """Scores (H, N, M) of queries (N, H, D) and keys (M, G, D)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("nhd,mhd->hnm", query, key) * scale
    if causal:  # counted from the end of both
        later = torch.ones_like(scores[0], dtype=torch.bool).triu(1 + len(key) - len(query))
        scores.masked_fill_(later, -torch.inf)
    return scores


def forward(
    query: Tensor, key: Tensor, value: Tensor, begins_q: Tensor, begins_k: Tensor,
    longest_q: int, longest_k: int, dropout: float, causal: bool, debug: bool,
    *, scale: float,
) -> Any:  # fmt: skip
    """As torch's kernel: pieces of any lengths."""
    exact = torch.promote_types(query.dtype, torch.float32)
    seen = torch.zeros_like(query)
    total = torch.zeros(query.shape[1], len(query), dtype=exact)
    query, key, value = (x.to(exact) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    assert (dropout, debug, begins_q.dtype) == (0.0, False, torch.int32)
    assert begins_k.dtype == torch.int32
    assert int((begins_q[1:] - begins_q[:-1]).max()) == longest_q
    for asks, asked in pieces(begins_q, begins_k):
        assert asked.stop - asked.start <= longest_k
        scores = shares(query[asks], key[asked], causal, scale)
        total[:, asks] = scores.logsumexp(-1)
        values = value[asked].repeat_interleave(groups, 1)
        seen[asks] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), values)
    return seen, total, None, None, None


def backward(
    ahead: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, total: Tensor,
    begins_q: Tensor, begins_k: Tensor, longest_q: int, longest_k: int, dropout: float,
    causal: bool, *nothing: Tensor, scale: float,
) -> Any:  # fmt: skip
    """The slopes of the part of all keys that these are: what was seen of all of them is given."""
    kind, exact = query.dtype, torch.promote_types(query.dtype, torch.float32)
    ahead, query, key, value, seen = (x.to(exact) for x in (ahead, query, key, value, seen))
    slopes = [torch.zeros_like(x) for x in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    assert (dropout, len(nothing), total.is_contiguous()) == (0.0, 2, True)
    for asks, asked in pieces(begins_q, begins_k):
        share = (
            shares(query[asks], key[asked], causal, scale) - total[:, asks].unsqueeze(-1)
        ).exp()
        g, values = ahead[asks], value[asked].repeat_interleave(groups, 1)
        delta = (g * seen[asks]).sum(-1).T.unsqueeze(-1)
        score = share * (torch.einsum("nhd,mhd->hnm", g, values) - delta) * scale
        keys = key[asked].repeat_interleave(groups, 1)
        slopes[0][asks] = torch.einsum("hnm,mhd->nhd", score, keys)
        for into, found in (
            (slopes[1], torch.einsum("hnm,nhd->mhd", score, query[asks])),
            (slopes[2], torch.einsum("hnm,nhd->mhd", share, g)),
        ):
            into[asked] = found.unflatten(1, (-1, groups)).sum(2)
    return tuple(slope.to(kind) for slope in slopes)
