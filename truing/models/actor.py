"""The policy in training, with its critic where it has one: one module, one forward pass."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from truing.data.layout import Layout, Tokens, flat, padded, shared
from truing.models.family import States
from truing.models.heads import ValueModel
from truing.models.model import Model, Policy
from truing.models.roles import Role


class Figures(NamedTuple):
    """Of each scored token (B, T): log-prob, entropy of its distribution, value if foreseen."""

    logp: Tensor
    entropy: Tensor
    value: Tensor | None


class ActorCritic(nn.Module):
    """A policy and its critic: a `ValueModel` beside it, a linear head on it, or None.

    ``entropy_counts``: whether the entropy has a gradient; if not, it costs no memory.
    ``readers``: models beside it that read the layouts it places (the reference); not part of it.
    """

    def __init__(
        self,
        policy: Policy,
        critic: nn.Module | None,
        *,
        entropy_counts: bool = False,
        readers: Sequence[Model] = (),
    ) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.entropy_counts = entropy_counts
        # In a tuple, where torch does not take them for parts.
        self.readers = tuple(readers)

    @property
    def core(self) -> Any:
        return self.policy.core

    @property
    def tokenizer(self) -> Any:
        return self.policy.tokenizer

    @property
    def cores(self) -> list[Any]:
        """The transformers models in it."""
        critic = [self.critic] if isinstance(self.critic, ValueModel) else []
        own = [model.core for model in critic if not isinstance(model.network, Role)]
        return [self.policy.core, *own]

    @property
    def critics_own(self) -> list[str]:
        """The names of the critic's parameters; a role's adapter lies in the policy's network."""
        role = self.critic.network if isinstance(self.critic, ValueModel) else None
        lent = {id(p) for p in role.adapter().values()} if isinstance(role, Role) else set[int]()
        return [n for n, p in self.named_parameters() if n.startswith("critic.") or id(p) in lent]

    @property
    def version(self) -> int:
        return self.policy.version

    @version.setter
    def version(self, value: int) -> None:
        self.policy.version = value

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def place(self, sequences: Sequence[Tokens]) -> Layout:
        """As `Model.place`: a prompt is read once where policy, critic and readers all can."""
        if all(model.reads_spans for model in self._models):
            return flat(sequences)
        return shared(sequences) if self.shares_prompts else padded(sequences)

    @property
    def _models(self) -> list[Model]:
        critic = [self.critic] if isinstance(self.critic, ValueModel) else []
        return [self.policy, *critic, *self.readers]

    @property
    def shares_prompts(self) -> bool:
        return all(model.shares_prompts for model in self._models)

    @property
    def sharers(self) -> int:
        """How many responses one reading of their prompt serves."""
        return min(model.sharers for model in self._models)

    def forward(self, layout: Layout, temperature: float = 1.0, *, foresee: bool = True) -> Figures:
        """Of the scored tokens at ``temperature``; no value unless it is to ``foresee``."""
        states = self.policy.states(layout)
        logp_BT, entropy_BT = self.policy.figures(states, layout, temperature, spread=True)
        entropy_BT = entropy_BT if self.entropy_counts else entropy_BT.detach()
        idle = self.critic is None or not foresee
        return Figures(logp_BT, entropy_BT, None if idle else self._value(layout, states))

    def value(self, layout: Layout) -> Tensor:
        """Values (B, T) alone."""
        shared = isinstance(self.critic, nn.Linear)
        return self._value(layout, self.policy.states(layout) if shared else None)

    def _value(self, layout: Layout, states: States | None) -> Tensor:
        if isinstance(self.critic, ValueModel):
            return self.critic(layout)
        assert isinstance(self.critic, nn.Linear)
        assert states is not None
        hidden_NH = states.at(*layout.picked_4N[1:3])
        value_N = self.critic(hidden_NH.to(self.critic.weight.dtype)).squeeze(-1).float()
        return layout.spread(value_N)


def shared_head(policy: Policy) -> nn.Linear:
    """A value head for the policy's own hidden states, which foresees nothing yet.

    In float32 at least: small updates of a trained weight are lost in bfloat16.
    """
    weight = next(policy.network.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    width = policy.core.config.get_text_config().hidden_size
    head = nn.Linear(width, 1, device=weight.device, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
