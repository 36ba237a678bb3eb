"""The settings of the online stages: every name that people bring is taken, or answered."""

import dataclasses
import re
from typing import Any

import pytest

from truing import settings_group as group
from truing import settings_online as online
from truing.config import ConfigError, check, from_yaml, groups, parse, to_yaml
from truing.retired import GROUP_NAMES, GROUP_RETIRED, ONLINE_NAMES, ONLINE_RETIRED, RETIRED

NEEDED = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "reward": "length"}
CONFIGS = [online.PpoConfig, online.RlooConfig, group.ReinforceConfig, group.GrpoConfig]
# What TRL 1.12's PPOConfig adds to transformers' TrainingArguments, and what later ones do.
TRL_PPO = """
run_name dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size
num_sample_generations response_length stop_token stop_token_id temperature missing_eos_penalty
sft_model_path world_size num_total_batches micro_batch_size local_batch_size batch_size
local_mini_batch_size mini_batch_size push_to_hub exp_name reward_model_path model_adapter_name
ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef
cliprange_value gamma lam ds3_gather_for_generation reward_shaping_enable_length
reward_shaping_enable_repetition reward_shaping_enable_eos reward_shaping_length_coef
reward_shaping_repetition_coef reward_shaping_repetition_ngram reward_shaping_eos_bonus
reward_shaping_eos_missing_penalty reward_shaping_eos_out_of_range_penalty
reward_shaping_eos_min_len reward_shaping_eos_max_len
"""
# What TRL 1.12's GRPOConfig adds, and what it added before.
TRL_GRPO = """
model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout cast_lm_head_to_fp32
num_generations num_generations_eval max_completion_length ds3_gather_for_generation
shuffle_dataset pad_to_multiple_of generation_batch_size steps_per_generation temperature top_p
top_k min_p generation_kwargs chat_template_kwargs repetition_penalty use_transformers_paged
cache_implementation use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode
vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port
vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
vllm_tensor_parallel_size beta num_iterations epsilon delta epsilon_high
sapo_temperature_neg sapo_temperature_pos importance_sampling_level reward_weights
multi_objective_aggregation scale_rewards loss_type mask_truncated_completions sync_ref_model
ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile max_tool_calling_iterations
vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_cap
off_policy_mask_threshold use_bias_correction_kl log_completions num_completions_to_print
log_unique_prompts log_completions_hub_repo use_liger_loss max_prompt_length
"""
# Its own defaults of the keys that are kept.
TRL_DEFAULTS = {
    "num_mini_batches": 1,
    "local_rollout_forward_batch_size": 64,
    "response_length": 53,
    "temperature": 0.7,
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "missing_eos_penalty": None,
    "total_episodes": None,
}


def ppo(**values: object) -> online.PpoConfig:
    return check(online.PpoConfig, NEEDED | values)


def test_every_name_of_trl_is_taken_or_answered() -> None:
    transformers = pytest.importorskip("transformers.training_args")
    theirs = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    known = online.PpoConfig.model_fields.keys() | {*ONLINE_NAMES, *RETIRED, *ONLINE_RETIRED}
    assert sorted((theirs | set(TRL_PPO.split())) - known) == []


def test_every_name_of_trls_grpo_is_taken_or_answered() -> None:
    known = group.GrpoConfig.model_fields.keys() | {*GROUP_NAMES, *ONLINE_NAMES}
    known |= group.GrpoConfig.advice.keys()
    assert sorted(set(TRL_GRPO.split()) - known) == []


def test_the_defaults_are_those_of_trl() -> None:
    made = ppo()
    assert {name: getattr(made, name) for name in TRL_DEFAULTS} == TRL_DEFAULTS


