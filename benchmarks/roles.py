"""What PPO's four roles hold in memory: on one backbone, or as models of their own; and one model.

A small Llama of random weights plays two rollouts in a process of its own for each way; torch's
allocator is watched from before anything is loaded, so a peak is all tensors that lived at once.
One model is the same policy with the same adapters, learning by REINFORCE from a rule: from as many
responses to the same prompts, as long, and as many in a forward pass.
"""

import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.page import RECORDS
from benchmarks.runner import commit, machine
from benchmarks.work import SHAPES
from truing.config import check
from truing.models.checkpoint import add_lora, export
from truing.models.heads import load_reward_model
from truing.quickstart.training import BASE
from truing.settings_group import ReinforceConfig
from truing.settings_online import PpoConfig
from truing.stages import online

FILE = RECORDS / "roles.json"
RANK = 16
LORA: dict[str, Any] = {"use_peft": True, "lora_r": RANK, "lora_alpha": 2 * RANK}
ONE: dict[str, Any] = {"reward": "length"}
ALONE = "one model, LoRA"
# Each way: its class of settings, its settings, and the judge that it names, if any.
WAYS: dict[str, tuple[type[Any], dict[str, Any], str | None]] = {
    ALONE: (ReinforceConfig, LORA | ONE, None),
    "four roles on one backbone, LoRA": (PpoConfig, LORA, "adapter/model"),
    "four models, LoRA": (PpoConfig, LORA | {"ref_model_name_or_path": "base"}, "merged/model"),
    "one model, all weights": (ReinforceConfig, ONE | {"kl_coef": 0.0}, None),
    "four models, all weights": (PpoConfig, {}, "merged/model"),
}


def prepare(folder: Path, shape: str) -> None:
    """A random model, a run of `truing reward` with LoRA on it, one without, and prompts."""
    torch.manual_seed(0)
    LlamaForCausalLM(SHAPES[shape].config).save_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.save_pretrained(folder / "base")
    judge = load_reward_model(folder / "base")
    export(judge, folder / "merged")
    add_lora(judge, r=RANK, alpha=2 * RANK, dropout=0.0, targets="all-linear")
    export(judge, folder / "adapter")
    draw = np.random.default_rng(0)
    words = tokenizer.decode(list(range(300, 900))).split()
    rows = [" ".join(draw.choice(words, int(draw.integers(20, 60)))) for _ in range(16)]
    text = "".join(json.dumps({"prompt": row}) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")


def settings(folder: Path, way: str) -> Any:
    kind, own, judge = WAYS[way]
    base = str(folder / "base")
    given: dict[str, Any] = {
        "output_dir": str(folder / f"run-{list(WAYS).index(way)}"), "model_name_or_path": base,
        "dataset_name": str(folder / "rows.jsonl"), "response_length": 48, "temperature": 1.0,
        "max_steps": 2, "num_ppo_epochs": 1, "per_device_train_batch_size": 8, "use_cpu": True,
        "report_to": "none", "save_steps": 0,
    }  # fmt: skip
    given |= own | ({"reward": str(folder / judge)} if judge else {})
    return check(
        kind, given | ({"ref_model_name_or_path": base} if "ref_model_name_or_path" in own else {})
    )


def peak(events: Any) -> int:
    """Most bytes that were held at once."""
    now = top = 0
    found = [e for e in events if e.name() == "[memory]"]
    for event in sorted(found, key=lambda e: e.start_ns()):
        now += event.nbytes()
        top = max(top, now)
    return top


def measured(folder: Path, way: str) -> dict[str, Any]:
    """The peak of a run in MB, and what is foretold of it, by what it is for."""
    config = settings(folder, way)
    ahead: Any = online.run(config.model_copy(update={"dry_run": True}))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        online.run(config)
    profiler: Any = seen.profiler
    found = peak(profiler.kineto_results.events()) / 2**20
    told = {name: round(mb, 1) for name, mb in ahead.memory.items()}
    return {"peak_mb": round(found, 1), "foretold_mb": round(ahead.memory_mb, 1), "foretold": told}


def compared(shape: str) -> dict[str, Any]:
    """All ways, each in a process of its own; peaks as multiples of one model's, both trained with
    LoRA or both with all weights."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), shape)
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.roles", place, way]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way] = json.loads(done.stdout.strip().splitlines()[-1])
            found[way]["of_one_model"] = round(found[way]["peak_mb"] / found[ALONE]["peak_mb"], 3)
    one = found["four roles on one backbone, LoRA"]["peak_mb"]
    four = {name: found[name]["peak_mb"] for name in found if name.startswith("four models")}
    return {
        "shape": shape,
        "rank": RANK,
        "ways": found,
        "one_backbone_of": {name: round(one / mb, 3) for name, mb in four.items()},
        "machine": machine(torch.get_num_threads(), cpu=True),
        "date": date.today().isoformat(),
        "commit": commit(),
    }


def main(shape: str) -> int:
    record = compared(shape)
    RECORDS.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for way, of in record["ways"].items():
        print(
            f"{way:34} {of['peak_mb']:7.0f} MB, {of['of_one_model']:.2f} of one model's; "
            f"foretold {of['foretold_mb']:.0f} MB"
        )
    return 0


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), sys.argv[2])))
