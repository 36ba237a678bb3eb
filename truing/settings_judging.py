"""The settings of the commands that sample, judge and measure, and train nothing."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from truing.config import Topic
from truing.settings import CommandTopic, LoadTopic, ModelTopic, as_list
from truing.settings_reward import EnsembleTopic

# How sure a reward must be of a pair, and what its differences are divided by.
ETA, TAU = 0.85, 1.0


def _reward() -> Any:
    return Field(
        description="Who judges: the folder of a reward run, the name of a rule, or "
        "module:function, called with lists of prompts and completions."
    )


class PromptsTopic(Topic):
    """Prompts"""

    prompts: str = Field(
        description="Rows with a column prompt: a jsonl, jsonl.gz, json, csv or parquet file, a "
        "folder of them, or a hub name."
    )
    num_prompts: int | None = Field(
        None, ge=1, description="How many of them, from the first. None: all."
    )


class SamplingTopic(Topic):
    """Sampling"""

    temperature: float = Field(
        1.0, ge=0, description="Divides the logits. 1: the model as it is; 0: always the likeliest."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the likeliest tokens that hold this probability."
    )
    max_completion_length: int = Field(
        128, ge=1, description="Most tokens per completion; a longer one counts as unfinished."
    )
    generation_batch_size: int = Field(
        64, ge=1, description="Completions generated side by side. It does not change them."
    )
    seed: int = Field(0, ge=0, description="Seed; each completion has numbers of its own.")


class SampleConfig(PromptsTopic, SamplingTopic, ModelTopic, CommandTopic):
    """Sample: write completions of prompts"""

    dataset_train_split: str = Field(
        "train", description="Split that the prompts come from, where a dataset has splits."
    )
    output_file: str = Field(description="File to write: jsonl rows of prompt and completion.")
    num_generations: int = Field(1, ge=1, description="Completions per prompt.")


class SamplesTopic(Topic):
    """Samples: what is judged, and by whom"""

    samples: str = Field(
        description="File that `truing sample` wrote, with two or more per prompt."
    )
    reward: Annotated[list[str], BeforeValidator(as_list)] = Field(
        min_length=1,
        description="Who judges, one or several: the folder of a reward run, the name of a rule, "
        "or module:function, called with lists of prompts and completions.",
    )


class CompareConfig(SamplesTopic, EnsembleTopic, LoadTopic, CommandTopic):
    """Compare: turn samples into comparisons by asking a reward"""

    output_file: str = Field(
        description="File to write: jsonl rows of prompt, chosen, rejected and their provenance."
    )
    pairs: Literal["best_worst", "all", "reward_gap"] = Field(
        "best_worst",
        description="Pairs per prompt: the best with the worst, each with each, or of those the "
        "pairs that the reward is sure of (RS-DPO). Equal scores give no pair; they are counted.",
    )
    gap_temperature: float | None = Field(
        None,
        gt=0,
        description="reward_gap: what a difference of rewards is divided by (the paper's tau). "
        f"None: {TAU:g}.",
    )
    gap_threshold: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="reward_gap: a pair is kept if sigmoid(difference / gap_temperature) is at "
        f"least this (the paper's eta). None: {ETA}.",
    )

    @model_validator(mode="after")
    def _gap_needs_pairs(self) -> Self:
        for name in ("gap_temperature", "gap_threshold"):
            if getattr(self, name) is not None and self.pairs != "reward_gap":
                raise ValueError(f"{name} has no effect without pairs: reward_gap")
        return self


class BestConfig(SamplesTopic, EnsembleTopic, LoadTopic, CommandTopic):
    """Best: keep the best of each prompt's samples by a reward, to be imitated"""

    output_file: str = Field(
        description="File to write: jsonl rows of prompt, completion and their provenance."
    )


class RewardBenchConfig(EnsembleTopic, LoadTopic, CommandTopic):
    """Reward bench: how often a reward orders held-out pairs rightly"""

    reward: Annotated[list[str], BeforeValidator(as_list)] = Field(
        min_length=1,
        description="The reward in question, or several: the folder of a reward run, the name of a "
        "rule, or module:function.",
        json_schema_extra={"positional": True},
    )
    dataset_name: str = Field(
        description="Held-out comparisons or rankings: a file, a folder or a hub name."
    )
    dataset_test_split: str = Field("test", description="Split, where a dataset has splits.")
    train_dataset_name: str | None = Field(
        None,
        description="Comparisons that a bag-of-words baseline may learn from. None: no such "
        "baseline.",
    )
    output_file: str | None = Field(None, description="JSON file for the figures. None: printed.")