def test_the_rate_and_epsilon_of_the_optimiser() -> None:
    made = ppo()
    assert (made.learning_rate, made.value_learning_rate, made.adam_epsilon) == (3e-6, None, 1e-8)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_other_names_lead_to_settings_and_answers_to_what_exists(config: type) -> None:
    fields = {name for c in CONFIGS for name in c.model_fields}
    assert set(ONLINE_NAMES.values()) <= fields
    assert set(GROUP_NAMES.values()) <= fields
    assert not {*ONLINE_NAMES, *GROUP_NAMES, *GROUP_RETIRED} & fields
    advice = [*ONLINE_RETIRED.values(), *GROUP_RETIRED.values()]
    words = {w for a in advice for w in re.findall(r"[a-z]\w*_\w+", a)}
    assert sorted(words - fields - {"my_rewards"}) == []
    # An answer about a setting is only for the one that lacks it.
    assert not ONLINE_RETIRED.keys() & set.intersection(*(set(c.model_fields) for c in CONFIGS))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_groups_and_yaml(config: type, tmp_path) -> None:
    names = [name for group in groups(config).values() for name in group]
    assert sorted(names) == sorted(config.model_fields)
    for info in config.model_fields.values():
        assert (info.description or "").endswith(".")
    made = check(config, NEEDED)
    (tmp_path / "config.yaml").write_text(to_yaml(made))
    assert from_yaml(config, tmp_path / "config.yaml") == made


def test_a_file_from_trl_is_read_as_it_is(tmp_path) -> None:
    file = tmp_path / "trl.yaml"
    file.write_text(
        "sft_model_path: m\nreward_model_path: runs/reward\ndataset_name: d\noutput_dir: o\n"
        "per_device_train_batch_size: 4\ngradient_accumulation_steps: 4\ntotal_episodes: 1000\n"
        "num_ppo_epochs: 2\nnum_mini_batches: 2\nresponse_length: 53\nmissing_eos_penalty: 1.0\n"
        "kl_coef: 0.1\nlearning_rate: 3e-6\n"
    )
    made = from_yaml(online.PpoConfig, file)
    assert (made.model_name_or_path, made.reward) == ("m", ["runs/reward"])
    assert made.missing_eos_penalty == 1.0
    flags = parse(online.PpoConfig, ["--config", str(file), "--init-kl-coef", "0.2"])
    assert flags.kl_coef == 0.2
    assert from_yaml(online.PpoConfig, file, {"beta": 0.3}).kl_coef == 0.3


# The command that TRL's page on its PPO trainer gives for a full run, in our own order.
TRL_COMMAND = """
--dataset_name trl-lib/tldr --dataset_test_split validation --output_dir models/tldr
--per_device_train_batch_size 16 --gradient_accumulation_steps 4 --total_episodes 1000000
--model_name_or_path base/model --sft_model_path made/sft --reward_model_path made/reward
--local_rollout_forward_batch_size 16 --missing_eos_penalty 1.0 --stop_token eos
--eval_strategy steps --eval_steps 100
"""


def test_the_command_of_trl_goes_through_once_each_answer_is_followed() -> None:
    words = TRL_COMMAND.split()
    with pytest.raises(ConfigError) as error:
        parse(online.PpoConfig, words)
    assert str(error.value) == (
        "--model-name-or-path is given twice; give it once. What TRL trains is its "
        "sft_model_path: keep that one, as model_name_or_path; a tokenizer comes with it"
    )
    at = words.index("--model_name_or_path")
    del words[at : at + 2]
    with pytest.raises(ConfigError, match="--eval_strategy has no place here: eval_steps says"):
        parse(online.PpoConfig, words)
    at = words.index("--eval_strategy")
    del words[at : at + 2]
    made = parse(online.PpoConfig, words)
    assert (made.model_name_or_path, made.reward) == ("made/sft", ["made/reward"])
    assert (made.eval_steps, made.local_rollout_forward_batch_size) == (100, 16)


