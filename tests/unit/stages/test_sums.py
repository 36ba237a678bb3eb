"""Metrics on their way from micro-batches to one figure."""

from typing import Any

import pytest
import torch
from torch import Tensor

from truing.stages.sums import add_sums, gather_sums, means


class Ranks:
    """An accelerator of two ranks that hold the same."""

    num_processes = 2
    device = torch.device("cpu")

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert (reduction, tensor.device) == ("sum", self.device)
        return 2 * tensor


def number(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def test_sums_are_means_at_last() -> None:
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for total, count in ((3.0, 2.0), (5.0, 2.0)):
        add_sums(sums, {"a": (number(total), number(count)), "nothing": (number(1), number(0))})
    # (3 + 5) / (2 + 2); what nothing counted for is no figure.
    assert means(sums) == {"a": 2.0}
    assert means({}) == {}


def test_formats_do_not_round_each_other() -> None:
    exact = 1 / 3
    mixed = {
        "exact": (number(exact, torch.float64), number(1.0)),
        "count": (number(7, torch.long), number(2, torch.long)),
        "flag": (torch.tensor(True), number(1.0)),
        "short": (number(0.5, torch.bfloat16), number(1.0)),
    }
    assert means(mixed) == {"exact": exact, "count": 3.5, "flag": 1.0, "short": 0.5}


def test_ranks_are_summed() -> None:
    ranks: Any = Ranks()
    found = gather_sums(ranks, {"a": (number(3.0), number(2.0)), "b": (number(1.0), number(8.0))})
    assert {name: (float(t), float(c)) for name, (t, c) in found.items()} == {
        "a": (6.0, 4.0),
        "b": (2.0, 16.0),
    }
    assert means(found) == pytest.approx({"a": 1.5, "b": 0.125})
