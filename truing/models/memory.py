"""Freed memory: kept for what comes next, and given back to the system now and then.

Each step takes and frees the same gigabytes. glibc returns what is large as soon as it is free, and
to get a page again is an interrupt and 4096 zeros: together a tenth of a small model's step, more
in a virtual machine. Kept for good, batches of ever new shapes leave it with gigabytes of pieces.
"""

import ctypes
import math
import time
from functools import cache
from typing import Any

import torch

# Seconds of work between two returns: a hundred small steps, or one of a large model.
SPACING = 60.0
# As C's malloc.h has them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# From which size on it is returned at once; before 2.35 glibc takes no number above the second.
LARGE = (1 << 30, 1 << 25)
_returned = [-math.inf]  # when that was last done


@cache
def _libc() -> Any:
    """The C library, told to keep what is freed, where it has ``malloc_trim`` (glibc); None
    elsewhere."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    if not hasattr(library, "malloc_trim"):
        return None
    library.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
    any(library.mallopt(MMAP_THRESHOLD, size) for size in LARGE)
    return library


def release(device: torch.device) -> None:
    """Return freed pages to the system, after work on ``device``, unless the process worked for
    less than `SPACING` seconds since it last did. Without effect where glibc is not in use.

    Nothing of a GPU's: there torch keeps what is freed for its next tensors, and before it runs out
    of memory it gives it back by itself and tries again. To ask for memory anew takes longer than
    most kernels, and little of such work is done in the system's memory.
    """
    library = _libc() if device.type == "cpu" else None
    if library is None:
        return
    now = time.process_time() / torch.get_num_threads()  # not what was waited
    if now - _returned[0] >= SPACING:
        library.malloc_trim(0)
        _returned[0] = now