def test_a_stop_token_that_means_the_end_token_is_taken(tmp_path) -> None:
    file = tmp_path / "trl.yaml"
    for value in ("eos", "EOS", "none", "null"):
        file.write_text("".join(f"{k}: {v}\n" for k, v in NEEDED.items()) + f"stop_token: {value}")
        assert from_yaml(online.PpoConfig, file) == ppo()
        if value != "null":
            words = [w for k, v in NEEDED.items() for w in (f"--{k}", v)]
            assert parse(online.PpoConfig, [*words, "--stop-token", value]) == ppo()
            assert parse(online.PpoConfig, [f"--stop_token={value}", *words]) == ppo()
    for value in (".", "period"):
        with pytest.raises(ConfigError, match="stop_token has no place here: a response ends at"):
            ppo(stop_token=value)
    with pytest.raises(ConfigError, match=r"sft_model_path.* same setting: .* What TRL trains"):
        ppo(sft_model_path="s")
    given = {k: v for k, v in NEEDED.items() if k != "reward"}
    assert check(online.RlooConfig, given | {"reward_model": "rm"}).reward == ["rm"]


def test_a_setting_by_two_names_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="beta and kl_coef are the same setting: give one"):
        ppo(kl_coef=0.1, beta=0.1)
    with pytest.raises(ConfigError, match="--kl-coef is given twice"):
        parse(online.PpoConfig, ["--beta", "0.1", "--kl_coef", "0.1"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stop_token", "a response ends at its first end token"),
        ("world_size", "accelerate"),
        ("exp_name", "run_name"),
        ("mini_batch_size", "num_mini_batches"),
        ("reward_shaping_eos_bonus", "missing_eos_penalty"),
        ("top_p", "drawn from the policy itself"),
        ("no_repeat_ngram_size", "drawn from the policy itself"),
        ("presence_penalty", "drawn from the policy itself"),
        ("adap_kl_ctrl", "kl_target alone"),
        ("kl_penalty", "it is called kl_estimator"),
        ("bf16", "together with use_peft: true, else leave it at float32"),
        ("loss_type", "only dpo, reward and grpo have it"),
    ],
)
def test_names_without_a_meaning_say_what_to_do(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no place here: .*{said}"):
        ppo(**{name: 1})


def test_several_rewards_from_flags() -> None:
    words = ["--output-dir", "o", "--model-name-or-path", "m", "--dataset-name", "d"]
    words += ["--reward", "a", "b"]
    made = parse(online.PpoConfig, [*words, "--reward-weights", "1", "-0.5"])
    assert (made.reward, made.reward_weights) == (["a", "b"], [1.0, -0.5])
    with pytest.raises(ConfigError, match="reward is missing; give --reward"):
        parse(online.PpoConfig, words[:-3])


def test_lora_without_dropout_is_the_default() -> None:
    """With dropout the log-probs that are trained are not those that were sampled by."""
    assert ppo(use_peft=True).lora_dropout == 0.0
    assert ppo(use_peft=True, lora_dropout=0.1).lora_dropout == 0.1
    with pytest.raises(ConfigError, match="lora_dropout has no effect without use_peft"):
        ppo(lora_dropout=0.1)


def grpo(**values: object) -> group.GrpoConfig:
    return check(group.GrpoConfig, NEEDED | values)


def reinforce(**values: object) -> group.ReinforceConfig:
    return check(group.ReinforceConfig, NEEDED | values)


def test_each_loss_of_grpo_sets_its_own_numbers_unless_given(tmp_path) -> None:
    names = ("kl_loss_coef", "cliprange", "cliprange_high", "scale_rewards")
    found = {
        loss: tuple(getattr(grpo(loss_type=loss), name) for name in names) for loss in group.LOSSES
    }
    assert found == {
        "grpo": (0.04, 0.2, None, "group"),
        "dr_grpo": (0.0, 0.2, None, "none"),
        "dapo": (0.0, 0.2, 0.28, "group"),
        "gspo": (0.0, 3e-4, 4e-4, "group"),
        "cispo": (0.0, 1.0, 4.0, "group"),
    }
    assert [n for n in group.LOSSES if grpo(loss_type=n).dynamic_sampling] == ["dapo"]
    assert grpo(loss_type="gspo").importance_sampling_level == "sequence"
    given = grpo(loss_type="dapo", epsilon=0.1, epsilon_high=0.3, dynamic_sampling=False, beta=0.1)
    assert given.clips == {"clip": 0.1, "clip_high": 0.3}
    assert (given.dynamic_sampling, given.kl_loss_coef, given.kl_coef) == (False, 0.1, 0.0)
    # What was filled in is in the file, and the file says the same again.
    (tmp_path / "config.yaml").write_text(to_yaml(given))
    assert from_yaml(group.GrpoConfig, tmp_path / "config.yaml") == given
    words = [w for k, v in NEEDED.items() for w in (f"--{k}", v)]
    assert parse(group.GrpoConfig, [*words, "--loss-type", "dapo"]).cliprange_high == 0.28
    assert parse(group.GrpoConfig, [*words, "--beta", "0"]).kl_loss_coef == 0


def test_each_estimator_of_reinforce_sets_its_own_numbers_unless_given() -> None:
    assert reinforce() == reinforce(advantage_estimator="reinforce_plus_plus")
    assert [
        (reinforce(advantage_estimator=n).whiten_advantages, reinforce(advantage_estimator=n).group)
        for n in group.ESTIMATORS
    ] == [(False, 1), (True, 1), (True, 4)]
    assert not reinforce(whiten_advantages=False).whiten_advantages


@pytest.mark.parametrize(
    ("make", "values", "said"),
    [
        (grpo, {"num_generations": 1}, "num_generations: got 1"),
        (grpo, {"num_generations": 3}, "which num_generations .3. must divide"),
        (grpo, {"loss_type": "bnpo"}, "loss_type: got 'bnpo'"),
        (grpo, {"max_num_gen_batches": 3}, "no effect without dynamic_sampling"),
        (grpo, {"kl_loss_estimator": "k1"}, "its gradient is 0 on average.*Set kl_coef"),
        (grpo, {"loss_type": "dapo", "kl_loss_estimator": "k2"}, "without kl_loss_coef"),
        (grpo, {"beta": 0.1, "kl_loss_coef": 0.1}, "kl_loss_coef and beta are the same setting"),
        (grpo, {"overlong_buffer": 54}, "overlong_buffer .54. lies within response_length"),
        (grpo, {"overlong_penalty": 2.0}, "no effect without overlong_buffer"),
        (grpo, {"vf_coef": 0.1}, "only ppo has a critic"),
        (grpo, {"advantage_estimator": "reinforce"}, "only reinforce has it"),
        (grpo, {"vllm_mode": "colocate"}, "the model that learns draws the responses itself"),
        (grpo, {"top_p": 0.9}, "drawn from the policy itself"),
        (grpo, {"delta": 2.0}, "no second clip"),
        (ppo, {"scale_rewards": "none"}, "only grpo has it"),
        (ppo, {"kl_loss_estimator": "k2"}, "no effect without kl_loss_coef"),
        (
            reinforce,
            {"advantage_estimator": "reinforce_plus_plus_baseline", "num_generations": 1},
            "measures a response against the others of its prompt: give 2 or more",
        ),
    ],
)
def test_what_groups_refuse(make: Any, values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**values)


def test_beta_means_what_trl_means_by_it() -> None:
    """In TRL's RLOO the weight of a KL in the reward, in its GRPO of one in the loss."""
    rloo = check(online.RlooConfig, NEEDED | {"beta": 0.3})
    assert (rloo.kl_coef, rloo.kl_loss_coef) == (0.3, 0.0)
    assert (grpo(beta=0.3).kl_coef, grpo(beta=0.3).kl_loss_coef) == (0.0, 0.3)
