"""Compiles the kernels of a GPU for some, on a machine without any: Triton brings all it takes.

    python -m tests.kernels CAPABILITY FORMAT

Whether they compute what they should is seen where they are interpreted.
"""

import inspect
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from truing.generation import attend_gpu
from truing.models import head_gpu, layers_gpu

# Arguments that are not pointers to numbers of the model's format, sizes, or constants.
FLOATS = ("scale_at", "part_at", "total_at", "logp_at", "spread_at", "entropy_at")
COUNTS = ("target_at", "length_at", "row_at", "width_at")
REAL = ("epsilon", "a", "b", "lowest", "scale")
ROW = {"ROWS": 1, "WIDE": 2048}
FLAGS = (False, True)
# Each kernel, and the constants it is made for.
KERNELS: list[tuple[Any, dict[str, Any]]] = [
    *((layers_gpu._norm, {"ADDS": flag, **ROW}) for flag in FLAGS),
    *((layers_gpu._norm_back, {"ADDS": flag, **ROW}) for flag in FLAGS),
    (layers_gpu._gate, {"BLOCK": 1024}),
    *((layers_gpu._gate_back, {"AGAIN": flag, "BLOCK": 1024}) for flag in FLAGS),
    *((layers_gpu._turn, {"BACK": flag, "HEADS": 16, "HALF": 64}) for flag in FLAGS),
    (head_gpu._read, {"BENT": True, "SPREAD": True, "WORDS": head_gpu.WORDS}),
    (head_gpu._slope, {"BENT": True, "LOGP": True, "SPREAD": True, "WORDS": head_gpu.WORDS}),
    (attend_gpu._attend, {"dim": 128, "ROWS": 16, "DIM": 128, "TOGETHER": 64}),
]


def kind(name: str, model: str) -> str:
    """The type of an argument, as Triton writes it, for a model's number format."""
    if name in FLOATS:
        return "*fp32"
    if name in COUNTS:
        return "*i64"
    if name in REAL:
        return "fp32"
    return f"*{model}" if name.endswith(("_at", "_out")) else "i32"


def main(capability: int, model: str) -> None:
    for kernel, constants in KERNELS:
        names = list(inspect.signature(kernel.fn).parameters)
        told = {n: "constexpr" if n in constants else kind(n, model) for n in names}
        made = triton.compile(
            ASTSource(kernel, told, {(names.index(n),): v for n, v in constants.items()}),
            GPUTarget("cuda", capability, 32),
        )
        print(kernel.fn.__name__, constants, len(made.asm["cubin"]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
