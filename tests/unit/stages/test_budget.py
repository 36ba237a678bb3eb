"""Micro-batches by tokens, counters of what is read, and what is said where memory ends."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from truing.data.layout import Tokens, flat, padded
from truing.models.model import load_policy
from truing.settings import OptimTopic, SftConfig
from truing.stages import sft
from truing.stages.budget import by_tokens
from truing.stages.learner import Learner, micro_batches
from truing.stages.sft import Imitation

LENGTHS = (3, 9, 5, 5, 2, 7)
ROWS = [Tokens((1,), (2,) * (n - 1)) for n in LENGTHS]
Settings = Callable[..., Any]


def imitation(place: Any = flat) -> Imitation:
    return Imitation(SftConfig(model_name_or_path="m", dataset_name="d", output_dir="o"), place)


def test_each_part_keeps_to_the_budget_and_none_is_lost() -> None:
    for place in (flat, padded):
        for budget in range(9, 40):
            batches = micro_batches(ROWS, imitation(place), 1, budget)
            assert all(batch.layout.cells <= budget for batch in batches)
            lengths = [row.length for batch in batches for row in batch.rows]
            assert lengths == sorted(LENGTHS, reverse=True)
            # A part that could have taken the next row would have.
            for one, two in pairwise(batches):
                assert place([*one.rows, two.rows[0]]).cells > budget
    # 9 + 7, 5 + 5 + 3 + 2: in flat rows.
    assert [len(b.rows) for b in micro_batches(ROWS, imitation(), 1, 16)] == [2, 4]


def test_a_shared_prompt_counts_once() -> None:
    rows = [Tokens((7,) * 10, (i, i)) for i in range(1, 6)]
    assert [len(b.rows) for b in micro_batches(rows, imitation(), 1, 20)] == [5]
    apart = micro_batches(rows, imitation(padded), 1, 24)
    assert [len(b.rows) for b in apart] == [2, 2, 1]


def test_a_row_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 9 tokens, above tokens_per_batch \(8\): raise"):
        by_tokens([9, 2], sum, 8)


def test_a_row_above_the_budget_is_refused_before_training(
    tiny: Path, jsonl: Any, settings: Settings
) -> None:
    rows = jsonl(
        "rows", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 9}]
    )
    config = settings(SftConfig, tiny, rows, tokens_per_batch=8)
    with pytest.raises(ValueError, match=r"row 2 of those used of .* tokens_per_batch \(8\)"):
        sft.run(config)


def test_what_is_read_is_counted(tiny: Path) -> None:
    policy = load_policy(tiny)
    rows = [Tokens((7,) * 10, (i, i)) for i in range(1, 5)]
    learner = Learner(Accelerator(cpu=True), policy, OptimTopic(), steps=2, seed=0)
    told = learner.learn((imitation(policy.place), rows))
    # One prompt of 10 and 4 responses of 2; three prompts were not read again.
    names = ("tokens/forwarded", "tokens/filling", "tokens/prefix_saved")
    assert [told[n] for n in names] == [18, 0, 30]
    unlike = [Tokens((7,), (1,)), Tokens((7,) * 7, (1,))]
    told = learner.learn((imitation(padded), unlike))
    # 2 and 8 tokens in two rows of 8: 6 of 16 cells hold none.
    assert [told[n] for n in names] == [10, 6 / 16, 0]


def test_memory_that_ends_is_told_with_what_to_set(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny)
    learner = Learner(Accelerator(cpu=True), policy, OptimTopic(), steps=2, seed=0)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Imitation, "loss", full)
    wanted = (
        r"6 rows, 26 tokens, does not fit \(CUDA out of memory\): set per_device_train_batch_size "
        "to 3 with gradient_accumulation_steps doubled, or tokens_per_batch to 13 or less"
    )
    with pytest.raises(MemoryError, match=wanted):
        learner.learn((imitation(policy.place), ROWS))
