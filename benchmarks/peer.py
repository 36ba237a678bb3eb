"""The other side: TRL, by its trainers, with a gate between their steps.

PPO needs TRL 1.12.0 (benchmarks/setup.sh), so nothing of the product is imported here.

    python -m benchmarks.peer SPEC
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LogitsProcessor,
    TrainerCallback,
)

from benchmarks import work
from benchmarks.side import Gate, begun


def load(kind: Any, spec: dict[str, Any], place: str) -> Any:
    """A model of the folder in the number format that both sides hold their weights in."""
    more = {"num_labels": 1} if kind is AutoModelForSequenceClassification else {}
    dtype = torch.bfloat16 if spec["precision"] == "bf16" else torch.float32
    model = kind.from_pretrained(str(Path(spec["folder"]) / place), dtype=dtype, **more)
    return model if spec["cpu"] else model.cuda()


class Between(TrainerCallback):
    """Waits at the gate before the first step and after each."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.gate.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.gate.step()


class Ends(LogitsProcessor):
    """Of one call: has each response end where it ends on the other side, too."""

    def __init__(self) -> None:
        self.start, self.last = 0, list[int]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.start:
            self.start = input_ids.shape[1]
            prompts = [row[row != work.PAD].tolist() for row in input_ids]
            self.last = [work.length(*each) - 1 for each in work.numbered(prompts)]
        now = input_ids.shape[1] - self.start
        ending = [i for i, last in enumerate(self.last) if last == now]
        if ending:
            scores[ending] = -torch.inf
            scores[ending, work.EOS] = 0.0
        return scores


def sampler(spec: dict[str, Any]) -> Any:
    """A policy whose samples end where they are to."""
    model = load(AutoModelForCausalLM, spec, "model")
    original = model.generate

    def generate(*given: Any, **named: Any) -> Any:
        return original(*given, **named, logits_processor=[Ends()])

    model.generate = generate
    return model


def common(spec: dict[str, Any]) -> dict[str, Any]:
    """Settings of every trainer; the rest is as TRL has it."""
    return {
        "output_dir": str(Path(spec["folder"]) / "trl"),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": spec["cpu"],
        "bf16": spec["precision"] == "bf16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": work.sized(spec).batch,
        "learning_rate": work.SETTINGS["learning_rate"],
        "max_grad_norm": work.SETTINGS["max_grad_norm"],
        "lr_scheduler_type": "constant",
        "max_steps": spec["steps"],
        "dataloader_pin_memory": False,
    }


def offline(spec: dict[str, Any], rows: Dataset, **taken: Any) -> Any:
    """The trainer of a workload that learns from rows."""
    beta = {"beta": work.SETTINGS["beta"]}
    kind, config, more = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, {"shuffle_dataset": False}),
        "reward": (trl.RewardTrainer, trl.RewardConfig, {}),
        "dpo": (trl.DPOTrainer, trl.DPOConfig, beta),
        "kto": (trl.KTOTrainer, trl.KTOConfig, beta),
    }[spec["workload"]]
    settings = {**common(spec), **more, "train_sampling_strategy": "sequential"}
    if spec["workload"] == "reward":
        model = load(AutoModelForSequenceClassification, spec, "scorer")
    else:
        model = load(AutoModelForCausalLM, spec, "model")
    return kind(model=model, args=config(max_length=None, **settings), train_dataset=rows, **taken)


def groups(spec: dict[str, Any], rows: Dataset, **taken: Any) -> Any:
    """GRPO or RLOO."""
    named = spec["workload"].upper()
    more = {"beta": 0.04, "loss_type": "grpo"} if named == "GRPO" else {"beta": 0.05}
    config = getattr(trl, f"{named}Config")(
        num_generations=work.WORKLOADS[spec["workload"]].group,
        max_completion_length=work.RESPONSE,
        temperature=1.0,
        shuffle_dataset=False,
        **more,
        **common(spec),
    )
    model = sampler(spec)
    return getattr(trl, f"{named}Trainer")(
        model=model, reward_funcs=[work.reward], args=config, train_dataset=rows, **taken
    )


def first_given(trainer: Any, shape: work.Shape, grpo: bool) -> None:
    """Let the first step learn from the responses that every side learns from first."""
    original = trainer._generate_single_turn

    def turn(prompts: Sequence[Sequence[int]], *more: Any, **named: Any) -> Any:
        trainer._generate_single_turn = original
        found = [list(work.given(*each, shape, whole=False)) for each in work.numbered(prompts)]
        return (found, None) if grpo else found

    trainer._generate_single_turn = turn


