"""Float32 products by `products.c`: no worse than torch's, in all shapes, only where they fit."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tests.conftest import tiny_folder
from truing.data.layout import Tokens
from truing.models import products
from truing.models.loading import Loading
from truing.models.model import load_policy, logp
from truing.models.products import Linear, Turned, cutting, linear, linears, multiply, product

# The kernel's own limits: a tile's 16 rows of 64, a panel's 256, a depth of 768, 2048 rows.
SHAPES = [
    (64, 64, 64),
    (65, 70, 75),
    (130, 600, 513),
    (2080, 96, 160),
    (300, 257, 1100),
    (97, 1030, 200),
]

HALF, REST = slice(35), slice(45, None)


@pytest.fixture
def tiles(compiler: None) -> None:
    if not products.tiles():
        pytest.skip("this CPU does not multiply bytes in tiles (AMX)")


@pytest.fixture
def few(compiler: None) -> None:
    if products.library() is None:
        pytest.skip("this CPU has no AVX-512")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is called of `products.c`, in its order."""
    found: list[Any] = []
    call = products.call

    def counted(function: Any, *arguments: Any) -> int:
        found.append(function)
        return call(function, *arguments)

    monkeypatch.setattr(products, "call", counted)
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products too are cut."""
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "THIN", 1)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0, turned: bool = False, spread: float = 1) -> Tensor:
    """Numbers of sizes that differ by thousands, with a ``spread`` of 1; ``turned``: by columns in
    memory."""
    generator = torch.Generator().manual_seed(seed)
    shape = shape[::-1] if turned else shape
    found = torch.randn(shape, generator=generator)
    sizes = torch.empty(shape).uniform_(-2, 1, generator=generator)
    found = found * 10 ** (spread * sizes)
    return found.T if turned else found


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.usefixtures("tiles", "small")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
def test_three_digits_are_as_near_as_float32(
    shape: tuple[int, int, int], turned: tuple[bool, bool], calls: list[Any]
) -> None:
    """Or not twice as far off, where the numbers of a row differ by thousands."""
    m, n, depth = shape
    for spread, most in (0, 1.2), (1, 2):
        left = draw(m, depth, turned=turned[0], spread=spread)
        right = draw(n, depth, seed=1, turned=turned[1], spread=spread)
        exact = left.double() @ right.double().T
        for number in (1, 2, 3):
            with threads(number):
                assert off(product(left, right, 3), exact) < most * off(left @ right.T, exact)
                assert 1e-6 < off(product(left, right, 2), exact) < 1.2e-4
    assert len(calls) == 12


@pytest.mark.usefixtures("tiles", "small")
@pytest.mark.parametrize("where", [(3,), (3, 70), (70, 3), (600,)], ids=str)
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_few_large_numbers_take_no_bits_from_the_others(
    where: tuple[int, ...], sides: tuple[bool, bool], turned: bool
) -> None:
    """Such as a transformer's few massive activations. What meets them is zero for one half of the
    rows and columns, where the small ones are all there is."""
    left, right = draw(70, 650, turned=turned, spread=0), draw(90, 650, seed=1, spread=0)
    for index, (x, other) in enumerate(((left, right), (right, left))):
        if sides[index]:
            at = where[index % len(where)]
            x[:, at], other[len(other) // 2 :, at] = 1000 * x[:, at], 0
    exact, torchs = left.double() @ right.double().T, left @ right.T
    three, two = (product(left, right, digits) for digits in (3, 2))
    for part in [(rows, columns) for rows in (HALF, REST) for columns in (HALF, REST)]:
        assert off(three[part], exact[part]) < max(5e-6, 1.2 * off(torchs[part], exact[part]))
        assert off(two[part], exact[part]) < 256 * 5e-6


@pytest.mark.usefixtures("tiles", "small")
def test_a_row_is_the_same_to_the_bit_whatever_is_beside_it() -> None:
    left, right = draw(700, 520), draw(300, 520, seed=1)
    whole = product(left, right, 3)
    for number in (1, 2, 3):
        with threads(number):
            assert torch.equal(product(left, right, 3), whole)
            assert torch.equal(product(left[37:70], right, 3), whole[37:70])
            assert torch.equal(product(left, right[5:41], 3), whole[:, 5:41])


@pytest.mark.usefixtures("tiles", "small")
@pytest.mark.parametrize("sizes", [(64,), (64, 97), (320, 32, 41), (32, 2080, 64)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_layers_that_read_the_same_are_each_what_it_is_alone(
    sizes: tuple[int, ...], turned: bool, calls: list[Any]
) -> None:
    """To the bit: outputs, and the gradient of each weight; that of what is read in another sum."""
    layers = [draw(size, 130, seed=i, turned=turned) for i, size in enumerate(sizes)]
    slopes = [draw(75, size, seed=9 + i) for i, size in enumerate(sizes)]
    for number in (1, 2, 3):
        with threads(number), cutting(3):
            made: list[list[Tensor]] = []
            for groups in ([*range(len(sizes))],), tuple([i] for i in range(len(sizes))):
                x = draw(75, 130, seed=5).requires_grad_()
                weights = [weight.clone().requires_grad_() for weight in layers]
                outs = [
                    out
                    for group in groups
                    for out in products._together(x, [(weights[i], None) for i in group])
                ]
                torch.autograd.backward(outs, slopes)
                assert x.grad is not None
                made.append([x.grad, *outs, *(w.grad for w in weights if w.grad is not None)])
        (one, *together), (other, *alone) = made
        assert all(map(torch.equal, together, alone))
        assert off(one, other.double()) < 1e-6
    # Together: one call there, one back for the weights, and one for each part of the sum.
    assert len(calls) == 3 * (2 + len(sizes) + 3 * len(sizes))


@pytest.mark.usefixtures("tiles", "small")
def test_layers_whose_rows_are_no_strips_are_made_one_by_one(calls: list[Any]) -> None:
    x, slim, wide = draw(75, 130), draw(33, 130, seed=1), draw(64, 130, seed=2)
    with cutting(3):
        found = products._together(x, [(slim, None), (wide, None)])
    assert [torch.equal(a, product(x, b, 3)) for a, b in zip(found, (slim, wide), strict=True)]
    assert len(calls) == 4


@pytest.mark.usefixtures("tiles", "small")
def test_layers_that_others_changed_are_asked_themselves() -> None:
    x = draw(75, 64)
    body = nn.ModuleList(nn.Linear(64, 64, bias=i > 0) for i in range(3))
    products.adopt(body)
    with cutting(3), torch.no_grad():
        plain = linears(x, [*body])
        assert all(torch.equal(a, layer(x)) for a, layer in zip(plain, body, strict=True))
        body[1].register_forward_hook(lambda *_: torch.zeros(1))
        assert [len(out) for out in linears(x, [*body])] == [75, 1, 75]


@pytest.mark.usefixtures("tiles", "small")
@pytest.mark.parametrize("depth", [100, 1100])
def test_more_is_added_to_what_is_there(depth: int, calls: list[Any]) -> None:
    left, right, start = draw(70, depth), draw(97, depth, seed=1), draw(70, 97, seed=2)
    out = start.clone()
    multiply(out, left, right, 3, more=True)
    assert off(out, start.double() + left.double() @ right.double().T) < 1e-6
    multiply(out, left, right, 3)
    assert torch.equal(out, product(left, right, 3))
    bias = draw(97, 1, seed=3).flatten()
    assert torch.equal(product(left, right, 3, bias), out + bias)
    assert len(calls) == 4


@pytest.mark.usefixtures("tiles", "small")
def test_a_sum_that_lies_by_columns_is_left_to_torch(calls: list[Any]) -> None:
    left, right, out = draw(70, 100), draw(97, 100, seed=1), draw(70, 97, seed=2, turned=True)
    multiply(out, left, right, 3)
    assert off(out, left.double() @ right.double().T) < 1e-6
    assert not calls


@pytest.mark.usefixtures("tiles")
def test_nothing_is_missing_where_there_are_fewer_threads_than_asked_for() -> None:
    code = """if True:
        import torch
        from truing.models.products import product
        torch.set_num_threads(3)
        left, right = torch.randn(600, 256), torch.randn(256, 256)
        off = product(left, right, 3) - left @ right.T
        assert float(off.abs().max()) < 1e-3, off
    """
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.usefixtures("tiles", "small")
def test_odd_numbers() -> None:
    """NaN stays where it is; an infinite number makes NaN of its sums; zeros stay zeros."""
    left, right = draw(64, 64), draw(64, 64, seed=1)
    left[3, 5], left[7, 9], left[11] = float("nan"), float("inf"), 0
    found = product(left, right, 3)
    assert found[[3, 7]].isnan().all()
    assert not found[11].any()
    rest = [i for i in range(64) if i not in (3, 7)]
    assert found[rest].isfinite().all()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    ("left", "right"),
    [
        (draw(600, 64), draw(63, 64)),  # too thin
        (draw(127, 256), draw(256, 256)),  # too little work
        (draw(600, 256).double(), draw(256, 256).double()),
        (draw(600, 512)[:, ::2], draw(256, 256)),  # nothing lies side by side
    ],
)
def test_what_does_not_fit_is_left_to_torch(left: Tensor, right: Tensor, calls: list[Any]) -> None:
    assert torch.equal(product(left, right, 3), F.linear(left, right))
    assert not calls
    whole = draw(600, 256), draw(256, 256, seed=1)
    assert torch.equal(product(*whole, 0), F.linear(*whole))
    assert not calls
    product(*whole, 3)
    assert len(calls) == 1


@pytest.mark.usefixtures("tiles", "small")
def test_without_memory_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "call", lambda *_: 0)
    left, right = draw(70, 100), draw(97, 100, seed=1)
    assert torch.equal(product(left, right, 3), left @ right.T)


@pytest.mark.usefixtures("tiles", "small")
@pytest.mark.parametrize("kind", ["linear", "bias", "conv"])
def test_a_layer_and_its_gradients_are_float32s(kind: str, calls: list[Any]) -> None:
    layer: nn.Module = (
        nn.Linear(100, 70, bias=kind == "bias") if kind != "conv" else Conv1D(70, 100)
    )
    products.adopt(layer)
    assert type(layer) is (Turned if kind == "conv" else Linear)
    x = draw(2, 40, 100).requires_grad_()

    def ways() -> list[Tensor]:
        out = layer(x)
        out.backward(torch.linspace(0.1, 1, out.numel()).view_as(out).to(out.dtype))
        return [out.detach(), *(leaf.grad for leaf in (x, *layer.parameters()))]  # pyright: ignore

    with cutting(3):
        ours = ways()
    assert len(calls) == 3
    x = x.detach().double().requires_grad_()
    layer.double()
    layer.zero_grad()
    for one, other in zip(ours, ways(), strict=True):
        assert off(one, other) < 1e-6
    assert len(calls) == 3  # nothing is cut outside, nor in float64


@pytest.mark.usefixtures("tiles", "small")
def test_only_what_is_asked_for_has_a_gradient(calls: list[Any]) -> None:
    x, weight = draw(70, 100), draw(80, 100, seed=1)
    for wants in (x, weight):
        one, other = (t.clone().requires_grad_(t is wants) for t in (x, weight))
        with cutting(3):
            linear(one, other, None).sum().backward()
        assert [t.grad is not None for t in (one, other)] == [wants is x, wants is weight]
    assert len(calls) == 4


@pytest.mark.usefixtures("tiles", "small")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_model_by_digits_is_as_near_to_float64_as_without(
    tmp_path: Path, kind: str, calls: list[Any]
) -> None:
    folder = tiny_folder(tmp_path, kind)
    rows = [Tokens(tuple(range(1, 12)), tuple(range(20, 20 + n))) for n in (9, 30, 17)]

    def learnt(dtype: str, digits: int) -> Tensor:
        policy = load_policy(folder, Loading(dtype=dtype))
        with cutting(digits):
            found = logp(policy, policy.place(rows))
            found.sum().backward()
        slopes = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        return torch.cat([found.detach().flatten(), *slopes])

    exact = learnt("float64", 3)
    assert not calls
    plain, ours = learnt("float32", 0), learnt("float32", 3)
    assert len(calls) > 20
    assert off(ours, exact) < 1.5 * off(plain, exact) < 1e-5


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("rows", [4, 5, 15, 16, 31, 48])
@pytest.mark.parametrize(("n", "depth"), [(512, 128), (300, 513), (1001, 75)])
def test_a_few_rows_are_float32_and_the_same_in_any_company(
    rows: int, n: int, depth: int, calls: list[Any]
) -> None:
    x, weight = draw(rows, depth), draw(n, depth, seed=1)
    exact = x.double() @ weight.double().T
    with torch.inference_mode():
        for number in (1, 2):
            with threads(number):
                found = linear(x, weight, None)
                assert off(found, exact) < 3e-7
                assert torch.equal(linear(x[:4], weight, None), found[:4])
                assert torch.equal(linear(x, weight, found[0]), found + found[0])
    assert len(calls) == 6


@pytest.mark.usefixtures("few")
def test_few_are_only_those_for_which_it_pays(calls: list[Any]) -> None:
    weight = draw(300, 300)
    with torch.inference_mode():
        for x, of in [
            (draw(49, 300), weight),
            (draw(8, 300).double(), weight.double()),
            (draw(8, 300, turned=True), weight),
            (draw(8, 300), weight.T),
            (draw(2, 8, 300), weight),
            (draw(8, 250), draw(250, 250)),
        ]:
            assert torch.equal(linear(x, of, None), F.linear(x, of))
    assert torch.equal(linear(draw(8, 300), weight, None), F.linear(draw(8, 300), weight))
    assert not calls


def test_what_others_have_replaced_stays() -> None:
    class Own(nn.Linear):
        pass

    body = nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.Linear(2, 2))
    body[2].forward = lambda x: x  # pyright: ignore
    products.adopt(body)
    assert [type(layer) for layer in body] == [Linear, Own, nn.Linear]
    assert [products.is_linear(layer) for layer in body] == [True, False, True]


def test_what_is_cut_is_told_inside_alone() -> None:
    with cutting(3):
        assert products.digits_here() == 3
        with pytest.raises(KeyError), cutting(2):
            raise KeyError
        assert products.digits_here() == 3
    assert products.digits_here() == 0
