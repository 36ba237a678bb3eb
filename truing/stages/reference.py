"""What a reference says of responses: computed once, kept on the disk, read where wanted again.

    <folder>/<key>/<sha256 of the file>.safetensors    log-probs of some responses, and of which

The key is a hash of all that the numbers follow from: weights, architecture, number formats,
device, versions. A file is named by the hash of its own content and put there in one move, so it is
whole or it is not read; a run that was killed goes on behind the last one, to the last bit, for
files end where batches end. Several runs may write into one folder.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from truing import console
from truing.data.layout import Tokens
from truing.lineage import CHECKPOINTS
from truing.models import precision
from truing.models.checkpoint import hash_weights
from truing.models.model import Policy, sequence_logps
from truing.run import Run, versions
from truing.settings import DpoConfig, KtoConfig
from truing.writing import check_place, written

# Batches whose log-probs are written together: what a run that is killed may lose.
PART = 64
# What a config says that changes no number.
ASIDE = ("_name_or_path", "transformers_version")


class Judgement(Protocol):
    """Responses that were judged, with room for the reference's log-probs of them."""

    @property
    def responses(self) -> tuple[Tokens, ...]: ...

    def beside(self, reference: Sequence[float]) -> Self: ...


J = TypeVar("J", bound=Judgement)


@dataclass
class Shelf:
    """Where the log-probs of one reference are kept, and how many different responses were ``read``
    there and ``computed``. Of several processes only one ``writes``."""

    folder: Path
    writes: bool = True
    read: int = 0
    computed: int = 0

    @classmethod
    def of(cls, run: Run, config: DpoConfig | KtoConfig, reference: Policy) -> "Shelf":
        """In the folder that the settings name; else in one of the run's own, which goes with its
        checkpoints when it is finished."""
        named = config.ref_log_probs_cache
        folder = Path(named) if named else run.path / CHECKPOINTS / "reference"
        return cls(folder / fingerprint(reference)[:32], run.writes)

    def figures(self) -> dict[str, int]:
        return {"reference/read": self.read, "reference/computed": self.computed}


def check_cache(config: DpoConfig | KtoConfig) -> None:
    """Raise ValueError where the folder that the settings name cannot be made, or is none."""
    if (named := config.ref_log_probs_cache) is None:
        return
    if Path(named).exists() and not Path(named).is_dir():
        raise ValueError(f"ref_log_probs_cache {named} is a file; give the name of a folder")
    check_place("ref_log_probs_cache", Path(named) / "key")


def with_reference(
    rows: Sequence[J], reference: Policy, batch_size: int, shelf: Shelf | None = None
) -> list[J]:
    """The rows with the reference policy's log-probs filled in: those that are on the shelf from
    there, the others computed, and put there."""
    texts = {_name(tokens): tokens for row in rows for tokens in row.responses}
    known = _read(shelf) if shelf and texts else {}
    # As batches are made anyway: so those of a run that goes on are those it would have had.
    missing = sorted(
        (item for item in texts.items() if item[0] not in known),
        key=lambda item: (-len(item[1].prompt), item[1].prompt),
    )
    for start in range(0, len(missing), PART * 2 * batch_size):
        names, part = zip(*missing[start : start + PART * 2 * batch_size], strict=True)
        found = sequence_logps(reference, part, 2 * batch_size)
        if shelf:
            _write(shelf, names, found)
        known |= zip(names, found.tolist(), strict=True)
    if shelf and texts:
        shelf.read += len(texts) - len(missing)
        shelf.computed += len(missing)
        if shelf.writes:
            console.say(
                f"log-probs of {len(texts)} responses by the reference: {len(missing)} computed, "
                f"{len(texts) - len(missing)} read from {console.plain(str(shelf.folder))}"
            )
    return [row.beside([known[_name(tokens)] for tokens in row.responses]) for row in rows]


def fingerprint(model: Policy) -> str:
    """SHA-256 of all that the model's log-probs follow from: weights and buffers with their names
    and formats, its config, attention, matrix multiplies, device and versions.

    Adapters that were never trained add 0 and do not count: with and without them it is the same.
    """
    core = model.core
    config = {k: v for k, v in core.config.to_dict().items() if k not in ASIDE}
    told = {
        "config": config,
        "attention": str(core.config._attn_implementation),
        "arithmetic": precision.told(),
        "device": model.device.type,
        "versions": versions(),
    }
    named = [*core.named_parameters(), *core.named_buffers()]
    fresh = not any(bool(t.any()) for name, t in named if ".lora_B." in name)
    counted = sorted(
        (name.replace(".base_layer.", "."), tensor)
        for name, tensor in named
        if not (fresh and ".lora_" in name)
    )
    content = json.dumps(told, sort_keys=True, default=str) + hash_weights(counted)
    return hashlib.sha256(content.encode()).hexdigest()


def _name(tokens: Tokens) -> bytes:
    """A response and its prompt, by a hash of 16 bytes."""
    content = repr((tokens.prompt, tokens.response)).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def _read(shelf: Shelf) -> dict[bytes, float]:
    """All that is kept of the reference; a file that is not as it was written is removed, aloud."""
    known: dict[bytes, float] = {}
    for file in sorted(shelf.folder.glob("*.safetensors")):
        content = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(content).hexdigest() == file.stem:
            kept = load(content)
            names = (bytes(row) for row in kept["names_N16"].numpy())
            known |= zip(names, kept["logps_N"].tolist(), strict=True)
        elif shelf.writes:
            console.say(
                f"[yellow]{console.plain(str(file))} is not as it was written: removed, and what "
                "it held is computed anew[/yellow]"
            )
            file.unlink(missing_ok=True)
    return known


def _write(shelf: Shelf, names: Sequence[bytes], logps_N: Tensor) -> None:
    """One more file, whole or not at all. What is not finite ends the run and is not kept."""
    if not (shelf.writes and bool(logps_N.isfinite().all())):
        return
    names_N16 = torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8).view(-1, 16)
    content = save({"names_N16": names_N16, "logps_N": logps_N})
    target = shelf.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
    draft = target.with_suffix(f".{os.getpid()}")
    with written(target):
        shelf.folder.mkdir(parents=True, exist_ok=True)
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
