"""The sampler agrees with the trainer, and batching never changes what is sampled."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import tiny_folder
from truing.data.batch import Tokens, padded
from truing.generation import stock
from truing.generation.engine import Request, Sampling, Trajectory
from truing.generation.draw import choose
from truing.generation.local import LocalEngine
from truing.generation.stock import GrowingLayer
from truing.keys import generator, uniforms
from truing.models.checkpoint import add_lora
from truing.models.model import Policy, load_policy, logp

PROMPTS = [(5, 6, 7), (1,), (9, 8, 7, 6, 5, 4, 3), (2, 2), (5, 6, 7)]
REQUESTS = [Request(ids, key, i) for key, ids in enumerate(PROMPTS) for i in range(2)]


@pytest.fixture
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


def trained_logps(policy: Policy, done: Sequence[Trajectory], temperature: float) -> Tensor:
    rows = [Tokens(t.prompt_ids, t.response_ids) for t in done]
    return logp(policy, padded(rows), temperature).detach()


def agree(policy: Policy, done: Sequence[Trajectory], temperature: float) -> None:
    """The recorded log-probs are the trainer's: the ratio is 1."""
    for row, one in zip(trained_logps(policy, done, temperature), done, strict=True):
        wanted = row[: len(one.logps)]
        torch.testing.assert_close(torch.tensor(one.logps), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_the_log_probs_are_those_of_the_trainer(policy: Policy, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_completion_length=80, seed=2)
    done = LocalEngine(policy).generate(REQUESTS, sampling)
    agree(policy, done, temperature)
    assert len({len(t.response_ids) for t in done}) > 2  # rows ended and left at different steps
    assert max(len(t.response_ids) for t in done) > stock.BLOCK  # the cache had to grow
    # Bite: another temperature is told from this one.
    with pytest.raises(AssertionError):
        agree(policy, done, temperature + 0.01)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_neither_batches_nor_order_change_a_sample(policy: Policy, batch_size: int) -> None:
    sampling = Sampling(max_completion_length=16, seed=1)
    wanted = LocalEngine(policy).generate(REQUESTS, sampling)
    order = generator(batch_size, "order").permutation(len(REQUESTS))
    got = LocalEngine(policy, batch_size=batch_size).generate(
        [REQUESTS[i] for i in order], sampling
    )
    for i, one in zip(order, got, strict=True):
        assert one.ids == wanted[i].ids
        assert np.allclose(one.logps, wanted[i].logps, atol=1e-5)
    # The same prompt with another key, or another sample of one prompt, is another draw.
    assert len({t.ids for t in wanted}) == len(wanted)


def test_dropout_is_off_while_sampling(policy: Policy) -> None:
    add_lora(policy, r=4, alpha=8, dropout=0.5, targets="all-linear")
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    done = LocalEngine(policy).generate(REQUESTS, Sampling(max_completion_length=8))
    policy.eval()
    agree(policy, done, 1.0)


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


def test_greedy_is_that_of_transformers(policy: Policy) -> None:
    done = LocalEngine(policy).generate(REQUESTS, Sampling(temperature=0, max_completion_length=20))
    for one in done:
        ids = policy.core.generate(
            torch.tensor([one.prompt_ids]), do_sample=False, max_new_tokens=20
        )
        assert tuple(ids[0].tolist()) == one.ids
    agree(policy, done, 1.0)
    assert done[0].ids == done[1].ids == done[8].ids


def test_real_greedy_text(shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260K-hf"
    policy = load_policy(folder)
    sampling = Sampling(temperature=0, max_completion_length=256)
    (story,) = LocalEngine(policy).generate([Request((1,), 0)], sampling)
    text = policy.tokenizer.decode(story.ids, skip_special_tokens=True)
    wanted = (folder / "reference_greedy_256_tokens.txt").read_text(encoding="utf-8")
    assert text.strip() == wanted.strip()


def test_sampled_tokens_have_the_models_frequencies(policy: Policy) -> None:
    count = 4000
    sampling = Sampling(temperature=0.6, max_completion_length=1, seed=11)
    requests = [Request((5, 6, 7), 0, i) for i in range(count)]
    done = LocalEngine(policy, batch_size=1000).generate(requests, sampling)
    with torch.no_grad():
        logits = policy.core(torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    expected = count * (logits / 0.6).softmax(-1)
    seen = torch.bincount(torch.tensor([t.response_ids[0] for t in done]), minlength=len(expected))
    common = expected >= 5
    e = torch.cat([expected[common], expected[~common].sum()[None]])
    o = torch.cat([seen[common], seen[~common].sum()[None]])
    freedom = len(e) - 1
    statistic = float(((o - e) ** 2 / e).sum())
    # Above its mean by four standard deviations once in many thousand seeds.
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5
    # Bite: at temperature 1 the same counts are impossible.
    e1 = (count * logits.softmax(-1))[common]
    assert float(((seen[common] - e1) ** 2 / e1).sum()) > freedom + 20 * (2 * freedom) ** 0.5


# --- one token ------------------------------------------------------------------------------------

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def picked(uniform: float, **options: Any) -> int:
    return int(choose(LOGITS, torch.tensor([uniform]).double(), Sampling(**options))[0])


def test_the_first_token_whose_cumulative_probability_exceeds_the_number() -> None:
    # Cumulative: 0.1, 0.5, 0.7, 1.0.
    wanted = {0.0: 0, 0.099: 0, 0.101: 1, 0.499: 1, 0.501: 2, 0.699: 2, 0.701: 3, 0.9999999: 3}
    assert {u: picked(u) for u in wanted} == wanted
    assert picked(0.9, temperature=0) == 1


def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass() -> None:
    # Sorted: 0.4 (1), 0.3 (3), 0.2 (2), 0.1 (0). The two likeliest hold 0.7 >= 0.6.
    grid = [i / 100 for i in range(100)]
    assert {picked(u, top_p=0.6) for u in grid} == {1, 3}
    assert {picked(u, top_p=0.71) for u in grid} == {1, 2, 3}
    assert {picked(u, top_p=0.3) for u in grid} == {1}
    # Among them as likely as before, rescaled: 0.4 / 0.7.
    assert sum(picked(u, top_p=0.6) == 1 for u in grid) == round(100 * 4 / 7) + 1
    # The record stays that of the whole distribution.
    _, recorded = choose(LOGITS, torch.tensor([0.5]).double(), Sampling(top_p=0.3))
    torch.testing.assert_close(recorded, torch.tensor([0.4]).log())


def test_the_last_number_below_one_never_picks_an_impossible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.3, -torch.inf, -torch.inf]])
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert int(choose(logits, last, Sampling())[0]) == 2
    for top_p in (0.5, 0.9):
        token, _ = choose(logits, last, Sampling(top_p=top_p))
        assert int(token) in (1, 2)
    assert int(choose(logits, torch.zeros(1).double(), Sampling())[0]) == 0


