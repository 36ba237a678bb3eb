"""PPO's roles on one backbone, through the stage: told aloud, alike, resumed, and seen to be so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import tiny_folder
from tests.online import cast_of, column, played, ran, reward_model
from truing.data.layout import Tokens, padded
from truing.generation.engine import Request, Sampling, Trajectory
from truing.generation.local import LocalEngine
from truing.models.checkpoint import add_lora, export
from truing.models.heads import ValueModel, load_reward_model
from truing.models.loading import Loading
from truing.models.model import load_policy, logp
from truing.models.roles import Role, Unfit, adapter_of
from truing.rewards import ModelReward
from truing.run import Run
from truing.stages import casting, online, setup

Make = Callable[..., Any]
CLOCKS = ("time", "eps")


def lora_judge(base: Path, folder: Path, dtype: str = "float32") -> Path:
    """A run of `truing reward` with LoRA on ``base``, as far as others read it."""
    model = load_reward_model(base, Loading(dtype=dtype))
    add_lora(model, r=2, alpha=4, dropout=0.0, targets="all-linear", seed=3)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    model.shift = 0.5
    export(model, folder)
    return folder


def lines(run: Run) -> list[dict[str, float | None]]:
    return [
        {name: x for name, x in line.items() if not name.startswith(CLOCKS)}
        for line in run.metrics()
    ]


def test_roles_are_told_aloud(
    make: Make, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = lora_judge(tiny, tmp_path / "near")
    far = lora_judge(tiny_folder(tmp_path / "other", initializer_range=0.1), tmp_path / "far")
    cast = cast_of(make("lora", reward=[str(near), str(far), "length"], value_model="reward"))
    said = " ".join(capsys.readouterr().out.split())
    assert "near is an adapter on the policy's weights" in said
    assert "far has weights of its own: its adapter was trained on other weights" in said
    first, second = cast.rewards[0], cast.rewards[1]
    assert isinstance(first, ModelReward)
    assert isinstance(second, ModelReward)
    assert isinstance(first.model.network, Role)
    assert not isinstance(second.model.network, Role)
    critic = cast.actor.critic
    assert isinstance(critic, ValueModel)
    assert critic.network.names == ("reward_1", "value")
    assert cast.reference is None
    # All weights are trained: nothing can be an adapter.
    whole = cast_of(make("ppo", reward=str(near)))
    assert isinstance(whole.rewards[0], ModelReward)
    assert not isinstance(whole.rewards[0].model.network, Role)
    apart = cast_of(make("lora", reward=str(reward_model(tiny, tmp_path / "full"))))
    assert isinstance(apart.actor.critic, ValueModel)
    assert not isinstance(apart.actor.critic.network, Role)
    alone = cast_of(make("lora", reward="length"))
    assert isinstance(alone.actor.critic, ValueModel)
    assert alone.actor.critic.network.names == ("value",)


def test_one_backbone_learns_what_four_models_learn(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_folder(tmp_path / "base", "gpt2", dtype=torch.float64)
    scorer = lora_judge(base, tmp_path / "scorer", "float64")
    given: dict[str, Any] = {
        "model": base, "dtype": "auto", "reward": str(scorer),
        "max_steps": 3, "num_ppo_epochs": 2, "num_mini_batches": 2, "value_learning_rate": 3e-2,
    }  # fmt: skip
    one = ran(make("lora", **given, output_dir=str(tmp_path / "one")))
    monkeypatch.setattr(casting.Backbone, "reward", lambda *_: Unfit("this is a test"))
    four = ran(make("lora", **given, output_dir=str(tmp_path / "four")))
    assert max(map(abs, column(one, "objective/kl"))) > 0.05
    assert column(one, "loss/value_avg")[0] > 0.01
    for mine, theirs in zip(lines(one), lines(four), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    ours, others = (load_policy(run.path, Loading(dtype="float64")) for run in (one, four))
    for mine, theirs in zip(ours.parameters(), others.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def test_the_sampler_reads_the_policys_adapter_alone(
    make: Make, tiny: Path, tmp_path: Path
) -> None:
    scorer = lora_judge(tiny, tmp_path / "scorer")
    cast = cast_of(make("lora", reward=str(scorer), value_model="reward"))
    network = cast.actor.policy.network
    requests = [Request((5, 6, 7 + i), i) for i in range(6)]
    sampling = Sampling(temperature=0.8, max_completion_length=8, seed=1)

    def sampled() -> list[Trajectory]:
        engine = LocalEngine(cast.actor.policy)
        done = engine.generate(requests, sampling)
        assert engine.counts.path == "llama"
        rows = [Tokens(t.prompt_ids, t.response_ids) for t in done]
        with torch.no_grad():
            told = logp(cast.actor.policy, padded(rows), 0.8)
        for one, own in zip(done, told, strict=True):
            theirs = own[: len(one.logps)].double()
            torch.testing.assert_close(torch.tensor(one.logps).double(), theirs, atol=1e-5, rtol=0)
        return done

    def moved(name: str) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in adapter_of(network, name).values():
                weight += 0.05 * torch.randn_like(weight)

    moved("default")
    before = sampled()
    for name in ("reward", "value"):
        moved(name)
        assert sampled() == before
    moved("default")
    pairs = zip(before, sampled(), strict=True)
    assert all(one.logps[0] != other.logps[0] for one, other in pairs)


def test_a_stopped_run_goes_on_to_the_last_bit(
    make: Make, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "reward": str(lora_judge(tiny, tmp_path / "scorer")), "max_steps": 3, "save_steps": 1,
    }  # fmt: skip
    monkeypatch.setattr(setup, "discard", lambda _: None)
    whole = ran(make("lora", **given, output_dir=str(tmp_path / "whole")))
    config, learn = make("lora", **given, output_dir=str(tmp_path / "cut")), online.Online.learn

    def cut(self: Any, lessons: Any) -> Any:
        if self.step == 3:
            raise RuntimeError("the lights went out")
        return learn(self, lessons)

    with monkeypatch.context() as patch:
        patch.setattr(online.Online, "learn", cut)
        with pytest.raises(RuntimeError, match="the lights went out"):
            online.run(config)
    again = ran(config)
    assert again.info["resumed"]
    assert lines(again) == lines(whole)
    files = [run.path / "model" / "model.safetensors" for run in (again, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (again.path / "adapter" / "reward").exists()


def test_the_critics_adapter_learns_at_the_critics_rate(make: Make) -> None:
    play, cast = played(make("lora", value_learning_rate=0.5))
    rates = {
        id(p): group["lr"] for group in play.learner.optimizer.param_groups for p in group["params"]
    }
    names = cast.actor.critics_own
    trained = {n: p for n, p in cast.actor.named_parameters() if p.requires_grad}
    assert {rates[id(p)] for n, p in trained.items() if n in names} == {0.5}
    assert {rates[id(p)] for n, p in trained.items() if n not in names} == {1e-2}
    # Two adapters of 2 layers, 7 matrices, A and B; and the critic's head.
    assert (len(trained), len(names)) == (2 * 2 * 7 * 2 + 1, 2 * 7 * 2 + 1)


def test_what_is_read_is_counted(make: Make) -> None:
    """Each response is read once by reference and critic, then by each in every pass."""
    given = {"max_steps": 1, "num_ppo_epochs": 3, "num_mini_batches": 2}
    (line,) = ran(make("ppo", **given, local_rollout_forward_batch_size=4)).metrics()
    # 16 responses; then 3 passes over 2 parts, by the policy and by the critic.
    assert line["policy/optimizer_steps"] == 3 * 2
    # Prompts that came twice were read once where they met: tokens are those read and those saved.
    rollout, learnt = (
        float(line[f"tokens/{phase}forwarded"] or 0)
        + float(line[f"tokens/{phase}prefix_saved"] or 0)
        for phase in ("rollout_", "")
    )
    assert rollout == pytest.approx(16 * (2 + float(line["completions/mean_length"] or 0)))
    assert learnt == pytest.approx(2 * rollout / 2)
    assert (line["tokens/rollout_filling"], line["tokens/filling"]) == (0, 0)


def test_a_group_reads_its_prompt_once(
    make: Make, jsonl: Callable[..., str], tmp_path: Path
) -> None:
    """And learns the same as one whose rows each read it."""
    given: dict[str, Any] = {"num_generations": 4, "max_steps": 1}
    text = "a long prompt that all answers share, number "
    data = jsonl("long", [{"prompt": text + str(i)} for i in range(4)])
    shared = ran(make("rloo", **given, data=data, output_dir=str(tmp_path / "shared")))
    with pytest.MonkeyPatch.context() as patch:
        for way in ("shares_prompts", "reads_spans"):
            patch.setattr(f"truing.models.model.Model.{way}", False)
        apart = ran(make("rloo", **given, data=data, output_dir=str(tmp_path / "apart")))
    for phase in ("rollout_", ""):
        (few, saved), (many, none) = (
            [column(run, f"tokens/{phase}{name}")[0] for name in ("forwarded", "prefix_saved")]
            for run in (shared, apart)
        )
        assert (few + saved, none) == (many, 0)
        assert few < 0.5 * many
        assert column(shared, f"tokens/{phase}filling") == [0]
    for name in ("loss/policy_avg", "grad_norm", "objective/scores"):
        assert column(shared, name) == pytest.approx(column(apart, name), rel=1e-4, abs=1e-5)
