"""How a model folder is read: place, number format, attention, device, tokenizer; refusals."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from truing import console
from truing.config import nearest
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
        return _with_weights(folder / "model")
    if folder.is_file():
        raise ValueError(
            f"{source} is a file; needed: a folder with config.json, model.safetensors and the "
            "tokenizer's files, or a run folder. Name the folder"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no model: expected config.json in it or in {folder / 'model'}; "
            "name a Hugging Face model folder or a finished run"
        )
    if not folder.exists() and not HUB_NAME.fullmatch(str(source)):
        near = nearest(folder.name, [p.name for p in folder.parent.glob("*")])
        hint = f"did you mean {folder.with_name(near)}?" if near else "check the path"
        raise ValueError(
            f"no model folder at {source} (and it is not a hub name owner/name): {hint}"
        )
    return _with_weights(folder) if folder.is_dir() else source


def _with_weights(folder: Path) -> Path:
    """The folder. Raises ValueError if it holds no safetensors: a pickle runs code when read."""
    if any(folder.glob("*.safetensors")):
        return folder
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise ValueError(
            f"{folder} has its weights in {', '.join(pickles)}, which can run code when it is "
            "read; needed: model.safetensors. Load it by transformers where you trust it, and save "
            "it anew by save_pretrained"
        )
    raise ValueError(
        f"{folder} holds no weights; needed: model.safetensors. Was a copy interrupted?"
    )


@contextmanager
def reading(source: Path | str) -> Iterator[None]:
    """Around the reading of weights: what others say of a folder, with its name, as ValueError."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{source} cannot be loaded ({_said(error)}): install what is missing, or choose "
            "another attn_implementation"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{source} cannot be loaded ({_said(error)}): are its files whole, of one model, and "
            "of a kind that this version of transformers knows as a decoder?"
        ) from error


def _said(error: Exception) -> str:
    """The first line of a message, which may go on for pages."""
    line = str(error).strip().partition("\n")[0]
    return line if len(line) <= 300 else line[:300] + "..."


def load_tokenizer(source: Path | str, loading: Loading) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, with an EOS and a padding token settled aloud."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=loading.trust_remote_code, revision=loading.revision or "main"
        )
    except (OSError, ValueError) as error:
        if Path(source).exists():
            raise ValueError(
                f"the tokenizer of {source} cannot be read ({_said(error)}): are config.json, "
                "tokenizer.json and tokenizer_config.json there and whole?"
            ) from error
        if not isinstance(error, OSError):
            raise
        # A mistyped folder reads as a hub name, and transformers may not say which one it was.
        raise OSError(
            f"no model folder at {source}, and the hub gave no such model "
            f"({_said(error)}): check the path, or the name and the network"
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


def refuse_other_tokenizer(
    source: Path | str, network: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise ValueError for a tokenizer with more tokens than the model has, which would read
    beyond its embeddings. Tokens that were added to it alone may never occur, and are let pass."""
    rows = network.get_input_embeddings().num_embeddings
    needed = max(tokenizer.vocab_size, int(cast(Any, tokenizer.eos_token_id)) + 1)
    if needed > rows:
        raise ValueError(
            f"the tokenizer of {source} gives {needed} tokens, but the model has {rows}: they do "
            "not belong together; put the tokenizer's files that came with the model into its "
            "folder"
        )


def prepare(network: nn.Module, loading: Loading) -> None:
    """Train mode, dropout off unless asked for: log-probs of one policy must not be random.

    Padding is never read, so its embedding needs no protection; torch would keep it from all
    gradients, and where it is EOS (or any token that stands in texts), that would not be learnt.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
        if not loading.disable_dropout:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            cast(Any, module).attention_dropout = 0.0
