"""What a run would do, told before it begins: rows, steps, tokens, parameters, memory."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import Dataset
from truing.data.layout import CELLS, Tokens
from truing.data.profile import Figures, lines, profile, spread
from truing.generation.continuous import read_at_once
from truing.generation.llama import copied, known
from truing.models.actor import ActorCritic
from truing.models.head import CHUNK, FEW
from truing.models.heads import ValueModel
from truing.models.model import SCORED, Model, Policy
from truing.models.roles import VALUE, adapter_name
from truing.settings import TrainingConfig
from truing.stages.budget import too_long
from truing.stages.trainer import total_rows, total_steps

# Tokens of the sequence in which activations are counted.
COUNTED = 64


@dataclass(frozen=True)
class Outlook:
    """What a run would do. ``memory``: MB by what they are for; ``data``: what the rows are like;
    ``notes``: what was counted while reading them."""

    steps: int
    rows: int
    tokens_per_step: float
    parameters: int
    trainable: int
    memory: dict[str, float]
    data: Figures = field(default_factory=dict[str, Any])
    notes: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def memory_mb(self) -> float:
        return sum(self.memory.values())

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
                **{f"memory, {role} (MB)": round(mb, 1) for role, mb in self.memory.items()},
                "memory, estimated (MB)": round(self.memory_mb, 1),
            },
        )


def outlook(
    config: TrainingConfig,
    model: Model | ActorCritic,
    lengths: Sequence[int],
    scored: Sequence[int],
    world: int,
    frozen: Mapping[str, int] | None = None,
    asked: int = 0,
) -> Outlook:
    """Steps, tokens and memory of a run. ``lengths``: tokens of each row, all its sequences;
    ``scored``: those of them whose logits are needed; ``frozen``: parameters of the models beside
    it that are not trained, by their roles; ``asked``: tokens of the longest prompt of a rollout.

    Memory: the weights of all; and what `learning` or, where that is more, `sampling` holds
    besides: one is over before the other begins. With bf16 a pass holds its weights in bfloat16
    too; its activations are less than is told.
    """
    others = dict(frozen or {})
    size = next(model.parameters()).element_size()
    weights = Counter({role: n * size for role, n in others.items()})
    for name, p in model.named_parameters():
        weights[_role(name)] += p.numel() * p.element_size()
    learnt = [p for p in model.parameters() if p.requires_grad]
    mean = sum(lengths) / len(lengths)
    memory = {role: weights[role] for role in dict.fromkeys(("policy", "critic", *weights))}
    phases = [learning(config, model, lengths, scored, world)]
    if asked and isinstance(model, ActorCritic):
        phases.append(sampling(config, model.policy, learnt, asked, len(lengths)))
    memory |= max(phases, key=lambda phase: sum(phase.values()))
    if getattr(config, "bf16", False):
        memory["weights in bfloat16"] = 2 * sum(p.numel() for p in model.parameters())
    steps = total_steps(len(lengths), config, world)
    return Outlook(
        steps=steps,
        rows=len(lengths),
        tokens_per_step=mean * total_rows(len(lengths), config, world) / steps,
        parameters=sum(p.numel() for p in model.parameters()) + sum(others.values()),
        trainable=sum(p.numel() for p in learnt),
        memory={role: size / 2**20 for role, size in memory.items() if size},
    )


def learning(
    config: TrainingConfig,
    model: Model | ActorCritic,
    lengths: Sequence[int],
    scored: Sequence[int],
    world: int,
) -> dict[str, int]:
    """Bytes that an optimiser step holds besides all weights, by what they are for: gradients and
    two AdamW moments of what is trained; what `activation_bytes` finds for the tokens of the
    longest micro-batch; and logits of a slice of its scored tokens in float32, which their
    gradient takes the place of, with the exponentials of a few.
    """
    at_once = config.per_device_train_batch_size
    # The part of a rollout that an optimiser step learns from may be smaller.
    parts = getattr(config, "num_mini_batches", 1)
    rows_of_step = at_once * config.gradient_accumulation_steps // parts
    at_once = min(at_once, rows_of_step)
    rows = sorted(zip(lengths, scored, strict=True))[-at_once:]
    tokens, targets = (sum(column) for column in zip(*rows, strict=True))
    if config.tokens_per_batch is not None:
        tokens, targets = (min(n, config.tokens_per_batch) for n in (tokens, targets))
    tokens, targets = tokens + -tokens % CELLS, targets + -targets % SCORED
    each = activation_bytes(model, recomputed=config.gradient_checkpointing)
    policy, *critic = (round(tokens * per_token) for per_token in each)
    slice_of, few = min(CHUNK, targets), min(FEW, targets)
    most = slice_of + few
    if isinstance(model, ActorCritic):
        # An entropy takes three more tensors of those few; its gradient, later, one of the slice.
        most = max(slice_of + 4 * few, slice_of * (1 + model.entropy_counts))
    logits = 4 * most * model.core.config.get_text_config().vocab_size
    if world > 1:
        policy += sum(critic)
    elif critic and critic[0] > policy + logits:
        # One process lets go of the critic's before the policy's begin.
        policy, logits = critic[0], 0
    learnt = [p for p in model.parameters() if p.requires_grad]
    moments, gradients = 2 * _size(learnt), _size(learnt)
    several = world > 1 or rows_of_step > at_once or config.tokens_per_batch is not None
    if not (several or getattr(config, "ptx_coef", 0)):
        gradients = min(gradients, max(_first(model), gradients - policy - logits))
    return {
        "gradients and AdamW": moments + gradients,
        "activations": policy,
        "logits": logits,
    }


def _first(model: Model | ActorCritic) -> int:
    """Bytes of the gradients that are there while a step's only pass still holds all it left
    behind: of the head, which comes first, and of a critic, whose pass is over then. Those of a
    layer come when what the layer left behind goes."""
    learnt = {id(p): p for p in model.parameters() if p.requires_grad}
    head = model.core.get_output_embeddings()
    first = list(head.parameters()) if head is not None else []
    if isinstance(model, ActorCritic) and isinstance(model.critic, ValueModel):
        first += model.critic.parameters()
    return _size(learnt[id(p)] for p in first if id(p) in learnt)


def sampling(
    config: Any, policy: Policy, learnt: Sequence[Tensor], asked: int, number: int
) -> dict[str, int]:
    """Bytes that a rollout holds besides all weights, by what they are for: AdamW's two moments of
    what is ``learnt``; and, while responses are sampled, the joint weights of the fast path, keys
    and values of all slots, and what reading prompts of ``asked`` tokens or drawing from the logits
    takes. Log-probs under the reference hold logits of a slice, the joint weights being gone.
    """
    text, size = policy.core.config.get_text_config(), policy.network.dtype.itemsize
    responses = config.per_device_train_batch_size * config.gradient_accumulation_steps
    slots = min(config.local_rollout_forward_batch_size, responses)
    prompts = min(slots, -(-responses // config.group), number)
    answered = config.response_length
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    cached = slots * (answered - 1) + prompts * asked
    cache = cached * 2 * text.num_hidden_layers * groups * width * size
    # Inputs, queries, keys and values, and gate, up and their product, of one layer at a time.
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    per_token = size * (3 * inner + 3 * text.hidden_size + (heads + 2 * groups) * width)
    read = min(max(read_at_once(policy.device), asked), prompts * asked) * per_token
    drawn = 4 * 3 * slots * text.vocab_size
    joint = copied(policy.core) if known(policy.core, asked + answered) else 0
    targets = min(CHUNK, slots * answered)
    scoring = 4 * (targets + min(FEW, targets)) * text.vocab_size
    while_sampling = {
        "joint weights": joint,
        "keys and values": cache,
        "sampling": max(read, drawn),
    }
    found = {"logits": scoring} if scoring > sum(while_sampling.values()) else while_sampling
    return {"AdamW": 2 * _size(learnt), **found}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _role(name: str) -> str:
    """Whose a parameter of an actor is, by its name: on a shared backbone adapters say it."""
    adapter = adapter_name(name) or "default"
    if name.startswith("critic.") or adapter == VALUE:
        return "critic"
    return "policy" if adapter == "default" else adapter.replace("_", " ")


def activation_bytes(model: Model | ActorCritic, *, recomputed: bool) -> list[float]:
    """Bytes that a token leaves behind for the backward pass, counted in one of a few tokens: of
    the policy, and of a critic that has a pass of its own.

    ``recomputed``: layers keep only their input, and one at a time is computed again.
    """
    readers: list[Model] = [model] if isinstance(model, Model) else [model.policy]
    if isinstance(model, ActorCritic) and isinstance(model.critic, ValueModel):
        readers.append(model.critic)
    found_each: list[float] = []
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    for reader in readers:
        text = reader.core.config.get_text_config()
        # Two, for a single one would have a row of its own everywhere.
        sample = reader.place([Tokens((i,), (0,) * (COUNTED // 2 - 1)) for i in range(2)])
        sample = sample.to(reader.device)
        found: dict[int, int] = {}

        def pack(saved: Tensor, found: dict[int, int] = found) -> Tensor:
            storage = saved.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            # Alive until all are counted, so that no address comes twice; but apart from the graph,
            # which would else hold itself.
            return saved.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            # Of a result that is let go nothing would be left.
            hidden = reader.states(sample).hidden_NH
        each = sum(found.values()) / COUNTED
        if recomputed:
            layers = text.num_hidden_layers
            each = each / layers + layers * text.hidden_size * hidden.element_size()
        found_each.append(each)
    return found_each


def announce(
    config: TrainingConfig,
    model: Model | ActorCritic,
    lengths: Sequence[int],
    scored: Sequence[int],
    encode: Encoder,
    rows: Dataset[Any],
    held_out: Dataset[Any] | None,
    frozen: Mapping[str, int] | None = None,
    asked: int = 0,
) -> Outlook:
    """Say what the rows are like, what was counted while reading, and what the run will do.
    Arguments as of `outlook`."""
    notes = {**rows.notes, **encode.counts}
    for note, count in notes.items():
        console.say(f"[yellow]{escape(note)}: {count}[/yellow]")
    if not lengths:
        raise ValueError(
            f"no row of {rows.name} can be used ({encode.told}): raise max_length, as far as the "
            "model's context goes, or shorten the prompts"
        )
    budget = config.tokens_per_batch
    if budget is not None and max(lengths) > budget:
        longest = lengths.index(max(lengths))
        raise too_long(lengths[longest], budget, f"row {longest + 1} of those used of {rows.name}")
    if any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters()):
        console.say(
            "[yellow]weights in bfloat16 are trained, whose eight bits lose small updates: set "
            "dtype: float32, or use_peft: true[/yellow]"
        )
    data = profile(rows.rows, held_out.rows if held_out else None)
    data |= {"tokens": sum(lengths), "row_tokens": spread(lengths)}
    if int(os.environ.get("RANK", "0")) == 0:
        console.table("Data", {"sha256": rows.sha256[:12], **lines(data)})
    world = int(os.environ.get("WORLD_SIZE", "1"))
    ahead = outlook(config, model, lengths, scored, world, frozen, asked)
    ahead = replace(ahead, data=data, notes=notes)
    if config.dry_run:
        ahead.show()
    else:
        console.say(
            f"{ahead.rows} rows, {ahead.steps} steps of about {ahead.tokens_per_step:.0f} tokens, "
            f"{ahead.trainable:,} of {ahead.parameters:,} parameters to train, about "
            f"{console.memory(ahead.memory_mb)} of memory"
        )
    return ahead
