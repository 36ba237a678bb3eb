"""What a run would do, told before it begins: rows, steps, tokens, parameters, memory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.markup import escape

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import Dataset
from truing.models.actor import ActorCritic
from truing.models.model import CHUNK, Model, Policy
from truing.settings import TrainingConfig
from truing.stages.trainer import total_rows, total_steps


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
            f"{ahead.trainable:,} of {ahead.parameters:,} parameters to train, about "
            f"{console.memory(ahead.memory_mb)} of memory"
        )
