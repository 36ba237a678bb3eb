"""What the training stages share around the loop: opening, encoding, looking ahead, closing."""

import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from rich.markup import escape

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import Dataset, load
from truing.data.schema import Record
from truing.generation.engine import Request, Sampling
from truing.generation.local import LocalEngine
from truing.models.actor import ActorCritic
from truing.models.checkpoint import add_lora, export
from truing.models.model import CHUNK, Model, Policy
from truing.run import Parent, Run
from truing.settings import TrainingConfig
from truing.stages.trainer import Objective, Step, evaluate, total_rows, total_steps, train

R = TypeVar("R", bound=Record)
Row = TypeVar("Row")
# Figures of a policy in training, to be logged.
Watch = Callable[[Policy], Mapping[str, float]]

# Most tokens of a completion that is only looked at.
LOOK = 128


def encoder(config: TrainingConfig, model: Model) -> Encoder:
    """The encoder of ``config`` for ``model``: no sequence longer than the model's context."""
    bounds = [n for n in (config.max_length, model.context) if n is not None]
    return Encoder(
        model.tokenizer,
        template=config.chat_template,
        max_length=min(bounds, default=None),
        truncation_mode=config.truncation_mode,
    )


@contextmanager
def apart(encode: Encoder, label: str) -> Iterator[None]:
    """What ``encode`` counts inside gets ``label`` in front, to be told from the training rows."""
    before, encode.counts = encode.counts, Counter()
    yield
    before.update({f"{label}: {name}": count for name, count in encode.counts.items()})
    encode.counts = before


def adapt(config: TrainingConfig, model: Model) -> None:
    """Put LoRA adapters into ``model`` where the config asks for them."""
    if config.use_peft:
        add_lora(
            model,
            r=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            targets=config.lora_target_modules,
            seed=config.seed,
        )


def datasets(config: TrainingConfig, kind: type[R]) -> tuple[Dataset[R], Dataset[R] | None]:
    """The rows to train on and, where there are any, those to evaluate on."""
    rows = load(config.dataset_name, kind, split=config.dataset_train_split)
    if config.eval_dataset_name is not None:
        return rows, load(config.eval_dataset_name, kind, split=config.dataset_test_split)
    folder = Path(config.dataset_name)
    if folder.is_dir() and any(folder.glob(f"{config.dataset_test_split}.*")):
        return rows, load(folder, kind, split=config.dataset_test_split)
    return rows, None


@contextmanager
def opened(
    config: TrainingConfig,
    stage: str,
    rows: Dataset[Any],
    held_out: Dataset[Any] | None,
    others: Sequence[Parent] = (),
) -> Iterator[tuple[Run, Accelerator]]:
    """The run folder and the accelerator of a stage; the run closes with the block.

    ``others``: what it is made from besides the starting model and the datasets.
    """
    parents = [
        Parent.of("policy", config.model_name_or_path),
        Parent("dataset", str(config.dataset_name), rows.sha256, rows.name),
    ]
    if held_out is not None:
        parents.append(Parent("evaluation dataset", held_out.name, held_out.sha256, held_out.name))
    parents += others
    accelerator = accelerated(config)
    run = Run.create(
        config.output_dir,
        stage=stage,
        config=config,
        seed=config.seed,
        parents=parents,
        threads=torch.get_num_threads(),
    )
    with run:
        if config.report_to:
            accelerator.init_trackers(run.name)
            run.attach(lambda step, metrics: accelerator.log(dict(metrics), step=step))
        try:
            yield run, accelerator
        except BaseException:
            # Not end_training, which also leaves the group of processes: others may wait there.
            for tracker in accelerator.trackers:
                tracker.finish()
            raise
        accelerator.end_training()


def accelerated(config: TrainingConfig) -> Accelerator:
    """The accelerator that ``config`` asks for, before anything is written.

    Raises ValueError for a tracker that is not installed; where accelerate would shard the model,
    for gradients are averaged over whole models (DDP) here, and only those are exported; and for
    mixed precision, which would part the trainer's log-probs from the sampler's.
    """
    asked: Any = list(config.report_to)
    place = Path(config.output_dir) / "trackers"
    accelerator = Accelerator(cpu=config.use_cpu, log_with=asked or None, project_dir=str(place))
    there = {str(tracker) for tracker in accelerator.log_with}
    if lacking := [tracker for tracker in asked if tracker not in there]:
        raise ValueError(
            f"report_to names {', '.join(lacking)}, which is not installed: pip install "
            "'truing[track]' (or the tracker's own package), or take it out of report_to"
        )
    way = accelerator.distributed_type
    if way not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"accelerate is set up for {way.value}, but training here shares rows, not the model, "
            "between devices: choose multi-GPU or multi-CPU without sharding in `accelerate config`"
        )
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"accelerate is set to mixed precision {accelerator.mixed_precision}, in which training "
            "would compute other log-probs than sampling: set it to no, and choose the number "
            "format by dtype"
        )
    return accelerator


