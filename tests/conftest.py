"""Fixtures that all tests share: real data where there is any, tiny models, PostgreSQL."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests import debian, postgres
from truing.data.ledger import Ledger
from truing.generation.kernels import compiled
from truing.models import layers_c, native, products

# Without a GPU, its kernels are interpreted. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tensors are tiny here: threads would only wait for each other.
torch.set_num_threads(1)

# The same examples each time, however slow the machine is today.
hypothesis.settings.register_profile("truing", deadline=None, derandomize=True)
hypothesis.settings.load_profile("truing")

END, PAD, BOS = "<|end|>", "<|pad|>", "<s>"
# Pairs of signs that the byte-level tokenizer reads as one token; "Ġ" is the space.
MERGES = ["Ġ t", "Ġt h", "Ġth e", "i n", "e r", "o n", "r e", "Ġ a", "Ġ b", "Ġ c", "a n", "l l"]
# Each turn ends in EOS and a new line, as in ChatML.
CHAT = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '" + END + "\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and small real models beside the project, which not all have."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real test data is not there: {folder}")
    return folder


@pytest.fixture(scope="session")
def compiler() -> None:
    """Whoever asks for it has a C compiler, and what it makes; or is skipped."""
    if not (shutil.which("gcc") or shutil.which("cc")):
        debian.install("gcc", "libc6-dev")
        for made in (native.built, compiled, products.library, products.tiles):
            made.cache_clear()
    if not (shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("there is no C compiler, and Debian's could not be installed")
    assert all(map(layers_c.fits, native.FORMATS))
    assert compiled(8)


def byte_tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 256 bytes, a dozen merges, an EOS and a padding token; no BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(pair.split(" ")) for pair in MERGES]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, **{"pad_token": PAD, **more}
    )


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's ways: BOS in front, "▁" for the space, bytes for rare signs; no padding."""
    specials = ["<unk>", BOS, "</s>"]
    signs = [f"<0x{i:02X}>" for i in range(256)] + ["▁"] + list("abcdefghijklmnopqrstuvwxyz.:\n?!")
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "a"), ("i", "n"), ("e", "r")]
    words = [*specials, *signs, *(a + b for a, b in merges)]
    raw = Tokenizer(
        models.BPE(
            {w: i for i, w in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=BOS, eos_token="</s>", unk_token="<unk>"
    )


def tiny_config(name: str, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Any:
    """A transformers config of 2 layers, whose random weights give logits far from equal."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 160,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name == "gpt2":  # its context is shorter than some rows of the tests
        shape = {k: v for k, v in shape.items() if k not in ("num_key_value_heads", "head_dim")}
        shape["max_position_embeddings"] = 64
    return AutoConfig.for_model(name, **(shape | options))


def tiny_network(
    name: str = "llama", tokenizer: PreTrainedTokenizerFast | None = None, **options: Any
) -> Any:
    """A random causal language model of a transformers family, always the same."""
    config = tiny_config(name, tokenizer or byte_tokenizer(), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def tiny_folder(folder: Path, name: str = "llama", **options: Any) -> Path:
    """Such a model in a folder, with the byte-level tokenizer."""
    return _saved(folder, byte_tokenizer(), name, **options)


def _saved(
    folder: Path, tokenizer: PreTrainedTokenizerFast, name: str = "llama", **options: Any
) -> Path:
    dtype = options.pop("dtype", torch.float32)
    tiny_network(name, tokenizer, **options).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with the byte-level tokenizer and no chat template."""
    return _saved(tmp_path_factory.mktemp("models") / "tiny", byte_tokenizer())


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose tokenizer has a chat template and pads with EOS."""
    tokenizer = byte_tokenizer(chat_template=CHAT, pad_token=END)
    return _saved(tmp_path_factory.mktemp("models") / "tiny_chat", tokenizer)


@pytest.fixture(scope="session")
def tiny_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with the SentencePiece-like tokenizer: BOS, no padding token."""
    return _saved(tmp_path_factory.mktemp("models") / "tiny_bos", piece_tokenizer())


@pytest.fixture(scope="session")
def tiny_double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 in float64: nothing in it rounds to float32, as Llama's norms do."""
    folder = tmp_path_factory.mktemp("models") / "tiny_double"
    return tiny_folder(folder, "gpt2", dtype=torch.float64)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[str, Iterable[Mapping[str, Any]]], str]:
    """A function that writes rows to ``<name>.jsonl`` in the test's folder and gives its path."""

    def write(name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server of the tests' own."""
    made = postgres.server()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared(server: postgres.Server) -> str:
    """One database of it for all tests, which they empty (`tests.ledgers.emptied`)."""
    url = server.create("shared")
    Ledger.open(url).close()
    return url


@pytest.fixture
def own_server() -> Iterator[postgres.Server]:
    """A PostgreSQL that a test may stop."""
    made = postgres.server()
    yield made
    made.close()
