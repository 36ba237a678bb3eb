"""Float32 products by torch and by `truing/models/products.c`, side by side: speed and accuracy.

Errors are root mean squares, in units of the product's own, against float64.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from truing.models.products import library, linear, product, tiles

# Rows, numbers of each that are summed, columns: of a layer's pass, its way back, a head, a decode.
MANY = (
    (2048, 512, 1536),
    (2048, 1536, 512),
    (1536, 2048, 512),
    (512, 512, 8192),
    (4096, 4096, 4096),
)
FEW = ((4, 512, 1536), (8, 512, 1536), (16, 512, 1536), (32, 512, 1536), (8, 4096, 4096))

# Bytes that no cache holds.
UNCACHED = 2**28


def seconds(ways: dict[str, Callable[[], Tensor]], repeats: int = 12) -> dict[str, float]:
    """The least time of each way; they take turns."""
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def told(shape: tuple[int, int, int], ways: dict[str, Callable[[], Tensor]], exact: Tensor) -> str:
    took = seconds(ways)
    size = float(exact.square().mean().sqrt())
    off = {
        n: float((way().double() - exact).square().mean().sqrt()) / size for n, way in ways.items()
    }
    first = next(iter(ways))
    rest = [f"{took[first] / took[n]:.2f}" for n in ways if n != first]
    return " | ".join(
        ["", " x ".join(map(str, shape)), *rest, *(f"{x:.1e}" for x in off.values()), ""]
    )


def main(threads: int) -> int:
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    print(f"{threads} threads; times as fast as torch, and errors of torch and of each")
    if tiles():
        print("many rows: three digits, two digits")
        for rows, depth, columns in MANY:
            x, w = (torch.randn(n, depth, generator=draw) for n in (rows, columns))
            ways = {
                "torch": lambda x=x, w=w: F.linear(x, w),
                "three": lambda x=x, w=w: product(x, w, 3),
                "two": lambda x=x, w=w: product(x, w, 2),
            }
            print(told((rows, depth, columns), ways, x.double() @ w.double().T))
    if library() is not None:
        print("few rows, by weights that lie in no cache")
        for rows, depth, columns in FEW:
            x = torch.randn(rows, depth, generator=draw)
            many = max(1, UNCACHED // (4 * depth * columns))
            weights = torch.randn(many, columns, depth, generator=draw).unbind()
            ways = {
                "torch": lambda x=x, w=weights: [F.linear(x, each) for each in w][-1],
                "few": lambda x=x, w=weights: [linear(x, each, None) for each in w][-1],
            }
            with torch.inference_mode():
                print(told((rows, depth, columns), ways, x.double() @ weights[-1].double().T))
    return 0