@dataclass(frozen=True)
class Outlook:
    """What a run would do, for ``--dry-run`` and for the line printed before training."""

    steps: int
    rows: int
    tokens_per_step: float
    parameters: int
    trainable: int
    memory_mb: float

    def show(self) -> None:
        console.table(
            "Outlook",
            {
                "rows": self.rows,
                "steps": self.steps,
                "tokens per step (mean)": round(self.tokens_per_step),
                "tokens in all": round(self.tokens_per_step * self.steps),
                "parameters": self.parameters,
                "trainable parameters": self.trainable,
                "memory, estimated (MB)": round(self.memory_mb, 1),
            },
        )


def outlook(
    config: TrainingConfig,
    model: Model | ActorCritic,
    lengths: Sequence[int],
    world: int,
    frozen: int = 0,
) -> Outlook:
    """Steps, tokens and memory of a run. ``lengths``: tokens of each row, all its sequences;
    ``frozen``: parameters of models beside it that are not trained.

    Memory: weights, gradients and two AdamW moments, plus about 34 x hidden bytes (half that per
    value in bfloat16) of activations per token and layer (Korthikanti et al. 2022,
    arXiv:2205.05198, eq. 2 without the attention scores, which sdpa never stores), plus a slice of
    logits with its softmax and gradient, where there are any.
    """
    parameters = sum(p.numel() for p in model.parameters()) + frozen
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weight_bytes = next(model.parameters()).element_size()
    text = model.core.config.get_text_config()
    mean = sum(lengths) / len(lengths)
    longest = sorted(lengths)[-config.per_device_train_batch_size :]
    width = text.hidden_size * (4 if config.gradient_checkpointing else 34) * weight_bytes / 2
    memory = (
        parameters * weight_bytes
        + trainable * 3 * weight_bytes
        + sum(longest) * text.num_hidden_layers * width
    )
    if isinstance(model, Policy | ActorCritic):
        memory += 3 * 4 * min(CHUNK, sum(longest)) * text.vocab_size
    steps = total_steps(len(lengths), config, world)
    return Outlook(
        steps=steps,
        rows=len(lengths),
        tokens_per_step=mean * total_rows(len(lengths), config, world) / steps,
        parameters=parameters,
        trainable=trainable,
        memory_mb=memory / 2**20,
    )


