"""What is freed is kept, and returned to the system now and then."""

import resource
from types import SimpleNamespace

import pytest
import torch

from truing.models import memory
from truing.models.memory import SPACING, release


def faults(numbers: int) -> int:
    """Pages that the system had to give for so many numbers of four bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(numbers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_what_is_freed_is_kept_for_what_comes_next() -> None:
    release(torch.device("cpu"))
    if memory._libc() is None:
        pytest.skip("this system has no glibc")
    numbers = 2**24  # 64 MB, which glibc by itself never keeps
    faults(numbers)
    assert min(faults(numbers) for _ in range(3)) < 100


def test_it_is_returned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times, returned = iter([0.0, 1.0, SPACING - 1, SPACING, SPACING + 1]), list[int]()
    monkeypatch.setattr(memory, "_libc", lambda: SimpleNamespace(malloc_trim=returned.append))
    monkeypatch.setattr(memory, "_returned", [-SPACING])
    monkeypatch.setattr(memory.time, "monotonic", lambda: next(times))
    after = list[int]()
    for _ in range(5):
        release(torch.device("cpu"))
        after.append(len(returned))
    assert after == [1, 1, 1, 2, 2]
