"""How a model folder is read: place, number format, attention, device, tokenizer; refusals."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from truing import console
from truing.data.sources import HUB_NAME
from truing.settings import LoadTopic


@dataclass(frozen=True)
class Loading:
    """How a model folder is read. ``dtype``: a torch dtype name, or "auto" for the folder's own."""

    dtype: str = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    disable_dropout: bool = True
    device: str = "cpu"

    @classmethod
    def of(cls, config: LoadTopic) -> "Loading":
        """What the settings of a command say; a GPU is used where there is one and it may be."""
        named = config.model_dump(include={f.name for f in fields(cls)})
        gpu = torch.cuda.is_available() and not config.use_cpu
        # Of several processes on a machine each has a GPU of its own, from the start.
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"
        return cls(**named, revision=getattr(config, "model_revision", None), device=device)

    def beside(self) -> "Loading":
        """For models beside a policy: revision and names of tokens are about the policy alone."""
        return replace(self, revision=None, eos_token=None, pad_token=None)

    def options(self) -> dict[str, Any]:
        chosen = {"attn_implementation": self.attn_implementation, "revision": self.revision}
        return {
            "dtype": self.dtype if self.dtype == "auto" else getattr(torch, self.dtype),
            "trust_remote_code": self.trust_remote_code,
            "use_safetensors": True,
            **{key: value for key, value in chosen.items() if value is not None},
        }


def resolve(source: Path | str) -> Path | str:
    """A run folder stands for the model inside it; anything else stays as it is."""
    folder = Path(source)
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no model: expected config.json in it or in {folder / 'model'}; "
            "name a Hugging Face model folder or a finished run"
        )
    if not folder.exists() and not HUB_NAME.fullmatch(str(source)):
        raise ValueError(f"no model folder at {source} (and it is not a hub name owner/name)")
    return source


def load_tokenizer(source: Path | str, loading: Loading) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, with an EOS and a padding token settled aloud."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=loading.trust_remote_code, revision=loading.revision or "main"
        )
    except OSError as error:
        if Path(source).exists():
            raise
        # A mistyped folder reads as a hub name, and transformers may not say which one it was.
        raise OSError(
            f"no model folder at {source}, and the hub gave no such model "
            f"({str(error).partition(chr(10))[0]}): check the path, or the name and the network"
        ) from error
    for name, token in (("eos_token", loading.eos_token), ("pad_token", loading.pad_token)):
        if token is None:
            continue
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise ValueError(
                f"{name} {token!r} is not in the vocabulary of {source}: name an existing token"
            )
        setattr(tokenizer, name, token)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {source} has no end-of-sequence token, so no response could ever "
            "end: set eos_token to the token that ends a response"
        )
    if tokenizer.pad_token_id is None:
        # Filling is never attended to nor scored, so sharing the EOS id is harmless here.
        tokenizer.pad_token = tokenizer.eos_token
        console.say(
            f"[yellow]{console.plain(str(source))} has no padding token: its end token "
            f"{console.plain(tokenizer.eos_token)} fills up batches, and is not learnt from "
            "there[/yellow]"
        )
    return tokenizer


def refuse_missing(source: Path | str, names: Iterable[str]) -> None:
    """Raise ValueError for weights that the folder lacks: transformers would draw them anew."""
    if missing := sorted(map(str, names)):
        raise ValueError(
            f"{source} has no weights for {missing}: is it another kind of model (a reward model "
            "where a language model is needed), or was its copy interrupted?"
        )


def prepare(network: nn.Module, loading: Loading) -> None:
    """Train mode, dropout off unless asked for: log-probs of one policy must not be random."""
    network.train()
    if not loading.disable_dropout:
        return
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            cast(Any, module).attention_dropout = 0.0
