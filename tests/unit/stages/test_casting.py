"""Who takes part in an online run, where the critic starts, and what does not go together."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import tiny_folder
from tests.online import cast_of, column, louder, played, ran, reward_model
from truing.config import ConfigError
from truing.data.layout import Tokens, padded
from truing.lineage import Parent
from truing.models.heads import ValueModel
from truing.models.model import load_policy, logp
from truing.rewards import ModelReward
from truing.stages import online

Write = Callable[..., str]
Make = Callable[..., Any]


def test_the_reference_stays_where_it_was(make: Make, tiny: Path) -> None:
    for kind in ("ppo", "lora"):
        cast = cast_of(make(kind))
        layout = padded([Tokens((1, 2), (3, 4, 5))])
        wanted = logp(load_policy(tiny), layout)
        with torch.no_grad():
            for weight in cast.actor.policy.parameters():
                if weight.requires_grad:
                    weight += 0.05
            assert (cast.actor(layout).logp - wanted).abs().max() > 1e-2
            got = cast.reference_logp(layout, 1.0)
        torch.testing.assert_close(got, wanted.detach(), atol=1e-6, rtol=0)
        assert (cast.reference is None) == (kind == "lora")


def test_another_reference_is_a_parent(make: Make, tiny: Path, tmp_path: Path) -> None:
    other = louder(tiny, tmp_path / "other", 0.5)
    config = make("ppo", ref_model_name_or_path=str(other), max_steps=1)
    run = ran(config)
    assert abs(column(run, "objective/kl")[0]) > 0.1
    assert Parent.of("reference", other) in run.parents
    assert "tests.judges:vowels" in {p.path for p in run.parents if p.role == "reward"}


def test_where_the_critic_starts(make: Make, tiny: Path, tmp_path: Path) -> None:
    """From the reward model it foresees that model's own score; from the policy nothing."""
    scorer = str(reward_model(tiny, tmp_path / "rm"))
    layout = padded([Tokens((1, 2), (3, 4, 5))])
    for name in ("auto", "reward", scorer):
        cast = cast_of(make("ppo", reward=[scorer, "length"], value_model=name))
        assert isinstance(cast.actor.critic, ValueModel)
        with torch.no_grad():
            values = cast.actor.value(layout)
            judge: Any = cast.rewards[0]
            for t in range(3):
                prefix = padded([Tokens((1, 2), (3, 4, 5)[:t])])
                assert float(values[0, t]) == pytest.approx(float(judge.model(prefix)), abs=1e-5)
    for kind, more in (("ppo", {"value_model": "policy"}), ("ppo", {}), ("shared", {})):
        cast = cast_of(make(kind, **more))
        with torch.no_grad():
            assert not cast.actor.value(layout).any()


