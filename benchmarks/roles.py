"""What PPO's four roles hold in memory: on one backbone, or as models of their own; and one.

A small Llama of random weights plays two rollouts in a process of its own for each way; torch's
allocator is watched from before anything is loaded, so the peak is all tensors that lived at once.

    python -m benchmarks.roles [--shape tiny|small]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from truing.config import check
from truing.models.checkpoint import add_lora, export
from truing.models.heads import load_reward_model
from truing.models.model import load_policy
from truing.quickstart.training import BASE
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import online

# hidden, layers, heads, inner width, vocabulary
SHAPES = {"tiny": (192, 6, 6, 512, 4096), "small": (512, 8, 8, 1408, 8192)}
LORA: dict[str, Any] = {"use_peft": True, "lora_r": 8, "lora_alpha": 16}
ONE: dict[str, Any] = LORA | {"reward": "length", "num_generations": 2}
# Each way: its class of settings, its settings, and the judge that it names, if any.
WAYS: dict[str, tuple[type[Any], dict[str, Any], str | None]] = {
    "one model, LoRA": (RlooConfig, ONE, None),
    "four roles, one backbone": (PpoConfig, LORA, "adapter"),
    "four roles, four models, LoRA": (PpoConfig, LORA | {"ref_model_name_or_path": ""}, "merged"),
    "four roles, four models, all weights": (PpoConfig, {}, "merged"),
}


def prepare(folder: Path, shape: str) -> None:
    """A random model, a reward run with LoRA on it, the same merged alone, and prompts."""
    hidden, layers, heads, inner, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder / "base")
    policy = load_policy(folder / "base")
    judge = load_reward_model(folder / "base")
    export(judge, folder / "merged")
    add_lora(judge, r=8, alpha=16, dropout=0.0, targets="all-linear")
    export(judge, folder / "adapter")
    draw = np.random.default_rng(0)
    words = policy.tokenizer.decode(list(range(300, 900))).split()
    rows = [" ".join(draw.choice(words, int(draw.integers(20, 60)))) for _ in range(16)]
    text = "".join(json.dumps({"prompt": row}) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")


def settings(folder: Path, way: str) -> Any:
    kind, more, judge = WAYS[way]
    base = str(folder / "base")
    own = more | ({"reward": str(folder / judge)} if judge else {})
    own |= {"ref_model_name_or_path": base} if "ref_model_name_or_path" in more else {}
    given = {
        "output_dir": str(folder / way.replace(" ", "-")), "model_name_or_path": base,
        "dataset_name": str(folder / "rows.jsonl"), "response_length": 48, "temperature": 1.0,
        "max_steps": 2, "num_ppo_epochs": 1, "per_device_train_batch_size": 8, "use_cpu": True,
        "report_to": "none", "save_steps": 0,
    }  # fmt: skip
    return check(kind, given | own)


def peak(events: Any) -> int:
    """Most bytes that were held at once."""
    now = top = 0
    found = [e for e in events if e.name() == "[memory]"]
    for event in sorted(found, key=lambda e: e.start_ns()):
        now += event.nbytes()
        top = max(top, now)
    return top


def measured(folder: Path, way: str) -> dict[str, float]:
    """The peak of a run, in MB, and what `truing doctor` foretells of it."""
    config = settings(folder, way)
    ahead: Any = online.run(config.model_copy(update={"dry_run": True}))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        online.run(config)
    profiler: Any = seen.profiler
    found = peak(profiler.kineto_results.events()) / 2**20
    return {"peak_mb": found, "foretold_mb": ahead.memory_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--way", choices=WAYS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.folder, given.way)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, given.shape)
        first = 0.0
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.roles", "--folder", place, "--way", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            first = first or found["peak_mb"]
            print(
                f"{way:38} {found['peak_mb']:8.0f} MB, x{found['peak_mb'] / first:.2f}; foretold "
                f"{found['foretold_mb']:.0f} MB"
            )


if __name__ == "__main__":
    main()