# --- limits and records ---------------------------------------------------------------------------


def test_what_a_trajectory_records(policy: Policy) -> None:
    policy.version = 17
    sampling = Sampling(max_completion_length=6, seed=5)
    requests = [Request((5, 6, 7), 40 + key, key % 3) for key in range(300)]
    done = LocalEngine(policy).generate(requests, sampling)
    eos = policy.tokenizer.eos_token_id
    for request, one in zip(requests, done, strict=True):
        assert (one.prompt_key, one.sample) == (request.prompt_key, request.sample)
        assert one.prompt_ids == request.prompt_ids
        assert one.turns == ((3, len(one.ids)),)
        assert one.roles == (0, 0, 0) + (1,) * len(one.logps)
        assert (one.version, one.sampling) == (17, sampling)
        assert one.response_ids.count(eos) == (one.finish == "stop")
        assert one.finish == "stop" or len(one.response_ids) == 6
        assert one.finish == "length" or one.response_ids[-1] == eos
    assert {t.finish for t in done} == {"stop", "length"}


def test_a_context_bounds_each_response_by_itself(policy: Policy) -> None:
    long, short = tuple(range(150)), (5, 6)
    sampling = Sampling(max_completion_length=40, seed=3)
    engine = LocalEngine(policy)
    engine.stops = set()
    both = engine.generate([Request(long, 0), Request(short, 1)], sampling)
    assert [len(t.response_ids) for t in both] == [10, 40]
    assert [t.finish for t in both] == ["length", "length"]
    # In other company it is the same.
    assert engine.generate([Request(short, 1)], sampling)[0].ids == both[1].ids
    agree(policy, both, 1.0)
    with pytest.raises(ValueError, match=r"a prompt of 160 tokens leaves no room .* of 160"):
        engine.generate([Request(tuple(range(160)), 0)], sampling)
    with pytest.raises(ValueError, match="a prompt of no tokens cannot be continued"):
        engine.generate([Request((), 0)], sampling)
    assert engine.generate([], sampling) == []


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


