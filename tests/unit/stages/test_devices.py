"""A loss on another device: all that it takes is there, and nothing of it is read, for a GPU would
be awaited. The device here is one whose tensors have no numbers: to read one is an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.cases import CASES, home
from tests.invariance import Stage
from truing.data.layout import Layout
from truing.stages.learner import global_totals, micro_batches

THERE = torch.device("meta")
# They look at what they are given, and refuse what is none of theirs.
LOOK = {"dpo orpo", "dpo plackett_luce", *(name for name in CASES if name.startswith("reward "))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home(tmp_path_factory.mktemp("devices"))


def elsewhere(way: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """A model's forward pass over a layout here, whose results are there."""

    def there(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.empty_like(x, device=THERE).requires_grad_(x.is_floating_point())

    return lambda _, *args, **more: tree_map(there, way(layout, *args, **more))


@pytest.mark.parametrize("name", sorted({*CASES} - LOOK))
def test_a_loss_reads_nothing_of_its_device(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(name, folder)
    for objective, rows in stage.parts:
        batch, *more = micro_batches(rows, objective, 3)
        batches, model = [batch, *more], stage.model
        totals = global_totals(stage.learner.accelerator, objective, batches, model)
        with monkeypatch.context() as patch:
            for way in ("forward", "value"):
                if (own := getattr(model, way, None)) is not None:
                    patch.setattr(model, way, elsewhere(own, batch.layout))
            loss, stats = objective.loss(model, batch.to(THERE), totals)
        assert loss.device == THERE
        loss.backward()
        for total, count in stats.values():
            assert total.device == count.device == THERE
