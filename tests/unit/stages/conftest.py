"""Settings of small runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.online import FREE, KINDS
from truing.config import check
from truing.settings import TrainingConfig

C = TypeVar("C", bound=TrainingConfig)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Any]:
    """A function: config class, model folder, dataset file and further settings -> config."""

    def make(config: type[C], model: Path | str, data: str, **more: Any) -> C:
        start: dict[str, Any] = {
            "model_name_or_path": str(model),
            "dataset_name": data,
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "logging_steps": 1,
            "learning_rate": 1e-2,
        }
        return check(config, start | more)

    return make


@pytest.fixture
def make(tiny: Path, jsonl: Callable[..., str], settings: Callable[..., Any]) -> Callable[..., Any]:
    """A function: the name of a kind and further settings -> config of a small run."""
    rows = jsonl("prompts", [{"prompt": f"p{i}"} for i in range(6)])

    def config(kind: str, **more: Any) -> Any:
        base, own = (KINDS | FREE)[kind]
        start: dict[str, Any] = {
            "reward": "tests.judges:vowels",
            "response_length": 6,
            "temperature": 1.0,
            "per_device_train_batch_size": 16,
            "max_steps": 2,
        }
        model = more.pop("model", tiny)
        return settings(base, model, more.pop("data", rows), **(start | own | more))

    return config
