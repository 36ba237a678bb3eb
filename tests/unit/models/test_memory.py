"""What is freed is kept, and returned to the system now and then."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from truing.models import memory
from truing.models.memory import SPACING, release

# Pages that the system has to give for 128 MB, and then for 64, which glibc by itself keeps neither
# of. In a process of its own, whose heap nothing else is at.
FAULTS = """
import resource, torch
from truing.models.memory import release

def faults(numbers):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(numbers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

release(torch.device("cpu"))
print(faults(2**25), faults(2**24))
"""


def test_what_is_freed_is_kept_for_what_comes_next() -> None:
    if memory._libc() is None:
        pytest.skip("this system has no glibc")
    told = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    )
    first, again = map(int, told.stdout.split())
    assert again < 100 < first


def test_it_is_returned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times, returned = iter([0.0, 1.0, SPACING - 1, SPACING, SPACING + 1]), list[int]()
    monkeypatch.setattr(memory, "_libc", lambda: SimpleNamespace(malloc_trim=returned.append))
    monkeypatch.setattr(memory, "_returned", [-SPACING])
    worked = SimpleNamespace(process_time=lambda: torch.get_num_threads() * next(times))
    monkeypatch.setattr(memory, "time", worked)
    after = list[int]()
    for _ in range(5):
        release(torch.device("cpu"))
        after.append(len(returned))
    assert after == [1, 1, 1, 2, 2]
