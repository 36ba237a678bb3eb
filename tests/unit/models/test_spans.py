"""Attention by spans in C: what float64 and a mask give, on one thread or two; and who has it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from truing.models import spans
from truing.models.attention import attend

HALF = torch.bfloat16
# Lengths around a block's and a register's; texts of one token; a prompt that stands elsewhere.
TABLES = {
    "one token": [(0, 1, 0, 0)],
    "odd": [(0, 77, 0, 0), (77, 96, 0, 61), (96, 97, 0, 61), (97, 230, 0, 61), (230, 233, 0, 0)],
    "whole": [(0, 128, 0, 0), (128, 192, 0, 64), (192, 256, 0, 64), (256, 272, 0, 0)],
    "long prompt": [(0, 131, 0, 0), (131, 133, 0, 130), (133, 198, 0, 130)],
    "prompt behind": [(0, 9, 20, 61), (9, 20, 20, 61), (20, 61, 0, 0)],
    "prompt of two spans": [(0, 9, 0, 0), (9, 20, 0, 0), (20, 61, 3, 17), (61, 70, 0, 0)],
}


@pytest.fixture(autouse=True)
def _library(compiler: None) -> None:
    flags = Path("/proc/cpuinfo")
    if not (flags.exists() and "avx512dq" in flags.read_text()):
        pytest.skip("this CPU has no AVX-512")


def table(name: str) -> Tensor:
    return torch.tensor(TABLES[name])[None, None]


def draw(cells: int, heads: int, kept: int, width: int, scale: float = 1.0) -> list[Tensor]:
    """query, key, value (1, H, N, D), as positions leave them, and a slope (1, N, H, D)."""
    noise = torch.Generator().manual_seed(cells + heads + width)
    sizes = heads, kept, kept, heads
    query, *more = (torch.randn(1, cells, many, width, generator=noise) for many in sizes)
    return [(query * scale).transpose(1, 2), *(x.transpose(1, 2) for x in more[:2]), more[2]]


def masked(query: Tensor, key: Tensor, value: Tensor, where: Tensor) -> Tensor:
    """The same by a mask over the whole row: (1, N, H, D)."""
    cells, groups = query.shape[2], query.shape[1] // key.shape[1]
    seen = torch.zeros(cells, cells, dtype=torch.bool)
    for start, stop in where[0, 0, :, :2].tolist():
        seen[start:stop, start:stop] = True
    seen.tril_()
    for start, stop, top, end in where[0, 0].tolist():
        seen[start:stop, top:end] = True
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    score = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return (score.softmax(-1) @ value).transpose(1, 2)


def ways(inputs: list[Tensor], where: Tensor, threads: int = 1) -> list[Tensor]:
    """By `attend`: what comes out, and the gradients of query, key and value."""
    query, key, value = leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, _ = attend(torch.nn.Module(), query, key, value, where)
        return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]
    finally:
        torch.set_num_threads(before)


def exactly(inputs: list[Tensor], where: Tensor) -> list[Tensor]:
    query, key, value = leaves = [x.detach().double().requires_grad_() for x in inputs[:3]]
    out = masked(query, key, value, where)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3].double())]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-9))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("heads", "kept", "width"), [(2, 2, 16), (4, 2, 64), (3, 1, 80)])
def test_it_is_attention_under_a_mask_in_float64(
    name: str, heads: int, kept: int, width: int
) -> None:
    where = table(name)
    inputs = draw(int(where[..., 1].max()), heads, kept, width)
    assert spans.serves(*inputs[:3])
    one, two = (ways(inputs, where, threads) for threads in (1, 2))
    for ours, again, wanted in zip(one, two, exactly(inputs, where), strict=True):
        assert torch.equal(ours, again)
        # A single token sees but itself: its query and key have gradients of 0.
        torch.testing.assert_close(ours.double(), wanted, atol=2e-5, rtol=2e-5)
        assert relative(ours, wanted) < 2e-6 or not wanted.any()


def test_in_16_bits_only_what_is_given_and_made_is_rounded() -> None:
    where = table("odd")
    inputs = [x.to(HALF) for x in draw(233, 4, 2, 64)]
    assert spans.serves(*inputs[:3])
    for ours, wanted in zip(ways(inputs, where), exactly(inputs, where), strict=True):
        assert ours.dtype == HALF
        assert relative(ours, wanted) < 4e-3


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_scores_far_apart_make_no_nan(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    where = table("odd")
    inputs = draw(233, 2, 2, 64, scale)
    found = ways(inputs, where)
    monkeypatch.setattr(spans, "_library", lambda dtype: None)
    theirs = ways(inputs, where)
    for ours, other, wanted in zip(found, theirs, exactly(inputs, where), strict=True):
        assert ours.isfinite().all()
        # A score of 1e4 has an error of 1e-3 already, and what it makes one as large.
        assert relative(ours, wanted) < 3 * relative(other, wanted) + 1e-6


def test_a_change_in_one_text_moves_no_bit_of_another() -> None:
    where = table("odd")
    before = draw(233, 2, 2, 64)
    inputs = [x.clone() for x in before]
    for x in inputs[:3]:
        x[:, :, 96:97] = torch.nan
        x[:, :, 230:] = 1e30
    found, wanted = ways(inputs, where), ways(before, where)
    others = [*range(96), *range(97, 230)]
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        cells = (x[:, others] if i == 0 else x[:, :, others] for x in (one, other))
        one, other = cells
        # What looks at a prompt is in the gradients of its keys and values.
        if i > 1:
            one, other = one[:, :, 61:], other[:, :, 61:]
        assert torch.equal(one, other)
    assert found[0][:, 96].isnan().all()
    # Where it stands in the row and what else is there is the same to a text.
    alone = [x[:, :, 97:230] for x in before[:3]]
    query, key, value = [
        torch.cat([x[:, :, :61], y], 2) for x, y in zip(before, alone, strict=False)
    ]
    row = torch.tensor([[[[0, 61, 0, 0], [61, 194, 0, 61]]]])
    moved = attend(torch.nn.Module(), query, key, value, row)[0][:, 61:]
    assert torch.equal(moved, wanted[0][:, 97:230])


def test_torch_does_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    where = table("long prompt")
    for width, dtype in ((24, torch.float32), (272, torch.float32), (64, torch.float64)):
        inputs = [x.to(dtype) for x in draw(198, 4, 2, width)]
        assert not spans.serves(*inputs[:3])
        for ours, wanted in zip(ways(inputs, where), exactly(inputs, where), strict=True):
            assert relative(ours, wanted) < 2e-6
    inputs = draw(198, 4, 2, 64)
    ours = ways(inputs, where)
    monkeypatch.setattr(spans, "_library", lambda dtype: None)
    assert not spans.serves(*inputs[:3])
    for one, other in zip(ours, ways(inputs, where), strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_numbers_that_lie_apart_are_read_too() -> None:
    where = table("long prompt")
    inputs = draw(198, 4, 2, 64)
    spread = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs[:3]]
    for one, other in zip(ways(inputs, where), ways([*spread, inputs[3]], where), strict=True):
        assert torch.equal(one, other)
