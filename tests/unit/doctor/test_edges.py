"""Where the thresholds of the rules lie, and what the advice depends on."""

from typing import Any

import pytest

from tests.histories import last, level, made, ramp, wave
from truing.doctor.history import History
from truing.doctor.rules import RULES

SCORE, KL, LENGTH = "objective/scores", "objective/kl", "completions/mean_length"
EOS, WORTH, VALUE = "completions/eos_rate", "critic/vf_explained_var", "loss/value_avg"
MOVES, CLIPS = "policy/approxkl_avg", "policy/clipfrac_avg"


def evaluated(*values: float) -> History:
    held = [*[None] * (20 - len(values)), *values]
    return made("sft", {"loss": ramp(1.5, 0.5), "eval_loss": held})


def dpo(first: float, every: int = 1, **config: Any) -> History:
    return made("dpo", {"loss": ramp(first, 0.5)}, every=every, **config)


def chosen(reward: float, **config: Any) -> History:
    columns = {
        "rewards/margins": 1.0,
        "logps/chosen": -10.0 + 10 * reward,
        "rewards/chosen": reward,
    }
    return made("dpo", columns, beta=0.1, **config)


def still(moves: float, clips: float) -> History:
    flat = {SCORE: wave(1, 0.1), "policy/optimizer_steps": 2.0}
    return made("ppo", flat | {MOVES: moves, CLIPS: clips})


def gapped(most: float, dtype: str) -> History:
    return made("ppo", {"sampling/logp_difference": level(0.0, (7, most))}, dtype=dtype)


def ratio(value: float) -> History:
    return made("rloo", {"val/ratio": level(1.0, (7, value)), "policy/optimizer_steps": 1.0})


def spike(line: int) -> History:
    return made("sft", {"grad_norm": level(1.0, (line, 11.0))}, max_grad_norm=1.0)


def graded(norm: float) -> History:
    return made("rloo", {SCORE: ramp(0, 1), "grad_norm": norm})


def far(kl: float, tokens: float) -> History:
    return made("ppo", {KL: last(4.0, kl, 4), LENGTH: tokens})


def climbed(end: float) -> list[float]:
    return [*[0.0] * 4, *ramp(0, 1, 8), *[1.0] * 4, *[end] * 4]


def started(kl: float, **config: Any) -> History:
    return made("ppo", {KL: ramp(kl, 3)}, **config)


