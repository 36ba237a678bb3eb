"""Settings of small runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

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
