"""Freed memory back to the system: batches of ever new shapes leave glibc with gigabytes of it."""

import ctypes
from functools import cache
from typing import Any

import torch


@cache
def _libc() -> Any:
    """The C library, where it has ``malloc_trim`` (glibc); None elsewhere."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def release(device: torch.device) -> None:
    """Return freed pages to the system, after work on ``device``. Cheap, and without effect where
    glibc is not in use.

    Nothing of a GPU's: there torch keeps what is freed for its next tensors, and before it runs out
    of memory it gives it back by itself and tries again. To ask for memory anew takes longer than
    most kernels, and little of such work is done in the system's memory.
    """
    library = _libc() if device.type == "cpu" else None
    if library is not None:
        library.malloc_trim(0)