def test_a_critic_that_was_taught_another_template(
    make: Make, tiny_chat: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages would look to it as nothing it knows: auto falls back, a named one is warned of."""
    scorer = str(reward_model(tiny_chat, tmp_path / "rm"))
    rows = jsonl("chat", [{"prompt": [{"role": "user", "content": "hi"}]}])
    layout = padded([Tokens((1, 2), (3, 4, 5))])

    def starts_from_the_reward(value_model: str, template: str, data: str) -> bool:
        more = {"reward": scorer, "value_model": value_model, "chat_template": template}
        cast = cast_of(make("ppo", **more, model=tiny_chat, data=data))
        with torch.no_grad():
            return bool(cast.actor.value(layout).any())

    assert starts_from_the_reward("auto", "auto", rows)
    assert starts_from_the_reward("auto", "plain", jsonl("text", [{"prompt": "hi"}]))
    assert "another chat template" not in capsys.readouterr().out
    assert not starts_from_the_reward("auto", "plain", rows)
    said = capsys.readouterr().out
    assert "another chat template than the policy" in said
    assert "starts from the policy instead" in said
    for named in ("reward", scorer):
        assert starts_from_the_reward(named, "plain", rows)
        assert "knows another chat template than the one in which" in capsys.readouterr().out


def test_a_named_value_model_is_a_parent(make: Make, tiny: Path, tmp_path: Path) -> None:
    scorer = reward_model(tiny, tmp_path / "rm")
    cast = cast_of(make("ppo", value_model=str(scorer)))
    assert Parent.of("value", scorer) in cast.parents
    assert Parent.of("value", scorer).sha256
    for more in ({}, {"value_model": "policy"}, {"reward": str(scorer), "value_model": "reward"}):
        assert "value" not in {p.role for p in cast_of(make("ppo", **more)).parents}


def test_a_value_model_of_another_size(make: Make, tmp_path: Path) -> None:
    """A critic of its own may be wider and deeper than the policy; the step moves it whole."""
    wide = tiny_folder(tmp_path / "wide", hidden_size=48, num_hidden_layers=3)
    config = make("ppo", value_model=str(wide), max_steps=2)
    cast = cast_of(config)
    assert isinstance(cast.actor.critic, ValueModel)
    sizes = [m.core.config.hidden_size for m in (cast.actor.critic, cast.actor.policy)]
    assert sizes == [48, 32]
    losses = column(ran(config), "loss/value_avg")
    assert len(losses) == 2
    assert all(0 < loss < math.inf for loss in losses)


def test_a_reference_that_cannot_share_prompts_reads_each_row(make: Make, tmp_path: Path) -> None:
    """With a sliding window of 4: what the stage measures is what plain transformers says."""
    folder = tiny_folder(tmp_path / "other", "mistral", sliding_window=4)
    play, cast = played(make("ppo", ref_model_name_or_path=str(folder)))
    assert cast.reference is not None
    assert cast.actor.policy.shares_prompts
    assert not cast.reference.shares_prompts
    for e in play.collector.collect(cast.prompts, stream="rollout", group=4, batch_size=24):
        ids = torch.tensor([[*e.tokens.prompt, *e.tokens.response]])
        with torch.no_grad():
            logits = cast.reference.core(input_ids=ids).logits[0, len(e.tokens.prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(e.tokens.response)[:, None])
        torch.testing.assert_close(e.ref_logp_T.float(), wanted[:, 0], atol=1e-4, rtol=0)


def test_the_critic_may_learn_at_its_own_rate(make: Make) -> None:
    play, cast = played(make("ppo", value_learning_rate=0.5))
    rates = {
        id(p): group["lr"] for group in play.learner.optimizer.param_groups for p in group["params"]
    }
    assert {rates[id(p)] for p in cast.actor.critic.parameters()} == {0.5}
    assert {rates[id(p)] for p in cast.actor.policy.parameters()} == {1e-2}


def test_the_critic_learns_to_foresee(make: Make) -> None:
    """Frozen policy, moving critic: the share of variance explained rises from 0."""
    config = make(
        "ppo", learning_rate=0, value_learning_rate=3e-3, max_steps=8, vf_coef=1.0, lam=1.0,
        per_device_train_batch_size=32, cliprange_value=5.0, reward="tests.judges:by_prompt",
        lr_scheduler_type="constant",
    )  # fmt: skip
    run = ran(config)
    worth = column(run, "critic/vf_explained_var")
    assert worth[0] == pytest.approx(0, abs=1e-9)
    assert worth[-1] > 0.8
    assert max(map(abs, column(run, "objective/kl"))) < 1e-4


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("tests.judges:one_too_few", "one_too_few, tried out .* returned 1 numbers for 2 compl"),
        ("tests.judges:nothing", "gave None for completion 0"),
        ("tests.judges:no_number", "gave nan for completion 0"),
        ("tests.judges:missing", "cannot load the reward tests.judges:missing"),
        ("lenght", "did you mean 'length'"),
    ],
)
def test_rewards_that_are_none(make: Make, tmp_path: Path, reward: str, message: str) -> None:
    """Told before anything is sampled or written, by a dry run too."""
    for dry in (True, False):
        with pytest.raises(ValueError, match=message):
            online.run(make("ppo", reward=["length", reward], dry_run=dry))
    assert not (tmp_path / "run").exists()


def test_a_reward_model_reads_as_many_at_once_as_are_sampled(
    make: Make, tiny: Path, tmp_path: Path
) -> None:
    scorer = str(reward_model(tiny, tmp_path / "rm"))
    config = make("ppo", reward=scorer, local_rollout_forward_batch_size=3)
    play, cast = played(config)
    judge, seen = cast.rewards[0], list[int]()
    assert isinstance(judge, ModelReward)
    judge.model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0].last_B2)))
    play.collector.collect(cast.prompts, stream="rollout", group=1, batch_size=3)
    assert seen == [3, 3]


def test_prompts_without_room(make: Make, jsonl: Write, tmp_path: Path) -> None:
    rows = jsonl("long", [{"prompt": "x" * 155}, {"prompt": "ok"}])
    run = ran(make("ppo", data=rows, max_steps=1))
    assert run.info["summary"]["prompts too long, left out"] == 1
    rows = jsonl("all long", [{"prompt": "x" * 155}])
    with pytest.raises(ValueError, match=r"no prompt of .* leaves room for 6 tokens"):
        online.run(make("ppo", data=rows, output_dir=str(tmp_path / "other")))


def test_no_response_ends(make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = make("ppo", response_length=1, max_steps=1, temperature=0.2)
    run = ran(config)
    assert column(run, "completions/eos_rate") == [0]
    assert "none of the first 16 responses ended within 1 tokens" in capsys.readouterr().out
    punished = make("ppo", response_length=1, temperature=0.2, missing_eos_penalty=1.0)
    punished = punished.model_copy(update={"output_dir": str(tmp_path / "punished")})
    with pytest.raises(ValueError, match="missing_eos_penalty would teach nothing: raise"):
        online.run(punished)


def test_models_that_do_not_go_together(
    make: Make, tiny: Path, tiny_bos: Path, tmp_path: Path, jsonl: Write
) -> None:
    other = str(reward_model(tiny_bos, tmp_path / "bos"))
    with pytest.raises(ValueError, match=r"tokenizer of the value model .* differs"):
        online.run(make("ppo", reward=other, value_model="reward"))
    # Another tokenizer is fine for the reward; the critic then starts from the policy.
    cast = cast_of(make("ppo", reward=other))
    assert cast.actor.critic is not None
    short = str(reward_model(tiny, tmp_path / "short", max_position_embeddings=20))
    with pytest.raises(ValueError, match="a context of 20 tokens, fewer than rows may have"):
        online.run(make("ppo", reward=short))
    long = jsonl("long", [{"prompt": "x" * 30}, {"prompt": "y"}])
    with pytest.raises(ValueError, match="1 of 2 prompts fill the reward model's context of 20"):
        online.run(make("ppo", reward=short, data=long, value_model="policy"))
    with pytest.raises(ValueError, match="value_model is reward, but no reward of"):
        online.run(make("ppo", value_model="reward"))
    with pytest.raises(ValueError, match="is a language model, whose scores would be random"):
        online.run(make("ppo", reward=str(tiny)))
    chat = jsonl("chat", [{"prompt": [{"role": "user", "content": "hi"}]}])
    scorer = str(reward_model(tiny, tmp_path / "rm"))
    with pytest.raises(ValueError, match=r"reward model .*rm/model has no chat template: train it"):
        online.run(make("ppo", reward=["length", scorer], data=chat, chat_template="plain"))
    other = tiny_folder(tmp_path / "other", "gpt2")
    with pytest.raises(
        ValueError, match=r"reference model .*other has a context of 64 tokens, few"
    ):
        online.run(make("ppo", ref_model_name_or_path=str(other)))
    cast_of(make("ppo", ref_model_name_or_path=str(other), max_length=64))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("rloo", {"num_generations": 1}, "num_generations: got 1"),
        ("rloo", {"num_generations": 3}, "which num_generations .3. must divide"),
        ("ppo", {"num_mini_batches": 3}, "which num_mini_batches .3. must divide"),
        ("ppo", {"top_p": 0.9}, "top_p has no place here: what is learnt from must be drawn"),
        ("ppo", {"top_k": 5}, "top_k has no place here"),
        ("ppo", {"temperature": 0.0}, "temperature: got 0.0"),
        ("ppo", {"reward_weights": [1.0, 2.0]}, "reward_weights must be as many as rewards"),
        ("ppo", {"use_score_norm": True}, "use_score_norm needs use_score_scaling"),
        ("ppo", {"ptx_ratio": 4}, "ptx_ratio has no effect without ptx_coef"),
        ("ppo", {"ptx_coef": 1.0}, "ptx_coef and ptx_dataset_name need each other"),
        ("ppo", {"kl_horizon": 5.0}, "kl_horizon has no effect without kl_target"),
        ("ppo", {"kl_target": 5.0, "kl_coef": 0.0}, "cannot leave kl_coef 0"),
        ("ppo", {"total_episodes": 9}, "give total_episodes or max_steps, not both"),
        ("shared", {"value_model": "reward"}, "share_backbone puts the value head on the policy"),
        ("rloo", {"vf_coef": 0.1}, "only ppo has a critic"),
        ("ppo", {"num_generations": 2}, "only rloo, reinforce and grpo sample several responses"),
    ],
)
def test_settings_that_are_refused(
    make: Make, kind: str, more: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(kind, **more)


def test_pretraining_rows_are_a_parent_and_none_is_an_error(make: Make, jsonl: Write) -> None:
    rows = jsonl("old", [{"text": "the cat"}, {"text": "x"}])
    cast = cast_of(make("ppo", ptx_coef=1.0, ptx_dataset_name=rows))
    assert len(cast.ptx) == 2
    assert [p.role for p in cast.parents] == ["reward", "pretraining dataset"]
    long = jsonl("long", [{"prompt": "x" * 200, "completion": "y"}])
    with pytest.raises(ValueError, match=r"no row of .* can be used .*pretraining: prompts too"):
        cast_of(make("ppo", ptx_coef=1.0, ptx_dataset_name=long))
    assert cast_of(make("ppo")).ptx == []


def test_long_pretraining_rows_are_cut_not_left_out(
    make: Make, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = jsonl("long", [{"text": "y" * 400}, {"text": "x"}])
    config = make("ppo", ptx_coef=1.0, ptx_dataset_name=rows, max_steps=1)
    assert sorted(row.length for row in cast_of(config).ptx) == [2, 160]
    assert ran(config).info["summary"]["pretraining: responses truncated"] == 1
    assert "pretraining: responses truncated: 1" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_training_in_bfloat16_is_warned_of(
    make: Make, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, told in (({}, True), ({"use_peft": True}, False), ({"dtype": "float32"}, False)):
        online.run(make(kind, **({"dtype": "bfloat16", "dry_run": True} | more)))
        said = capsys.readouterr().out
        assert ("weights in bfloat16 are trained, whose eight bits lose small" in said) == told
