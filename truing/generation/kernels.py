"""`kernels.c`, built when it is first needed, for this CPU and one size of heads.

It takes the overhead of a dozen small torch calls a layer away. Where there is no C compiler, torch
does the same (tests hold both equal).
"""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
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
        _call(self.library.norm, out, x, weight, epsilon, rows, width, _threads(x))
        return out

    def gate(self, x: Tensor) -> Tensor:
        """silu(gate) * up of gate and up in a row: (N, 2 I) -> (N, I)."""
        rows, width = len(x), x.shape[-1] // 2
        out = x.new_empty(rows, width)
        _call(self.library.gate, out, x, rows, width, _threads(x))
        return out

    def attend(self, *arguments: Tensor | int) -> None:
        """See `kernels.c`, whose order of arguments this is."""
        _call(self.library.attend, *arguments)


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= MANY else 1


def _call(function: Any, *arguments: Tensor | float) -> None:
    """Call by address: what is given must be contiguous, and stay alive meanwhile."""
    kinds = {int: ctypes.c_int64, float: ctypes.c_double}
    function(
        *(
            ctypes.c_void_p(one.data_ptr()) if isinstance(one, Tensor) else kinds[type(one)](one)
            for one in arguments
        )
    )


@cache
def compiled(dim: int) -> Kernels | None:
    """The library for heads of ``dim``, or None where nothing can build it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.so"
        command = [compiler, *FLAGS, f"-DDIM={dim}", "-shared", str(SOURCE), "-o", str(target)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        return Kernels(ctypes.CDLL(str(target)))
