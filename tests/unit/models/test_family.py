"""The last layer without the cells that nobody reads: the same figures and gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import tiny_folder
from tests.invariance import double, exact
from truing.data.layout import CELLS, Tokens, flat, padded, shared
from truing.models.actor import ActorCritic
from truing.models.checkpoint import add_lora
from truing.models.family import span
from truing.models.heads import ProcessRewardModel, RewardModel, ValueModel, load_reward_model
from truing.models.loading import Loading
from truing.models.model import Model, Policy, load_policy, logp

# Prompts longer than their responses, of which two share one; a text without a prompt, one
# without a response.
ROWS = [
    Tokens(tuple(range(1, 90)), (4, 5)),
    Tokens(tuple(range(1, 90)), (6,)),
    Tokens(tuple(range(40, 150)), (13, 14, 15)),
    Tokens((), (16, 17)),
    Tokens((18, 19), ()),
]
FAMILY = ("llama", "mistral", "qwen2", "qwen3")


def alone(policy: Model) -> Model:
    """Without leaving cells out."""
    policy._trials["tails", policy.device] = False
    return policy


@contextmanager
def read(model: Model) -> Iterator[list[int]]:
    """The cells that each layer's last product reads."""
    found: list[int] = []
    hooks = [
        layer.mlp.down_proj.register_forward_hook(lambda _, x, __: found.append(x[0].shape[1]))
        for layer in model.core.base_model.layers
    ]
    yield found
    for hook in hooks:
        hook.remove()


def slopes(model: nn.Module, figures: Tensor) -> list[Tensor]:
    """Figures and every gradient."""
    model.zero_grad()
    (figures * torch.arange(1, figures.numel() + 1).view_as(figures)).sum().backward()
    return [figures.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(one: list[Tensor], other: list[Tensor], error: float) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert float((mine - theirs).norm()) <= error * float(theirs.norm()) + 1e-12


@pytest.mark.parametrize("name", FAMILY)
def test_log_probs_and_gradients_are_those_of_every_cell(name: str, tmp_path: Path) -> None:
    changed = {"sliding_window": None} if name == "mistral" else {}
    folder = tiny_folder(tmp_path / "m", name, **changed)
    one, other = (load_policy(folder, Loading(dtype="float64")) for _ in range(2))
    exact(one), exact(other)
    alone(other)
    layout = flat(ROWS)
    with double(), read(one) as cells:
        mine = slopes(one, logp(one, layout, 0.7))
    # Seen while it is tried out, too: two small texts.
    assert cells[-2:] == [layout.cells + -layout.cells % CELLS, CELLS]
    with double(), read(other) as cells:
        same(mine, slopes(other, logp(other, layout, 0.7)), 1e-9)
    assert cells[-2:] == [layout.cells + -layout.cells % CELLS] * 2


@pytest.mark.parametrize("place", [flat, shared])
def test_scores_values_and_steps(place: Any, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "llama")
    for kind in (RewardModel, ValueModel, ProcessRewardModel):
        made = load_reward_model(folder, Loading(dtype="float64"))
        exact(made)
        model = kind(made.network, made.tokenizer)
        # A step reward model has one figure more than there are tokens; behind it is filling.
        mask = padded(ROWS).mask_BT
        ends = nn.functional.pad(mask, (1, 0), value=True)
        with double():
            one, other = (
                found[ends] if kind is ProcessRewardModel else found
                for found in (model(place(ROWS)), model(padded(ROWS)))
            )
            same(slopes(model, one), slopes(model, other), 1e-9)
        assert model._trials["tails", model.device]


def test_a_score_reads_its_own_cell_alone(tmp_path: Path) -> None:
    model = load_reward_model(tiny_folder(tmp_path / "m", "llama"))
    layout = flat([Tokens(tuple(range(1, 90)), tuple(range(1, 80))) for _ in range(2)])
    assert (layout.tails.count, layout.ends.count) == (2 * 79 + 1, 2)
    with read(model) as cells:
        model(layout)
    assert cells[-1] == CELLS < cells[-2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_fewer_bits(dtype: str, tmp_path: Path) -> None:
    """By the attention in C, where heads are as wide as a register: it leaves out queries too."""
    folder = tiny_folder(tmp_path / "m", "llama", head_dim=16)
    one, other = (load_policy(folder, Loading(dtype=dtype)) for _ in range(2))
    alone(other)
    figures = [slopes(model, logp(model, flat(ROWS))) for model in (one, other)]
    assert one._trials["tails", one.device]
    same(*figures, 1e-5 if dtype == "float32" else 3e-2)
    assert all(bool(x.isfinite().all()) for x in figures[0])


def test_with_adapters_checkpoints_and_a_critic_on_the_policy(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "llama")
    one, other = (load_policy(folder, Loading(dtype="float64")) for _ in range(2))
    found: list[list[Tensor]] = []
    for model in (one, alone(other)):
        exact(model)
        add_lora(model, r=2, alpha=4, dropout=0.0, targets=["q_proj", "o_proj", "up_proj"], seed=1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
        model.core.activation_checkpointing_enable()
        head = nn.Linear(model.core.config.hidden_size, 1, dtype=torch.float64)
        nn.init.constant_(head.weight, 0.1)
        nn.init.zeros_(head.bias)
        actor = ActorCritic(model, head, entropy_counts=True).train()
        with double():
            figures = actor(flat(ROWS[:4]))
            assert figures.value is not None
            found.append(slopes(actor, torch.stack([*figures])))
    same(*found, 1e-9)


def test_whoever_is_of_another_family_or_changed_reads_every_cell(tmp_path: Path) -> None:
    other = load_policy(tiny_folder(tmp_path / "gpt2", "gpt2"))
    other(flat(ROWS[3:]))
    assert other.reads_spans
    assert not other._trials["tails", other.device]
    policy = load_policy(tiny_folder(tmp_path / "m", "llama"))
    last = policy.core.base_model.layers[-1]
    kind = type(last)
    span(policy.core)  # once is enough
    assert type(last) is kind
    changed = load_policy(tmp_path / "m")
    layer = changed.core.base_model.layers[-1]
    layer.__class__ = kind.__bases__[0]
    layer.forward = layer.forward  # as hooks of other libraries do it
    wanted = logp(policy, flat(ROWS))
    again = Policy(changed.network, changed.tokenizer)
    assert type(again.core.base_model.layers[-1]) is kind.__bases__[0]
    assert torch.allclose(logp(again, flat(ROWS)), wanted, atol=1e-5)
    assert not again._trials["tails", again.device]
