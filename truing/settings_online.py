"""The settings of the online stage, with TRL's names: what all have; `truing ppo`, `truing rloo`.

A *step* of these commands is a rollout and all that is learnt from it, as TRL counts too.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from truing.config import Topic
from truing.retired import (
    ONLINE_NAMES,
    ONLINE_PREFERRED,
    ONLINE_RETIRED,
    ONLINE_SETTLED,
    RETIRED,
)
from truing.settings import TrainingConfig, as_list


class RolloutTopic(Topic):
    """Rollouts: what is sampled at once, and how often it is learnt from"""

    total_episodes: int | None = Field(
        None,
        ge=1,
        description="Responses to sample in all, in the place of num_train_epochs. None: that many "
        "passes over the prompts, or max_steps rollouts.",
    )
    response_length: int = Field(
        53,
        ge=1,
        description="Most tokens of a response; a longer one is cut, without an end token.",
    )
    temperature: float = Field(
        0.7,
        gt=0,
        description="Divides the logits, in sampling and in every log-prob of the training.",
    )
    local_rollout_forward_batch_size: int = Field(
        64, ge=1, description="Responses sampled and scored side by side. It does not change them."
    )
    num_ppo_epochs: int = Field(4, ge=1, description="Passes over each rollout.")
    num_mini_batches: int = Field(
        1, ge=1, description="Parts that a rollout is cut into, with an optimiser step for each."
    )
    num_sample_generations: int = Field(
        0,
        ge=0,
        description="Looks at completions, spread over the run. 0: as log_completions_steps says.",
    )


class ScoreTopic(Topic):
    """Score: who judges, and what becomes of the number"""

    reward: Annotated[list[str], BeforeValidator(as_list)] = Field(
        min_length=1,
        description="Who judges, one or several: the folder (or hub name) of a reward model, the "
        "name of a rule, or module:function.",
    )
    reward_weights: list[float] = Field(
        [], description="Weight of each reward in the sum. None given: 1 each."
    )
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="Subtracted from the score of a response that was cut."
    )
    overlong_buffer: int | None = Field(
        None,
        ge=1,
        description="The last so many of response_length tokens cost more and more, up to "
        "overlong_penalty. None: nothing.",
    )
    overlong_penalty: float = Field(
        1.0,
        gt=0,
        description="Subtracted from the score of a response of response_length tokens; in part "
        "within the overlong_buffer.",
    )
    use_score_scaling: bool = Field(
        False, description="Divide scores by their running standard deviation."
    )
    use_score_norm: bool = Field(
        False, description="Subtract their running mean before that; needs use_score_scaling."
    )
    score_clip: float | None = Field(
        None, gt=0, description="Bound on the size of a score, after scaling. None: no bound."
    )


class KlTopic(Topic):
    """KL: the tie to the reference policy, in the reward, in the loss or in both"""

    kl_coef: float = Field(0.05, ge=0, description="Reward lost per nat of KL.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k1",
        description="KL of a token in the reward: k1, the log-ratio, whose optimum is the known "
        "one; k2 and k3 are never negative, but as a reward they lead elsewhere, and k3 may "
        "diverge.",
    )
    kl_loss_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of a KL in the loss (the beta of GRPO). 0: none. It leads elsewhere "
        "than the KL in the reward: docs/kl.md.",
    )
    kl_loss_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3",
        description="KL in the loss: k3 of each token, as GRPO has it; k2 of a whole response, "
        "whose optimum is the known one; k1 is refused, for it would do nothing.",
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="Nats per response that an adaptive coefficient steers to, starting from "
        "kl_coef. None: kl_coef stays.",
    )
    kl_horizon: float = Field(
        10_000.0, gt=0, description="Slowness of the adaptive coefficient, in episodes."
    )
    guard_kl: float | None = Field(
        None,
        gt=0,
        description="A rollout whose KL is above this (nats per response) is an alarm, and "
        "guard_action says what then.",
    )
    ref_model_name_or_path: str | None = Field(
        None,
        description="Reference policy. None: the model that training starts from; with LoRA it "
        "takes no memory.",
    )


class PolicyGradientTopic(Topic):
    """Policy gradient"""

    cliprange: float = Field(0.2, gt=0, description="Clip of the importance ratio below 1.")
    cliprange_high: float | None = Field(
        None, gt=0, description="Clip of the ratio above 1. None: that of cliprange."
    )
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus (a loss).")
    whiten_advantages: bool = Field(
        True, description="Give a rollout's advantages mean 0 and variance 1."
    )
    advantage_clip: float | None = Field(
        None, gt=0, description="Bound on the size of an advantage, after that. None: no bound."
    )
    target_kl: float | None = Field(
        None,
        gt=0,
        description="Leave a rollout once the new policy is this far from the one that sampled it "
        "(nats per token, policy/approxkl_avg). None: never.",
    )


class PretrainTopic(Topic):
    """Pretraining loss: PPO-ptx, so that old skills stay"""

    ptx_coef: float = Field(0.0, ge=0, description="Weight of the loss per token. 0: none.")
    ptx_dataset_name: str | None = Field(
        None, description="Its rows: text, or prompt and completion, of which the latter is learnt."
    )
    ptx_ratio: int = Field(1, ge=1, description="Such rows for each episode (InstructGPT: 8).")


class CriticTopic(Topic):
    """Critic: the value function, and what it makes of rewards"""

    value_model: str = Field(
        "auto",
        description="Where it starts from: policy, reward (the first reward model) or a folder. "
        "auto: reward if its tokenizer is the policy's, else policy. A head on the policy starts "
        "at 0.",
    )
    share_backbone: bool = Field(
        False, description="Put the head on the policy itself instead of a second model."
    )
    value_learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the critic. None: learning_rate."
    )
    vf_coef: float = Field(0.1, ge=0, description="Weight of the value loss.")
    cliprange_value: float = Field(
        0.2, gt=0, description="Most that a value may move from the old one before the loss clips."
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of GAE: 1 trusts returns, 0 values.")
    whiten_rewards: bool = Field(
        False, description="Give token rewards variance 1; their mean stays."
    )


class GroupTopic(Topic):
    """Groups: several responses to each prompt, measured against each other"""

    num_generations: int = Field(2, ge=2, description="Responses to each prompt.")


class OnlineConfig(
    RolloutTopic, ScoreTopic, KlTopic, PolicyGradientTopic, PretrainTopic, TrainingConfig
):
    """What learning from a reward asks for, whatever the estimator."""

    advice: ClassVar[Mapping[str, str]] = RETIRED | ONLINE_RETIRED
    aliases: ClassVar[Mapping[str, str]] = ONLINE_NAMES
    preferred: ClassVar[Mapping[str, str]] = ONLINE_PREFERRED
    settled: ClassVar[Mapping[str, tuple[str, ...]]] = ONLINE_SETTLED

    learning_rate: float = Field(
        3e-6, ge=0, description="Peak learning rate (Huang et al. 2024; TRL leaves it at 5e-5)."
    )
    lora_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of adapter inputs set to zero in training. Above 0 the log-probs that "
        "are trained are no longer those that were sampled by.",
    )
    logging_steps: int = Field(1, ge=1, description="Steps between lines of metrics.")
    save_steps: int = Field(
        10,
        ge=0,
        description="Rollouts between checkpoints. 0: only when the run is stopped (Ctrl-C, "
        "SIGTERM).",
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="Times per_device_train_batch_size, on each device: the episodes of a rollout.",
    )
    truncation_mode: Literal["drop"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        "drop",
        description="A prompt that leaves no room for response_length tokens is left out and "
        "counted, never cut.",
    )

    # The stage's row of `RECIPES`, and its name in the run's records.
    recipe: ClassVar[str]
    stage: ClassVar[str]

    @property
    def group(self) -> int:
        """Responses to each prompt of a rollout."""
        return 1

    @property
    def clips(self) -> dict[str, float | None]:
        """The two clips of the ratio, as the losses take them."""
        return {"clip": self.cliprange, "clip_high": self.cliprange_high}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        episodes = self.per_device_train_batch_size * self.gradient_accumulation_steps
        complaints = {
            f"reward_weights must be as many as rewards: got {len(self.reward_weights)} for "
            f"{len(self.reward)}": self.reward_weights
            and len(self.reward_weights) != len(self.reward),
            "use_score_norm needs use_score_scaling: true": self.use_score_norm
            and not self.use_score_scaling,
            "kl_horizon has no effect without kl_target": self.kl_horizon != 10_000
            and self.kl_target is None,
            "an adaptive coefficient multiplies, so it cannot leave kl_coef 0": self.kl_target
            and not self.kl_coef,
            "kl_loss_estimator k1 in the loss has no effect: its gradient is 0 on average, and "
            "nothing would tie the policy. Set kl_coef for k1 in the reward, or take k2 or k3": (
                self.kl_loss_estimator == "k1"
            ),
            "kl_loss_estimator has no effect without kl_loss_coef": self.kl_loss_estimator != "k3"
            and not self.kl_loss_coef,
            f"overlong_buffer ({self.overlong_buffer}) lies within response_length "
            f"({self.response_length}): lower it": (self.overlong_buffer or 0)
            > self.response_length,
            "overlong_penalty has no effect without overlong_buffer": self.overlong_penalty != 1
            and self.overlong_buffer is None,
            "give total_episodes or max_steps, not both": self.total_episodes
            and self.max_steps > 0,
            "give num_sample_generations or log_completions_steps, not both": (
                self.num_sample_generations and self.log_completions_steps
            ),
            "ptx_ratio has no effect without ptx_coef": self.ptx_ratio != 1 and not self.ptx_coef,
            "ptx_coef and ptx_dataset_name need each other": bool(self.ptx_coef)
            != bool(self.ptx_dataset_name),
            f"per_device_train_batch_size times gradient_accumulation_steps is {episodes}, which "
            f"num_mini_batches ({self.num_mini_batches}) must divide": episodes
            % self.num_mini_batches,
            f"per_device_train_batch_size times gradient_accumulation_steps is {episodes}, which "
            f"num_generations ({self.group}) must divide": episodes % self.group,
        }
        if said := next((text for text, wrong in complaints.items() if wrong), None):
            raise ValueError(said)
        return self


class PpoConfig(CriticTopic, OnlineConfig):
    """Improve a policy by a reward, with a critic (PPO)."""

    recipe: ClassVar[str] = "ppo"
    stage: ClassVar[str] = "ppo"

    @model_validator(mode="after")
    def _one_backbone(self) -> Self:
        if self.share_backbone and self.value_model not in ("auto", "policy"):
            raise ValueError(
                f"share_backbone puts the value head on the policy, so value_model cannot be "
                f"{self.value_model}"
            )
        return self


class RlooConfig(GroupTopic, OnlineConfig):
    """Improve a policy by a reward, without a critic (REINFORCE leave-one-out)."""

    recipe: ClassVar[str] = "rloo"
    stage: ClassVar[str] = "rloo"

    num_ppo_epochs: int = Field(1, ge=1, description="Passes over each rollout.")
    whiten_advantages: bool = Field(
        False, description="Give a rollout's advantages mean 0 and variance 1."
    )

    @property
    def group(self) -> int:
        return self.num_generations