class WinrateConfig(PromptsTopic, SamplingTopic, LoadTopic, CommandTopic):
    """Winrate: which of two models a reward prefers"""

    run_a: str = Field(
        description="The model in question: a run folder, a Hugging Face folder or a hub name.",
        json_schema_extra={"positional": True},
    )
    run_b: str = Field(
        description="The model to beat, given in the same way.",
        json_schema_extra={"positional": True},
    )
    reward: str = _reward()
    dataset_test_split: str = Field(
        "test", description="Split that the prompts come from, where a dataset has splits."
    )
    num_prompts: int | None = Field(
        500, ge=1, description="How many of them, from the first. None: all."
    )
    output_file: str | None = Field(
        None, description="JSON file for the figures and both texts. None: only printed."
    )


class SafetyConfig(PromptsTopic, SamplingTopic, LoadTopic, CommandTopic):
    """Safety: whether a model keeps a limit of cost, with high confidence"""

    run: str = Field(
        description="The model in question: a run folder, a Hugging Face folder or a hub name.",
        json_schema_extra={"positional": True},
    )
    cost: str = Field(
        description="What is to stay low: the folder of a cost model, the name of a rule, or "
        "module:function, called with lists of prompts and completions."
    )
    cost_threshold: float = Field(
        0.0, description="A response whose cost is above this is unsafe (criterion rate)."
    )
    criterion: Literal["rate", "mean"] = Field(
        "rate",
        description="What is bounded: the share of unsafe responses (Clopper-Pearson), or the mean "
        "cost (empirical Bernstein, which needs cost_range).",
    )
    limit: float = Field(description="The most that may be: a share from 0 to 1, or a mean cost.")
    delta: float = Field(
        0.05, gt=0, lt=1, description="Risk that a model beyond the limit is called safe."
    )
    cost_range: list[float] = Field(
        [], description="The least and the greatest cost that there can be; for criterion mean."
    )
    dataset_test_split: str = Field(
        "test", description="Split that the prompts come from, where a dataset has splits."
    )
    output_file: str | None = Field(
        None, description="JSON file for the figures and the texts. None: only printed."
    )

    @model_validator(mode="after")
    def _criterion_agrees(self) -> Self:
        default = type(self).model_fields["cost_threshold"].default
        complaints = {
            "criterion mean needs cost_range, the least and the greatest cost": (
                self.criterion == "mean" and len(self.cost_range) != 2
            ),
            "cost_range has no effect with criterion rate": self.criterion == "rate"
            and bool(self.cost_range),
            "cost_threshold has no effect with criterion mean": self.criterion == "mean"
            and self.cost_threshold != default,
            f"a rate is at least 0 and below 1, so limit cannot be {self.limit:g}": (
                self.criterion == "rate" and not 0 <= self.limit < 1
            ),
        }
        if said := next((text for text, wrong in complaints.items() if wrong), None):
            raise ValueError(said)
        return self


class ConvertConfig(CommandTopic):
    """Convert: rows of one format into those of another"""

    dataset_name: str = Field(
        description="A file, a folder or a hub name, in any format that trainings read.",
        json_schema_extra={"positional": True},
    )
    dataset_train_split: str = Field("train", description="Split to convert, where there are any.")
    kind: Literal["prompt", "demonstration", "comparison", "ranking", "label", "steps"] = Field(
        description="What each row is read as. Rankings read as comparisons become all their pairs."
    )
    to: Literal[
        "trl",
        "hh",
        "alpaca",
        "sharegpt",
        "ultrafeedback",
        "openassistant",
        "argilla",
        "labelstudio",
    ] = Field("trl", description="Format to write; docs/data.md says what each can hold.")
    output_file: str = Field(description="File to write: .jsonl, .jsonl.gz or .json (a list).")
