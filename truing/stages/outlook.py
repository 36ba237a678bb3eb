"""What a run would do, told before it begins: rows, steps, tokens, parameters, memory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from truing import console
from truing.data.batch import Encoder, Tokens, padded
from truing.data.formats import Dataset
from truing.models.actor import ActorCritic
from truing.models.heads import ValueModel
from truing.models.model import CHUNK, Model
from truing.settings import TrainingConfig
from truing.stages.trainer import total_rows, total_steps

# Tokens of the sequence in which activations are counted.
COUNTED = 64
# Of a slice of logits at the peak; it varies with the shape, and a test holds the whole to 15 %.
LOGIT_COPIES = 4.5


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
    scored: Sequence[int],
    world: int,
    frozen: int = 0,
) -> Outlook:
    """Steps, tokens and memory of a run. ``lengths``: tokens of each row, all its sequences;
    ``scored``: those of them whose logits are needed; ``frozen``: parameters of models beside it
    that are not trained.

    Memory: weights; gradients and two AdamW moments of what is trained; what `activation_bytes`
    finds for the tokens of the longest micro-batch; and of logits of a slice of its scored tokens
    `LOGIT_COPIES` in float32 (themselves, their softmax, gradients).
    """
    parameters = sum(p.numel() for p in model.parameters()) + frozen
    weights = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = model.core.config.get_text_config()
    mean = sum(lengths) / len(lengths)
    rows = sorted(zip(lengths, scored, strict=True))[-config.per_device_train_batch_size :]
    tokens, targets = (sum(column) for column in zip(*rows, strict=True))
    memory = (
        sum(size for size, _ in weights)
        + frozen * next(model.parameters()).element_size()
        + 3 * sum(size for size, trained in weights if trained)
        + tokens * activation_bytes(model, recomputed=config.gradient_checkpointing)
        + LOGIT_COPIES * 4 * min(CHUNK, targets) * text.vocab_size
    )
    steps = total_steps(len(lengths), config, world)
    return Outlook(
        steps=steps,
        rows=len(lengths),
        tokens_per_step=mean * total_rows(len(lengths), config, world) / steps,
        parameters=parameters,
        trainable=trainable,
        memory_mb=memory / 2**20,
    )


def activation_bytes(model: Model | ActorCritic, *, recomputed: bool) -> float:
    """Bytes that a token leaves behind for the backward pass, counted in one of a few tokens.

    ``recomputed``: layers keep only their input, and one at a time is computed again.
    """
    readers: list[Model] = [model] if isinstance(model, Model) else [model.policy]
    if isinstance(model, ActorCritic) and isinstance(model.critic, ValueModel):
        readers.append(model.critic)
    total = 0.0
    for reader in readers:
        text = reader.core.config.get_text_config()
        sample = padded([Tokens((0,), (0,) * (COUNTED - 1))]).to(reader.device)
        own = {p.untyped_storage().data_ptr() for p in (*reader.parameters(), *reader.buffers())}
        found: dict[int, int] = {}

        def pack(saved: Tensor, own: set[int] = own, found: dict[int, int] = found) -> Tensor:
            storage = saved.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return saved  # alive until all are counted: no address comes twice

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            # Of a result that is let go nothing would be left.
            hidden = reader.hidden(sample)
        each = sum(found.values()) / COUNTED
        if recomputed:
            layers = text.num_hidden_layers
            each = each / layers + layers * text.hidden_size * hidden.element_size()
        total += each
    return total


def announce(
    config: TrainingConfig,
    model: Model | ActorCritic,
    lengths: Sequence[int],
    scored: Sequence[int],
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
    ahead = outlook(config, model, lengths, scored, world, frozen)
    if config.dry_run:
        ahead.show()
    else:
        console.say(
            f"{ahead.rows} rows, {ahead.steps} steps of about {ahead.tokens_per_step:.0f} tokens, "
            f"{ahead.trainable:,} of {ahead.parameters:,} parameters to train, about "
            f"{console.memory(ahead.memory_mb)} of memory"
        )