def ppo(spec: dict[str, Any], rows: Dataset, gate: Gate, **taken: Any) -> Any:
    """PPO, with responses of its own length counted as far as their end token."""
    # Of TRL 1.12.0, which the other workloads do not have.
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokens = taken["processing_class"]
    settings = common(spec)
    settings.pop("max_steps")
    config = PPOConfig(
        total_episodes=settings["per_device_train_batch_size"] * spec["steps"],
        response_length=work.RESPONSE,
        stop_token="eos",
        temperature=1.0,
        num_ppo_epochs=work.PPO_EPOCHS,
        num_sample_generations=0,
        **settings,
    )
    scorers = [load(AutoModelForSequenceClassification, spec, "scorer") for _ in range(2)]
    policies = [sampler(spec), load(AutoModelForCausalLM, spec, "model")]
    encoded = rows.map(lambda row: tokens(row["prompt"]), remove_columns=["prompt"])
    trainer = PPOTrainer(
        args=config,
        model=policies[0],
        ref_model=policies[1],
        reward_model=scorers[0],
        value_model=scorers[1],
        train_dataset=encoded,
        eval_dataset=encoded.select(range(1)),
        **taken,
    )
    # It shuffles whatever it is given: rows in their order, as the other side has them.
    trainer.dataloader = torch.utils.data.DataLoader(
        encoded, batch_size=config.per_device_train_batch_size, collate_fn=trainer.data_collator
    )
    counted = ppo_trainer.truncate_response

    def truncate(stop: int, pad: int, responses: Tensor) -> Tensor:
        found = counted(stop, pad, responses)
        work.seen["tokens"] += int((found != pad).sum())
        return found

    ppo_trainer.truncate_response = truncate
    ppo_first_given(ppo_trainer, work.SHAPES[spec["shape"]])
    return trainer


def ppo_first_given(module: Any, shape: work.Shape) -> None:
    original = module.batch_generation

    def batch(policy: Any, queries: Tensor, size: int, pad: int, config: Any) -> Any:
        module.batch_generation = original
        found = [work.given(row[row != pad].tolist(), 0, shape, whole=True) for row in queries]
        responses = torch.full((len(found), work.RESPONSE), pad, device=queries.device)
        for row, response in zip(responses, found, strict=True):
            row[: len(response)] = torch.tensor(response, device=row.device)
        both = torch.cat([queries, responses], 1)
        logits = module.forward(policy, both, pad).logits[:, queries.shape[1] - 1 : -1]
        return both, logits

    module.batch_generation = batch


def read(workload: str, rows: Any) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses as the trainer has them in tokens."""
    found: list[tuple[list[int], list[int]]] = []
    for row in rows:
        if workload == "sft":
            start = sum(label == -100 for label in row["labels"])
            found.append((row["input_ids"][:start], row["input_ids"][start:]))
        elif workload == "reward":
            pair = (row["chosen_ids"], row["rejected_ids"])
            start = next(i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
            found += [(each[:start], each[start:]) for each in pair]
        elif workload in ("grpo", "rloo"):
            found.append((list(work.ids(row["prompt"])), []))
        elif workload == "ppo":
            found.append((row["input_ids"], []))
        else:
            answers = [
                row[f"{k}_ids"] for k in ("completion", "chosen", "rejected") if f"{k}_ids" in row
            ]
            found += [(row["prompt_ids"], answer) for answer in answers]
    return found


def sample(gate: Gate, spec: dict[str, Any]) -> None:
    """Greedy responses to one batch of prompts after another, by transformers."""
    workload, folder = work.sized(spec), Path(spec["folder"])
    model = load(AutoModelForCausalLM, spec, "model").eval()
    tokens = AutoTokenizer.from_pretrained(str(folder / "model"))
    ends = set(model.generation_config.eos_token_id)
    texts = [row["prompt"] for row in work.read(folder)]
    gate.told["digest"] = work.digest((tokens(text)["input_ids"], ()) for text in texts)
    gate.wait()
    for start in range(0, len(texts), workload.batch):
        batch = tokens(
            texts[start : start + workload.batch],
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(model.device)
        with torch.inference_mode():
            rows = model.generate(**batch, max_new_tokens=work.RESPONSE, do_sample=False)
        found = [work.ended(row, ends) for row in rows[:, batch["input_ids"].shape[1] :].tolist()]
        work.seen["tokens"] += sum(map(len, found))
        gate.step(responses=found)


def main() -> None:
    spec, gate = begun(sys.argv[1])
    workload = spec["workload"]
    if workload.startswith("sampling"):
        sample(gate, spec)
        return
    rows = Dataset.from_list(work.read(Path(spec["folder"])))
    tokens = AutoTokenizer.from_pretrained(str(Path(spec["folder"]) / "model"))
    taken: dict[str, Any] = {"processing_class": tokens, "callbacks": [Between(gate)]}
    make: dict[str, Callable[[], Any]] = {
        "ppo": lambda: ppo(spec, rows, gate, **taken),
        "grpo": lambda: groups(spec, rows, **taken),
        "rloo": lambda: groups(spec, rows, **taken),
    }
    trainer = make.get(workload, lambda: offline(spec, rows, **taken))()
    if workload in ("grpo", "rloo"):
        first_given(trainer, work.SHAPES[spec["shape"]], workload == "grpo")
    gate.told["digest"] = work.digest(read(workload, trainer.train_dataset))
    gate.watch(trainer.model)
    trainer.train()


if __name__ == "__main__":
    main()