def test_every_stop_of_the_model_ends_a_response(policy: Policy) -> None:
    greedy = Sampling(temperature=0, max_completion_length=5)
    (free,) = LocalEngine(policy).generate([Request((5, 6, 7), 0)], greedy)
    policy.core.generation_config.eos_token_id = [free.response_ids[2], 268]
    (cut,) = LocalEngine(policy).generate([Request((5, 6, 7), 0)], greedy)
    assert (cut.response_ids, cut.finish) == (free.response_ids[:3], "stop")


def test_the_mode_of_the_model_comes_back(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(policy)
    engine.generate([Request((5,), 0)], Sampling(max_completion_length=2))
    assert policy.training
    seen: list[str] = []

    def fail(*_: Any) -> None:
        seen.append(policy.core.config._attn_implementation)
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "_step", fail)
    with pytest.raises(ZeroDivisionError):
        engine.generate([Request((5,), 0)], Sampling())
    assert policy.training
    # Fused attention is slow for single queries on a CPU; training has it back.
    assert (seen, policy.core.config._attn_implementation) == (["eager"], "sdpa")
    logp(policy, padded([Tokens((1,), (2,))])).sum().backward()  # nothing is left in inference mode


@pytest.mark.parametrize(
    "options",
    [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_completion_length": 0}],
)
def test_impossible_sampling_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sampling needs temperature >= 0"):
        Sampling(**options)


# --- other families -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "cohere"])
def test_other_families_agree_with_the_trainer_too(tmp_path: Path, name: str) -> None:
    policy = load_policy(tiny_folder(tmp_path, name))
    done = LocalEngine(policy).generate(REQUESTS, Sampling(max_completion_length=10))
    agree(policy, done, 1.0)


def test_mixed_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mixes attention kinds.*full_attention.*serve the model"):
        LocalEngine(load_policy(tiny_folder(tmp_path, "gemma2")))


def test_the_draws_are_the_keyed_uniforms(policy: Policy) -> None:
    """Whoever knows the key can tell the tokens: (seed, stream, prompt, sample), one a token."""
    sampling = Sampling(max_completion_length=3, seed=9, stream="look")
    (one,) = LocalEngine(policy).generate([Request((5, 6), 4, 2)], sampling)
    (numbers,) = uniforms(9, "look", [(4, 2)], 3)
    ids = [5, 6]
    for number in numbers:
        with torch.no_grad():
            mass = policy.core(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        ids.append(int((mass.cumsum(-1) <= number).sum()))
    assert tuple(ids) == one.ids
    assert (
        LocalEngine(policy)
        .generate([Request((5, 6), 4, 2)], replace(sampling, stream="other"))[0]
        .ids
        != one.ids
    )
