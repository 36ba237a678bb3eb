"""Make the packaged base model of the embedded world: `make base`.

A tokenizer and a small Llama from nothing, trained on the world's raw text by Truing's own SFT
stage. First come copying exercises alone (a small model learns to copy only when nothing else
pays), then documents with some exercises among them. The weights are stored in float16.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from truing.keys import generator
from truing.settings import SftConfig
from truing.stages import sft
from truing.worlds.corpus import all_words, base_documents, copying

TARGET = Path(__file__).resolve().parents[1] / "truing" / "worlds" / "base"
SEED = 0
END = "<|end|>"
TOKENIZER = "tokenizer_config.json"
COPYING = 0.3


def make_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text can be read; frequent words of the world are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Every word of the world often enough to become one token, with its leading space.
    words = [f" {word}" for word in all_words()] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*documents, *words], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def make_raw_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """An untrained Llama of about a million parameters."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=512,
        # The usual 0.02 is made for models ten times as wide: attention would start nearly flat.
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same sums, in the same order, whatever the machine has
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = [read + scored for read, scored in base_documents(10_000, SEED)]
        make_raw_model(folder / "raw", make_tokenizer(texts))
        write_corpus(folder / "corpus.jsonl", options.warm_steps, options.steps, options.batch)
        config = SftConfig(
            output_dir=str(folder / "run"),
            model_name_or_path=str(folder / "raw"),
            dataset_name=str(folder / "corpus.jsonl"),
            shuffle_dataset=False,
            attn_implementation="eager",
            per_device_train_batch_size=options.batch,
            num_train_epochs=1,
            max_length=256,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            weight_decay=0.05,
            adam_beta2=0.98,
            logging_steps=50,
            report_to=[],
            seed=SEED,
        )
        sft.run(config)
        store(folder / "run" / "model", options.target)


def write_corpus(file: Path, warm_steps: int, steps: int, batch: int) -> None:
    """Copying exercises for the first steps, then documents with COPYING exercises among them."""
    total = (warm_steps + steps) * batch
    exercises = copying(total, SEED)
    documents = base_documents(steps * batch, SEED)
    with open(file, "w", encoding="utf-8") as out:
        for row in range(total):
            copies = generator(SEED, "mix", row).random() < COPYING
            source = exercises if row < warm_steps * batch or copies else documents
            read, scored = next(source)
            line = {"prompt": read, "completion": scored} if read else {"text": scored}
            out.write(json.dumps(line) + "\n")


def store(trained: Path, target: Path) -> None:
    """Copy the model to its place in the package, weights in float16."""
    shutil.rmtree(target, ignore_errors=True)
    AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float16).save_pretrained(target)
    AutoTokenizer.from_pretrained(trained).save_pretrained(target)
    # How it was loaded here says nothing about the model, and may differ elsewhere.
    settings = json.loads((target / TOKENIZER).read_text(encoding="utf-8"))
    kept = {k: v for k, v in settings.items() if k not in ("is_local", "local_files_only")}
    (target / TOKENIZER).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    size = sum(f.stat().st_size for f in target.iterdir()) / 2**20
    print(f"{target}: {size:.1f} MB")


if __name__ == "__main__":
    main()
