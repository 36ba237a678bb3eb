"""Folders of models and tokenizers that cannot be used, or not for this."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
)

from tests.conftest import byte_tokenizer, piece_tokenizer, tiny_network
from tests.mistakes.bench import PAIRS, ROWS, Bench, Case
from tests.online import reward_model

MESSAGES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]}
]


def on(model: str, *more: object) -> Case:
    return lambda b: b.sft(*more, model=model)


def without(*names: str) -> Case:
    """A model that lacks some of its files."""

    def make(b: Bench) -> list[str]:
        folder = b.model()
        for name in names:
            (folder / name).unlink()
        return b.sft(model="model")

    return make


def cut(name: str, size: int) -> Case:
    """A model of which one file is not whole."""

    def make(b: Bench) -> list[str]:
        file = b.model() / name
        file.write_bytes(file.read_bytes()[:size])
        return b.sft(model="model")

    return make


def changed(name: str, **values: object) -> Case:
    """A model of whose json files one says something else."""

    def make(b: Bench) -> list[str]:
        file = b.model() / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return b.sft(model="model")

    return make


def empty(b: Bench) -> list[str]:
    (b.folder / "model").mkdir()
    return b.sft(model="model")


def misspelt(b: Bench) -> list[str]:
    b.model()
    return b.sft(model="./modle")


def pickled(b: Bench) -> list[str]:
    folder = b.model()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    return b.sft(model="model")


def few_tokens(b: Bench) -> list[str]:
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    tiny_network(vocab_size=100, **none).save_pretrained(b.folder / "model")
    byte_tokenizer().save_pretrained(b.folder / "model")
    return b.sft(model="model")


def looking_ahead(b: Bench) -> list[str]:
    shape = BertConfig(
        vocab_size=270, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertLMHeadModel(shape).save_pretrained(b.folder / "model")
    byte_tokenizer().save_pretrained(b.folder / "model")
    return b.sft(model="model")


def broken_template(b: Bench) -> list[str]:
    name = b.file("chat.jinja", "{% for m in messages %}{{ m.content }}")
    return b.train("sft", b.rows(MESSAGES), "--chat-template", name)


def particular_template(b: Bench) -> list[str]:
    name = b.file("chat.jinja", "{{ raise_exception('a system message must come first') }}")
    return b.train("sft", b.rows(MESSAGES), "--chat-template", name)


def template(*more: object) -> Case:
    return lambda b: b.train("sft", b.rows(MESSAGES), *more)


def other_tokenizer(b: Bench) -> list[str]:
    tokenizer = piece_tokenizer()
    tiny_network(tokenizer=tokenizer).save_pretrained(b.folder / "other")
    tokenizer.save_pretrained(b.folder / "other")
    return b.train("dpo", b.rows(PAIRS), "--ref-model-name-or-path", "other")


def scorer_as_policy(b: Bench) -> list[str]:
    reward_model(Path(b.tiny), b.folder / "scorer")
    return b.sft(model="scorer")


def three_labels(b: Bench) -> list[str]:
    config = AutoConfig.from_pretrained(b.tiny, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(b.folder / "topics")
    byte_tokenizer().save_pretrained(b.folder / "topics")
    return b.compare("topics")


LONG = [*ROWS, {"prompt": "p" * 300, "completion": " a"}]

CASES: dict[str, Case] = {
    "model-missing": misspelt,
    "model-not-on-the-hub": on("nobody/nothing-here"),
    "model-is-a-file": lambda b: b.sft(model=b.file("model.safetensors", "x")),
    "model-folder-empty": empty,
    "model-without-weights": without("model.safetensors"),
    "model-pickled": pickled,
    "model-cut": cut("model.safetensors", 5000),
    "model-of-another-shape": changed("config.json", hidden_size=64),
    "model-of-an-unknown-kind": changed("config.json", model_type="llamma"),
    "model-config-cut": cut("config.json", 40),
    "winrate-second-model-missing": lambda b: b.winrate(b.tiny, "./b"),
    "attention-not-installed": lambda b: b.sft("--attn-implementation", "flash_attention_2"),
    "lora-layers-unknown": lambda b: b.sft("--use-peft", "--lora-target-modules", "q_proj", "qkv"),
    "tokenizer-missing": without("tokenizer.json", "tokenizer_config.json"),
    "tokenizer-cut": cut("tokenizer.json", 400),
    "tokenizer-of-another-model": few_tokens,
    "tokenizer-without-end": changed("tokenizer_config.json", eos_token=None),
    "eos-not-in-vocabulary": lambda b: b.sft("--eos-token", "<|endoftext|>"),
    "model-that-looks-ahead": looking_ahead,
    "no-chat-template": template(),
    "chat-template-broken": broken_template,
    "chat-template-refuses": particular_template,
    "sample-prompt-too-long": lambda b: b.sample(prompts=LONG),
    "chat-template-unknown": template("--chat-template", "chatml"),
    "reference-with-another-tokenizer": other_tokenizer,
    "reward-model-as-policy": scorer_as_policy,
    "policy-as-reward-model": lambda b: b.compare(b.tiny),
    "classifier-as-reward-model": three_labels,
    "prompts-all-too-long": lambda b: b.train("sft", b.rows(LONG[-1:])),
    "responses-all-too-long": lambda b: b.sft("--truncation-mode", "drop", "--max-length", 4),
}
