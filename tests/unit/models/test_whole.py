"""A layer as one function: what its modules make, each way; and whoever goes module by module.

Kernels of a GPU are interpreted, and attention is torch's of plain operations (`tests.flash`).
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import flash
from tests.conftest import tiny_folder
from tests.invariance import Norm, double, exact
from truing.data.layout import CELLS, Tokens, flat, padded
from truing.models import gpu, layers_gpu, varlen, whole
from truing.models.checkpoint import add_lora
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp

ROWS = [
    Tokens(tuple(range(1, 30)), (4, 5)),
    Tokens(tuple(range(1, 30)), (6,)),
    Tokens(tuple(range(40, 90)), (13, 14, 15)),
    Tokens((18, 19), ()),
]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "llama, biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
}


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(x.square().mean(-1) + epsilon)
    return x * scale[..., None] * weight, scale


def add_norm(x: Tensor, more: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, ...]:
    return x + more, *norm(x + more, weight, epsilon)


def norm_back(
    ahead: Tensor, x: Tensor, weight: Tensor, scale: Tensor, more: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    normed, slope = x * scale[..., None], ahead * weight
    into = (slope - normed * (slope * normed).mean(-1, keepdim=True)) * scale[..., None]
    return into + more, (ahead * normed).flatten(0, -2).sum(0)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


def gate_back(ahead: Tensor, gate: Tensor, up: Tensor, *, again: bool) -> tuple[Tensor, ...]:
    open = gate.sigmoid()
    slopes = ahead * up * open * (1 + gate * (1 - open)), ahead * gate * open
    return (*slopes, gate * open * up) if again else slopes


def turn(xs: list[Tensor], cosine: Tensor, sine: Tensor, *, back: bool) -> list[Tensor]:
    sign = -1 if back else 1
    return [
        x * cosine[:, :, None]
        + sign * torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sine[:, :, None]
        for x in xs
    ]


# What the kernels compute, of numbers as exact as there are.
EXACT = SimpleNamespace(
    norm=norm, add_norm=add_norm, norm_back=norm_back, gate=gate, gate_back=gate_back, turn=turn
)


Taken = Callable[..., list[int]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Lets a policy's layers go as one function by the kernels given, which it tries out: whether
    it found them good is as ``agree`` says. Then, the cells of each layer that did."""

    def let(policy: Policy, ways: Any = EXACT, *, agree: bool = True) -> list[int]:
        cells, apply = list[int](), whole._Whole.apply
        monkeypatch.setattr(varlen, "_forward", flash.forward)
        monkeypatch.setattr(varlen, "_backward", flash.backward)
        monkeypatch.setattr(varlen, "fits", lambda *_: True)
        monkeypatch.setattr(gpu, "kernels", lambda name, _: ways if name == whole.KERNELS else None)
        monkeypatch.setattr(
            whole._Whole, "apply", lambda x, *more: (cells.append(len(x)), apply(x, *more))[1]
        )
        policy._trials.pop(("whole", policy.device), None)
        assert policy._tried("whole") == agree
        assert cells == [CELLS]
        cells.clear()
        return cells

    return let


def learnt(policy: Policy) -> list[Tensor]:
    """Figures and every gradient."""
    policy.zero_grad()
    found = logp(policy, flat(ROWS), 0.7)
    (found * torch.arange(1, found.numel() + 1).view_as(found)).sum().backward()
    return [found.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]


def made(folder: Path, kind: str, dtype: str) -> Policy:
    policy = load_policy(
        tiny_folder(folder, kind.partition(",")[0], **KINDS[kind]), Loading(dtype=dtype)
    )
    with torch.no_grad():  # biases are 0, and weights of norms 1, before they have learnt
        for i, p in enumerate(policy.parameters()):
            if p.ndim == 1:
                p += 0.1 * torch.randn(p.shape, generator=torch.manual_seed(i)).to(p.dtype)
    return policy


