"""The settings of training and of the quickstart: topics, and configs composed of them.

Names are TRL's where TRL has one. A field is here only if a stage acts on it: a key that would
change nothing is refused (see `truing.retired` for names that people bring from elsewhere).
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from truing.config import Topic
from truing.retired import RETIRED
from truing.settings_preference import PreferenceTopic, UnpairedTopic
from truing.settings_reward import RewardTopic


def as_list(value: object) -> object:
    """``tensorboard`` -> ``[tensorboard]``; ``none`` -> ``[]``."""
    items = [value] if isinstance(value, str) else value
    return [] if items == ["none"] else items


class RunTopic(Topic):
    """Run: folder, seed, logs; a step is an optimiser step, of the online stages a rollout"""

    output_dir: str = Field(
        description="Folder that the run creates for its model, settings, metrics and samples: "
        "a new one, or that of a run that was stopped, which then goes on."
    )
    seed: int = Field(
        0, ge=0, description="Seed of every random draw. Same seed, same numbers (same machine)."
    )
    run_name: str | None = Field(
        None, description="Name in run.json and in trackers. None: the folder's name."
    )
    report_to: Annotated[list[str], BeforeValidator(as_list)] = Field(
        ["tensorboard"],
        description="Trackers beside metrics.jsonl, which is always written: tensorboard, wandb, "
        "mlflow or any other that accelerate drives; none for no tracker.",
    )
    logging_steps: int = Field(10, ge=1, description="Steps between lines of metrics.")
    log_completions_steps: int = Field(
        0,
        ge=0,
        description="Steps between two looks at completions of the same few prompts, "
        "printed and kept in samples.jsonl. 0: never.",
    )
    num_completions_to_print: int = Field(
        4, ge=1, description="Prompts in each of those looks (log_completions_steps)."
    )
    dry_run: bool = Field(
        False, description="Print steps, tokens and a memory estimate, then stop; write nothing."
    )

    @model_validator(mode="after")
    def _prints_need_looks(self) -> Self:
        looks = self.log_completions_steps or getattr(self, "num_sample_generations", 0)
        default = type(self).model_fields["num_completions_to_print"].default
        if self.num_completions_to_print != default and not looks:
            raise ValueError("num_completions_to_print has no effect without log_completions_steps")
        return self


class SaveTopic(Topic):
    """Checkpoints: to go on exactly where a run stopped, by the same command again"""

    save_steps: int = Field(
        100,
        ge=0,
        description="Steps between checkpoints. 0: only when the run is stopped (Ctrl-C, SIGTERM).",
    )
    save_total_limit: int = Field(
        2,
        ge=1,
        description="Most checkpoints that are kept, the last ones; that of the best step comes "
        "on top.",
    )
    metric_for_best_model: str | None = Field(
        None,
        description="A metric as in metrics.jsonl, such as eval_loss: the model that is written at "
        "the end is that of the step where it was best. None: that of the last step.",
    )
    greater_is_better: bool | None = Field(
        None, description="Which way that metric is good. None: down if its name ends with loss."
    )
    force_resume: bool = Field(
        False,
        description="Go on in a folder whose settings or data were others; what differs is said.",
    )

    @model_validator(mode="after")
    def _best_by_a_metric(self) -> Self:
        if self.greater_is_better is not None and self.metric_for_best_model is None:
            raise ValueError("greater_is_better has no effect without metric_for_best_model")
        return self


class TokenizerTopic(Topic):
    """Tokenizer: of the model at hand; in compare and reward-bench that of the reward model"""

    chat_template: str = Field(
        "auto",
        description="How messages become text. auto: the tokenizer's own template, an error if it "
        "has none and the data holds messages; plain; hh (Human: / Assistant:); or the path of a "
        "Jinja file.",
    )
    eos_token: str | None = Field(
        None, description="Token that ends a response. None: the tokenizer's own."
    )
    pad_token: str | None = Field(
        None,
        description="Token that fills up batches; it is never learnt from. None: the tokenizer's "
        "own, else the end token.",
    )


class LoadTopic(TokenizerTopic):
    """Loading: number format, attention, device"""

    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="Number format of the weights. bfloat16 halves the memory, but loses small "
        "updates when all weights are trained; auto: as saved.",
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel, by its transformers name."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with a model from the hub. Read it first."
    )
    use_cpu: bool = Field(False, description="Stay on the CPU even if there is a GPU.")


class ModelTopic(LoadTopic):
    """Model"""

    model_name_or_path: str = Field(
        description="Where to start from: a Hugging Face folder, a hub name, or the folder of an "
        "earlier run."
    )
    model_revision: str = Field(
        "main", description="Branch, tag or commit, when the model comes from the hub."
    )


class LoraTopic(Topic):
    """LoRA: train small adapters instead of all weights"""

    use_peft: bool = Field(False, description="Train LoRA adapters and leave the weights alone.")
    lora_r: int = Field(16, ge=1, description="Rank of the adapters.")
    lora_alpha: int = Field(32, ge=1, description="Scale: adapters count lora_alpha / lora_r.")
    lora_dropout: float = Field(
        0.05, ge=0, lt=1, description="Share of adapter inputs set to zero in training."
    )
    lora_target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Layers that get an adapter: names, or all-linear."
    )

    @model_validator(mode="after")
    def _lora_needs_peft(self) -> Self:
        fields, names = type(self).model_fields, LoraTopic.model_fields.keys() - {"use_peft"}
        idle = sorted(n for n in names if getattr(self, n) != fields[n].default)
        if idle and not self.use_peft:
            raise ValueError(f"{idle[0]} has no effect without use_peft: true")
        return self


class DataTopic(Topic):
    """Data"""

    dataset_name: str = Field(
        description="Training rows: a jsonl, jsonl.gz, json, csv or parquet file, a folder of "
        "them, or a hub name (owner/name, or owner/name:subset)."
    )
    dataset_train_split: str = Field(
        "train", description="Split to train on, where a dataset has splits."
    )
    eval_dataset_name: str | None = Field(
        None,
        description="Rows to evaluate on, if not a split of dataset_name: a file, folder or hub "
        "name.",
    )
    dataset_test_split: str = Field(
        "test",
        description="Split to evaluate on, where a dataset has splits. The default is used if it "
        "is there; another must be.",
    )
    max_length: int | None = Field(
        1024,
        ge=2,
        description="Most tokens of prompt and response together, never more than the model's "
        "context. None: the model's context.",
    )
    truncation_mode: Literal["keep_start", "drop"] = Field(
        "keep_start",
        description="What happens to a longer row. keep_start: the response is cut at its end; "
        "drop: the row is left out. Both are counted and reported.",
    )
    shuffle_dataset: bool = Field(True, description="New order of the rows in each epoch.")


class OptimTopic(Topic):
    """Training: optimiser (AdamW), schedule, batches; a step of the online stages is a rollout"""

    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Course of the learning rate after the warm-up."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the learning rate rises from 0.")
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="The same as a share of all steps. Give one of the two."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, per unit of rate.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Memory of the mean gradient.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Memory of the squared gradient.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the divisor for stability.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Longer gradients are shortened to this L2 norm. 0: never."
    )
    guard_grad_norm: float | None = Field(
        None, gt=0, description="A gradient longer than this, before it is shortened, is an alarm."
    )
    guard_action: Literal["warn", "skip", "stop"] = Field(
        "warn",
        description="What an alarm does. warn: say so; skip: do not learn from that step; stop: "
        "end the run, with the rows in diverged.json.",
    )
    num_train_epochs: float = Field(
        3.0, gt=0, description="Passes over the training rows; fractions are allowed."
    )
    max_steps: int = Field(
        -1, ge=-1, description="Steps; above 0 it takes the place of num_train_epochs."
    )
    per_device_train_batch_size: int = Field(
        8, ge=1, description="Rows (pairs, for comparisons) per forward pass and device."
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Forward passes per step. It does not change the loss."
    )
    tokens_per_batch: int | None = Field(
        None,
        ge=2,
        description="Most tokens per forward pass in training, as the model reads them: shared "
        "prompts once. It cuts a step's rows in place of per_device_train_batch_size, which still "
        "says how many a step has; the loss stays the same. None: by rows.",
    )
    per_device_eval_batch_size: int = Field(
        8, ge=1, description="Rows per forward pass and device in evaluation."
    )
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between evaluations. None: only at the end."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice instead of storing them: slower, less memory."
    )
    float32_matmul_precision: Literal["auto", "highest", "high", "medium"] = Field(
        "auto",
        description="Matrix multiplies of float32 in training and scoring, by torch's names: high "
        "and medium may round to fewer bits (TF32, bfloat16) where that is faster. auto: the "
        "fastest way that keeps float32's accuracy (docs/engine.md). Sampling takes float32.",
    )
    disable_dropout: bool = Field(
        True, description="Switch the model's own dropout off, so that log-probs are exact."
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give warmup_steps or warmup_ratio, not both")
        if self.lr_scheduler_type == "constant" and (self.warmup_steps or self.warmup_ratio):
            raise ValueError("lr_scheduler_type constant has no warm-up: use constant_with_warmup")
        if self.max_steps == 0:
            raise ValueError("max_steps must be above 0, or -1 for num_train_epochs")
        guards = (self.guard_grad_norm, getattr(self, "guard_kl", None))
        if self.guard_action != "warn" and guards == (None, None):
            raise ValueError("guard_action has no effect without a guard, such as guard_grad_norm")
        return self


class MixedTopic(Topic):
    """Mixed precision: not in the online stages, whose samples are drawn in float32"""

    bf16: bool = Field(
        False,
        description="Matrix multiplies and attention in bfloat16 (autocast), over weights, "
        "gradients and sums in float32: faster on GPUs and on CPUs made for it, slower on others.",
    )

    @model_validator(mode="after")
    def _over_float32(self) -> Self:
        if self.bf16 and getattr(self, "dtype", None) == "bfloat16":
            raise ValueError(
                "bf16 has no effect with dtype bfloat16, whose weights are in bfloat16 already: "
                "set dtype: float32 to train in full, or leave bf16 out"
            )
        return self


class SftTopic(Topic):
    """Imitation"""

    completion_only_loss: bool = Field(
        True, description="Learn the response only; false: the prompt too."
    )


class CommandTopic(Topic):
    """The settings of one command."""

    advice: ClassVar[Mapping[str, str]] = RETIRED


class TrainingConfig(
    RunTopic, SaveTopic, ModelTopic, DataTopic, OptimTopic, LoraTopic, CommandTopic
):
    """What every training stage asks for."""


class SftConfig(SftTopic, MixedTopic, TrainingConfig):
    """Learn to imitate demonstrations."""

    learning_rate: float = Field(
        2e-5, gt=0, description="Peak learning rate (as TRL for SFT; with LoRA try 2e-4)."
    )


class RewardConfig(RewardTopic, MixedTopic, TrainingConfig):
    """Learn a score from comparisons."""

    learning_rate: float = Field(
        1e-4, gt=0, description="Peak learning rate (as TRL for reward models)."
    )
    num_train_epochs: float = Field(
        1.0, gt=0, description="Passes over the comparisons; more than one overfits (TRL: 3)."
    )


class DpoConfig(PreferenceTopic, MixedTopic, TrainingConfig):
    """Improve a policy from comparisons, without a reward model."""

    learning_rate: float = Field(
        1e-6, gt=0, description="Peak learning rate (as TRL for DPO; with LoRA try 1e-5)."
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the comparisons (TRL: 3).")


class KtoConfig(UnpairedTopic, MixedTopic, TrainingConfig):
    """Improve a policy from thumbs up and down, without a reward model."""

    learning_rate: float = Field(
        1e-6, gt=0, description="Peak learning rate (as TRL for KTO; with LoRA try 1e-5)."
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the rows (TRL: 3).")


class QuickstartConfig(CommandTopic):
    """Quickstart: the whole loop in the embedded world"""

    output_dir: str = Field(
        "runs/quickstart", description="Folder for the runs and report.html; new or empty."
    )
    seed: int = Field(0, ge=0, description="Seed of the world and of every stage.")
    labels: Literal["panel", "shuffled", "flipped"] = Field(
        "panel",
        description="Whose labels train. panel: the simulated annotators; shuffled or flipped: "
        "negative controls, which must gain nothing or lose.",
    )


class VerifyConfig(CommandTopic):
    """Verify: whether a run and all that it was made from are as they were"""

    run: str = Field(
        description="The folder of a run.",
        json_schema_extra={"positional": True},
    )


class DoctorConfig(CommandTopic):
    """Doctor: what happened in a run, or would in one, and what to do"""

    run: str = Field(
        description="The folder of a run; or a training and its settings (truing doctor ppo ...): "
        "what it would do, how long, with how much memory, and what looks like a mistake.",
        json_schema_extra={"positional": True},
    )


class TrialTopic(Topic):
    """Trial: a few steps, to see how long they take"""

    trial_steps: int = Field(
        2,
        ge=0,
        description="Steps to time, after a first one that is not counted, in a folder beside "
        "output_dir that is thrown away. 0: none, and no time is told.",
    )
