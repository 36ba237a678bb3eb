"""Models on disk: adapters in, one plain Hugging Face folder out."""

import hashlib
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn

from truing.keys import generator
from truing.models.heads import RewardModel
from truing.models.model import Model

# The folder of adapters in a run's, and the file in it that says which weights they belong to.
ADAPTER, BASE = "adapter", "base.json"
# Bytes of a tensor that one core hashes at a time.
PIECE = 2**26


def add_lora(
    model: Model, *, r: int, alpha: int, dropout: float, targets: str | list[str], seed: int = 0
) -> None:
    """Freeze ``model`` and train low-rank adapters in it instead (Hu et al., arXiv:2106.09685).

    ``seed`` keys the adapters' first weights. A reward model's scalar head stays fully trainable:
    it starts from noise. What is trained is kept in float32 at least: small updates of a weight in
    bfloat16 are lost. Raises ValueError for ``targets`` that are not there.
    """
    _check_targets(model.network, targets)
    _check_ties(model.core, targets)
    reward = isinstance(model, RewardModel)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        task_type=TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM,
        modules_to_save=["score"] if reward else None,
    )
    with drawing(seed):
        model.network = get_peft_model(model.network, config)
    # peft does so for the adapters, but not for the head.
    widen(weight for weight in model.parameters() if weight.requires_grad)


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Around the making of adapters, whose first weights ``seed`` keys."""
    # peft draws from the global generator, which is borrowed for that; and peft 0.21 asks
    # transformers 5 for something by its old name, of which the user need not hear.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # It sets that itself, where a family has its weights the other way round.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        torch.manual_seed(int(generator(seed, "lora").integers(2**63)))
        yield


def widen(weights: Iterable[nn.Parameter]) -> None:
    """Put weights into float32, unless they are finer."""
    for weight in weights:
        weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))


def hash_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, formats and bytes of tensors in turn. Each piece of `PIECE` bytes has one
    by itself, so that all cores work; few pieces of a GPU's tensors are in memory at a time."""
    digest, cores = hashlib.sha256(), min(16, os.cpu_count() or 1)
    waiting: deque[tuple[str, Future[bytes]]] = deque()

    def take() -> None:
        told, piece = waiting.popleft()
        digest.update(told.encode())
        digest.update(piece.result())

    with ThreadPoolExecutor(cores) as pool:
        for name, tensor in named:
            told = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            for part in flat.split(PIECE):
                waiting.append((told, pool.submit(_hashed, part.cpu())))
                told = ""
                if len(waiting) > cores:
                    take()
        while waiting:
            take()
    return digest.hexdigest()


def _hashed(part: Tensor) -> bytes:
    return hashlib.sha256(part.numpy().data).digest()


def fingerprint(body: nn.Module) -> str:
    """`hash_weights` of a body, adapters left out."""
    found = {
        name.replace(".base_layer.", "."): p
        for name, p in body.named_parameters()
        if ".lora_" not in name
    }
    return hash_weights(sorted(found.items()))


def _check_targets(network: nn.Module, targets: str | list[str]) -> None:
    """peft leaves out in silence what it does not find, as long as it finds anything at all."""
    layers = dict(network.named_modules())
    unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in layers)]
    if isinstance(targets, str) or not unknown:
        return
    there = {
        name.rpartition(".")[2]
        for name, layer in layers.items()
        if getattr(getattr(layer, "weight", None), "ndim", 0) == 2
    }
    raise ValueError(
        f"lora_target_modules names {', '.join(unknown)}, which the model does not have; it has "
        f"{', '.join(sorted(there))}. Name some of these, or all-linear"
    )


def _check_ties(core: Any, targets: str | list[str]) -> None:
    """An adapter of one of two layers that share a weight cannot be merged: the other would have it
    too. peft's all-linear leaves the output layer out."""
    shared = core.get_input_embeddings().weight
    tied = [n for n, layer in core.named_modules() if getattr(layer, "weight", None) is shared]
    named = [t for t in targets if any(f".{n}".endswith(f".{t}") for n in tied)]
    if isinstance(targets, list) and len(tied) > 1 and named:
        raise ValueError(
            f"lora_target_modules names {', '.join(named)}, but {' and '.join(tied)} share a "
            "weight in this model, and an adapter merged into it changes both: leave them out, or "
            "use all-linear, which does"
        )


def export(model: Model, folder: Path) -> Path:
    """Write ``model`` as a folder that plain transformers loads, adapters merged into the weights.

    The folder appears whole or not at all: it is written beside its place and then renamed. Raises
    OSError where it cannot be written.
    """
    target = folder / "model"
    draft = folder / "model.partial"
    shutil.rmtree(draft, ignore_errors=True)
    network: Any = model.network
    try:
        if hasattr(network, "merge_and_unload"):
            # What others read through the same weights is theirs.
            network.save_pretrained(
                folder / ADAPTER, safe_serialization=True, selected_adapters=["default"]
            )
            told = {"sha256": fingerprint(model.core.base_model)}
            (folder / ADAPTER / BASE).write_text(json.dumps(told) + "\n", encoding="utf-8")
            network = _merged(network)
        network.save_pretrained(draft, safe_serialization=True)
        model.tokenizer.save_pretrained(draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(
            f"the model could not be written to {target} ({error}): make room, and give the same "
            "command again, which goes on from the last checkpoint"
        ) from error
    return target


def _merged(network: Any) -> nn.Module:
    """A merged copy: training may go on with the adapters afterwards."""
    return deepcopy(network).merge_and_unload(adapter_names=["default"])
