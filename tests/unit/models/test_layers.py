"""Norms, gates and rotations in C: transformers' own, to what their bits tell; and who has them."""

import copy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as llama

from tests.conftest import tiny_folder
from truing.data.layout import Tokens
from truing.models import gpu, layers, layers_c, layers_gpu
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp

HALF = torch.bfloat16
# A bfloat16 is off by 2e-3 on the average; between two products it is rounded once more.
OFF = {HALF: 5e-3, torch.float32: 1e-6}
KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, few keys": {"num_key_value_heads": 1},
}


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = HALF) -> Tensor:
    return (torch.randn(shape, generator=torch.manual_seed(seed)) * scale).to(dtype)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def ways(function: Any, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What a function gives, and the gradients of its inputs for a slope that is not even."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    slope = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    out.backward(slope)
    found = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(found) == len(leaves)
    return out.detach(), found


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return x * cosine[:, :, None] + llama.rotate_half(x) * sine[:, :, None]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("home", "threads"), [(layers_c, 1), (layers_c, 2), (layers_gpu, 1)])
@pytest.mark.parametrize("name", ["norm", "gate", "rotation"])
@pytest.mark.parametrize("dtype", OFF, ids=str)
def test_each_is_that_of_float64_to_what_its_bits_tell(
    name: str, home: Any, threads: int, dtype: torch.dtype
) -> None:
    angle = torch.rand(2, 37, 8, generator=torch.manual_seed(3)).repeat(1, 1, 2)
    turns = [angle.cos().to(dtype), angle.sin().to(dtype)]
    drawn = partial(draw, dtype=dtype)
    fused, exact, inputs = {
        "norm": (
            lambda x, w: layers._Norm.apply(x, w, 1e-5, home),
            norm,
            [drawn(2, 37, 48, scale=3.0), drawn(48, seed=1)],
        ),
        "gate": (
            lambda g, u: layers._Gate.apply(g, u, home),
            lambda g, u: F.silu(g) * u,
            [drawn(37, 70, scale=4.0), drawn(37, 70, seed=1)],
        ),
        "rotation": (
            lambda q, k: torch.cat(layers._Rotate.apply(q, k, *turns, home), 2),
            lambda q, k: turned(torch.cat([q, k], 2), *(t.double() for t in turns)),
            [drawn(2, 37, 3, 16), drawn(2, 37, 1, 16, seed=1)],
        ),
    }[name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, grads = ways(fused, *inputs)
    finally:
        torch.set_num_threads(before)
    wanted, slopes = ways(exact, *(x.double() for x in inputs))
    # Triton's interpreter cuts off the bits that do not fit, where a GPU rounds.
    off = OFF[dtype] * (2 if home is layers_gpu else 1)
    assert out.dtype == dtype
    assert relative(out, wanted) < off
    for one, other in zip(grads, slopes, strict=True):
        assert one.dtype == dtype
        assert relative(one, other) < off


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # infinity is what is meant
@pytest.mark.parametrize("home", [layers_c, layers_gpu])
def test_large_and_odd_numbers_come_out_as_torchs(home: Any) -> None:
    for dtype in OFF:
        x = torch.tensor([0.0, -0.0, 90.0, -90.0, 3e38, -3e38, float("nan")]).to(dtype)
        up = torch.ones_like(x)
        torch.testing.assert_close(layers._Gate.apply(x, up, home), F.silu(x) * up, equal_nan=True)


def rows() -> list[Tokens]:
    draw = torch.Generator().manual_seed(5)
    prompt = tuple(torch.randint(1, 90, (9,), generator=draw).tolist())
    return [
        Tokens(prompt, tuple(torch.randint(1, 90, (n,), generator=draw).tolist())) for n in (7, 4)
    ]


def learnt(policy: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    found = logp(policy, policy.place(rows()))
    found.sum().backward()
    named = policy.network.named_parameters()
    return found.detach(), {n: p.grad for n, p in named if p.grad is not None}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_model_is_as_near_to_float64_as_the_stock_one(
    tmp_path: Path, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one in float64 takes no part in it, to the last bit."""
    folder = tiny_folder(tmp_path, kind.partition(",")[0], **KINDS[kind])

    def made(dtype: str) -> Policy:
        return load_policy(folder, Loading(dtype=dtype))

    truth, slopes = learnt(made("float64"))
    calls: list[object] = []
    call = layers_c.call
    monkeypatch.setattr(layers_c, "call", lambda *a: (calls.append(a[0]), call(*a)))
    ours = learnt(made(dtype))
    assert bool(calls) == (dtype != "float64")
    monkeypatch.setattr(layers, "kernels", lambda *_: None)
    theirs = learnt(made(dtype))
    if dtype == "float64":
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
        return
    little = 1e-2 if dtype == "bfloat16" else 2e-6
    assert relative(ours[0], truth) < max(little, 1.3 * relative(theirs[0], truth))
    whole = [torch.cat([g[name].flatten() for name in slopes]) for g in (ours[1], theirs[1])]
    exactly = torch.cat([slope.flatten() for slope in slopes.values()])
    off, stock = (relative(one, exactly) for one in whole)
    assert off < max(little, 1.3 * stock)
    # Of a few numbers alone less can be said.
    for name, slope in slopes.items():
        assert float((ours[1][name] - slope).norm()) < 10 * little * float(slope.norm()) + little, (
            name
        )


@pytest.mark.usefixtures("compiler")
def test_a_copy_reads_its_own_weights_and_is_fused_once(tiny: Path) -> None:
    policy = load_policy(tiny, Loading(dtype="bfloat16"))
    norms = [m for m in policy.core.modules() if type(m).__name__ == "LlamaRMSNorm"]
    assert norms
    assert all(isinstance(m, llama.LlamaRMSNorm) and type(m).fused for m in norms)  # pyright: ignore
    twin = copy.deepcopy(policy.network)
    with torch.no_grad():
        twin.model.norm.weight.zero_()
    x = draw(3, 32)
    assert not twin.model.norm(x).any()
    assert policy.core.model.norm(x).any()
    before = type(norms[0])
    layers.fuse(policy.core)
    assert type(norms[0]) is before


def test_what_another_has_replaced_stays(tiny: Path) -> None:
    core = load_policy(tiny).core
    plain = llama.LlamaRMSNorm(32)
    plain.forward = lambda x: x * 0  # as kernel libraries do it
    core.model.norm = plain
    layers.fuse(core)
    assert type(core.model.norm) is llama.LlamaRMSNorm


def test_angles_of_another_shape_are_left_to_transformers() -> None:
    """One row of them for all texts, say: `layers.c` would read beyond their end."""
    original = llama.apply_rotary_pos_emb.__wrapped__
    q, k, angle = draw(2, 3, 5, 8), draw(2, 1, 5, 8, seed=1), draw(1, 5, 8, seed=2)
    turned = layers._rotating(original)(q, k, angle.cos(), angle.sin())
    torch.testing.assert_close(turned, original(q, k, angle.cos(), angle.sin()), atol=0, rtol=0)


def test_code_of_its_own_by_a_name_of_the_family_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers.models.llama.modeling_llama")
    body = torch.nn.Sequential(torch.nn.Linear(2, 2))
    body.config = LlamaConfig()  # pyright: ignore
    layers.fuse(body)
    assert type(body[0]) is torch.nn.Linear


def test_without_a_compiler_torch_computes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_c, "_library", lambda _: None)
    policy = load_policy(tiny, Loading(dtype="bfloat16"))
    assert layers.kernels(draw(2)) is None
    assert learnt(policy)[0].isfinite().all()


def test_kernels_of_a_gpu_are_asked_only_where_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "truing.models.layers_gpu"
    there: Any = SimpleNamespace(device=torch.device("cuda", 1), dtype=torch.bfloat16)
    monkeypatch.setattr(gpu, "works", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert gpu.kernels(name, there) is None
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert gpu.kernels(name, there) is layers_gpu
    assert layers.kernels(there, there) is layers_gpu
    there.dtype = torch.float64
    assert gpu.kernels(name, there) is None
    assert gpu.kernels(name, draw(2)) is None
    there.dtype = torch.float32
    monkeypatch.setattr(gpu, "works", lambda: False)
    assert gpu.kernels(name, there) is None


@pytest.mark.parametrize("error", [ImportError, RuntimeError, FileNotFoundError])
def test_where_triton_fails_torch_computes(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "ones", lambda *_, device: draw(8, dtype=torch.float32))
    assert gpu.works.__wrapped__()

    def failing(*_: object) -> None:
        raise error("no compiler")

    monkeypatch.setattr(layers_gpu, "norm", failing)
    assert not gpu.works.__wrapped__()
