"""The precision policy: which float32 matrix multiply a phase may use, and where bfloat16 is.

``torch.set_float32_matmul_precision("medium")`` lets a backend with a faster kernel take over. On
most CPUs that kernel is still float32; on some machines (TF32, AMX) it rounds to fewer bits. So it
is measured once before it is relied upon, unless the settings name another, and it is off while
decoding, where it costs time and where sampled log-probs must be the trainer's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from truing.models import products
from truing.settings import TrainingConfig

HALF = (torch.bfloat16, torch.float16)
TOLERANCE = 1e-5  # relative error of a 256-term dot product; float32 itself stays near 1e-6


class Choice(NamedTuple):
    """What the settings say: a float32 matrix multiply, whether passes are in bfloat16, and whether
    all is done by the CPU, whatever else there is."""

    matmul: str = "auto"
    bf16: bool = False
    use_cpu: bool = False


NOTHING = Choice()
_chosen: ContextVar[Choice] = ContextVar("chosen", default=NOTHING)


@cache
def medium_is_accurate(use_cpu: bool = False) -> bool:
    """Whether "medium" keeps float32 accuracy here, measured on one product."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(128, 256, generator=draw)
    b = torch.randn(256, 128, generator=draw)
    exact = a.double() @ b.double()
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
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
def _choosing(choice: Choice) -> Iterator[None]:
    token = _chosen.set(choice)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def of(config: TrainingConfig) -> Iterator[None]:
    """What the settings say holds for every training step inside."""
    # The online stages have no bf16: their sampler computes in float32.
    bf16 = bool(getattr(config, "bf16", False))
    with _choosing(Choice(config.float32_matmul_precision, bf16, config.use_cpu)):
        yield


def _multiply() -> str:
    """The matrix multiply of a training step."""
    chosen, _, use_cpu = _chosen.get()
    if chosen != "auto":
        return chosen
    return "medium" if medium_is_accurate(use_cpu) else "highest"


def _digits_of(choice: Choice) -> int:
    """Digits of 8 bits by which a step multiplies float32, where the CPU has tiles for them: three
    are as good as float32; two are what torch's "high" allows."""
    chosen, bf16, use_cpu = choice
    if bf16 or not products.tiles():
        return 0
    if chosen == "auto":
        return 0 if medium_is_accurate(use_cpu) else 3
    return 2 if chosen == "high" else 0


def told() -> str:
    """The arithmetic of a training step, for those who keep what it computed."""
    digits = f" in {number} digits" if (number := _digits_of(_chosen.get())) else ""
    return _multiply() + digits + (" bf16" if _chosen.get().bf16 else "")


def halves(dtype: torch.dtype) -> bool:
    """Whether a model of this format makes its passes in 16 bits."""
    return _chosen.get().bf16 or dtype in HALF


@contextmanager
def mixed(device: torch.device) -> Iterator[None]:
    """A model's pass: its matrix multiplies and attention in bfloat16 where the settings say so.
    What needs more bits stays in float32: weights, their gradients, norms, sums over logits."""
    if not _chosen.get().bf16:
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        yield


@contextmanager
def training() -> Iterator[None]:
    """Matrix multiplies of a training step: those that were chosen, else the fast kernel where it
    is accurate."""
    with _matmul(_multiply()), products.cutting(_digits_of(_chosen.get())):
        yield


@contextmanager
def decoding() -> Iterator[None]:
    """Matrix multiplies of a decoding step: float32, no gradients."""
    plain = Choice(use_cpu=_chosen.get().use_cpu)
    with (
        torch.inference_mode(),
        _matmul("highest"),
        _choosing(plain),
        products.cutting(_digits_of(plain)),  # prompts have many rows
    ):
        yield


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of some gradients together; of those in 16 bits in float32, for they would round it
    to two digits."""
    if all(g.dtype in (torch.float32, torch.float64) and g.device.type == "cpu" for g in grads):
        # torch's own norm sums millions of squares one behind the other: slower, and 1e-4 too low.
        flat = (grad.reshape(-1) for grad in grads)
        squares = [torch.dot(each, each).double() for each in flat]
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
    # As torch does it otherwise: a GPU takes those of one kind together, where each is a launch.
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in grads:
        alike.setdefault((grad.device, grad.dtype), []).append(grad)
    norms: list[Tensor] = []
    for (_, dtype), part in alike.items():
        finer = torch.promote_types(dtype, torch.float32)
        norms += torch._foreach_norm(part, dtype=finer)  # pyright: ignore
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
