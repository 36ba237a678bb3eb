"""Steps in shapes that stay: the same tokens and log-probs as those in shapes that fit."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import tiny_folder
from tests.sampling import REQUESTS, greedy_of_transformers
from truing.generation import continuous, replay
from truing.generation.engine import Request, Sampling
from truing.generation.llama import Llama
from truing.generation.local import LocalEngine
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy

HEADS = {"a key for each head": 4, "a key for two heads": 2, "one key for all": 1}


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but that nothing is recorded."""
    honest = continuous.Continuous.__init__

    def begun(self: Any, policy: Policy, model: Any, slots: Any, counts: Any, **more: Any) -> None:
        honest(self, policy, model, slots, counts, **more)
        self.replay = replay.Replay(model, slots, self.turn)
        for kept in (slots.own, slots.prompts):  # a GPU's are zeros, for a mask hides no NaN
            kept.zero_()

    monkeypatch.setattr(continuous.Continuous, "__init__", begun)


def loaded(folder: Path, heads: int, dtype: torch.dtype = torch.float64) -> Policy:
    made = tiny_folder(folder, "llama", dtype=dtype, num_key_value_heads=heads)
    return load_policy(made, Loading(dtype="auto"))


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("slots", [1, 4, 64])
def test_greedy_is_that_of_transformers(
    tmp_path: Path, steady: None, heads: int, slots: int
) -> None:
    policy = loaded(tmp_path, heads)
    engine = LocalEngine(policy, batch_size=slots)
    done = engine.generate(REQUESTS, Sampling(temperature=0, max_completion_length=20))
    assert engine.counts.path == "llama"
    assert [t.ids for t in done] == greedy_of_transformers(policy, REQUESTS, 20)
    assert engine.counts.replayed == engine.counts.steps > 0


def test_the_kernel_of_a_gpu_draws_the_same(
    tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted, so there are few."""
    policy = loaded(tmp_path, 2, torch.float32)
    requests = [Request((5, 6, 7), 0, 0), Request((5, 6, 7), 0, 1), Request((8,) * 5, 1)]
    sampling = Sampling(max_completion_length=6, seed=3)
    wanted = LocalEngine(policy, batch_size=2).generate(requests, sampling)
    made: list[object] = []

    class Seen(replay.Fused):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(replay, "way", lambda own: Seen)
    done = LocalEngine(policy, batch_size=2).generate(requests, sampling)
    assert made
    assert [t.ids for t in done] == [t.ids for t in wanted]
    for one, other in zip(done, wanted, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("heads", "groups", "dim"), [(2, 2, 8), (6, 2, 24), (4, 1, 16)])
def test_the_kernel_sees_what_the_mask_lets_through(
    heads: int, groups: int, dim: int, dtype: torch.dtype
) -> None:
    """Prompts and responses of more tokens than it looks at together, of none, and a slot that is
    not in use; what it remembers too. Triton's interpreter multiplies no bfloat16."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    own, prompts = drawn(1, 2, 4, groups, 70, dim), drawn(1, 2, 3, groups, 90, dim)
    qkv_SHD = drawn(4, heads + 2 * groups, dim)
    angle = torch.rand(160, dim // 2, generator=draw).repeat(1, 2)
    like: Any = SimpleNamespace(
        model=SimpleNamespace(heads=heads, groups=groups, scale=dim**-0.5),
        slots=SimpleNamespace(own=own, prompts=prompts),
        length_S=torch.tensor([69, 3, 0, 0]),
        prompt_S=torch.tensor([1, 1, 2, 0]),
        width_P=torch.tensor([1, 90, 64]),
        turn=(angle.cos().to(dtype), angle.sin().to(dtype)),
    )
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for kind in (replay.Masked, replay.Fused):
        like.slots.own = own.clone()
        found.append((kind(like, 4)(0, qkv_SHD), like.slots.own))
    off = 5e-3 if dtype == torch.float16 else 1e-5
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=off, rtol=off)


def test_groups_whose_slots_are_refilled_are_what_they_were(
    tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded(tmp_path, 2)
    requests = [Request((5 + i % 7,) * (1 + i % 5), i % 12, i // 12) for i in range(60)]
    sampling = Sampling(max_completion_length=24, seed=3)
    engine = LocalEngine(policy, batch_size=20)
    done = engine.generate(requests, sampling)
    assert engine.counts.replayed == engine.counts.steps
    assert engine.counts.slots_refilled == 40
    monkeypatch.undo()
    plain = LocalEngine(policy, batch_size=20)
    wanted = plain.generate(requests, sampling)
    assert plain.counts.replayed == 0
    assert [t.ids for t in done] == [t.ids for t in wanted]
    for one, other in zip(done, wanted, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-6)


def test_few_slots_go_through_a_smaller_step(tmp_path: Path, steady: None) -> None:
    policy = loaded(tmp_path, 2)
    made, honest = set[int](), replay.Replay._computed

    def seen(self: replay.Replay, size: int) -> Tensor:
        if self.sizes == [80, 20]:  # not those of a trial
            made.add(size)
        return honest(self, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay.Replay, "_computed", seen)
        requests = [Request((5, 6, 7), i) for i in range(83)]
        LocalEngine(policy, batch_size=80).generate(requests, Sampling(max_completion_length=60))
    assert made == {80, 20}


def test_steps_that_are_not_recorded_go_with_their_model(tmp_path: Path) -> None:
    """At once, as its copies of weights: not when the collector comes by."""
    model = Llama(loaded(tmp_path, 2).core)
    slots = model.slots(slots=2, prompts=1, room=3, width=3)
    slots.open(slots.learn((5, 6, 7)))
    with torch.inference_mode():
        steps = replay.Replay(model, slots, model.rotations(6))
        steps.step(torch.tensor([5]))
    seen = weakref.ref(model)
    gc.disable()
    try:
        del steps, model
        assert seen() is None
    finally:
        gc.enable()
