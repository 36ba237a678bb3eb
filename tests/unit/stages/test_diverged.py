"""Numbers that are not finite, and guards: the run stops, with the rows and its checkpoint kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.online import column, ran, weights
from truing import lineage
from truing.config import ConfigError, check
from truing.models.model import load_policy
from truing.run import Run
from truing.settings import SftConfig
from truing.stages import sft
from truing.stages.learner import Diverged
from truing.stages.objective import Foresight
from truing.stages.rollout import Collector
from truing.stages.sft import Imitation

ROWS = [{"prompt": f"p{i}", "completion": "on the inn"} for i in range(8)]
Settings = Callable[..., Any]
Write = Callable[..., str]


@pytest.fixture
def config(tiny: Path, jsonl: Write, settings: Settings) -> Callable[..., Any]:
    def make(**more: Any) -> Any:
        start: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 1}
        return settings(SftConfig, tiny, jsonl("rows", ROWS), **(start | more))

    return make


def broken_after(steps: int, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], Any]) -> None:
    """From the step after so many on, what the loss gives is spoilt."""
    loss, seen = Imitation.loss, [0]

    def broken(*args: Any) -> Any:
        seen[0] += 1
        value, stats = loss(*args)
        return (spoil(value) if seen[0] > steps else value), stats

    monkeypatch.setattr(Imitation, "loss", broken)


def told(config: Any) -> dict[str, Any]:
    return json.loads((Path(config.output_dir) / "diverged.json").read_text())


def test_a_loss_that_is_no_number(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_after(2, monkeypatch, lambda loss: loss * float("nan"))
    asked = config()
    message = r"the loss is nan at step 3, micro-batch 1 of 1: nothing was updated.*step 2 is kept"
    with pytest.raises(Diverged, match=message):
        sft.run(asked)
    found = told(asked)
    assert found["terms"] == ["loss"]
    assert len(found["rows"]) == 2
    assert {row["response"] for row in found["rows"]} == {"on the inn<|end|>"}
    assert {row["prompt"] for row in found["rows"]} < {row["prompt"] for row in ROWS}
    lineage.check(Path(asked.output_dir) / lineage.CHECKPOINTS / "step-00000002")
    # Once the cause is gone, the same command goes on.
    monkeypatch.undo()
    done = sft.run(asked)
    assert done is not None
    assert column(done, "step") == [1, 2, 3, 4]


def test_the_first_micro_batch_that_is_no_number_is_told(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are read after the last of a step, and before anything is updated."""
    broken_after(1, monkeypatch, lambda loss: loss * float("inf"))
    asked = config(gradient_accumulation_steps=3)
    with pytest.raises(Diverged, match=r"the loss is inf at step 1, micro-batch 2 of 3: "):
        sft.run(asked)
    assert len(told(asked)["rows"]) == 2


def test_a_gradient_that_is_not_finite_is_named(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(loss: torch.Tensor) -> torch.Tensor:
        # Finite in value, infinite in slope.
        return loss + (loss - loss.detach()).clamp(min=0).sqrt()

    broken_after(0, monkeypatch, spoil)
    asked = config()
    with pytest.raises(
        Diverged, match=r"gradient's norm is \w+ at step 1, first in network\.\S+: "
    ):
        sft.run(asked)
    assert all(term.startswith("gradient of network.") for term in told(asked)["terms"])
    assert len(told(asked)["rows"]) == 2


def test_the_term_that_is_not_finite_is_named(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Foresight.loss

    def broken(self: Any, model: Any, batch: Any, totals: Any) -> Any:
        batch.extra["return_T"][:] = float("inf")
        return loss(self, model, batch, totals)

    monkeypatch.setattr(Foresight, "loss", broken)
    asked = make("ppo")
    with pytest.raises(Diverged, match=r"\(loss/value_avg\)"):
        ran(asked)
    assert told(asked)["terms"] == ["loss/value_avg"]
    row = told(asked)["rows"][0]
    assert row["tokens"].keys() == {"prompt", "response"}
    assert all(isinstance(x, float) for x in row["logp_T"])


@pytest.mark.parametrize(
    ("what", "term"), [("reference", "reference log-prob"), ("value", "value")]
)
def test_what_is_measured_of_a_rollout_must_be_finite(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, what: str, term: str
) -> None:
    collect = Collector.collect

    def spoilt(self: Any, *args: Any, **more: Any) -> Any:
        def nowhere(layout: Any) -> torch.Tensor:
            return torch.full(layout.mask_BT.shape, float("nan"))

        if what == "reference":
            self.reference = nowhere
        else:
            monkeypatch.setattr(self.actor, "value", nowhere, raising=False)
        return collect(self, *args, **more)

    monkeypatch.setattr(Collector, "collect", spoilt)
    asked = make("ppo")
    with pytest.raises(Diverged, match=f"the {term} of 16 of 16 responses is not finite"):
        ran(asked)
    assert told(asked)["terms"] == [term]


@pytest.mark.parametrize("action", ["warn", "skip", "stop"])
def test_a_guard_on_the_gradient(
    config: Callable[..., Any], capsys: pytest.CaptureFixture[str], tiny: Path, action: str
) -> None:
    asked = config(guard_grad_norm=1e-6, guard_action=action, save_steps=0)
    if action == "stop":
        with pytest.raises(Diverged, match=r"step 1, above guard_grad_norm, and guard_action is"):
            sft.run(asked)
        assert told(asked)["terms"] == ["grad_norm"]
        return
    done = sft.run(asked)
    assert done is not None
    before = torch.cat([p.detach().flatten() for p in load_policy(tiny).parameters()])
    assert torch.equal(weights(done), before) == (action == "skip")
    assert column(done, "guard/skipped") == [float(action == "skip")] * 4
    assert capsys.readouterr().out.count("above guard_grad_norm") == 4


@pytest.mark.parametrize("action", ["warn", "skip", "stop"])
def test_a_guard_on_the_kl(make: Callable[..., Any], action: str) -> None:
    """The first rollout is the reference's own: its KL is 0, and those after it are above."""
    asked = make("ppo", guard_kl=1e-4, guard_action=action, max_steps=3, learning_rate=1e-2)
    if action == "stop":
        with pytest.raises(Diverged, match=r"the KL of rollout 2 is .* above guard_kl"):
            ran(asked)
        assert len(told(asked)["rows"]) == 16
        return
    learnt = len(column(ran(asked), "policy/approxkl_avg"))
    assert learnt == (1 if action == "skip" else 3)


def test_a_guarded_run_that_is_quiet_is_the_unguarded_one(
    config: Callable[..., Any], tmp_path: Path
) -> None:
    plain = sft.run(config())
    guarded = sft.run(
        config(guard_grad_norm=1e6, guard_action="skip", output_dir=str(tmp_path / "g"))
    )
    assert plain is not None
    assert guarded is not None
    assert torch.equal(weights(plain), weights(guarded))
    assert column(guarded, "guard/skipped") == [0.0] * 4


def test_an_action_without_a_guard_is_refused() -> None:
    values = {"output_dir": "o", "model_name_or_path": "m", "dataset_name": "d"}
    with pytest.raises(ConfigError, match="guard_action has no effect without a guard"):
        check(SftConfig, values | {"guard_action": "stop"})


def test_an_interrupted_run_of_another_model_is_not_mixed_up(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken_after(2, patch, lambda loss: loss * float("nan"))
        with pytest.raises(Diverged):
            sft.run(config())
    with pytest.raises(ValueError, match="trains other weights than this run"):
        sft.run(config(use_peft=True, force_resume=True))
    assert Run.open(config().output_dir).info["status"] == "failed"
