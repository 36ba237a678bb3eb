"""The precision policy: which float32 matrix multiply a phase may use, and where bfloat16 is.

``torch.set_float32_matmul_precision("medium")`` lets a backend with a faster kernel take over. On
most CPUs that kernel is still float32; on some machines (TF32, AMX) it rounds to fewer bits. So it
is measured once before it is relied upon, unless the settings name another, and it is off while
decoding, where it costs time and where sampled log-probs must be the trainer's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from truing.settings import OptimTopic

TOLERANCE = 1e-5  # relative error of a 256-term dot product; float32 itself stays near 1e-6
_chosen: ContextVar[str] = ContextVar("chosen", default="auto")


@cache
def medium_is_accurate() -> bool:
    """Whether "medium" keeps float32 accuracy here, measured on one product."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(128, 256, generator=draw)
    b = torch.randn(256, 128, generator=draw)
    exact = a.double() @ b.double()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _matmul("medium"):
        product = (a.to(device) @ b.to(device)).cpu().double()
    return float((product - exact).abs().max() / exact.abs().max()) < TOLERANCE


@contextmanager
def _matmul(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def of(config: OptimTopic) -> Iterator[None]:
    """What the settings say holds for every training step inside."""
    token = _chosen.set(config.float32_matmul_precision)
    try:
        yield
    finally:
        _chosen.reset(token)


def told() -> str:
    """The matrix multiply of a training step, for those who keep what it computed."""
    chosen = _chosen.get()
    if chosen != "auto":
        return chosen
    return "medium" if medium_is_accurate() else "highest"


@contextmanager
def training() -> Iterator[None]:
    """Matrix multiplies of a training step: those that were chosen, else the fast kernel where it
    is accurate."""
    with _matmul(told()):
        yield


@contextmanager
def decoding() -> Iterator[None]:
    """Matrix multiplies of a decoding step: plain float32, no gradients."""
    with torch.inference_mode(), _matmul("highest"):
        yield
