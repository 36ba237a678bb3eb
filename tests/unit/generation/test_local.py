"""The sampler agrees with the trainer, and batching never changes what is sampled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import tiny_folder
from tests.sampling import REQUESTS, agree
from truing.generation.engine import Request, Sampling
from truing.generation.local import LocalEngine
from truing.keys import generator, uniforms
from truing.models.checkpoint import add_lora
from truing.models.model import Policy, load_policy


@pytest.fixture
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_the_log_probs_are_those_of_the_trainer(policy: Policy, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_completion_length=80, seed=2)
    done = LocalEngine(policy).generate(REQUESTS, sampling)
    agree(policy, done, temperature)
    assert len({len(t.response_ids) for t in done}) > 2  # rows ended and left at different steps
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


def test_every_stop_of_the_model_ends_a_response(policy: Policy) -> None:
    greedy = Sampling(temperature=0, max_completion_length=5)
    (free,) = LocalEngine(policy).generate([Request((5, 6, 7), 0)], greedy)
    policy.core.generation_config.eos_token_id = [free.response_ids[2], 268]
    (cut,) = LocalEngine(policy).generate([Request((5, 6, 7), 0)], greedy)
    assert (cut.response_ids, cut.finish) == (free.response_ids[:3], "stop")


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
