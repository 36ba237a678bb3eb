"""What the training stages share around the loop: reading, opening, looking at samples, closing."""

import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from rich.markup import escape

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import DataError, Dataset, load, splits
from truing.data.schema import Record
from truing.generation.engine import Request, Sampling
from truing.generation.local import LocalEngine
from truing.lineage import Parent
from truing.models import precision
from truing.models.checkpoint import add_lora, export
from truing.models.model import Model, Policy
from truing.run import Run
from truing.settings import TrainingConfig
from truing.stages.keeping import discard

R = TypeVar("R", bound=Record)
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


def check_context(
    label: str, model: Model, policy: Policy, config: TrainingConfig, instead: str
) -> None:
    """Raise ValueError for a model that cannot read rows as long as they may become."""
    longest = min(n or sys.maxsize for n in (policy.context, config.max_length))
    if (model.context or sys.maxsize) < longest:
        raise ValueError(
            f"{label} has a context of {model.context} tokens, fewer than rows may have: set "
            f"max_length: {model.context}, or use {instead}"
        )


@contextmanager
def apart(encode: Encoder, label: str) -> Iterator[None]:
    """What ``encode`` counts inside gets ``label`` in front, to be told from the training rows."""
    before, encode.counts = encode.counts, Counter()
    yield
    before.update({f"{label}: {name}": count for name, count in encode.counts.items()})
    encode.counts = before


def adapt(config: TrainingConfig, model: Model) -> None:
    """Put LoRA adapters into ``model`` where the config asks for them. Raises ValueError where its
    bf16 would have no effect on weights as they were saved."""
    if getattr(config, "bf16", False) and model.core.dtype != torch.float32:
        raise ValueError(
            f"bf16 computes in bfloat16 over weights in float32, and those of "
            f"{config.model_name_or_path} are in {str(model.core.dtype).removeprefix('torch.')}: "
            "set dtype: float32, or leave bf16 out"
        )
    if config.use_peft:
        add_lora(model, **lora(config))


def lora(config: TrainingConfig) -> dict[str, Any]:
    """What the config says of adapters, as `add_lora` takes it."""
    return {
        "r": config.lora_r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "targets": config.lora_target_modules,
        "seed": config.seed,
    }


def datasets(config: TrainingConfig, kind: type[R]) -> tuple[Dataset[R], Dataset[R] | None]:
    """The rows to train on and, where there are any, those to evaluate on: of eval_dataset_name,
    else the split dataset_test_split of dataset_name.

    Raises DataError when another split than the default was named and is not there, ValueError for
    ``eval_steps`` without rows to evaluate on.
    """
    rows = load(config.dataset_name, kind, split=config.dataset_train_split)
    if config.eval_dataset_name is not None:
        return rows, load(config.eval_dataset_name, kind, split=config.dataset_test_split)
    test = config.dataset_test_split
    named = test != type(config).model_fields["dataset_test_split"].default
    found = splits(config.dataset_name)
    if named and not found:
        raise DataError(
            f"dataset_test_split is {test!r}, but {config.dataset_name} has no splits, it is read "
            "whole: name the rows to evaluate on in eval_dataset_name"
        )
    # The default is no order: without it, or where it is what is trained on, nothing is held out.
    if named or (test in found and test != config.dataset_train_split):
        return rows, load(config.dataset_name, kind, split=test)
    if config.eval_steps:
        raise ValueError(
            f"eval_steps has no effect, for there is nothing to evaluate on: {config.dataset_name} "
            f"has no split {test!r}; name the rows in eval_dataset_name"
        )
    return rows, None


@contextmanager
def opened(
    config: TrainingConfig,
    stage: str,
    rows: Dataset[Any],
    held_out: Dataset[Any] | None,
    data: Mapping[str, Any],
    others: Sequence[Parent] = (),
) -> Iterator[tuple[Run, Accelerator]]:
    """The run folder and the accelerator of a stage; the run closes with the block, in which the
    settings' precision holds.

    ``data``: what the rows are like. ``others``: what the run is made from besides the starting
    model and the datasets.
    """
    parents = [
        Parent.of("policy", config.model_name_or_path),
        rows.parent("dataset"),
    ]
    if held_out is not None:
        parents.append(held_out.parent("evaluation dataset"))
    parents += others
    accelerator = accelerated(config)
    run = Run.create(
        config.output_dir,
        stage=stage,
        config=config,
        seed=config.seed,
        parents=parents,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "cpu",
        data=data,
    )
    with run, precision.of(config):
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
            f"accelerate is set to mixed precision {accelerator.mixed_precision}, in which "
            "training would compute other log-probs than sampling: set it to no, and choose the "
            "number format by dtype, or by bf16 where nothing is sampled to learn from"
        )
    return accelerator


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
    if accelerator.device.type == "cuda":
        summary["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    run.finish(summary)
    if run.writes:
        discard(run.path)
    run.final_table(f"{run.info['stage']} finished", summary)
    return run
