"""What the mathematics of PPO costs beside the model: losses, GAE and whitening of one batch
against the forward and backward passes of a small transformer over the same tokens.

    python -m benchmarks.floor0

Both run on the CPU, where estimates are made, by turns: a micro-batch through the model, then the
mathematics of the whole batch. docs/ppo-details.md shows figures that this printed.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from truing.algorithms import gae, ppo_clip, reduce_mean, value_clip, whiten
from truing.keys import generator

# The most that the mathematics may take, as a share of the model's time.
BOUND = 0.05
VOCABULARY = 8192


class Times(NamedTuple):
    """Seconds for one batch: of the model, and of the mathematics."""

    model: float
    mathematics: float

    @property
    def share(self) -> float:
        return self.mathematics / self.model


def ten_million() -> LlamaForCausalLM:
    """A Llama of ten million parameters, drawn at random."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=True,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def training(model: LlamaForCausalLM, ids_BT: Tensor) -> Callable[[], None]:
    """The forward and backward passes of some rows."""

    def work() -> None:
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        model.zero_grad()

    return work


def mathematics(rows: int, length: int) -> Callable[[], None]:
    """From rewards and values to the gradients of both losses of PPO, with padded rows."""
    random = generator(0, "floor0")
    draw = torch.from_numpy(random.normal(size=(5, rows, length)))
    reward, old_value, new_value, old_logp, new_logp = draw
    lengths = torch.from_numpy(random.integers(length // 2, length + 1, size=(rows, 1)))
    mask = torch.arange(length) < lengths
    count = mask.sum()

    def work() -> None:
        advantage = gae(reward, old_value, mask, gamma=1.0, lam=0.95)
        target = advantage + old_value
        logp, value = (x.clone().requires_grad_() for x in (new_logp, new_value))
        policy = ppo_clip(logp, old_logp, whiten(advantage, mask), clip=0.2).loss
        critic = value_clip(value, old_value, target, clip=0.2).loss
        reduce_mean((policy + 0.1 * critic).masked_fill(~mask, 0.0), count).backward()

    return work


def seconds(work: Callable[[], None]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def by_turns(parts: Sequence[Callable[[], None]], other: Callable[[], None]) -> list[Times]:
    """The time of each part, and of ``other``, which follows each of them."""
    return [Times(seconds(part), seconds(other)) for part in parts]


def measured(rows: int, length: int, micro: int, pairs: int) -> list[Times]:
    """Of each micro-batch what the whole batch would take at its pace, and the mathematics of the
    whole batch just behind it. The first of each, which warms up, is not told."""
    model, other = ten_million(), mathematics(rows, length)
    ids = torch.from_numpy(generator(0, "ids").integers(VOCABULARY, size=(rows, length)))
    batches = ids.split(micro)
    parts = [training(model, batches[i % len(batches)]) for i in range(pairs + 1)]
    times = by_turns(parts, other)[1:]
    return [Times(t.model * rows / micro, t.mathematics) for t in times]


def medians(times: Sequence[Times]) -> Times:
    return Times(median(t.model for t in times), median(t.mathematics for t in times))


def machine() -> str:
    """The kind of processor, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kind = names[0] if names else platform.processor() or platform.machine()
    return f"{kind}, threads: {torch.get_num_threads()}, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--micro", type=int, default=2, help="rows of a micro-batch")
    parser.add_argument("--pairs", type=int, default=32, help="micro-batches that are timed")
    given = parser.parse_args()
    size = sum(p.numel() for p in ten_million().parameters())
    print(f"{date.today()}  {machine()}")
    print(
        f"{given.rows} x {given.length} tokens, a model of {size / 1e6:.1f} M parameters",
        flush=True,
    )
    middle = medians(measured(given.rows, given.length, given.micro, given.pairs))
    print(f"medians of {given.pairs} pairs: model {middle.model:.1f} s for all tokens, ", end="")
    print(f"mathematics {1000 * middle.mathematics:.1f} ms")
    print(f"their ratio: {middle.share:.3%} (the bound is {BOUND:.0%})")
    return int(middle.share >= BOUND)


if __name__ == "__main__":
    sys.exit(main())
