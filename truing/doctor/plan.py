"""`truing doctor sft ...`: what a run would be, before it is begun.

The settings, the data and the models are read as the run would read them; a few steps are tried in
a folder that is thrown away, for how long they take; and the rules of `truing.doctor.mistakes` say
what looks wrong.
"""

import io
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from truing import console
from truing.doctor.history import ONLINE_STAGES
from truing.models.loading import resolve
from truing.run import Run
from truing.settings import TrainingConfig
from truing.stages.outlook import Outlook

Stage = Callable[[Any], Any]


class Trial(NamedTuple):
    """What was seen in the steps that were tried."""

    seconds: float  # of a step
    peak_mb: float  # of the whole process, the interpreter and its libraries included
    peak_gpu_mb: float | None


@dataclass(frozen=True)
class Plan:
    """A run that is not begun. ``settings``: by name; ``defaults``: those of its command;
    ``origin``: run.json of the run that it starts from, if it starts from one; ``have_mb``: what
    the device has; ``pad_is_end``: the tokenizer has no padding token of its own; ``learnt``: the
    rewards that are models."""

    stage: str
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    ahead: Outlook
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    have_mb: float = 0.0
    pad_is_end: bool = False
    learnt: tuple[str, ...] = ()
    trial: Trial | None = None


def planned(stage: str, config: TrainingConfig, run: Stage, trial_steps: int) -> Plan:
    """Read everything, try ``trial_steps``, and gather what the rules ask. ``run`` is the stage."""
    ahead = run(config.model_copy(update={"dry_run": True}))
    fields = type(config).model_fields
    rewards = getattr(config, "reward", [])
    return Plan(
        stage,
        config.model_dump(),
        {name: known.default for name, known in fields.items()},
        ahead,
        origin(config.model_name_or_path),
        available_mb(config),
        pad_is_end(config),
        tuple(name for name in rewards if Path(name).is_dir()),
        tried(config, run, trial_steps) if trial_steps else None,
    )


def origin(model: str) -> Mapping[str, Any]:
    """run.json of a model's run; empty where the model is none of ours."""
    try:
        return Run.open(model).info
    except ValueError:
        return {}


def available_mb(config: TrainingConfig) -> float:
    """Memory of the device: the GPU's, or what of the machine's is free."""
    if torch.cuda.is_available() and not config.use_cpu:
        return torch.cuda.mem_get_info()[0] / 2**20
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20 + cached_mb()


def cached_mb() -> float:
    """Memory that the system holds files in, and gives up when asked; 0 where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    found = {name: size for name, _, size in (line.partition(":") for line in lines)}
    return float(found.get("Cached", "0 kB").split()[0]) / 1024


def pad_is_end(config: TrainingConfig) -> bool:
    """Whether the end token fills up batches, for the tokenizer has no padding token of its own."""
    place, revision = resolve(config.model_name_or_path), config.model_revision
    tokenizer: Any = AutoTokenizer.from_pretrained(str(place), revision=revision)
    pad = config.pad_token or tokenizer.pad_token
    return pad in (None, config.eos_token or tokenizer.eos_token)


def tried(config: TrainingConfig, run: Stage, steps: int) -> Trial:
    """A run of ``steps`` and one, without looks, evaluations, trackers and checkpoints. Its model
    is written beside output_dir, which shows that there is room for it, and thrown away."""
    above = next(p for p in Path(config.output_dir).absolute().parents if p.exists())
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=above) as folder:
        trial = config.model_copy(
            update={
                "output_dir": str(Path(folder) / "run"),
                "max_steps": steps + 1,
                "total_episodes": None,
                "logging_steps": 1,
                "log_completions_steps": 0,
                "num_sample_generations": 0,
                "eval_dataset_name": None,
                "eval_steps": 0,
                "metric_for_best_model": None,
                "save_steps": 0,
                "report_to": [],
                "dry_run": False,
            }
        )
        with redirect_stdout(io.StringIO()):
            done: Run = run(trial)
        times = [float(line["time"] or 0) for line in done.metrics() if "loss" in line]
    summary = done.info["summary"]
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    return Trial(seconds, summary["peak_mb"], summary.get("peak_gpu_mb"))


def batches(plan: Plan) -> dict[str, str]:
    """What each batch number means, and how they multiply."""
    s, world = plan.settings, int(os.environ.get("WORLD_SIZE", "1"))
    at_once, folds = s["per_device_train_batch_size"], s["gradient_accumulation_steps"]
    size = at_once * folds * world
    product = f"{at_once} x {folds} x {world} = {size}"
    if plan.stage not in ONLINE_STAGES:
        return {
            "rows in memory at once (per_device_train_batch_size)": f"{at_once}",
            "of those one after the other (gradient_accumulation_steps)": f"{folds}",
            "devices": f"{world}",
            "rows of an optimiser step": product,
            "steps": f"{plan.ahead.rows:,} rows x {s['num_train_epochs']:g} epochs / {size} = "
            f"{plan.ahead.steps:,}"
            if s["max_steps"] <= 0
            else f"{plan.ahead.steps:,} (max_steps)",
        }
    parts, epochs, group = s["num_mini_batches"], s["num_ppo_epochs"], s.get("num_generations", 1)
    told = {
        "a step is a rollout of so many responses (per_device_train_batch_size x "
        "gradient_accumulation_steps x devices)": product,
    }
    if group > 1:
        told["prompts of a rollout"] = f"{size} / {group} (num_generations) = {size // group}"
    return told | {
        "responses of an optimiser step": f"{size} / {parts} (num_mini_batches) = {size // parts}",
        "in memory at once": f"{min(at_once, size // parts // world)} on a device",
        "optimiser steps in a rollout": f"{parts} x {epochs} (num_ppo_epochs) = {parts * epochs}",
        "rollouts": f"{plan.ahead.steps:,}, of {plan.ahead.steps * size:,} responses to "
        f"{plan.ahead.rows:,} prompts",
        "sampled side by side (local_rollout_forward_batch_size)": (
            f"{s['local_rollout_forward_batch_size']}"
        ),
    }


def duration(plan: Plan) -> dict[str, str]:
    """How long it would take, by the steps that were tried."""
    if plan.trial is None:
        return {"time": "not tried (trial_steps: 0)"}
    each, seen = plan.trial.seconds, plan.trial
    told = {
        "a step, tried": f"{each:.2f} s",
        "all steps": f"about {span(each * plan.ahead.steps)}",
        "tokens per second": f"{plan.ahead.tokens_per_step / each:,.0f}",
        "peak of the trial, libraries included": console.memory(seen.peak_mb),
    }
    if seen.peak_gpu_mb is not None:
        told["peak of the trial on the GPU"] = console.memory(seen.peak_gpu_mb)
    return told


def span(seconds: float) -> str:
    """A duration as people say it."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
