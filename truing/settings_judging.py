"""The settings of the commands that sample, judge and measure, and train nothing."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from truing.config import Topic
from truing.settings import CommandTopic, LoadTopic, ModelTopic, as_list
from truing.settings_reward import EnsembleTopic


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


class CompareConfig(EnsembleTopic, LoadTopic, CommandTopic):
    """Compare: turn samples into comparisons by asking a reward"""

    samples: str = Field(
        description="File that `truing sample` wrote, with two or more per prompt."
    )
    reward: Annotated[list[str], BeforeValidator(as_list)] = Field(
        min_length=1,
        description="Who judges, one or several: the folder of a reward run, the name of a rule, "
        "or module:function, called with lists of prompts and completions.",
    )
    output_file: str = Field(
        description="File to write: jsonl rows of prompt, chosen, rejected and their provenance."
    )
    pairs: Literal["best_worst", "all"] = Field(
        "best_worst",
        description="Pairs per prompt: the best with the worst, or each with each. Equal scores "
        "give no pair; they are counted.",
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
