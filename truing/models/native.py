"""Functions in C, built for this CPU when they are first needed; without a compiler there are none.

What they compute torch computes too, in more and slower steps; tests hold both equal.
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

FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
# Numbers that a file may be built for; what it computes is float32 for both.
FORMATS = {torch.float32: (), torch.bfloat16: ("-DHALF",)}
HEADERS = f"-I{Path(__file__).parent}"  # native.h


def build(source: Path, *options: str) -> Any:
    """The library of a C file, or None where nothing can build it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "native.so"
        command = [compiler, *FLAGS, HEADERS, *options, "-shared", str(source), "-o", str(target)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        return ctypes.CDLL(str(target))


@cache
def built(source: Path, dtype: torch.dtype) -> Any:
    """The library of a C file for numbers of a format, or None where there is none."""
    return build(source, *FORMATS[dtype]) if dtype in FORMATS else None


def call(function: Any, *arguments: Tensor | float) -> int:
    """Call by address: what is given must lie as the function expects it, and stay alive."""
    kinds = {int: ctypes.c_int64, float: ctypes.c_double}
    return function(
        *(
            ctypes.c_void_p(one.data_ptr()) if isinstance(one, Tensor) else kinds[type(one)](one)
            for one in arguments
        )
    )
