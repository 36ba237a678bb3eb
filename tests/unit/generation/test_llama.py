"""The fast path: transformers' own tokens, the trainer's log-probs, whatever stands beside."""

import gc
import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import tiny_folder
from tests.sampling import REQUESTS, agree, greedy_of_transformers
from truing.generation import attention, continuous, llama, local
from truing.generation.engine import Request, Sampling
from truing.generation.kernels import SOURCE, Kernels, compiled
from truing.generation.local import LocalEngine
from truing.generation.response import Response
from truing.keys import generator
from truing.models.checkpoint import add_lora
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy
from truing.models.native import build
from truing.models.products import FEW

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, a key for each head": ("llama", {"num_key_value_heads": 4}),
    "llama, one key for all": ("llama", {"num_key_value_heads": 1}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
}
BASE = {"rope_theta": 10000.0}
ROTATIONS: dict[str, dict[str, Any]] = {
    "linear": {**BASE, "rope_type": "linear", "factor": 2.0},
    "yarn": {**BASE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40},
    "llama3": {
        **BASE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
}  # fmt: skip


def loaded(folder: Path, name: str, *, shaken: bool = True, **options: Any) -> Policy:
    """A tiny model in its file's own format, whose norms and biases are not all ones and zeros."""
    policy = load_policy(tiny_folder(folder, name, **options), Loading(dtype="auto"))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.core.parameters():
            if shaken and parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=draw) * 0.1
    return policy


@pytest.fixture
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


@cache
def kernels_alone(dim: int) -> Kernels:
    """What a CPU without AVX-512 has."""
    return Kernels(build(SOURCE, f"-DDIM={dim}"))


