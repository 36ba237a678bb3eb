"""Each rule has a history that it speaks up for, and a near miss about which it is silent."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.histories import Column, last, level, made, ramp, wave
from truing.data.formats import SIMULATED
from truing.doctor.finding import LEVELS
from truing.doctor.history import ONLINE_STAGES, History
from truing.doctor.rules import RULES, asked, findings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "doctor.md"


class Case(NamedTuple):
    """A rule, the level at which it speaks of ``sick``, words of it, and a near miss; what it says
    of that, where the rule always has something to say."""

    rule: str
    level: str
    words: str
    sick: History
    well: History
    otherwise: str | None = None


NAN = float("nan")
BAD = {"error": "the loss is nan at step 7", "terms": ["loss"], "rows": [1, 2]}
PART: dict[str, Any] = {"per_device_train_batch_size": 20}
CUT = "responses cut when sampled: no end is learnt"
HELD = {"eval_accuracy": 0.55, "eval_accuracy_low": 0.5, "eval_accuracy_high": 0.6}
DPO: dict[str, Column] = {"rewards/margins": 0.5, "logps/chosen": -11.0, "rewards/chosen": -0.1}
MOVES: dict[str, Column] = {"policy/approxkl_avg": 1e-6, "policy/clipfrac_avg": 0.0}
RISING: dict[str, Column] = {"objective/scores": ramp(0, 1), "completions/mean_length": 40.0}
SCORE, KL, LENGTH, EOS = (
    *("objective/scores", "objective/kl"),
    *("completions/mean_length", "completions/eos_rate"),
)
WORTH, VALUE = "critic/vf_explained_var", "loss/value_avg"
OTHER = {"ref_model_name_or_path": "other"}

COMMON = [
    Case("diverged", "fault", "2 rows are in diverged.json",
         made("sft", {"loss": 1.0}, outcome="diverged", divergence=BAD),
         made("sft", {"loss": 1.0}, outcome="failed", error="OSError: full")),
    Case("diverged", "notice", "went on",
         made("sft", {"loss": 1.0}, divergence=BAD), made("sft", {"loss": 1.0})),
    Case("failed", "fault", "OSError: full",
         made("sft", {"loss": 1.0}, outcome="failed", error="OSError: full"),
         made("sft", {"loss": 1.0}, outcome="diverged", error="Diverged: nan")),
    Case("stopped", "notice", "step 20 of about 80",
         made("sft", {"loss": 1.0, "epoch": ramp(0.025, 0.5)}, outcome="stopped",
              num_train_epochs=2.0),
         made("sft", {"loss": 1.0})),
    Case("stopped", "notice", "step 20 of about 40",
         made("ppo", {"episode": ramp(8, 160)}, outcome="running", max_steps=-1,
              total_episodes=320),
         made("ppo", {"episode": ramp(8, 160)}, outcome="failed")),
    Case("not_finite", "fault", "loss (2 times)",
         made("sft", {"loss": level(1.0, (4, NAN), (5, NAN))}),
         made("ppo", {"loss": 1.0, WORTH: NAN})),
    Case("learning_rate_zero", "fault", "0 in 11 of 20",
         made("ppo", {"lr": [0.0] * 11 + [1e-5] * 9}),
         made("ppo", {"lr": [0.0] * 10 + [1e-5] * 10})),
    Case("learning_rate_zero", "warning", "16 of 20 steps; the highest rate that was logged is 2e",
         made("sft", {"learning_rate": 2e-6}, warmup_steps=16, learning_rate=2e-5, max_steps=20),
         made("sft", {"learning_rate": 2e-6}, warmup_steps=15, learning_rate=2e-5, max_steps=20)),
    Case("learning_rate_zero", "warning", "warm-up takes 18",
         made("sft", {"learning_rate": 2e-6}, warmup_ratio=0.9),
         made("sft", {"learning_rate": 2e-6}, warmup_ratio=0.9, outcome="stopped")),
    Case("grad_norm_spikes", "notice", "up to 11 in 1 lines",
         made("sft", {"grad_norm": level(1.0, (10, 11.0))}, max_grad_norm=1.0),
         made("sft", {"grad_norm": level(1.0, (10, 9.0))}, max_grad_norm=1.0)),
    Case("grad_norm_spikes", "warning", "in 2 lines",
         made("sft", {"grad_norm": level(1.0, (10, 11.0), (12, 11.0))}, max_grad_norm=1.0),
         made("sft", {"grad_norm": level(1.0, (0, 11.0), (3, 11.0))}, max_grad_norm=1.0)),
    Case("grad_norm_spikes", "warning", "so to the end",
         made("sft", {"grad_norm": level(1.0, (19, 11.0))}, max_grad_norm=1.0),
         made("sft", {"grad_norm": [1.0] * 6 + [11.0]}, max_grad_norm=1.0)),
    Case("grad_norm_spikes", "warning", "up to 11",
         made("sft", {"grad_norm": level(1.0, (10, 11.0))}, max_grad_norm=0.0),
         made("sft", {"grad_norm": level(1.0, (10, 11.0))}, max_grad_norm=1.0), "notice"),
    Case("steps_skipped", "warning", "15.0% of the steps",
         made("sft", {"guard/skipped": last(0.0, 1.0, 3)}),
         made("sft", {"guard/skipped": last(0.0, 1.0, 2)}), "notice"),
    Case("steps_skipped", "notice", "5.0% of the steps",
         made("ppo", {"objective/kl_coef": 0.1, "grad_norm": [*[1.0] * 19, None]}),
         made("ppo", {"objective/kl_coef": 0.1, "grad_norm": 1.0})),
    Case("truncated", "warning", "21 responses were cut at max_length 64, in about 400 rows",
         made("sft", {"epoch": ramp(0.05, 1)}, {"responses truncated": 21}, **PART, max_length=64),
         made("sft", {"epoch": ramp(0.05, 1)}, {"responses truncated": 20}, **PART)),
    Case("truncated", "warning", "51 reference responses",
         made("reward", {"epoch": 1.0}, {"reference: responses truncated": 51}, **PART),
         made("reward", {"epoch": 1.0}, {"reference: responses truncated": 50}, **PART)),
    Case("left_out", "warning", "about 422 rows 22 were not used",
         made("dpo", {"epoch": 1.0},
              {"prompts too long, left out": 11, "pairs equal after truncation, left out": 11},
              **PART),
         made("dpo", {"epoch": 1.0},
              {"prompts too long, left out": 11, "evaluation: prompts too long, left out": 11},
              **PART)),
    Case("left_out", "warning", "about 106 rows 6",
         made("rloo", {"episode": ramp(20, 400), "epoch": 1.0}, {"prompts too long, left out": 6},
              num_generations=4),
         made("rloo", {"episode": ramp(20, 400), "epoch": 1.0}, {"prompts too long, left out": 5},
              num_generations=4)),
    Case("simulated", "notice", "30 of its rows",
         made("sft", {}, {SIMULATED: 30}), made("sft", {}, {"column not kept: simulated": 30})),
]  # fmt: skip

OFFLINE = [
    Case("loss_not_falling", "notice", "did not fall", made("sft", {"loss": wave(1.0, 0.1)}),
         made("sft", {"loss": ramp(1.0, 0.95)})),
    Case("loss_not_falling", "warning", "rose: 0.7118",
         made("dpo", {"loss": ramp(0.7, 0.85)}), made("dpo", {"loss": ramp(0.7, 0.67)})),
    # A fall that is lost in noise is neither a fall nor none.
    Case("loss_not_falling", "warning", "did not fall", made("dpo", {"loss": wave(0.7, 0.2)}),
         made("dpo", {"loss": [a + b for a, b in zip(wave(0, 0.2), ramp(0.8, 0.7), strict=True)]})),
    Case("overfitting", "warning", "lowest at step 12 (1)",
         made("sft", {"loss": ramp(1.5, 0.5),
                      "eval_loss": [*[None] * 10, 1.2, 1.0, *[None] * 6, 1.1, 1.2]}),
         made("sft", {"loss": ramp(1.5, 0.5),
                      "eval_loss": [*[None] * 10, 1.2, 1.1, *[None] * 6, 1.0, 1.2]})),
    Case("overfitting", "notice", "lowest at step 18",
         made("sft", {"loss": ramp(1.5, 0.5), "eval_loss": [*[None] * 17, 1.0, 1.1, 1.2]},
              metric_for_best_model="eval_loss"),
         made("sft", {"loss": ramp(1.5, 0.5), "eval_loss": [*[None] * 17, 1.0, 1.01, 1.01]})),
    Case("loss_gap", "warning", "eval_loss is 0.9 at the end",
         made("sft", {"loss": ramp(1.5, 0.5), "eval_loss": [*[None] * 19, 0.9]}),
         made("sft", {"loss": ramp(1.5, 0.5), "eval_loss": [*[None] * 19, 0.8]})),
    Case("loss_gap", "warning", "eval_loss is 0.09",
         made("dpo", {"loss": 0.03, "eval_loss": [*[None] * 19, 0.09]}),
         made("dpo", {"loss": 0.03, "eval_loss": [*[None] * 19, 0.07]})),
    Case("no_end_learnt", "warning", "401 of about 800",
         made("dpo", {"epoch": 1.0}, {CUT: 401}, **PART),
         made("dpo", {"epoch": 1.0}, {CUT: 400}, **PART)),
    Case("no_end_learnt", "warning", "201 of about 400",
         made("sft", {"epoch": 1.0}, {CUT: 201}, **PART),
         made("sft", {"epoch": 1.0}, {CUT: 200}, **PART)),
    Case("loss_near_zero", "warning", "ends at 0.19", made("dpo", {"loss": last(0.6, 0.19, 4)}),
         made("dpo", {"loss": last(0.6, 0.19, 3)})),
    Case("loss_near_zero", "notice", "on held-out rows at 0.15",
         made("reward", {"loss": 0.1, "eval_loss": [*[None] * 19, 0.15]}),
         made("reward", {"loss": 0.1, "eval_loss": [*[None] * 19, 0.25]}), "warning"),
    Case("at_chance", "warning", "54.0% at the end, over 400 pairs",
         made("reward", {"accuracy": last(0.6, 0.54, 4)}, every=5, **PART),
         made("reward", {"accuracy": last(0.5, 0.56, 4)}, every=5, **PART)),
    Case("at_chance", "warning", "rewards/accuracies is 54.0%",
         made("dpo", {"rewards/accuracies": 0.54, "accuracy": 0.9}, every=5, **PART),
         made("dpo", {"rewards/accuracies": 0.54, "accuracy": 0.9}, every=4, **PART)),
    Case("reward_start", "expected", "starts at 0.75", made("reward", {"loss": ramp(0.75, 0.5)}),
         made("reward", {"loss": ramp(0.5, 0.4)})),
    Case("reward_start", "expected", "starts at 0.75", made("reward", {"loss": 0.75}),
         made("reward", {"loss": 0.75}, center_rewards_coefficient=0.01)),
    Case("reward_start", "expected", "starts at 0.75",
         made("reward", {"loss": 0.75}, loss_type="bradley_terry"),
         made("reward", {"loss": 0.75}, loss_type="plackett_luce")),
    Case("reward_start", "expected", "starts at 1",
         made("reward", {"loss": 1.0}, loss_type="bradley_terry"),
         made("reward", {"loss": 1.0}, loss_type="regression")),
    Case("loss_near_zero", "warning", "ends at 0.19",
         made("reward", {"loss": 0.19}, loss_type="plackett_luce"),
         made("reward", {"loss": 0.19}, loss_type="regression")),
    Case("reward_scale", "warning", "The mean margin is 6",
         made("reward", {"margin": 6.0}, loss_type="plackett_luce"),
         made("reward", {"margin": 6.0}, loss_type="regression")),
    Case("reward_zero", "warning", "was 11 before",
         made("reward", {}, {"reward_shift": 11, "reward_reference": "rows"}),
         made("reward", {}, {"reward_shift": 11, "reward_reference": "rows"},
              loss_type="regression")),
    Case("held_out_chance", "warning", "55.0% (50.0% to 60.0%)", made("reward", {}, HELD),
         made("reward", {}, HELD | {"eval_accuracy_low": 0.51})),
    Case("held_out_chance", "fault", "below a coin's",
         made("reward", {}, HELD | {"eval_accuracy_low": 0.4, "eval_accuracy_high": 0.49}),
         made("reward", {}, HELD | {"eval_accuracy_low": 0.4, "eval_accuracy_high": 0.51}),
         "warning"),
    Case("reward_overfit", "warning", "66.0% on the training rows at the end, 55.0%",
         made("reward", {"accuracy": 0.66}, HELD), made("reward", {"accuracy": 0.64}, HELD)),
    Case("reward_overfit", "warning", "71.0% on the training rows",
         made("reward", {"accuracy": 0.71}, {"eval_accuracy": 0.55}),
         made("reward", {"accuracy": 0.69}, {"eval_accuracy": 0.55})),
    Case("reward_scale", "warning", "margin is 5.1", made("reward", {"margin": last(1.0, 5.1, 4)}),
         made("reward", {"margin": last(5.1, 4.9, 4)})),
    Case("reward_zero", "warning", "was -11 before",
         made("reward", {}, {"reward_shift": -11.0, "reward_reference": "demonstrations"}),
         made("reward", {}, {"reward_shift": -9.0, "reward_reference": "demonstrations"})),
    Case("reward_zero", "notice", "mean score of the chosen responses",
         made("reward", {}, {"reward_shift": 1.0, "reward_reference": "chosen responses (no"}),
         made("reward", {}, {"reward_reference": "chosen responses (no"})),
    Case("dpo_start", "expected", "starts at 0.694", made("dpo", {"loss": ramp(0.694, 0.5)}),
         made("dpo", {"loss": ramp(0.71, 0.5)}), "fault"),
    Case("dpo_start", "fault", "not at ln 2", made("dpo", {"loss": ramp(0.67, 0.5)}),
         made("dpo", {"loss": ramp(0.67, 0.5)}, **OTHER), "notice"),
    Case("dpo_start", "expected", "mean of the first 10 steps",
         made("dpo", {"loss": ramp(0.52, 0.3)}, every=10),
         made("dpo", {"loss": ramp(0.48, 0.3)}, every=10)),
    Case("dpo_start", "warning", "mean of the first 10 steps, not at ln 2",
         made("dpo", {"loss": ramp(0.76, 0.5)}, every=10),
         made("dpo", {"loss": ramp(0.73, 0.5)}, every=10), "expected"),
    Case("chosen_falls", "expected", "lost 1 nats against the reference (10% of their 10)",
         made("dpo", DPO, beta=0.1), made("dpo", DPO | {"rewards/chosen": -0.02}, beta=0.1)),
    Case("chosen_falls", "fault", "the margin is 0.009",
         made("dpo", DPO | {"rewards/margins": 0.009}, beta=0.1),
         made("dpo", DPO | {"rewards/margins": 0.011}, beta=0.1), "expected"),
    Case("chosen_falls", "warning", "lost 5.5 nats against the reference (55%",
         made("dpo", DPO | {"logps/chosen": -15.5, "rewards/chosen": -0.55}, beta=0.1),
         made("dpo", DPO | {"logps/chosen": -14.5, "rewards/chosen": -0.45}, beta=0.1),
         "expected"),
    Case("chosen_falls", "fault", "(105%",
         made("dpo", DPO | {"logps/chosen": -20.5, "rewards/chosen": -1.05}, beta=0.1),
         made("dpo", DPO | {"logps/chosen": -19.5, "rewards/chosen": -0.95}, beta=0.1),
         "warning"),
]  # fmt: skip

FAR: dict[str, Column] = {KL: last(12.0, 16.0, 4), LENGTH: 50.0}
AWAY: dict[str, Column] = {KL: last(4.0, 22.0, 4), LENGTH: 100.0}
FELL: dict[str, Column] = {EOS: [*[1.0] * 4, *ramp(0.9, 0.3, 12), *[0.2] * 4]}
ONLINE = [
    Case("kl_start", "expected", "starts at 1.0e-05", made("ppo", {KL: ramp(1e-5, 3)}),
         made("ppo", {KL: ramp(1e-5, 3)}, every=2)),
    Case("kl_start", "fault", "is 0.02 in the first rollout", made("ppo", {KL: ramp(0.02, 3)}),
         made("ppo", {KL: ramp(0.02, 3)}, dtype="bfloat16"), "expected"),
    Case("kl_start", "fault", "is -0.02", made("ppo", {KL: ramp(-0.02, 3)}),
         made("ppo", {KL: ramp(-0.02, 3)}, **OTHER), "notice"),
    Case("kl_negative", "expected", "in 1 of 20 lines, down to -0.7",
         made("ppo", {KL: level(1.0, (3, -0.7))}, **PART), made("ppo", {KL: level(1.0, (3, 0.0))})),
    Case("kl_negative", "fault", "down to -0.9",
         made("ppo", {KL: level(1.0, (3, -0.9))}, **PART),
         made("ppo", {KL: level(1.0, (3, -0.9)), "episode": ramp(16, 320)}, **PART), "expected"),
    Case("kl_large", "warning", "16 nats a response at the end, 0.32 a token", made("ppo", FAR),
         made("ppo", FAR | {LENGTH: 60.0})),
    Case("kl_large", "warning", "after 4 in the middle", made("ppo", AWAY),
         made("ppo", AWAY | {KL: last(5.0, 22.0, 4)})),
    Case("kl_large", "fault", "1.1 a token", made("rloo", AWAY | {LENGTH: 20.0}),
         made("rloo", AWAY | {LENGTH: 20.0, KL: 22.0}), "warning"),
    Case("kl_large", "warning", "8 a token", made("ppo", {KL: 40.0, LENGTH: 5.0}),
         made("ppo", {KL: 9.0, LENGTH: 5.0})),
    Case("kl_off_target", "warning", "is 6.1 at the end, kl_target 3. kl_coef went from 0.1 to 1",
         made("ppo", {KL: last(2.0, 6.1, 4), "objective/kl_coef": ramp(0.1, 1)}, kl_target=3.0),
         made("ppo", {KL: last(2.0, 5.9, 4), "objective/kl_coef": ramp(0.1, 1)}, kl_target=3.0)),
    Case("kl_off_target", "notice", "is 0.5 at the end",
         made("ppo", {KL: 0.5}, kl_target=3.0), made("ppo", {KL: 1.0}, kl_target=3.0)),
    Case("no_signal", "fault", "was 1 in all 20", made("ppo", {SCORE: 1.0, "grad_norm": 0.5}),
         made("ppo", {SCORE: level(1.0, (5, 1.1)), "grad_norm": 0.5})),
    Case("no_signal", "fault", "median grad_norm",
         made("rloo", {SCORE: ramp(0, 1), "grad_norm": last(1e-9, 0.5, 9)}),
         made("rloo", {SCORE: ramp(0, 1), "grad_norm": last(1e-9, 0.5, 11)})),
    Case("critic_blind", "warning", "is 0.04 over the last third",
         made("ppo", {WORTH: last(0.5, 0.04, 6)}), made("ppo", {WORTH: last(0.5, 0.06, 6)})),
    Case("critic_blind", "notice", "is -0.04", made("ppo", {WORTH: -0.04, SCORE: ramp(0, 1)}),
         made("ppo", {WORTH: -0.06, SCORE: ramp(0, 1)}), "warning"),
    Case("value_loss_exploded", "warning", "and 11 at the end: it has been above twice that since",
         made("ppo", {VALUE: [*[1.0] * 18, 5.0, 11.0]}),
         made("ppo", {VALUE: [*[1.0] * 18, 5.0, 9.0]})),
    Case("value_loss_exploded", "fault", "since step 17, the KL above twice its median since step",
         made("ppo", {VALUE: last(1.0, 101.0, 4), KL: last(4.0, 9.0, 2)}),
         made("ppo", {VALUE: last(1.0, 99.0, 4)}), "warning"),
    Case("sampler_differs", "fault", "up to 0.02 nats",
         made("ppo", {"sampling/logp_difference": level(1e-6, (7, 0.02))}),
         made("ppo", {"sampling/logp_difference": level(1e-6, (7, 0.02))}, dtype="bfloat16")),
    Case("sampler_differs", "fault", "off 1 in 1 of 20",
         made("rloo", {"val/ratio": level(1.0, (7, 0.97)), "policy/optimizer_steps": 1.0}),
         made("rloo", {"val/ratio": level(1.0, (7, 0.97)), "policy/optimizer_steps": 2.0})),
]  # fmt: skip

OUTCOME = [
    Case("updates_too_large", "warning", "above 0.1 in 3 of 20",
         made("ppo", {"policy/approxkl_avg": last(0.01, 0.11, 3)}),
         made("ppo", {"policy/approxkl_avg": last(0.01, 0.11, 2)})),
    Case("updates_too_large", "warning", "31% of the actions",
         made("ppo", {"policy/clipfrac_avg": 0.31}), made("ppo", {"policy/clipfrac_avg": 0.29})),
    Case("updates_too_small", "warning", "1.0e-06 in the median",
         made("ppo", MOVES | {SCORE: wave(1, 0.1), "policy/optimizer_steps": 4.0}),
         made("ppo", MOVES | {SCORE: ramp(1, 2), "policy/optimizer_steps": 4.0})),
    Case("updates_too_small", "warning", "no action is clipped",
         made("rloo", MOVES | {SCORE: wave(1, 0.1), "policy/optimizer_steps": 4.0}),
         made("rloo", MOVES | {SCORE: wave(1, 0.1), "policy/optimizer_steps": 1.0})),
    Case("eos_fell", "warning", "100.0% of the responses ended by themselves at first, 20.0%",
         made("ppo", FELL), made("ppo", {EOS: ramp(1.0, 0.5)})),
    Case("eos_fell", "fault", "3.0% at the end",
         made("ppo", {EOS: [*ramp(1, 0.1, 16), *[0.03] * 4]}),
         made("ppo", {EOS: [*ramp(1, 0.1, 16), *[0.11] * 4]}), "warning"),
    Case("lengths_at_limit", "warning", "is 62 of at most 64 tokens, after 40",
         made("ppo", {LENGTH: [*ramp(40, 40, 4), *ramp(40, 62, 12), *[62.0] * 4]},
              response_length=64),
         made("ppo", {LENGTH: [*ramp(40, 40, 4), *ramp(40, 60, 12), *[60.0] * 4]},
              response_length=64)),
    Case("lengths_at_limit", "warning", "from the start",
         made("ppo", {LENGTH: 64.0, EOS: 0.4}, response_length=64),
         made("ppo", {LENGTH: 64.0, EOS: 0.6}, response_length=64)),
    Case("lengths_collapsed", "warning", "from 50 to 9", made("ppo", {LENGTH: last(50, 9, 4)}),
         made("ppo", {LENGTH: last(50, 11, 4)})),
    Case("lengths_collapsed", "fault", "from 50 to 4", made("ppo", {LENGTH: last(50, 4, 4)}),
         made("ppo", {LENGTH: last(50, 6, 4)}), "warning"),
    Case("entropy_collapse", "fault", "from 1 to 0.19",
         made("ppo", {"policy/entropy_avg": last(1.0, 0.19, 4)}),
         made("ppo", {"policy/entropy_avg": last(1.0, 0.21, 4)})),
    Case("score_falls", "warning", "0 at first, 1 in steps 9 to 12, and 0.4 at the end",
         made("ppo", {SCORE: [*[0.0] * 8, *[1.0] * 8, *[0.4] * 4]}),
         made("ppo", {SCORE: [*[0.0] * 8, *[1.0] * 8, *[0.6] * 4]})),
    Case("score_falls", "fault", "and -0.5658 at the end", made("ppo", {SCORE: ramp(1, -0.7)}),
         made("ppo", {SCORE: wave(1, 0.4)})),
    Case("score_flat", "warning", "no rise beyond noise", made("ppo", {SCORE: wave(1, 0.2)}),
         made("ppo", {SCORE: [a + b for a, b in zip(wave(0, 0.2), ramp(0, 2), strict=True)]})),
    Case("score_flat", "warning", "no rise beyond noise", made("rloo", {SCORE: wave(1, 0.2)}),
         made("rloo", {SCORE: [*[0.0] * 8, *[1.0] * 8, *[0.0] * 4]})),
    Case("score_hacked", "warning", "the KL is 0.3125 nats a token",
         made("ppo", RISING | {KL: 12.5}), made("ppo", RISING | {KL: 11.5})),
    Case("score_hacked", "warning", "length went from 40 to 61",
         made("ppo", RISING | {LENGTH: last(40.0, 61.0, 4)}),
         made("ppo", RISING | {LENGTH: last(40.0, 59.0, 4)})),
    Case("score_hacked", "warning", "length went from 40 to 26",
         made("ppo", RISING | {LENGTH: last(40.0, 26.0, 4)}),
         made("ppo", RISING | {LENGTH: last(40.0, 27.0, 4)})),
    Case("score_hacked", "warning", "entropy went from 1 to 0.49",
         made("ppo", RISING | {"policy/entropy_avg": last(1.0, 0.49, 4)}),
         made("ppo", RISING | {"policy/entropy_avg": last(1.0, 0.51, 4)})),
    Case("score_hacked", "warning", "gold fell from -0.4 to -0.5",
         made("ppo", RISING | {"eval_objective/gold": [*[None] * 18, -0.4, -0.5]}),
         made("ppo", RISING | {"eval_objective/gold": [*[None] * 18, -0.5, -0.4]})),
    Case("score_hacked", "warning", "the KL is", made("ppo", RISING | {KL: 20.0}),
         made("ppo", RISING | {KL: 20.0, SCORE: wave(0, 0.5)})),
    Case("simulated_reward", "notice", "from simulated",
         made("ppo", {}, {"simulated: the reward learnt from judgements that no person made": 9}),
         made("ppo", {}, {SIMULATED: 9})),
]  # fmt: skip
CASES = [*COMMON, *OFFLINE, *ONLINE, *OUTCOME]


def test_every_rule_has_its_cases() -> None:
    assert {case.rule for case in CASES} == RULES.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_rule_speaks_up_and_is_silent_about_a_near_miss(case: Case) -> None:
    found, near = RULES[case.rule](case.sick), RULES[case.rule](case.well)
    assert found is not None
    assert (found.rule, found.level) == (case.rule, case.level)
    assert case.words in found.seen
    assert found.why
    assert found.todo
    assert (near.level if near else None) == case.otherwise
    # It is asked of runs of this stage.
    assert case.rule in asked(case.sick.stage)
    assert found in findings(case.sick)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_no_rule_stumbles_over_what_is_not_there(case: Case) -> None:
    """Any rule of the stage, without any one of the metrics, or with a single line of them."""
    sick = case.sick
    names = {name for row in sick.rows for name in row} - {"step"}
    poorer = [
        replace(sick, rows=[{n: v for n, v in row.items() if n != gone} for row in sick.rows])
        for gone in names
    ]
    poorer += [replace(sick, rows=sick.rows[-1:]), replace(sick, config={})]
    for history in poorer:
        assert {f.rule for f in findings(history)} <= set(asked(sick.stage))


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", *ONLINE_STAGES])
def test_of_nothing_nothing_is_said(stage: str) -> None:
    assert findings(made(stage)) == []


def test_a_stage_is_asked_its_own_rules() -> None:
    assert "diverged" in asked("another")
    assert "loss_not_falling" not in asked("ppo")
    for stage in ONLINE_STAGES:
        assert asked(stage) == asked("ppo")
    assert "dpo_start" not in asked("reward")


def test_the_worst_comes_first() -> None:
    history = made("dpo", {"loss": 0.1, "accuracy": 0.9}, {SIMULATED: 3}, outcome="stopped")
    order = [list(LEVELS).index(finding.level) for finding in findings(history)]
    assert order == sorted(order)
    assert len(set(order)) > 2


def test_the_page_lists_every_rule_with_its_levels() -> None:
    table = re.findall(
        r"^\| `(\w+)` \| .+ \| (.+) \| .+ \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert [name for name, _ in table] == list(RULES)
    for name, told in table:
        levels = {case.level for case in CASES if case.rule == name}
        levels |= {case.otherwise for case in CASES if case.rule == name and case.otherwise}
        assert {each for each in LEVELS if each in told} == levels, name