def announce(
    config: TrainingConfig,
    model: Model | ActorCritic,
    lengths: Sequence[int],
    encode: Encoder,
    rows: Dataset[Any],
    frozen: int = 0,
) -> None:
    """Say what was counted while reading, and what the run will do; arguments as of `outlook`."""
    for note, count in {**rows.notes, **encode.counts}.items():
        console.say(f"[yellow]{escape(note)}: {count}[/yellow]")
    if not lengths:
        raise ValueError(
            f"no row of {rows.name} can be used ({dict(encode.counts)}): raise max_length, or "
            "shorten the prompts"
        )
    if any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters()):
        console.say(
            "[yellow]weights in bfloat16 are trained, whose eight bits lose small updates: set "
            "dtype: float32, or use_peft: true[/yellow]"
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    ahead = outlook(config, model, lengths, world, frozen)
    if config.dry_run:
        ahead.show()
    else:
        console.say(
            f"{ahead.rows} rows, {ahead.steps} steps of about {ahead.tokens_per_step:.0f} tokens, "
            f"{ahead.trainable:,} of {ahead.parameters:,} parameters to train"
        )


def fit(
    run: Run,
    accelerator: Accelerator,
    model: Model,
    rows: Sequence[Row],
    objective: Objective[Row],
    config: TrainingConfig,
    *,
    held_out: Sequence[Row] = (),
    look: Callable[[], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Drive the loop: log, evaluate, look at samples. Returns the last metrics.

    ``look`` is called before the first step, every ``log_completions_steps`` and after the last;
    what it returns is logged.
    """
    steps = total_steps(len(rows), config, accelerator.num_processes)
    size = config.per_device_eval_batch_size
    loop = train(
        accelerator,
        model,
        rows,
        objective,
        config,
        seed=config.seed,
        shuffle=config.shuffle_dataset,
    )
    evaluation = partial(evaluate, accelerator, model, held_out, objective, size)
    return drive(run, loop, steps, config, assess=evaluation if held_out else None, look=look)


def drive(
    run: Run,
    loop: Iterator[Step],
    steps: int,
    config: TrainingConfig,
    *,
    assess: Callable[[], Mapping[str, float]] | None = None,
    look: Callable[[], Mapping[str, float]] | None = None,
    shown: str = "loss",
) -> dict[str, float]:
    """Run a loop to its end, logging what it yields; ``shown`` is the metric beside the bar.

    ``assess`` is called every ``eval_steps`` and after the last step, ``look`` before the first
    too. Returns the last metrics.
    """
    window: list[dict[str, float]] = []
    last: dict[str, float] = {}
    every = config.log_completions_steps

    def log(step: int, figures: Mapping[str, float]) -> None:
        if figures:
            run.log(step, figures)

    if look and every:
        log(0, look())
    with run.progress(steps, run.info["stage"]) as bar:
        for step in loop:
            window.append(step.metrics)
            bar.advance({shown: step.metrics[shown]})
            if step.step % config.logging_steps == 0 or step.step == steps:
                mean = {k: sum(m[k] for m in window) / len(window) for k in window[-1]}
                mean |= {k: v for k, v in step.metrics.items() if k in ("learning_rate", "lr")}
                line = mean | step.counters | {"epoch": step.epoch}
                last |= line
                run.log(step.step, line)
                window = []
            due = config.eval_steps and step.step % config.eval_steps == 0
            if assess and (due or step.step == steps):
                figures = assess()
                run.log(step.step, figures)
                last |= figures
            if look and every and (step.step % every == 0 or step.step == steps):
                log(step.step, look())
    return last


def looker(
    run: Run, policy: Policy, encode: Encoder, prompts: Sequence[Any], config: TrainingConfig
) -> Callable[[], Mapping[str, float]]:
    """A function that samples the same few prompts, prints the completions and keeps them."""
    chosen = [encode.prompt(p) for p in list(prompts)[: config.num_completions_to_print]]
    bound = min(policy.context or sys.maxsize, config.max_length or sys.maxsize)
    requests = [Request(ids, i) for i, ids in enumerate(chosen) if 0 < len(ids) < bound]
    sampling = Sampling(max_completion_length=LOOK, seed=config.seed, stream="look")

    def look() -> dict[str, float]:
        rows: list[dict[str, Any]] = []
        done = LocalEngine(policy).generate(requests, sampling)
        for each in done:
            prompt, text = encode.decode(each.prompt_ids), encode.decode(each.response_ids)
            rows.append({"prompt": prompt, "completion": text, "finish_reason": each.finish})
            if run.writes:
                console.say(
                    f"[dim]step {policy.version}: ...{escape(prompt[-60:])}[/dim]"
                    f"[cyan]{escape(text)}[/cyan]"
                )
        run.log_samples(policy.version, rows)
        lengths = [len(each.response_ids) for each in done]
        cut = [each.finish == "length" for each in done]
        return {
            "completions/mean_length": sum(lengths) / max(1, len(lengths)),
            "completions/clipped_ratio": sum(cut) / max(1, len(cut)),
        }

    return look


def close(
    run: Run,
    accelerator: Accelerator,
    model: Model,
    encode: Encoder,
    figures: Mapping[str, Any],
    notes: Mapping[str, int],
) -> Run:
    """Export the model, print the closing table and finish the run."""
    if encode.template != "auto":
        # Whoever loads the model later renders messages as it was trained on them.
        model.tokenizer.chat_template = encode.chat_template
    if accelerator.is_main_process:
        export(model, run.path)
    accelerator.wait_for_everyone()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    summary = {
        **figures,
        **encode.counts,
        **notes,
        "peak_mb": round(peak),
        "weight_version": model.version,
    }
    run.finish(summary)
    run.final_table(f"{run.info['stage']} finished", summary)
    return run
