"""Freed memory back to the system: batches of ever new shapes leave glibc with gigabytes of it."""

import ctypes
from functools import cache
from typing import Any


@cache
def _libc() -> Any:
    """The C library, where it has ``malloc_trim`` (glibc); None elsewhere."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def release() -> None:
    """Return freed pages to the system. Cheap, and without effect where glibc is not in use."""
    library = _libc()
    if library is not None:
        library.malloc_trim(0)