def differences(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    assert len(found) == len(wanted)
    pairs = zip(found, wanted, strict=True)
    return [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]


def together(found: list[Tensor]) -> list[Tensor]:
    """Figures, and all gradients as one."""
    return [found[0], torch.cat([gradient.flatten() for gradient in found[1:]])]


@pytest.mark.parametrize("kind", KINDS)
def test_figures_and_gradients_are_those_of_its_modules(
    kind: str,
    tmp_path: Path,
    taken: Taken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = made(tmp_path / "m", kind, "float64")
    exact(policy)
    # The exact norms count as the family's own.
    monkeypatch.setattr(Norm, "fused", True, raising=False)
    monkeypatch.setattr(
        Norm, "variance_epsilon", property(lambda self: self.epsilon), raising=False
    )
    with double():
        wanted = learnt(policy)
        cells = taken(policy)
        found = learnt(policy)
    # All but the last, which leaves cells out.
    assert len(cells) == policy.core.config.num_hidden_layers - 1 > 0
    assert len(found) == 1 + len(list(policy.parameters()))
    assert max(differences(found, wanted)) < 1e-9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_by_the_kernels_of_a_gpu(dtype: str, tmp_path: Path, taken: Taken) -> None:
    """As near to float64 as module by module."""
    policies = {kind: made(tmp_path / kind, "qwen3", kind) for kind in ("float64", dtype)}
    truth, stock = (together(learnt(policy)) for policy in policies.values())
    cells = taken(policies[dtype], layers_gpu)
    found = together(learnt(policies[dtype]))
    assert cells
    # Triton's interpreter cuts off the bits that do not fit, where a GPU rounds.
    for off, theirs in zip(differences(found, truth), differences(stock, truth), strict=True):
        assert off < 2 * theirs


@pytest.mark.parametrize("again", [False, True])
def test_what_is_frozen_learns_nothing_and_checkpoints_change_nothing(
    again: bool, tmp_path: Path, taken: Taken
) -> None:
    policy = made(tmp_path / "m", "llama, biases", "float32").train()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad = "up_proj" in name or "q_proj.bias" in name
    wanted = learnt(policy)
    cells = taken(policy)
    if again:
        policy.core.activation_checkpointing_enable()
    found = learnt(policy)
    assert len(cells) == (2 if again else 1) * (policy.core.config.num_hidden_layers - 1)
    assert max(differences(found, wanted)) < 1e-5
    assert len(found) == 1 + sum(p.requires_grad for p in policy.parameters())


def hooked(policy: Policy) -> None:
    policy.core.base_model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: None)


def replaced(policy: Policy) -> None:
    attention = policy.core.base_model.layers[0].self_attn
    attention.forward = lambda *a, **k: type(attention).forward(attention, *a, **k)


def adapted(policy: Policy) -> None:
    add_lora(policy, r=2, alpha=4, dropout=0.0, targets=["q_proj"], seed=1)


def of_other_bits(policy: Policy) -> None:
    policy.core.base_model.layers[0].input_layernorm.bfloat16()


@pytest.mark.parametrize("change", [hooked, replaced, adapted, of_other_bits])
def test_a_changed_layer_goes_module_by_module(
    change: Callable[[Policy], None], tmp_path: Path, taken: Taken
) -> None:
    policy = made(tmp_path / "m", "llama", "float32")
    cells = taken(policy)
    change(policy)
    learnt(policy)
    # Adapters lie on every layer, the other changes on the first.
    first = 0 if change is adapted else policy.core.config.num_hidden_layers - 2
    assert len(cells) == first


def test_neither_texts_in_rows_nor_autocast_go_this_way(tmp_path: Path, taken: Taken) -> None:
    policy = made(tmp_path / "m", "llama", "float32")
    cells = taken(policy)
    logp(policy, padded(ROWS))
    with torch.autocast("cpu", torch.bfloat16):
        logp(policy, flat(ROWS))
    assert not cells
    logp(policy, flat(ROWS))
    assert cells


def off(ahead: Tensor, *more: Any, **named: Any) -> tuple[Tensor, ...]:
    """A gradient that a tenth is wrong with."""
    return (gate_back(ahead, *more, **named)[0] * 0.9, *gate_back(ahead, *more, **named)[1:])


def the_wrong_way(xs: list[Tensor], cosine: Tensor, sine: Tensor, *, back: bool) -> list[Tensor]:
    return turn(xs, cosine, sine, back=False)


def failing(*_: Any, **__: Any) -> tuple[Tensor, ...]:
    raise NotImplementedError("as a kernel's compiler may")


@pytest.mark.parametrize(
    ("name", "wrong"), [("gate_back", off), ("gate_back", failing), ("turn", the_wrong_way)]
)
def test_kernels_that_are_wrong_or_fail_are_not_used(
    name: str, wrong: Any, tmp_path: Path, taken: Taken
) -> None:
    policy = made(tmp_path / "m", "llama", "float32")
    wanted = learnt(policy)
    cells = taken(policy, SimpleNamespace(**{**vars(EXACT), name: wrong}), agree=False)
    found = learnt(policy)
    assert not cells
    assert max(differences(found, wanted)) == 0


def test_a_layer_with_adapters_is_not_tried(tmp_path: Path, taken: Taken) -> None:
    """It would draw their dropout's numbers, and the first step's come after them."""
    policy = made(tmp_path / "m", "llama", "float32")
    taken(policy)
    adapted(policy)
    policy._trials.pop(("whole", policy.device))
    before = torch.random.get_rng_state()
    assert not policy._tried("whole")
    assert bool((torch.random.get_rng_state() == before).all())


def test_a_gpu_without_memory_is_told(tmp_path: Path, taken: Taken) -> None:
    policy = made(tmp_path / "m", "llama", "float32")

    def full(*_: Any, **__: Any) -> tuple[Tensor, ...]:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        taken(policy, SimpleNamespace(**{**vars(EXACT), "norm": full}))
