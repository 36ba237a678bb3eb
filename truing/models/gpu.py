"""Kernels in Triton, where there is a GPU that they serve: torch brings it there, and elsewhere it
need not be, so their modules are loaded when they are first asked for.
"""

from functools import cache
from importlib import import_module
from subprocess import SubprocessError
from typing import Any

import torch
from torch import Tensor

FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def kernels(name: str, like: Tensor) -> Any:
    """The module of kernels of this name, or None where they do not compute with such tensors."""
    if like.device.type != "cuda" or like.dtype not in FORMATS:
        return None
    # Triton launches on the device that is current, wherever the tensors are.
    here = like.device.index == torch.cuda.current_device()
    return import_module(name) if here and works() else None


@cache
def works() -> bool:
    """Whether Triton is there, and the C compiler that it needs: tried out by one kernel."""
    one = torch.ones(8, device="cuda")
    try:
        import_module("truing.models.layers_gpu").norm(one, one, 1.0)
    except (ImportError, RuntimeError, OSError, SubprocessError):
        return False
    return True
