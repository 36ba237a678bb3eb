"""What settings say of precision holds in every pass of a run, and nowhere behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from truing.generation.llama import Llama
from truing.models.model import Model
from truing.run import Run
from truing.settings import DpoConfig
from truing.stages import preference

Settings = Callable[..., Any]
Write = Callable[..., str]
ROWS = [{"prompt": f"p{i}", "chosen": " in the end", "rejected": f" er{'!' * i}"} for i in range(6)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The matrix multiplies of passes, by who made them."""
    found: dict[str, set[str]] = {"forward": set(), "backward": set(), "decoding": set()}

    def spy(where: str, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **more: Any) -> Any:
            found[where].add(torch.get_float32_matmul_precision())
            return original(*args, **more)

        monkeypatch.setattr(owner, name, watched)

    spy("forward", Model, "hidden")
    spy("backward", torch.Tensor, "backward")
    spy("decoding", Llama, "hidden")
    return found


@pytest.mark.parametrize("wanted", ["highest", "high", "medium"])
def test_each_pass_takes_what_is_set(
    tiny: Path, jsonl: Write, settings: Settings, seen: dict[str, set[str]], wanted: str
) -> None:
    data = jsonl("rows", ROWS)
    config = settings(
        DpoConfig, tiny, data, max_steps=1, float32_matmul_precision=wanted,
        eval_dataset_name=data, log_completions_steps=1,
    )  # fmt: skip
    # What is computed before the run begins, to estimate its memory, is none of its passes.
    before = preference.outlook.announce

    def announce(*args: Any, **more: Any) -> Any:
        ahead = before(*args, **more)
        seen["forward"].clear()
        return ahead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference.outlook, "announce", announce)
        run = preference.run(config)
    assert isinstance(run, Run)
    assert seen == {"forward": {wanted}, "backward": {wanted}, "decoding": {"highest"}}
    assert torch.get_float32_matmul_precision() == "highest"
