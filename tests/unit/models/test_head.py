"""Log-probs and entropies from hidden states: torch's own, in any slices, with every gradient."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from truing.models import head as module
from truing.models import head_gpu
from truing.models.head import Scaling, figures, plain

HEADS = list(product([False, True], [None, 3.0], [False, True]))


@pytest.mark.parametrize(("bias", "cap", "spread"), HEADS)
def test_slices_and_a_head_of_another_kind_give_the_same(
    bias: bool, cap: float | None, spread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 11, bias=bias).double()
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randint(11, (7,)), torch.randn(2, 7, dtype=torch.float64)
    scaling = Scaling(1.7, cap, 0.8)

    def found(head: nn.Module) -> list[Tensor]:
        linear.zero_grad()
        hidden.grad = None
        told = figures(head, hidden, target, scaling, spread=spread)
        torch.stack([(a * b).sum() for a, b in zip(told, weight, strict=False)]).sum().backward()
        return [*told, hidden.grad, *(p.grad.clone() for p in linear.parameters())]

    raw = linear(hidden) * 1.7
    logits = (raw if cap is None else cap * torch.tanh(raw / cap)) / 0.8
    logp_NV = logits.log_softmax(-1)
    wanted = [logp_NV[range(7), target], -(logp_NV.exp() * logp_NV).sum(-1)][: 1 + spread]
    other = nn.Sequential(linear)
    assert plain(linear)
    assert not plain(other)
    whole = found(other)
    for one, two in zip(whole, wanted, strict=False):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)
    for chunk in (100, 3):
        monkeypatch.setattr(module, "CHUNK", chunk)
        for head in (linear, other):
            for one, two in zip(found(head), whole, strict=True):
                torch.testing.assert_close(one, two, atol=1e-12, rtol=0)

    def both(hidden: Tensor, weight: Tensor) -> Tensor:
        twin = nn.Linear(5, 11, bias=False).double()
        del twin.weight
        twin.weight = weight  # pyright: ignore[reportAttributeAccessIssue]
        return torch.stack(figures(twin, hidden, target, scaling, spread=spread))

    assert torch.autograd.gradcheck(both, (hidden, linear.weight.detach().requires_grad_(True)))


def test_one_buffer_of_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept between the passes: nothing of the size of the logits beyond one slice."""
    linear, hidden = nn.Linear(4, 1000), torch.randn(64, 4, requires_grad=True)
    for chunk, kept in ((64, 1), (16, 0)):
        monkeypatch.setattr(module, "CHUNK", chunk)
        (logp,) = figures(linear, hidden, torch.zeros(64, dtype=torch.long), Scaling())
        node = logp.grad_fn
        held = [node.kept, *node.saved_tensors]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        assert sum(x is not None and x.numel() >= 64_000 for x in held) == kept
        logp.sum().backward()
        assert node.kept is None  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def test_an_impossible_token_has_no_nan() -> None:
    """However steep the loss is."""
    linear = nn.Linear(2, 3).double()
    with torch.no_grad():
        linear.bias[2] = -torch.inf
    hidden = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    told = figures(linear, hidden, torch.tensor([0, 1, 0, 1]), Scaling(), spread=True)
    (3 * torch.stack(told)).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # infinity is what is meant
@pytest.mark.parametrize(("bias", "cap", "spread"), HEADS)
@pytest.mark.parametrize("words", [11, 4096 + 5])
def test_kernels_of_a_gpu_give_the_same(
    words: int, bias: bool, cap: float | None, spread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In slices and in one, with a token that is impossible."""
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(5, words, bias=bias)
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 3)
        if bias and cap is None:
            linear.bias[3] = -torch.inf
    target = torch.randint(words, (7,), generator=draw)
    target[target == 3] = 4
    weight = torch.randn(2, 7, generator=draw)

    def found(dtype: torch.dtype) -> list[Tensor]:
        head = copy.deepcopy(linear).to(dtype)
        hidden = torch.randn(7, 5, generator=draw.manual_seed(1)).to(dtype).requires_grad_()
        told = figures(head, hidden, target, Scaling(1.7, cap, 0.8), spread=spread)
        torch.stack([(a * b).sum() for a, b in zip(told, weight, strict=False)]).sum().backward()
        assert hidden.grad is not None
        return [*(x.detach() for x in told), hidden.grad, *(p.grad for p in head.parameters())]  # pyright: ignore

    wanted = found(torch.float64)
    reads: list[tuple[int, ...]] = []
    read = head_gpu.read
    monkeypatch.setattr(
        head_gpu, "read", lambda z, *a, **more: (reads.append(z.shape), read(z, *a, **more))[1]
    )
    monkeypatch.setattr(module, "kernels", lambda logits_NV: head_gpu)
    for chunk in (100, 3):
        monkeypatch.setattr(module, "CHUNK", chunk)
        for one, two in zip(found(torch.float32), wanted, strict=True):
            assert float((one - two).norm()) < 3e-5 * float(two.norm())
    assert [shape[0] for shape in reads] == [7, 3, 3, 1]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("towards", [(True, False), (False, True)])
def test_one_gradient_of_two_is_enough(
    towards: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, target = nn.Linear(4, 9), torch.tensor([2, 0, 8])

    def found() -> Tensor:
        hidden = torch.linspace(-2, 2, 12).view(3, 4).requires_grad_()
        told = figures(linear, hidden, target, Scaling(), spread=True)
        sum(x.sum() for x, wanted in zip(told, towards, strict=True) if wanted).backward()  # pyright: ignore
        assert hidden.grad is not None
        return hidden.grad

    wanted = found()
    monkeypatch.setattr(module, "kernels", lambda logits_NV: head_gpu)
    torch.testing.assert_close(found(), wanted, atol=1e-6, rtol=1e-5)