# A rule, a history on this side of its threshold, what it says; and one just beyond.
EDGES: list[tuple[str, History, str | None, History, str | None]] = [
    ("grad_norm_spikes", spike(3), None, spike(4), "notice"),
    ("steps_skipped", made("sft", {"guard/skipped": 0.09}), "notice",
     made("sft", {"guard/skipped": 0.11}), "warning"),
    # Within noise: below and above 2 % of the loss.
    ("loss_not_falling", made("dpo", {"loss": [*[1.3, 0.7] * 8, *[1.281, 0.681] * 2]}), "warning",
     made("dpo", {"loss": [*[1.3, 0.7] * 8, *[1.279, 0.679] * 2]}), None),
    ("overfitting", evaluated(1.0, 1.01, 1.019), None, evaluated(1.0, 1.01, 1.021), "warning"),
    ("overfitting", evaluated(1.0, 1.1), None, evaluated(1.0, 1.1, 1.1), "warning"),
    ("dpo_start", dpo(0.702), "expected", dpo(0.705), "fault"),
    ("dpo_start", dpo(0.684), "expected", dpo(0.682), "fault"),
    # What starts elsewhere, or has another scale, is not measured by ln 2 and nats.
    ("dpo_start", dpo(25.0, loss_type="robust"), "fault", dpo(25.0, loss_type="ipo"), None),
    ("chosen_falls", chosen(-0.5, loss_type="hinge"), "warning",
     chosen(-0.5, loss_type="ipo_mean"), None),
    ("loss_near_zero", made("dpo", {"loss": 0.1}), "warning",
     made("dpo", {"loss": 0.1}, loss_type="hinge"), None),
    ("dpo_start", dpo(0.742, 10), "expected", dpo(0.745, 10), "warning"),
    ("reward_start", made("reward", {"loss": 1.09}), "expected", made("reward", {"loss": 1.11}),
     None),
    ("reward_start", made("reward", {"loss": 0.61}), "expected", made("reward", {"loss": 0.59}),
     None),
    ("chosen_falls", chosen(-0.019), None, chosen(-0.021), "expected"),
    ("kl_start", started(0.0099), "expected", started(0.011), "fault"),
    ("kl_start", started(0.49, dtype="auto"), "expected", started(0.51, dtype="auto"), "fault"),
    ("kl_negative", made("ppo", {KL: level(1, (3, -0.0009))}), None,
     made("ppo", {KL: level(1, (3, -0.0011))}), "expected"),
    ("kl_large", far(9.9, 5.0), None, far(10.1, 5.0), "warning"),
    ("kl_large", far(22.0, 23.0), "warning", far(22.0, 21.0), "fault"),
    ("kl_large", far(19.9, 99.0), None, far(20.1, 99.0), "warning"),
    ("kl_off_target", made("ppo", {KL: 0.91}, kl_target=3.0), None,
     made("ppo", {KL: 0.89}, kl_target=3.0), "notice"),
    ("no_signal", graded(1.1e-6), None, graded(0.9e-6), "fault"),
    ("sampler_differs", gapped(0.009, "float32"), None, gapped(0.011, "float32"), "fault"),
    ("sampler_differs", gapped(0.09, "bfloat16"), None, gapped(0.11, "bfloat16"), "fault"),
    ("sampler_differs", ratio(0.981), None, ratio(0.979), "fault"),
    ("updates_too_large", made("ppo", {MOVES: 0.099}), None, made("ppo", {MOVES: 0.101}),
     "warning"),
    ("updates_too_small", still(1.1e-5, 0.0), None, still(0.9e-5, 0.0), "warning"),
    ("updates_too_small", still(0.0, 0.0011), None, still(0.0, 0.0009), "warning"),
    ("eos_fell", made("ppo", {EOS: [*ramp(1, 0.2, 16), *[0.101] * 4]}), "warning",
     made("ppo", {EOS: [*ramp(1, 0.2, 16), *[0.099] * 4]}), "fault"),
    ("score_falls", made("ppo", {SCORE: climbed(0.51)}), None,
     made("ppo", {SCORE: climbed(0.49)}), "warning"),
    # All of the gain is lost, but it was noise.
    ("score_falls", made("ppo", {SCORE: [*[1.3, 0.7] * 8, *[1.0, 0.4] * 2]}), None,
     made("ppo", {SCORE: [*[1.03, 0.97] * 8, *[0.73, 0.67] * 2]}), "fault"),
    ("score_flat", made("ppo", {SCORE: 1.0}), None, made("ppo", {SCORE: level(1.0, (9, 1.1))}),
     "warning"),
]  # fmt: skip


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge[0])
def test_a_threshold_lies_where_it_is_said_to(
    edge: tuple[str, History, str | None, History, str | None],
) -> None:
    name, here, now, beyond, then = edge
    found = [RULES[name](history) for history in (here, beyond)]
    assert [f and f.level for f in found] == [now, then]


