"""Attention of a GPU: the pieces that its kernel is given, with a kernel of plain torch."""

from typing import Any

import pytest
import torch

from tests import flash
from truing.data.layout import Tokens, flat, spans
from truing.models import varlen
from truing.models.model import sight

ROWS = [
    Tokens((1, 2, 3), (4, 5)),
    Tokens((1, 2, 3), (6,)),
    Tokens((1, 2, 3), (7, 8, 9, 10)),
    Tokens((11, 12), (13, 14, 15)),
    Tokens((11, 12), (16,)),
    Tokens((), (16, 17)),
    Tokens((18, 19), ()),
]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_forward", flash.forward)
    monkeypatch.setattr(varlen, "_backward", flash.backward)


def test_the_call_that_a_table_comes_to() -> None:
    layout = flat(ROWS)
    table = spans(layout.documents_RC, layout.segments_RC, 3)
    plan = varlen.plan_of(table, torch.device("cpu"))
    assert plan.queries.begins.tolist() == [0, 5, 6, 10, 15, 16, 18, 20, 23]
    assert (plan.queries.longest, plan.keys.longest) == (5, 7)
    # Two responses look at the first prompt, and one at the second.
    assert plan.keys.begins.tolist() == [0, 5, 9, 16, 21, 24, 26, 28, 31]
    assert plan.keys_K is not None
    assert plan.copies_C is not None
    assert plan.keys_K.tolist()[:18] == [*range(5), 0, 1, 2, 5, 0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert plan.keys_K[plan.own_N].tolist() == list(range(23))
    assert plan.keys_K[plan.copies_C].tolist() == [0, 1, 2, 0, 1, 2, 10, 11]
    assert plan.often
    assert not varlen.Plan.of(table[:, :, :2], torch.device("cpu")).often
    assert varlen.plan_of(table, torch.device("cpu")) is plan


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rows", [ROWS, ROWS[3:5], ROWS[3:4]], ids=["many", "a pair", "one"])
def test_it_is_attention_under_the_mask_of_the_row(
    kernel: None, groups: int, rows: list[Tokens]
) -> None:
    layout = flat(rows)
    draw = torch.Generator().manual_seed(0)
    cells, more = layout.cells, {"dtype": torch.float64, "generator": draw}
    inputs = [torch.randn(cells, n, 8, **more).requires_grad_() for n in (4, groups, groups)]
    plan = varlen.Plan.of(spans(layout.documents_RC, layout.segments_RC), torch.device("cpu"))
    ours: Any = varlen.Varlen.apply(*inputs, plan, 0.3)
    query, key, value = (x.transpose(0, 1)[None] for x in inputs)
    seen = sight(layout.documents_RC, layout.segments_RC)[:, None]
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True
    )[0].transpose(0, 1)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    ahead = torch.randn(cells, 4, 8, **more)
    grads = [torch.autograd.grad(x, inputs, ahead) for x in (ours, plain)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_16_bits_are_as_near_as_they_tell(kernel: None) -> None:
    layout = flat(ROWS)
    draw = torch.Generator().manual_seed(0)
    exact = [torch.randn(layout.cells, 4, 8, generator=draw) for _ in range(3)]
    plan = varlen.Plan.of(spans(layout.documents_RC, layout.segments_RC), torch.device("cpu"))
    ours: Any = varlen.Varlen.apply(*(x.bfloat16() for x in exact), plan, 0.3)
    wanted: Any = varlen.Varlen.apply(*exact, plan, 0.3)
    assert ours.dtype == torch.bfloat16
    # Eight bits of inputs and result.
    torch.testing.assert_close(ours.float(), wanted, atol=3e-2, rtol=0)


def test_the_kernel_is_for_16_bits_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    for capability, fits in (((9, 0), True), ((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert varlen.fits(gpu, half, 64) == fits
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert not varlen.fits(torch.device("cpu"), half, 64)
    assert not varlen.fits(gpu, torch.float32, 64)
    assert not varlen.fits(gpu, half, 60)
    assert not varlen.fits(gpu, half, 512)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert not varlen.fits(gpu, half, 64)
