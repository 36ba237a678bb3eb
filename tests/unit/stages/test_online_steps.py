"""How a rollout is cut into steps, what its losses are by hand, and what a run leaves behind."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.online import FREE, column, played, ran, weights
from truing.data.layout import Tokens, padded
from truing.generation.engine import Request, Sampling
from truing.generation.local import LocalEngine
from truing.models.model import load_policy
from truing.stages import online
from truing.stages.objective import Lesson

Write = Callable[..., str]
Make = Callable[..., Any]


@pytest.mark.parametrize("kind", ["rloo", "ptx", "grpo", "gspo"])
def test_micro_batches_change_nothing(
    make: Make, tiny_double: Path, kind: str, jsonl: Write, tmp_path: Path
) -> None:
    """Of whole runs, sampling and all; tests/unit/stages/test_invariance.py has every stage."""
    more: dict[str, Any] = {"model": tiny_double, "dtype": "auto", "max_steps": 2}
    if kind == "ptx":
        text = [{"text": "the cat" + "!" * i} for i in range(5)]
        more |= {"ptx_coef": 0.5, "ptx_dataset_name": jsonl("ptx", text)}
    if kind in FREE:
        # Of responses that were cut nothing is learnt, so parts count differently many.
        more |= {"kl_loss_coef": 0.1, "mask_truncated_completions": kind != "gspo"}
    found: list[Tensor] = []
    for size, times in ((8, 1), (2, 4)):
        config = make(
            "ppo" if kind == "ptx" else kind,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            num_mini_batches=2,
            num_ppo_epochs=2,
            entropy_coef=0.01,
            **more,
        )
        config = config.model_copy(update={"output_dir": str(tmp_path / f"{size}")})
        found.append(weights(ran(config)))
    for other in found[1:]:
        # Old log-probs, values and advantages pass through float32.
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_numbers(make: Make, tmp_path: Path) -> None:
    def lines(name: str, **more: Any) -> list[dict[str, Any]]:
        config = make("ppo", **more).model_copy(update={"output_dir": str(tmp_path / name)})
        aside = ("time", "eps")
        return [
            {k: v for k, v in line.items() if not k.startswith(aside)}
            for line in ran(config).metrics()
        ]

    assert lines("one") == lines("two")
    assert lines("three", seed=1) != lines("one again")


def test_epochs_minibatches_and_an_early_end(make: Make) -> None:
    config = make("ppo", num_ppo_epochs=3, num_mini_batches=4, max_steps=2)
    run = ran(config)
    assert column(run, "policy/optimizer_steps") == [12, 12]
    assert run.info["summary"]["weight_version"] == 24
    assert column(run, "episode") == [16, 32]
    # The rate falls by rollouts, not by optimiser steps.
    assert column(run, "lr") == pytest.approx([1e-2, 5e-3])


def test_a_policy_that_moved_too_far_leaves_the_rollout(make: Make) -> None:
    run = ran(make("ppo", num_ppo_epochs=6, target_kl=1e-4, max_steps=1))
    # The first step starts at the policy that sampled, so its KL is 0; the second sees what it did.
    assert column(run, "policy/optimizer_steps") == [2]


def test_the_adaptive_coefficient_steers(make: Make, tmp_path: Path) -> None:
    """Far above its target it rises, the KL falls below that of a fixed coefficient; and back."""
    common = {"max_steps": 25, "learning_rate": 3e-3, "kl_coef": 0.02}
    common |= {"per_device_train_batch_size": 32}
    fixed = ran(make("ppo", **common))
    config = make("ppo", **common, kl_target=0.5, kl_horizon=20.0)
    run = ran(config.model_copy(update={"output_dir": str(tmp_path / "adaptive")}))
    coefs, kls = column(run, "objective/kl_coef"), column(run, "objective/kl")
    for i in range(24):
        assert (coefs[i + 1] > coefs[i]) == (kls[i] > 0.5)
    assert kls[-1] < 0.5 * column(fixed, "objective/kl")[-1]
    assert set(column(fixed, "objective/kl_coef")) == {0.02}


def test_the_coefficient_is_kept_after_every_rollout_and_told_to_the_next_run(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptive = {"kl_target": 5.0, "kl_horizon": 100.0}
    play, _ = played(make("ppo", max_steps=2, **adaptive))
    kept: list[float] = []
    for _ in play.steps():
        state = json.loads((play.run.path / "state.json").read_text())
        assert state["kl_controller"]["coef"] == play.estimator.controller.coef
        assert state["scores"]["seen"] == 16 * len(kept) + 16
        kept.append(state["kl_controller"]["coef"])
    assert 0.05 > kept[0] > kept[1]
    run = ran(make("ppo", **adaptive).model_copy(update={"output_dir": str(tmp_path / "first")}))
    assert not list(run.path.glob("*.tmp"))
    last = json.loads((run.path / "state.json").read_text())["kl_controller"]["coef"]
    assert "ended with" not in capsys.readouterr().out
    for model in (run.path, run.path / "model"):
        online.run(make("rloo", model=model, kl_coef=0.2, dry_run=True))
        said = f"{run.path} ended with kl_coef {last:.4g}; this run starts from its own, 0.2"
        assert said in capsys.readouterr().out


def test_the_pretraining_loss_keeps_what_was_known(
    make: Make, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl("old", [{"text": "in the end the cat"}, {"text": "the end"}])
    more = {"max_steps": 15, "learning_rate": 3e-3, "ptx_dataset_name": rows}
    losses: list[list[float]] = []
    for coefficient in (1e-9, 1.0):
        config = make("ppo", **more, ptx_coef=coefficient)
        config = config.model_copy(update={"output_dir": str(tmp_path / str(coefficient))})
        losses.append(column(ran(config), "loss/ptx_avg"))
    without, with_it = losses
    assert with_it[-1] < 0.5 * with_it[0]
    assert without[-1] > 0.8 * without[0]


@pytest.mark.parametrize("ratio", [1, 3])
def test_so_many_pretraining_rows_come_with_each_episode(
    make: Make, jsonl: Write, monkeypatch: pytest.MonkeyPatch, ratio: int
) -> None:
    rows = jsonl("old", [{"text": "x" * n} for n in range(1, 8)])
    config = make("ppo", ptx_coef=1.0, ptx_dataset_name=rows, ptx_ratio=ratio, num_mini_batches=2)
    play, cast = played(config)
    assert len(cast.ptx) == 7
    seen: list[list[int]] = []
    learn = play.learner.learn

    def spied(*parts: Any) -> Any:
        seen.append([len(rows) for _, rows in parts])
        return learn(*parts)

    monkeypatch.setattr(play.learner, "learn", spied)
    next(play.steps())
    # Sixteen episodes in two parts, four times over; the critic's pass and the policy's.
    assert seen == [[8 * ratio, 8, 8]] * 8


def test_an_entropy_bonus_keeps_the_policy_open(make: Make, tmp_path: Path) -> None:
    ends = []
    for coefficient in (0.0, 1.0):
        config = make("ppo", max_steps=12, learning_rate=3e-3, entropy_coef=coefficient)
        config = config.model_copy(update={"output_dir": str(tmp_path / str(coefficient))})
        ends.append(column(ran(config), "policy/entropy_avg")[-1])
    assert ends[1] > ends[0] + 0.1


# --- what is shown, kept and refused --------------------------------------------------------------


def test_what_a_run_leaves_behind(make: Make, jsonl: Write, tiny: Path) -> None:
    held = jsonl("held", [{"prompt": "h1"}, {"prompt": "h2"}])
    config = make(
        "ppo", eval_dataset_name=held, log_completions_steps=2, max_steps=2, eval_steps=1,
        missing_eos_penalty=0.5, temperature=1.5,
    )  # fmt: skip
    run = ran(config)
    first = next(line for line in run.metrics() if "episode" in line)
    assert first.keys() >= {
        *(f"objective/{n}" for n in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores")),
        *(f"policy/{n}" for n in ("approxkl_avg", "clipfrac_avg", "entropy_avg")),
        *("loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var"),
        *("val/num_eos_tokens", "lr", "eps", "episode", "critic/vf_explained_var", "epoch"),
        *("completions/eos_rate", "completions/mean_length", "objective/kl_coef", "grad_norm"),
        *("time/generate", "time/score", "time/forward", "time/learn"),
    }
    shown = [line for line in run.metrics() if "eval_objective/scores" in line]
    assert [line["step"] for line in shown] == [1, 2]
    assert [(s["step"], s["prompt"]) for s in run.samples()] == [
        (0, "h1"), (0, "h2"), (2, "h1"), (2, "h2"),
    ]  # fmt: skip
    assert all(isinstance(s["score"], float) for s in run.samples())
    assert {s["finish_reason"] for s in run.samples()} <= {"stop", "length"}
    # Responses that were cut paid for it, and only they.
    paid = 0.5 * (1 - first["completions/eos_rate"])
    assert paid > 0
    wanted = first["rewards/tests.judges:vowels/mean"] - paid
    assert first["objective/scores"] == pytest.approx(wanted, abs=1e-9)
    assert {p.role for p in run.parents} == {"policy", "dataset", "evaluation dataset", "reward"}
    # The model is a plain language model that goes on from here.
    requests = [Request((1, 2), 0)]
    assert LocalEngine(load_policy(run.path)).generate(requests, Sampling())
    assert run.info["stage"] == "ppo"


def test_dry_run_watch_and_spread_looks(make: Make, tmp_path: Path) -> None:
    assert online.run(make("ppo", dry_run=True)).rows
    assert not (tmp_path / "run").exists()
    config = make("rloo", num_sample_generations=2, max_steps=4)
    run = ran(config, watch=lambda policy: {"objective/scores": float(policy.version)})
    seen = [(m["step"], m["eval_objective/scores"]) for m in run.metrics() if len(m) == 3]
    assert seen == [(0, 0.0), (2, 2.0), (4, 4.0)]
    assert run.samples() == []


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"total_episodes": 33}, 3),
        ({"num_train_epochs": 8}, 3),
        ({"max_steps": 5}, 5),
        ({"num_train_epochs": 0.1}, 1),
    ],
)
def test_how_many_rollouts_there_are(make: Make, more: Mapping[str, Any], steps: int) -> None:
    # Six prompts; sixteen episodes a rollout. 33 / 16 and 48 / 16.
    config = make("ppo", **({"max_steps": -1} | more))
    assert online.schedule(config, 6).max_steps == steps


def test_an_epoch_is_every_prompt_with_all_its_answers(make: Make) -> None:
    config = make("rloo", max_steps=-1, num_train_epochs=8)
    # 6 prompts, 4 answers each, 8 times over, 16 episodes a rollout.
    assert online.schedule(config, 6).max_steps == 6 * 4 * 8 / 16


def test_the_loss_by_hand(make: Make) -> None:
    """Two tokens of one response, ratio e^0.5 and 1, over a step of eight tokens."""
    play, cast = played(make("ppo", entropy_coef=0.3, vf_coef=0.5, cliprange_value=0.1))
    tokens = Tokens((1, 2), (3, 4))
    with torch.no_grad():
        own = cast.actor(padded([tokens]))
    old_T = own.logp[0] - torch.tensor([0.5, 0.0])
    values, returns = torch.tensor([[0.5, 0], [0.0, 2]])
    lesson = Lesson(tokens, old_T, old_T, torch.tensor([2.0, -1.0]), values, returns)
    batch = play.objective.collate([lesson])
    totals = {"tokens": torch.tensor(8.0), "responses": torch.tensor(8.0)}
    loss, stats = torch.zeros(()), dict[str, Any]()
    assert play.critic
    for part in (play.critic, play.objective):
        assert part.counts(batch) == {"tokens": 2, "responses": 1}
        own_loss, own_stats = part.loss(cast.actor, batch, totals)
        loss, stats = loss + own_loss, stats | own_stats
    # Surrogate: -1.2 * 2 (clipped) and 1. Values are 0 (a new head): where it was 0.5, and the
    # return is 0, the clip holds it at 0.4, and 0.16 is more than 0; where it was 0, for 2: 4.
    entropy = float(own.entropy[0].sum())
    wanted = (-2.4 + 1) / 8 - 0.3 * entropy / 8 + 0.5 * (0.16 + 4) / 2 / 8
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-5)
    means = {name: float(total / count) for name, (total, count) in stats.items()}
    assert means == pytest.approx(
        {
            "loss/policy_avg": -0.7,
            "policy/approxkl_avg": 0.5**2 / 2 / 2,
            "policy/clipfrac_avg": 0.5,
            "policy/entropy_avg": entropy / 2,
            "val/ratio": (2.718281828**0.5 + 1) / 2,
            "sampling/logp_difference": 0.25,
            "loss/value_avg": (0.16 + 4) / 2 / 2,
            "val/clipfrac_avg": 0.5,
        },
        abs=1e-5,
    )


def test_rloo_takes_a_response_as_one_action(make: Make) -> None:
    play, cast = played(make("rloo"))
    rows = [Tokens((1, 2), (3, 4)), Tokens((1,), (5,))]
    with torch.no_grad():
        own = cast.actor(padded(rows)).logp
    nothing = torch.zeros(2)
    # Log-ratios 0.05 + 0.05 and -0.3 of whole responses.
    lessons = [
        Lesson(rows[0], own[0] - 0.05, own[0], torch.tensor([1.0]), nothing, nothing),
        Lesson(rows[1], own[1, :1] + 0.3, own[1, :1], -torch.ones(1), nothing[:1], nothing[:1]),
    ]
    batch = play.objective.collate(lessons)
    assert play.objective.counts(batch) == {"tokens": 3, "responses": 2}
    totals = {"tokens": torch.tensor(3.0), "responses": torch.tensor(2.0)}
    loss, stats = play.objective.loss(cast.actor, batch, totals)
    # -e^0.1 and the larger of e^-0.3 and 0.8 (the clip holds): over two responses.
    assert float(loss.detach()) == pytest.approx((-(2.718281828**0.1) + 0.8) / 2, abs=1e-5)
    total, count = stats["policy/clipfrac_avg"]
    assert (float(total), float(count)) == (1, 2)
