"""Any model through transformers: what the fast path does not know is sampled no less right."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import tiny_folder
from tests.sampling import REQUESTS, agree, greedy_of_transformers
from truing.data.batch import Tokens, padded
from truing.generation import stock
from truing.generation.engine import Request, Sampling
from truing.generation.local import LocalEngine
from truing.generation.stock import GrowingLayer, Stock
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return load_policy(tiny_folder(tmp_path, "gpt2"))


def test_like_lengths_share_a_batch(policy: Policy) -> None:
    widths: list[int] = []
    policy.core.base_model.register_forward_pre_hook(
        lambda _, __, options: widths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    requests = [Request((5,) * n, key) for key, n in enumerate((9, 2, 8, 1))]
    LocalEngine(policy, batch_size=2).generate(requests, Sampling(max_completion_length=1))
    assert widths == [9, 2]


def test_a_shared_prompt_is_read_once(policy: Policy) -> None:
    sampling = Sampling(max_completion_length=12)
    requests = [Request((5, 6, 7), 0, i) for i in range(6)]
    shapes: list[tuple[int, ...]] = []
    policy.core.base_model.register_forward_pre_hook(
        lambda _, __, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    together = LocalEngine(policy).generate(requests, sampling)
    assert shapes[:2] == [(1, 3), (6, 1)]
    alone = [LocalEngine(policy).generate([r], sampling)[0] for r in requests]
    assert [t.ids for t in together] == [t.ids for t in alone]
    agree(policy, together, 1.0)


def test_rows_that_have_ended_leave_together_and_harm_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Learned positions: the first row ends at the context's end, and stays while the others go on.
    policy = load_policy(tiny_folder(tmp_path, "gpt2"))
    requests = [Request(tuple(range(60)), 0), *(Request((5, i), i) for i in range(1, 8))]
    sampling = Sampling(max_completion_length=20, seed=3)
    engine = LocalEngine(policy)
    engine.stops = set()
    calls: list[int] = []
    select = GrowingLayer.select
    monkeypatch.setattr(
        GrowingLayer, "select", lambda layer, rows: calls.append(len(rows)) or select(layer, rows)
    )
    done = engine.generate(requests, sampling)
    assert [len(t.response_ids) for t in done] == [4, *[20] * 7]
    # One of eight gone is not worth a copy of the cache.
    assert calls == []
    for request, together in zip(requests, done, strict=True):
        assert engine.generate([request], sampling)[0].ids == together.ids
    agree(policy, done, 1.0)
    # Two of four gone are: both leave at once, in every layer.
    half = [requests[0], Request(tuple(range(59)), 9), *requests[1:3]]
    engine.generate(half, sampling)
    assert calls == [2] * policy.core.config.num_hidden_layers


def test_the_mode_of_the_model_comes_back(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(policy)
    engine.generate([Request((5,), 0)], Sampling(max_completion_length=2))
    assert policy.training
    seen: list[str] = []

    def fail(*_: Any) -> None:
        seen.append(policy.core.config._attn_implementation)
        raise ZeroDivisionError

    monkeypatch.setattr(Stock, "_step", fail)
    with pytest.raises(ZeroDivisionError):
        engine.generate([Request((5,), 0)], Sampling())
    assert policy.training
    # Fused attention is slow for single queries on a CPU; training has it back.
    assert (seen, policy.core.config._attn_implementation) == (["eager"], "sdpa")
    logp(policy, padded([Tokens((1,), (2,))])).sum().backward()  # nothing is left in inference mode


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "cohere"])
def test_greedy_is_that_of_transformers(tmp_path: Path, name: str) -> None:
    policy = load_policy(tiny_folder(tmp_path, name, dtype=torch.float64), Loading(dtype="auto"))
    engine = LocalEngine(policy)
    done = engine.generate(REQUESTS, Sampling(temperature=0, max_completion_length=20))
    assert engine.counts.path == "transformers"
    assert [t.ids for t in done] == greedy_of_transformers(policy, REQUESTS, 20)


def test_the_log_probs_are_the_trainers_and_the_cache_grows(policy: Policy) -> None:
    engine = LocalEngine(policy)
    engine.stops = set()
    done = engine.generate([Request((5,), 0)], Sampling(max_completion_length=60))
    assert len(done[0].response_ids) < 64 < stock.BLOCK + 1 + len(done[0].response_ids)
    agree(policy, done, 1.0)


def test_what_was_done_is_counted(policy: Policy) -> None:
    engine = LocalEngine(policy)
    done = engine.generate(REQUESTS, Sampling(max_completion_length=6))
    counts = engine.counts
    # Prompts of 3, 1, 7 and 2 tokens; two samples of each, four of the first.
    assert (counts.path, counts.prompt_tokens, counts.prefix_tokens_saved) == (
        "transformers", 13, 3 * 3 + 1 + 7 + 2,
    )  # fmt: skip
    assert counts.tokens == sum(len(t.response_ids) - 1 for t in done)
    assert counts.steps == max(len(t.response_ids) for t in done) - 1
