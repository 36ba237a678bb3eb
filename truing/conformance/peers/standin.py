"""What TRL's methods are given in the place of a trainer, so that they can be called alone."""

import importlib
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def module(name: str) -> Any:
    """A module of TRL. Raises ValueError where TRL is not installed."""
    try:
        with warnings.catch_warnings():
            # What it says of itself when it is loaded is not about what is asked of it here.
            warnings.simplefilter("ignore")
            return importlib.import_module(f"trl.{name}")
    except ImportError as error:
        raise ValueError(
            f"TRL cannot be loaded ({error}): pip install trl, or truing with its extra `bench`"
        ) from error


class Unreduced(TorchFunctionMode):
    """The mean over a batch is left out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.mean and args[0].dim() == 1:
            return args[0]
        return func(*args, **(kwargs or {}))


def trainer(**more: Any) -> SimpleNamespace:
    """What the methods read of a trainer, on one process, in evaluation (which only logs less)."""
    none = torch.zeros(())
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        process_index=0,
        num_processes=1,
        # For what is logged alone, but for the GRPO count of tokens, which is not used either.
        gather=lambda x: x.sum().detach() * 0,
        gather_for_metrics=lambda x: x.sum().detach() * 0,
        reduce=lambda x, reduction: x.detach(),
    )
    logs: dict[str, Any] = {name: [] for name in ("prompt", "completion", "advantages", "images")}
    return SimpleNamespace(
        **{
            "accelerator": accelerator,
            "model": SimpleNamespace(training=False),
            "args": SimpleNamespace(
                per_device_train_batch_size=1,
                per_device_eval_batch_size=1,
                gradient_checkpointing_kwargs=None,
                gradient_accumulation_steps=1,
                steps_per_generation=1,
                center_rewards_coefficient=None,
                delta=None,
            ),
            "aux_loss_enabled": False,
            "_metrics": {"eval": defaultdict(list)},
            "_logs": {**logs, "rewards": defaultdict(list), "extra": defaultdict(list)},
            "_total_train_tokens": 0,
            "_tp_size": 1,
            "_none": none,
            **more,
        }
    )


class alone:
    """TRL's gathering over processes asks accelerate, which wants to be set up first; of one
    process, what is gathered is what there is. So is a model without gradient checkpointing."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.names = ("gather", "gather_object", "disable_gradient_checkpointing")

    def __enter__(self) -> None:
        self.before = {n: getattr(self.file, n) for n in self.names if hasattr(self.file, n)}
        for name in self.before:
            setattr(self.file, name, _nothing if name.startswith("disable") else lambda x: x)

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            setattr(self.file, name, value)


def _nothing(*_: Any) -> Any:
    return warnings.catch_warnings()