@pytest.fixture(params=["whole", "kernels", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to run a float32 model on a CPU."""
    if request.param == "torch":
        monkeypatch.setattr(llama, "compiled", lambda _: None)
        return request.param
    request.getfixturevalue("compiler")
    if request.param == "kernels":
        monkeypatch.setattr(llama, "compiled", kernels_alone)
    elif not (found := compiled(8)) or not found.whole:
        pytest.skip("this CPU has no AVX-512")
    return request.param


@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_is_that_of_transformers_in_float64(tmp_path: Path, kind: str) -> None:
    name, options = FAMILIES[kind]
    policy = loaded(tmp_path, name, dtype=torch.float64, **options)
    engine = LocalEngine(policy, batch_size=4)
    done = engine.generate(REQUESTS, Sampling(temperature=0, max_completion_length=20))
    assert engine.counts.path == "llama"
    assert [t.ids for t in done] == greedy_of_transformers(policy, REQUESTS, 20)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_positions_are_rotated_as_the_model_does(tmp_path: Path, rotation: str) -> None:
    options = {"rope_parameters": ROTATIONS[rotation], "dtype": torch.float64}
    policy = loaded(tmp_path, "llama", **options)
    engine = LocalEngine(policy)
    done = engine.generate(REQUESTS, Sampling(temperature=0, max_completion_length=60))
    assert engine.counts.path == "llama"
    assert [t.ids for t in done] == greedy_of_transformers(policy, REQUESTS, 60)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_log_probs_are_those_of_the_trainer(
    tmp_path: Path, name: str, temperature: float, way: str
) -> None:
    policy = loaded(tmp_path, name)
    engine = LocalEngine(policy, batch_size=3)
    done = engine.generate(REQUESTS, Sampling(temperature=temperature, max_completion_length=30))
    assert engine.counts.path == "llama", way
    agree(policy, done, temperature)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_decodes_in_one_call_or_several(tmp_path: Path, kind: str, way: str) -> None:
    name, options = FAMILIES[kind]
    policy = loaded(tmp_path, name, **options)
    engine = LocalEngine(policy, batch_size=4)
    agree(policy, engine.generate(REQUESTS, Sampling(max_completion_length=20)), 1.0)
    assert engine.counts.path == "llama"
    assert engine.counts.whole == (engine.counts.steps if way == "whole" else 0)


def test_more_rows_than_a_few_are_several_calls(tmp_path: Path, way: str) -> None:
    policy = loaded(tmp_path, "llama")
    engine = LocalEngine(policy)
    engine.stops = set()
    many = [Request((5, i % 3), i) for i in range(FEW.stop)]
    sizes = [3] * 4 + [9] * (FEW.stop - 4)
    done = [engine.generate(many, Sampling(max_completion_length=size)) for size in (9, 3)]
    assert engine.counts.whole == 0
    agree(policy, done[0], 1.0)
    engine._response = cut(engine, sizes)
    agree(policy, engine.generate(many, Sampling(max_completion_length=9)), 1.0)
    assert engine.counts.whole == (6 if way == "whole" else 0)


def cut(engine: LocalEngine, sizes: list[int]) -> Any:
    """An engine's responses, each of a length of its own."""
    original = engine._response

    def response(request: Request, sampling: Sampling) -> Response:
        made = original(request, sampling)
        made.limit = sizes[request.prompt_key]
        return made

    return response


def test_the_company_changes_no_token_in_float64(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "qwen2", dtype=torch.float64)
    sampling = Sampling(max_completion_length=40, seed=1)
    alone = [LocalEngine(policy).generate([r], sampling)[0] for r in REQUESTS]
    for batch_size in (1, 2, 3, 64):
        order = generator(batch_size, "order").permutation(len(REQUESTS))
        shuffled = [REQUESTS[i] for i in order]
        done = LocalEngine(policy, batch_size=batch_size).generate(shuffled, sampling)
        for i, one in zip(order, done, strict=True):
            assert one.ids == alone[i].ids
            # The norms of the family compute in float32, whatever the model's format.
            assert np.allclose(one.logps, alone[i].logps, atol=1e-6, rtol=0)


def test_in_float32_the_company_changes_next_to_nothing(tmp_path: Path, way: str) -> None:
    policy = loaded(tmp_path, "llama")
    requests = [Request((5 + i % 7,) * (1 + i % 5), i) for i in range(60)]
    sampling = Sampling(max_completion_length=40, seed=1)
    wanted = LocalEngine(policy).generate(requests, sampling)
    got = LocalEngine(policy, batch_size=7).generate(requests, sampling)
    other = Counter(a.ids != b.ids for a, b in zip(wanted, got, strict=True))
    # A number within 1e-6 of an edge may fall to either side: one token in some hundred thousand.
    assert other[True] <= 1, way
    for a, b in zip(wanted, got, strict=True):
        assert a.ids != b.ids or np.allclose(a.logps, b.logps, atol=1e-5, rtol=0)


# --- slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [4, 2048])
def test_what_was_done_is_counted(
    policy: Policy, way: str, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(continuous.READ, "cpu", read)
    engine = LocalEngine(policy, batch_size=4)
    engine.stops = set()
    done = engine.generate(REQUESTS, Sampling(max_completion_length=6))
    counts = engine.counts
    # Prompts of 7, 3, 2 and 1 tokens; two samples of each, four of the second.
    assert (counts.path, way) == ("llama", way)
    assert counts.prompt_tokens == 13
    assert counts.prefix_tokens_saved == 7 + 3 * 3 + 2 + 1
    # The last token of a response is never fed back.
    assert counts.tokens == sum(len(t.response_ids) - 1 for t in done) == 50
    # Ten responses in four slots: three waves of five steps.
    assert (counts.slots_refilled, counts.steps) == (6, 15)
    assert counts.whole == (15 if way == "whole" else 0)
    agree(policy, done, 1.0)


def test_a_slot_is_refilled_at_once(policy: Policy, way: str) -> None:
    requests = [Request(tuple(range(1, 153)), 0), *(Request((5, i), i) for i in range(1, 5))]
    engine = LocalEngine(policy, batch_size=2)
    engine.stops = set()
    done = engine.generate(requests, Sampling(max_completion_length=20))
    assert [len(t.response_ids) for t in done] == [8, 20, 20, 20, 20]
    # 7 + 3 * 19 and 2 * 19 or 7 + 19 * 2 and 2 * 19: two slots share 7 + 4 * 19 tokens.
    assert (engine.counts.slots_refilled, engine.counts.tokens) == (3, 7 + 4 * 19)
    assert engine.counts.steps < 7 + 3 * 19, way
    agree(policy, done, 1.0)


def test_a_long_response_outlives_its_neighbours(policy: Policy, way: str) -> None:
    """Prompts and slots move while others go on; nobody's keys are lost."""
    policy.core.generation_config.eos_token_id = list(range(0, 270, 3))
    requests = [Request(tuple(range(1, 2 + i % 9)), i // 3, i % 3) for i in range(90)]
    sampling = Sampling(max_completion_length=50, seed=4)
    engine = LocalEngine(policy, batch_size=5)
    done = engine.generate(requests, sampling)
    assert engine.counts.slots_refilled == 85
    assert len({len(t.response_ids) for t in done}) > 5, way
    agree(policy, done, 1.0)


def test_memory_bounds_the_slots(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_completion_length=9)
    wanted = LocalEngine(policy).generate(REQUESTS, sampling)
    # 2 layers of 2 groups of 8, keys and values, for 8 + 7 positions of 4 bytes: 3840.
    for free, refilled in ((2 * 3840 * 2, 8), (2 * 3840 * 3 + 1, 7)):
        monkeypatch.setattr(local, "free_memory", lambda _, free=free: free)
        engine = LocalEngine(policy)
        assert [t.ids for t in engine.generate(REQUESTS, sampling)] == [t.ids for t in wanted]
        assert engine.counts.slots_refilled == refilled
    monkeypatch.setattr(local, "free_memory", lambda _: 3840)
    with pytest.raises(ValueError, match=r"of 9 tokens to a prompt of 7 .*lower max.*factor of 2$"):
        LocalEngine(policy).generate(REQUESTS, sampling)


# --- never silently wrong -------------------------------------------------------------------------


def test_adapters_are_part_of_the_weights(policy: Policy, way: str) -> None:
    add_lora(policy, r=4, alpha=8, dropout=0.5, targets="all-linear")
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    engine = LocalEngine(policy)
    done = engine.generate(REQUESTS, Sampling(max_completion_length=8))
    assert engine.counts.path == "llama", way
    policy.eval()
    agree(policy, done, 1.0)
    with policy.network.disable_adapter():
        off = LocalEngine(policy).generate(REQUESTS, Sampling(max_completion_length=8))
        agree(policy, off, 1.0)
    assert [t.ids for t in off] != [t.ids for t in done]


def test_small_updates_of_an_adapter_are_not_rounded_away(tmp_path: Path) -> None:
    """Beside weights in bfloat16 an adapter is in float32: added up, it would be lost in them."""
    policy = loaded(tmp_path, "llama", dtype=torch.bfloat16)
    add_lora(policy, r=4, alpha=8, dropout=0.0, targets="all-linear")
    before = LocalEngine(policy).generate(REQUESTS, Sampling(max_completion_length=8))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                assert weight.dtype == torch.float32
                weight.fill_(1e-3)
    engine = LocalEngine(policy)
    after = engine.generate(REQUESTS, Sampling(max_completion_length=8))
    assert engine.counts.path == "llama"
    assert [t.logps for t in after] != [t.logps for t in before]


def test_weights_may_change_between_calls(policy: Policy) -> None:
    engine = LocalEngine(policy)
    before = engine.generate(REQUESTS, Sampling(max_completion_length=8))
    with torch.no_grad():
        policy.core.model.layers[0].self_attn.k_proj.weight.mul_(-1)
    after = engine.generate(REQUESTS, Sampling(max_completion_length=8))
    assert engine.counts.path == "llama"
    assert [t.ids for t in after] != [t.ids for t in before]
    agree(policy, after, 1.0)


def test_copies_of_weights_go_with_their_model(policy: Policy, way: str) -> None:
    """At once, not when the collector comes by: the next thing to do needs the memory."""
    model = llama.Llama(policy.core)
    seen = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert seen() is None, way
    finally:
        gc.enable()


def test_large_weights_are_not_copied(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = LocalEngine(policy).generate(REQUESTS, Sampling(max_completion_length=8))
    monkeypatch.setattr(llama, "JOINED", 0)
    monkeypatch.setattr(llama, "joined", None)
    engine = LocalEngine(policy)
    done = engine.generate(REQUESTS, Sampling(max_completion_length=8))
    assert (engine.counts.path, [t.ids for t in done]) == ("llama", [t.ids for t in wanted])


def test_a_gpu_copies_weights_up_to_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(100, dtype=torch.bfloat16)
    told: Any = SimpleNamespace(total_memory=16 * 200)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: told)
    monkeypatch.setattr(llama, "JOINED", 0)
    layers = SimpleNamespace(parameters=lambda: [weight])
    body = SimpleNamespace(layers=layers, device=torch.device("cuda"))
    assert llama._joins(body)
    told.total_memory -= 1
    assert not llama._joins(body)
    body.device, told.total_memory = torch.device("cpu"), 2**30
    assert not llama._joins(body)


attention_rotated = attention.rotated
MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "rotated": (attention, "rotated", lambda x, cos, sin: x),
    "rotated the other way": (
        attention, "rotated", lambda x, cos, sin: attention_rotated(x, cos, -sin),
    ),
    "no norm": (llama.Llama, "_norm", lambda self, module: lambda x: x),
    "no gate": (llama.Llama, "_gate", lambda self, act: lambda x: x.chunk(2, -1)[1]),
    "half the weight": (llama, "_weight", lambda module: module.weight / 2),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_way_that_disagrees_with_the_model_is_not_taken(
    policy: Policy, mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*MUTANTS[mutant])
    engine = LocalEngine(policy)
    done = engine.generate(REQUESTS, Sampling(max_completion_length=8))
    assert engine.counts.path == "transformers"
    agree(policy, done, 1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mistral", {"sliding_window": 8}),
        ("llama", {"rope_parameters": {**BASE, "rope_type": "dynamic", "factor": 2.0}}),
    ],
)
def test_what_depends_on_the_length_goes_through_transformers(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    policy = loaded(tmp_path, name, dtype=torch.float64, **options)
    engine = LocalEngine(policy)
    requests = [REQUESTS[4]]
    done = engine.generate(requests, Sampling(temperature=0, max_completion_length=20))
    assert engine.counts.path == "transformers"
    assert [t.ids for t in done] == greedy_of_transformers(policy, requests, 20)


def test_a_window_that_nothing_reaches_beyond_does_not_matter(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "mistral", sliding_window=27)
    for length, path in ((20, "llama"), (21, "transformers")):
        engine = LocalEngine(policy)
        engine.generate(REQUESTS, Sampling(max_completion_length=length))
        assert engine.counts.path == path


@pytest.mark.usefixtures("compiler")
def test_the_kernels_are_torchs_functions() -> None:
    kernels = compiled(8)
    assert kernels is not None
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 3, 26, generator=draw) * 4, torch.randn(26, generator=draw)
    normed = F.rms_norm(x, (26,), weight, 1e-5)
    torch.testing.assert_close(kernels.norm(x, weight, 1e-5), normed, atol=1e-6, rtol=1e-5)
    wide = torch.cat([torch.randn(7, 50, generator=draw) * 30, torch.tensor([[0.0, -200.0] * 25])])
    gate, up = wide.chunk(2, -1)
    torch.testing.assert_close(kernels.gate(wide), F.silu(gate) * up, atol=1e-6, rtol=1e-5)


def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert compiled.__wrapped__(8) is None
    monkeypatch.setattr("shutil.which", lambda _: "/bin/false")
    assert compiled.__wrapped__(8) is None
