"""The settings themselves: described, grouped, consistent, and kind to people who come from TRL."""

import dataclasses
import re

import pytest
from pydantic import BaseModel

from truing import settings, settings_judging
from truing.config import ConfigError, Topic, check, from_yaml, groups, to_yaml
from truing.retired import RETIRED

TOPICS = [
    value
    for value in (vars(settings) | vars(settings_judging)).values()
    if isinstance(value, type) and issubclass(value, Topic) and value is not Topic
]
COMMANDS = {
    settings.SftConfig: {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"},
    settings.RewardConfig: {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"},
    settings.DpoConfig: {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"},
    settings.KtoConfig: {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"},
    settings_judging.SampleConfig: {"model_name_or_path": "m", "prompts": "p", "output_file": "f"},
    settings_judging.BestConfig: {"samples": "s", "reward": "r", "output_file": "f"},
    settings_judging.CompareConfig: {"samples": "s", "reward": "r", "output_file": "f"},
    settings_judging.WinrateConfig: {"run_a": "a", "run_b": "b", "reward": "r", "prompts": "p"},
    settings.QuickstartConfig: {},
}
# Names that TRL 1.16's SFT, reward and DPO configs, its model config and its dataset arguments
# add to transformers' TrainingArguments.
TRL_NAMES = """
activation_offloading assistant_only_loss beta center_rewards_coefficient chat_template_path
completion_only_loss dataset_config dataset_kwargs dataset_name dataset_num_proc dataset_streaming
dataset_test_split dataset_text_field dataset_train_split datasets disable_dropout discopop_tau
eos_token eval_packing f_alpha_divergence_coef f_divergence_type label_smoothing ld_alpha
learning_rate load_in_4bit load_in_8bit lora_alpha lora_dropout lora_modules_to_save lora_r
lora_target_modules lora_target_parameters lora_task_type loss_type loss_weights max_length
model_init_kwargs model_name_or_path model_revision packing packing_strategy pad_to_multiple_of
pad_token padding_free precompute_ref_batch_size precompute_ref_log_probs ref_model_mixup_alpha
ref_model_sync_steps router_aux_loss_coef shuffle_dataset streaming sync_ref_model
test_split_size trust_remote_code truncation_mode use_bnb_nested_quant use_dora use_peft
use_rslora use_weighting attn_implementation dtype
"""


def train(**values: object) -> settings.DpoConfig:
    return check(settings.DpoConfig, COMMANDS[settings.DpoConfig] | values)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.__name__)
def test_every_setting_says_what_it_is(topic: type[BaseModel]) -> None:
    for name, info in topic.model_fields.items():
        about = info.description or ""
        assert len(about) > 10, name
        assert about.endswith("."), name


def test_topics_stay_small() -> None:
    sizes = {title: len(names) for config in COMMANDS for title, names in groups(config).items()}
    assert max(sizes.values()) <= 25
    assert len(sizes) >= 10


@pytest.mark.parametrize("config", COMMANDS, ids=lambda c: c.__name__)
def test_groups_hold_every_field_once(config: type[Topic]) -> None:
    names = [name for group in groups(config).values() for name in group]
    assert sorted(names) == sorted(config.model_fields)


@pytest.mark.parametrize("config", COMMANDS, ids=lambda c: c.__name__)
def test_defaults_survive_yaml(config: type[Topic], tmp_path_factory) -> None:
    made = check(config, COMMANDS[config])
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(to_yaml(made))
    assert from_yaml(config, path) == made


def test_learning_rates_are_those_of_trl() -> None:
    rates = {
        config: config.model_fields["learning_rate"].default
        for config in (settings.SftConfig, settings.RewardConfig, settings.DpoConfig)
    }
    assert list(rates.values()) == [2e-5, 1e-4, 1e-6]


@pytest.mark.parametrize(
    ("value", "trackers"),
    [("none", []), (["none"], []), ([], []), ("wandb", ["wandb"]), (["a", "b"], ["a", "b"])],
)
def test_report_to_takes_a_word_or_a_list(value: object, trackers: list[str]) -> None:
    assert train(report_to=value).report_to == trackers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 8}, "lora_r has no effect without use_peft: true"),
        ({"lora_target_modules": ["q"]}, "lora_target_modules has no effect"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "give warmup_steps or warmup_ratio, not both"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "use constant_with_warmup"),
        ({"num_completions_to_print": 2}, "no effect without log_completions_steps"),
        ({"max_steps": 0}, "max_steps must be above 0, or -1"),
        ({"loss_type": "dop"}, "loss_type: got 'dop', but it should be 'sigmoid', 'robust', "),
        ({"packing": True}, "packing has no place here: rows already stand behind each other"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(**values)


def test_lora_settings_are_taken_with_use_peft() -> None:
    config = train(use_peft=True, lora_r=8, lora_target_modules="all-linear")
    assert (config.lora_r, config.lora_target_modules) == (8, "all-linear")


def test_every_name_of_trl_and_transformers_is_a_setting_or_has_advice() -> None:
    transformers = pytest.importorskip("transformers.training_args")
    theirs = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    known = settings.DpoConfig.model_fields.keys() | RETIRED.keys()
    assert sorted((theirs | set(TRL_NAMES.split())) - known) == []


def test_advice_names_only_settings_that_exist() -> None:
    fields = {name for config in COMMANDS for name in config.model_fields}
    words = {word for advice in RETIRED.values() for word in re.findall(r"[a-z]\w*_\w+", advice)}
    assert sorted(words - fields) == []


def test_advice_on_a_setting_is_only_for_commands_that_lack_it() -> None:
    everywhere = set.intersection(*(set(c.model_fields) for c in list(COMMANDS)[:3]))
    assert sorted(everywhere & RETIRED.keys()) == []
