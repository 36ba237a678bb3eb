"""Policy and critic in one module: the figures are those of the parts, and so are the gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from truing.data.layout import Tokens, flat, packed, padded
from truing.models import head
from truing.models.actor import ActorCritic, shared_head
from truing.models.heads import load_value_model
from truing.models.model import Policy, load_policy, logp, measure_tokens

ROWS = [Tokens((1, 2), (3, 4, 5)), Tokens((6,), (7,)), Tokens((8, 9), (1, 2))]


@pytest.fixture
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


def critics(policy: Policy, folder: Path) -> list[nn.Module]:
    """One of each kind, with heads that say something."""
    head, beside = shared_head(policy), load_value_model(folder)
    torch.manual_seed(0)
    nn.init.normal_(head.weight)
    nn.init.normal_(beside.core.score.weight)
    return [head, beside]


def test_figures_are_those_of_the_parts(policy: Policy, tiny: Path) -> None:
    layout = padded(ROWS)
    for critic in critics(policy, tiny):
        actor = ActorCritic(policy, critic)
        with torch.no_grad():
            found = actor(layout, 0.7)
            assert found.value is not None
            torch.testing.assert_close(found.logp, logp(policy, layout, 0.7))
            torch.testing.assert_close(found.value, actor.value(layout))
            body = policy if isinstance(critic, nn.Linear) else critic
            head = critic if isinstance(critic, nn.Linear) else critic.core.score
            for b, row in enumerate(ROWS):
                # The value before a token is read where that token is predicted; so is the entropy.
                ids = torch.tensor([[*row.prompt, *row.response]])
                hidden = body.core.base_model(input_ids=ids).last_hidden_state[0]
                logits = policy.core(input_ids=ids).logits[0] / 0.7
                spread = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
                for t in range(len(row.response)):
                    place = len(row.prompt) + t - 1
                    torch.testing.assert_close(found.value[b, t], head(hidden[place])[0])
                    torch.testing.assert_close(
                        found.entropy[b, t], spread[place], atol=1e-5, rtol=0
                    )
            assert not found.value[~layout.mask_BT].any()
            assert actor(layout, foresee=False).value is None


def test_padding_and_packing_change_no_value(policy: Policy, tiny: Path) -> None:
    for critic in critics(policy, tiny):
        actor = ActorCritic(policy, critic)
        with torch.no_grad():
            wanted = actor.value(padded(ROWS))
            torch.testing.assert_close(
                actor.value(packed(ROWS, capacity=16)), wanted, atol=1e-5, rtol=0
            )
            filled = actor.value(padded(ROWS, fill=77))
            assert torch.equal(filled, wanted)


@pytest.mark.parametrize("place", [padded, flat])
def test_responses_without_a_token_have_no_value(policy: Policy, tiny: Path, place: Any) -> None:
    layout = place([Tokens((1, 2, 3), ()), Tokens((4, 5), ())])
    for critic in critics(policy, tiny):
        found = ActorCritic(policy, critic)(layout)
        assert found.value.shape == found.logp.shape == layout.mask_BT.shape
        assert not found.value.any()


@pytest.mark.parametrize("counts", [False, True])
def test_the_entropy_has_a_gradient_only_where_it_counts(policy: Policy, counts: bool) -> None:
    actor = ActorCritic(policy, None, entropy_counts=counts)
    found = actor(padded(ROWS))
    assert found.value is None
    assert found.entropy.requires_grad == counts
    if counts:
        (slope,) = torch.autograd.grad(found.entropy.sum(), policy.core.lm_head.weight)
        assert slope.any()


def test_slices_of_the_head_change_nothing(
    policy: Policy, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures_and_slope() -> tuple[Tensor, Tensor]:
        actor = ActorCritic(policy, None, entropy_counts=True)
        policy.zero_grad()
        found = actor(padded(ROWS), 1.3)
        (found.logp.sum() + 0.1 * found.entropy.sum()).backward()
        slope = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        return torch.stack([found.logp, found.entropy]).detach(), slope.clone()

    whole, slope = figures_and_slope()
    monkeypatch.setattr(head, "CHUNK", 2)
    parts, cut = figures_and_slope()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(cut, slope, atol=1e-5, rtol=0)


def test_a_shared_head_learns_in_single_precision_at_least(policy: Policy) -> None:
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        body = policy.to(dtype)
        actor = ActorCritic(body, shared_head(body))
        assert actor.critic is not None
        assert {p.dtype for p in actor.critic.parameters()} == {wanted}
        assert actor.value(padded(ROWS)).dtype == torch.float32


def test_one_version_and_every_body(policy: Policy, tiny: Path) -> None:
    head, beside = critics(policy, tiny)
    actor = ActorCritic(policy, beside)
    actor.version += 3
    assert (policy.version, actor.version) == (3, 3)
    assert len(actor.cores) == 2
    assert len(ActorCritic(policy, head).cores) == 1


def test_token_figures_come_in_the_order_of_the_rows(policy: Policy) -> None:
    found = measure_tokens(policy, ROWS, 2, lambda layout: logp(policy, layout))
    for row, figure in zip(ROWS, found, strict=True):
        wanted = logp(policy, padded([row]))[0].detach()
        torch.testing.assert_close(figure, wanted, atol=1e-5, rtol=0)
    assert [len(figure) for figure in found] == [3, 1, 2]
    assert measure_tokens(policy, [], 2, lambda layout: logp(policy, layout)) == []


def test_responses_lie_as_all_can_read_them(policy: Policy, tiny: Path) -> None:
    critic = load_value_model(tiny)
    actor = ActorCritic(policy, critic)
    rows = [Tokens((1, 2, 3), (4, 5)), Tokens((1, 2, 3), (6,))]
    assert actor.place(rows).kind == "flat"
    key = ("spans", critic.device)
    critic._trials[key] = False
    assert actor.place(rows).kind == "shared"
    critic._trials["mask", critic.device] = False
    assert actor.place(rows).kind == "padded"
