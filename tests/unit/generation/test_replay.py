"""Steps in shapes that stay: the same tokens and log-probs as those in shapes that fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import flash
from tests.conftest import tiny_folder
from tests.sampling import REQUESTS, greedy_of_transformers
from truing.generation import attention, continuous, replay
from truing.generation.engine import Request, Sampling
from truing.generation.local import LocalEngine
from truing.models import varlen
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy

HEADS = {"a key for each head": 4, "a key for two heads": 2, "one key for all": 1}


@pytest.fixture(params=["mask", "flash"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a GPU, but that nothing is recorded: with its kernel (in plain torch), or without."""
    if request.param == "flash":
        monkeypatch.setattr(varlen, "_forward", flash.forward)
        for module in (attention, replay):
            monkeypatch.setattr(module, "fits", lambda *_: True)
    honest = continuous.Continuous.__init__

    def begun(self: Any, policy: Policy, model: Any, slots: Any, counts: Any, **more: Any) -> None:
        honest(self, policy, model, slots, counts, **more)
        self.replay = replay.Replay(model, slots, self.turn)

    monkeypatch.setattr(continuous.Continuous, "__init__", begun)
    return request.param


def loaded(folder: Path, heads: int) -> Policy:
    made = tiny_folder(folder, "llama", dtype=torch.float64, num_key_value_heads=heads)
    return load_policy(made, Loading(dtype="auto"))


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("slots", [1, 4, 64])
def test_greedy_is_that_of_transformers(tmp_path: Path, way: str, heads: int, slots: int) -> None:
    policy = loaded(tmp_path, heads)
    engine = LocalEngine(policy, batch_size=slots)
    done = engine.generate(REQUESTS, Sampling(temperature=0, max_completion_length=20))
    assert (engine.counts.path, way) == ("llama", way)
    assert [t.ids for t in done] == greedy_of_transformers(policy, REQUESTS, 20)
    assert engine.counts.replayed == engine.counts.steps > 0


def test_groups_whose_slots_are_refilled_are_what_they_were(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded(tmp_path, 2)
    requests = [Request((5 + i % 7,) * (1 + i % 5), i % 12, i // 12) for i in range(60)]
    sampling = Sampling(max_completion_length=24, seed=3)
    engine = LocalEngine(policy, batch_size=20)
    done = engine.generate(requests, sampling)
    assert engine.counts.replayed == engine.counts.steps, way
    assert engine.counts.slots_refilled == 40
    monkeypatch.undo()
    plain = LocalEngine(policy, batch_size=20)
    wanted = plain.generate(requests, sampling)
    assert plain.counts.replayed == 0
    assert [t.ids for t in done] == [t.ids for t in wanted]
    for one, other in zip(done, wanted, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-6)


def test_few_slots_go_through_a_smaller_step(tmp_path: Path, way: str) -> None:
    policy = loaded(tmp_path, 2)
    made: list[replay.Replay] = []
    honest = replay.Replay.__init__

    def kept(self: replay.Replay, *arguments: Any) -> None:
        honest(self, *arguments)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay.Replay, "__init__", kept)
        requests = [Request((5, 6, 7), i) for i in range(43)]
        LocalEngine(policy, batch_size=40).generate(requests, Sampling(max_completion_length=60))
    assert made[-1].sizes == [40, 10, 3], way
    assert set(made[-1].steps) == {40, 3}