STOPPED = {"error": "grad_norm, and guard_action is stop", "terms": [], "rows": []}
ENDED: dict[str, Any] = {EOS: [*ramp(1, 0.2, 16), *[0.1] * 4]}
BLOWN: dict[str, Any] = {VALUE: last(1.0, 101.0, 4)}
BLIND: dict[str, Any] = {WORTH: -0.5}
OVER: dict[str, Any] = {KL: 10.0, LENGTH: 20.0}
GAP: dict[str, Any] = {"sampling/logp_difference": 1.0}
PART: dict[str, Any] = {"per_device_train_batch_size": 10, "kl_target": 2.0}
# A rule, two histories, and words of why or todo that only the first of them has, and the second.
ADVICE: list[tuple[str, History, str, History, str]] = [
    ("diverged", made("sft", {}, outcome="diverged", divergence=STOPPED), "A guard was passed",
     made("sft", {}, outcome="diverged", error="Diverged: x"), "was not finite: mostly"),
    ("stopped", made("sft", {}, outcome="stopped"), "by Ctrl-C",
     made("sft", {}, outcome="running"), "either it does, or it was killed"),
    ("grad_norm_spikes", made("sft", {"grad_norm": last(1.0, 11.0, 2)}, max_grad_norm=0.0),
     "is 0, so nothing", made("sft", {"grad_norm": last(1.0, 11.0, 2)}, max_grad_norm=2.0),
     "max_grad_norm 2 shortens"),
    ("loss_not_falling", made("sft", {"loss": 1.0}), "written these rows itself",
     made("dpo", {"loss": 1.0}), "knew it all before."),
    ("loss_near_zero", made("dpo", {"loss": 0.1}), "hold some out",
     made("dpo", {"loss": 0.1, "eval_loss": 0.9}), "gather more pairs."),
    ("kl_large", made("ppo", OVER | {"objective/kl_coef": 0.0}), "There is no penalty",
     made("ppo", OVER | {"objective/kl_coef": 0.1}), "The penalty is too weak"),
    ("kl_off_target", made("ppo", {KL: 9.0}, kl_horizon=210.0, **PART), "is 21 rollouts' worth",
     made("ppo", {KL: 9.0}, kl_horizon=190.0, **PART), "Start from a higher kl_coef"),
    ("critic_blind", made("ppo", BLIND, share_backbone=True), "a model of its own",
     made("ppo", {WORTH: 0.0}), "no baseline to speak of"),
    ("critic_blind", made("ppo", BLIND), "noisier than without",
     made("ppo", {WORTH: 0.0}), "no more than the mean"),
    ("value_loss_exploded", made("ppo", BLOWN, share_backbone=True), "a head on the policy",
     made("ppo", BLOWN), "The critic is thrown off"),
    ("sampler_differs", made("ppo", GAP, lora_dropout=0.1), "dropout is on",
     made("ppo", GAP, lora_dropout=0.0), "two kernels"),
    ("sampler_differs", made("ppo", GAP, disable_dropout=False), "dropout is on",
     made("ppo", GAP, disable_dropout=True), "two kernels"),
    ("eos_fell", made("ppo", ENDED), "nothing is lost by a missing end",
     made("ppo", ENDED, missing_eos_penalty=1.5), "which 1.5 seems not to be"),
]  # fmt: skip


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: advice[0])
def test_advice_is_about_this_run(advice: tuple[str, History, str, History, str]) -> None:
    name, one, words, other, others = advice
    first, second = RULES[name](one), RULES[name](other)
    assert first is not None
    assert second is not None
    told, tells = (f.why + " " + f.todo for f in (first, second))
    assert (words in told, others in told) == (True, False)
    assert (words in tells, others in tells) == (False, True)


def test_steps_are_where_it_was_seen() -> None:
    def steps(name: str, history: History) -> tuple[int, int] | None:
        found = RULES[name](history)
        assert found is not None
        return found.steps

    assert steps("kl_start", started(0.0)) == (1, 1)
    assert steps("dpo_start", dpo(0.69, 10)) == (1, 10)
    assert steps("reward_start", made("reward", {"loss": 0.7}, every=5)) == (5, 5)
    assert steps("not_finite", made("sft", {"loss": level(1.0, (4, float("nan")))})) == (5, 5)
    assert steps("kl_large", far(22.0, 30.0)) == (17, 20)
    assert steps("kl_large", made("ppo", OVER)) == (17, 20)
    assert steps("value_loss_exploded", made("ppo", BLOWN)) == (17, 20)
    lone = made("ppo", {VALUE: level(1.0, (18, 101.0))})
    assert steps("value_loss_exploded", lone) == (17, 20)
    assert steps("grad_norm_spikes", spike(9)) == (10, 10)
    fast = made("ppo", {MOVES: [0.0] * 5 + [0.2] * 5 + [0.0] * 10})
    assert steps("updates_too_large", fast) == (6, 10)
