"""The settings of `truing reinforce` and `truing grpo`: learning from a reward without a critic."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from truing.config import Topic
from truing.retired import GROUP_NAMES, GROUP_RETIRED
from truing.settings_online import OnlineConfig

# What each advantage_estimator and each loss_type sets where nothing is given: its paper's numbers,
# as far as they do not depend on the task.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "reinforce": {},
    "reinforce_plus_plus": {"whiten_advantages": True},
    "reinforce_plus_plus_baseline": {"whiten_advantages": True, "num_generations": 4},
}
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"kl_loss_coef": 0.04},
    "dr_grpo": {"scale_rewards": "none"},
    "dapo": {"cliprange_high": 0.28, "dynamic_sampling": True},
    "gspo": {
        "cliprange": 3e-4,
        "cliprange_high": 4e-4,
        "importance_sampling_level": "sequence",
    },
    "cispo": {"cliprange": 1.0, "cliprange_high": 4.0},
}


def completed(values: object, key: str, default: str, table: Mapping[str, dict[str, Any]]) -> Any:
    """The settings that are given, before them those of the method that ``key`` names."""
    if not isinstance(values, dict):
        return values
    given = cast(dict[str, Any], values)
    return {**table.get(str(given.get(key, default)), {}), **given}


class CriticFreeConfig(OnlineConfig):
    """What learning without a critic has for defaults."""

    advice: ClassVar[Mapping[str, str]] = {**OnlineConfig.advice, **GROUP_RETIRED}

    temperature: float = Field(
        1.0,
        gt=0,
        description="Divides the logits, in sampling and in every log-prob of the training.",
    )
    num_ppo_epochs: int = Field(1, ge=1, description="Passes over each rollout.")
    whiten_advantages: bool = Field(
        False, description="Give a rollout's advantages mean 0 and variance 1."
    )


class ReinforceTopic(Topic):
    """REINFORCE: what a response is measured against"""

    advantage_estimator: Literal[
        "reinforce", "reinforce_plus_plus", "reinforce_plus_plus_baseline"
    ] = Field(
        "reinforce_plus_plus",
        description="reinforce: the whole reward, without a baseline; reinforce_plus_plus: what "
        "each token still earned, whitened over the rollout; reinforce_plus_plus_baseline: the "
        "reward less the mean of its group, whitened over the rollout.",
    )
    num_generations: int = Field(
        1,
        ge=1,
        description="Responses to each prompt; 4 with reinforce_plus_plus_baseline, which needs 2 "
        "at least.",
    )


class ReinforceConfig(ReinforceTopic, CriticFreeConfig):
    """Improve a policy by a reward, by REINFORCE and REINFORCE++."""

    stage: ClassVar[str] = "reinforce"

    whiten_advantages: bool = Field(
        False,
        description="Give a rollout's advantages mean 0 and variance 1. True where REINFORCE++ is "
        "not told otherwise.",
    )

    @property
    def recipe(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.advantage_estimator

    @property
    def group(self) -> int:
        return self.num_generations

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, values: object) -> object:
        return completed(values, "advantage_estimator", "reinforce_plus_plus", ESTIMATORS)

    @model_validator(mode="after")
    def _measured(self) -> Self:
        grouped = self.advantage_estimator == "reinforce_plus_plus_baseline"
        if grouped and self.num_generations < 2:
            raise ValueError(
                "num_generations is 1, and reinforce_plus_plus_baseline measures a response "
                "against the others of its prompt: give 2 or more, or take reinforce_plus_plus"
            )
        return self


class GroupRelativeTopic(Topic):
    """Group-relative: the loss, and the scale of advantages"""

    loss_type: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = Field(
        "grpo",
        description="grpo: mean over the tokens of each response, then over responses; dr_grpo: "
        "all tokens over response_length, no scaling; dapo: mean over all tokens, clip-higher, "
        "dynamic sampling; gspo: the ratio of whole responses; cispo: the weight is clipped, not "
        "the token. docs/grpo.md has them all.",
    )
    num_generations: int = Field(8, ge=2, description="Responses to each prompt.")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group",
        description="What the distance from the group's mean is divided by: the standard deviation "
        "of the group, that of all rewards of the rollout, or nothing. none with dr_grpo.",
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token",
        description="Whose ratio is clipped: each token's, or that of a response (the geometric "
        "mean of its tokens'). sequence with gspo.",
    )
    mask_truncated_completions: bool = Field(
        False, description="Learn nothing from a response that was cut."
    )


class DynamicTopic(Topic):
    """Dynamic sampling: groups that teach nothing are sampled anew"""

    dynamic_sampling: bool = Field(
        False,
        description="Drop groups whose responses all score the same, and sample other prompts in "
        "their place. True with dapo.",
    )
    max_num_gen_batches: int = Field(
        10,
        ge=2,
        description="Times that a step may sample for it; what is then still missing is filled "
        "with dropped groups.",
    )


class GrpoConfig(GroupRelativeTopic, DynamicTopic, CriticFreeConfig):
    """Improve a policy by a reward, each response against its group (GRPO and its kin)."""

    aliases: ClassVar[Mapping[str, str]] = {**OnlineConfig.aliases, **GROUP_NAMES}
    stage: ClassVar[str] = "grpo"

    learning_rate: float = Field(1e-6, ge=0, description="Peak learning rate (Shao et al. 2024).")
    kl_coef: float = Field(
        0.0, ge=0, description="Reward lost per nat of KL. GRPO has its KL in the loss instead."
    )
    kl_loss_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of a KL in the loss (beta). 0.04 with grpo, else none. It leads "
        "elsewhere than the KL in the reward: docs/kl.md.",
    )
    cliprange: float = Field(
        0.2,
        gt=0,
        description="Clip of the importance ratio below 1 (epsilon). 3e-4 with gspo; 1 with cispo, "
        "which is none.",
    )
    cliprange_high: float | None = Field(
        None,
        gt=0,
        description="Clip of the ratio above 1 (epsilon_high). 0.28 with dapo, 4e-4 with gspo; 4 "
        "with cispo, which holds weights at 5. None: that of cliprange.",
    )

    @property
    def recipe(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss_type

    @property
    def group(self) -> int:
        return self.num_generations

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, values: object) -> object:
        return completed(values, "loss_type", "grpo", LOSSES)

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.max_num_gen_batches != 10 and not self.dynamic_sampling:
            raise ValueError("max_num_gen_batches has no effect without dynamic_sampling")
        return self
