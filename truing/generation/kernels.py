"""`kernels.c` and `decode.c`, for one size of heads.

They take the overhead of a dozen small torch calls a layer away, or of all layers. Where there is
no C compiler, torch does the same (tests hold both equal).
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from truing.models.native import build, call

SOURCE = Path(__file__).with_name("kernels.c")
WHOLE = SOURCE.with_name("decode.c")  # contains the other, and needs AVX-512
# Numbers from which on a second thread pays for waking it.
MANY = 2**17


class Kernels:
    """The functions of the library, for contiguous float32 tensors on a CPU."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x, width = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        rows = x.numel() // width
        call(self.library.norm, out, x, weight, epsilon, rows, width, _threads(x))
        return out

    def gate(self, x: Tensor) -> Tensor:
        """silu(gate) * up of gate and up in a row: (N, 2 I) -> (N, I)."""
        rows, width = len(x), x.shape[-1] // 2
        out = x.new_empty(rows, width)
        call(self.library.gate, out, x, rows, width, _threads(x))
        return out

    def attend(self, *arguments: Tensor | int) -> None:
        """See `kernels.c`, whose order of arguments this is."""
        call(self.library.attend, *arguments)

    @property
    def whole(self) -> bool:
        """Whether it has `decode`."""
        return hasattr(self.library, "decode")

    def decode(self, *arguments: Tensor | float) -> None:
        """See `decode.c`, whose order of arguments this is."""
        call(self.library.decode, *arguments)


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= MANY else 1


@cache
def compiled(dim: int) -> Kernels | None:
    """The library for heads of ``dim``, or None where nothing can build it."""
    library = build(WHOLE, f"-DDIM={dim}") or build(SOURCE, f"-DDIM={dim}")
    return None if library is None else Kernels(library)
