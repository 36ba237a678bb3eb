"""The chat recipes on one GPU at their real size: what each stage takes, and whether sampler and
trainer agree there.

A model of half a billion parameters, shaped like the one that the recipes name but drawn at random,
first learns the embedded world's demonstrations in full; then each recipe takes it through a few
steps. Nothing is downloaded. docs/one-gpu.md shows figures that this printed.

    python -m benchmarks.one_gpu OUT
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from truing.data.formats import save
from truing.data.schema import Comparison, Demonstration, Provenance
from truing.quickstart.training import BASE
from truing.run import Run, write_json
from truing.worlds.replies import best_reply, demonstration
from truing.worlds.service import cases

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "hh-chat-lora-0.5b"
SIMULATED = Provenance(source="model", author="world", simulated=True)
# The first step loads kernels and fills allocators: it is not timed.
WARM = 1

Words = tuple[object, ...]
ONLINE: Words = ("--total-episodes", None, "--reward")
FULL: Words = ("--no-use-peft", "--dtype", "float32")
# Each stage: recipe, starting model, rows, steps, and what differs from the recipe.
STAGES: dict[str, tuple[str, str, str, int, Words]] = {
    "sft, all weights": ("sft", "model", "demonstrations", 50, (*FULL, "--learning-rate", 3e-4)),
    "sft": ("sft", "sft-all-weights", "demonstrations", 8, ()),
    "reward": ("reward", "sft-all-weights", "comparisons", 8, ()),
    "dpo": ("dpo", "sft-all-weights", "comparisons", 8, ()),
    "ppo": ("ppo", "sft-all-weights", "comparisons", 4, ()),
    "rloo": ("rloo", "sft-all-weights", "comparisons", 4, ()),
    "ppo, float32": ("ppo", "sft-all-weights", "comparisons", 4, ("--dtype", "float32")),
    "ppo, all weights": (
        *("ppo", "sft-all-weights", "comparisons", 4),
        (*FULL, "--learning-rate", 1e-6, "--gradient-checkpointing"),
    ),
}


def folder_of(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def prepare(out: Path) -> None:
    """A raw model of the recipes' size, and rows of the embedded world."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    shape = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(shape).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    shown = cases(4000, seed=0, split="train")
    replies = [demonstration(case, 0) for case in shown]
    save(
        [Demonstration(c.prompt, r, SIMULATED) for c, r in zip(shown, replies, strict=True)],
        out / "demonstrations.jsonl",
    )
    pairs = [(case, best_reply(case), reply) for case, reply in zip(shown, replies, strict=True)]
    save(
        [Comparison(c.prompt, good, r, provenance=SIMULATED) for c, good, r in pairs if good != r],
        out / "comparisons.jsonl",
    )


def truing(*words: object) -> str:
    """A command in a process of its own, so that its peak memory is its own; what it printed."""
    line = [sys.executable, "-m", "truing", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def measure(out: Path, name: str) -> dict[str, Any]:
    """Run one stage for a few steps: seconds a step, memory seen beside what was foretold,
    and, where it samples, how far sampler and trainer were apart."""
    recipe, start, rows, steps, more = STAGES[name]
    words: Words = (
        *(recipe, "--config", RECIPES / f"{recipe}.yaml", "--model-name-or-path", out / start),
        *("--dataset-name", out / f"{rows}.jsonl", "--output-dir", out / folder_of(name)),
        *("--max-steps", steps, "--logging-steps", 1, "--log-completions-steps", 0),
        *("--eval-steps", None, "--report-to", "none"),
        *((*ONLINE, out / "reward") if recipe in ("ppo", "rloo") else ()),
        *more,
    )
    told = re.search(r"about ([\d.]+) (GB|MB) of memory", truing(*words))
    run = Run.open(out / folder_of(name))
    lines = [m for m in run.metrics() if "grad_norm" in m]
    times = [float(m["time"] or 0) for m in lines]
    return {
        "seconds_per_step": median(b - a for a, b in pairwise(times[WARM - 1 :])),
        "peak_gpu_mb": run.info["summary"]["peak_gpu_mb"],
        "foretold_gb": float(told[1]) / (1000 if told[2] == "MB" else 1) if told else None,
        "first": lines[0],
        "last": lines[-1],
        "machine": run.info["machine"],
        "versions": run.info["versions"],
    }


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables, of which docs/one-gpu.md takes its figures."""
    lines = ["| stage | seconds a step | peak GPU memory | foretold |", "|---|---|---|---|"]
    for name, figures in found.items():
        peak, told = figures["peak_gpu_mb"] / 1000, figures["foretold_gb"]
        seconds = f"{figures['seconds_per_step']:.2f}"
        lines.append(f"| {name} | {seconds} | {peak:.1f} GB | {told:.1f} GB |")
    lines += ["", "| rollouts | sampled, scored, read, learnt (seconds) | log-probs apart |"]
    lines += ["|---|---|---|"]
    phases = ("generate", "score", "forward", "learn")
    for name, figures in found.items():
        last, first = figures["last"], figures["first"]
        if "sampling/logp_difference" in first:
            seconds = ", ".join(f"{last[f'time/{phase}']:.2f}" for phase in phases)
            lines.append(f"| {name} | {seconds} | {first['sampling/logp_difference']:.1e} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a new folder for the runs (about 15 GB)")
    parser.add_argument("--only", nargs="*", default=list(STAGES), choices=list(STAGES))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("no GPU was found: this script measures what one takes")
    if not (options.out / "model").is_dir():
        prepare(options.out)
    found: dict[str, dict[str, Any]] = {}
    for name in options.only:
        found[name] = measure(options.out, name)
        print(
            name, {k: v for k, v in found[name].items() if k not in ("first", "last")}, flush=True
        )
        write_json(options.out / "one_gpu.json", found)
    print(page(found))


if __name__ == "__main__":
    main()
