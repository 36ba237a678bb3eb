"""Who takes part in online learning: policy, critic, reference, rewards and prompts.

All of it is loaded and checked against each other before anything is sampled.
"""

import copy
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from truing.data.batch import Encoder, Layout, Tokens
from truing.data.formats import Dataset, load
from truing.data.schema import Demonstration, Prompt
from truing.models.actor import ActorCritic, shared_head
from truing.models.heads import ValueModel, load_value_model
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp
from truing.rewards import ModelReward, Reward, load_reward
from truing.run import Parent
from truing.stages import setup
from truing.stages.preference import reference_policy
from truing.stages.rollout import Prompted, encode_prompts
from truing.stages.sft import encode_rows


class Cast(NamedTuple):
    """Everyone in the play, and their parents in the run's records besides the policy."""

    actor: ActorCritic
    reference: Policy | None  # None: the policy itself, its adapters switched off
    rewards: list[Reward]
    encoder: Encoder
    prompts: list[Prompted]
    held_out: list[Prompted]
    ptx: list[Tokens]
    parents: list[Parent]

    @property
    def onlookers(self) -> list[nn.Module]:
        """The models that are not trained."""
        judges = [reward.model for reward in self.rewards if isinstance(reward, ModelReward)]
        return [*judges, *([self.reference] if self.reference else [])]

    def reference_logp(self, layout: Layout, temperature: float) -> Tensor:
        """Log-probs (B, T) of the scored tokens under the reference policy."""
        if self.reference is not None:
            return logp(self.reference, layout, temperature)
        with self.actor.policy.network.disable_adapter():
            return logp(self.actor.policy, layout, temperature)


def casting(
    config: Any, dataset: Dataset[Prompt], held_out: Dataset[Prompt] | None, *, critic: bool
) -> Cast:
    """Load everyone. Raises ValueError where they do not go together."""
    policy = load_policy(config.model_name_or_path, Loading.of(config))
    encoder = setup.encoder(config, policy)
    prompts = encode_prompts(dataset, encoder, config.response_length)
    with setup.apart(encoder, "evaluation"):
        shown = encode_prompts(held_out, encoder, config.response_length) if held_out else []
    plain = Loading.of(config).beside()
    rewards = [load_reward(name, plain) for name in config.reward]
    for reward in rewards:
        check_reads(reward, [*prompts, *shown])
    value = critic_of(config, policy, rewards, plain) if critic else None
    reference, parents = onlooker(config, policy)
    setup.adapt(config, policy)
    if isinstance(value, ValueModel):
        setup.adapt(config, value)
    ptx, origins = pretraining_rows(config, encoder)
    parents += [*(Parent.of("reward", name) for name in config.reward), *origins]
    actor = ActorCritic(policy, value, entropy_counts=config.entropy_coef > 0)
    return Cast(actor, reference, rewards, encoder, prompts, shown, ptx, parents)


def onlooker(config: Any, policy: Policy) -> tuple[Policy | None, list[Parent]]:
    """The reference as a model of its own, which never learns, and the parents it adds; None where
    it is the policy without its adapters."""
    reference, parents = reference_policy(config, policy)
    if reference is policy and config.use_peft:
        return None, parents
    if reference is policy:
        reference = copy.deepcopy(policy)
    reference.eval().requires_grad_(False)
    return reference, parents


def pretraining_rows(config: Any, encoder: Encoder) -> tuple[list[Tokens], list[Parent]]:
    """The rows of the pretraining loss, if there is one, and where they came from."""
    if not config.ptx_dataset_name:
        return [], []
    rows = load(config.ptx_dataset_name, Demonstration)
    with setup.apart(encoder, "pretraining"):
        found = encode_rows(rows, encoder)
    if not found:
        raise ValueError(
            f"no row of {rows.name} can be used ({dict(encoder.counts)}): raise max_length, or "
            "name other rows in ptx_dataset_name"
        )
    return found, [Parent("pretraining dataset", rows.name, rows.sha256, rows.name)]


def check_reads(reward: Reward, prompts: Sequence[Prompted]) -> None:
    """Raise ValueError for prompts that a reward model has no room for, or no template."""
    if not isinstance(reward, ModelReward):
        return
    full = [p for p in prompts if not reward.reads(p.text)]
    if full:
        raise ValueError(
            f"{len(full)} of {len(prompts)} prompts fill the reward model's context of "
            f"{reward.model.context} tokens: leave them out, or use a reward model with a longer "
            "one"
        )


def critic_of(config: Any, policy: Policy, rewards: Sequence[Reward], plain: Loading) -> nn.Module:
    """The value function that ``value_model`` names. Raises ValueError unless it reads the policy's
    tokens, as many as there may be."""
    if config.share_backbone:
        return shared_head(policy)
    vocabulary = policy.tokenizer.get_vocab()
    judges = {
        name: reward
        for name, reward in zip(config.reward, rewards, strict=True)
        if isinstance(reward, ModelReward)
    }
    name, loading = config.value_model, plain
    if name == "auto":
        alike = (n for n, r in judges.items() if r.model.tokenizer.get_vocab() == vocabulary)
        name = next(alike, "policy")
    if name == "reward":
        if not judges:
            raise ValueError(
                f"value_model is reward, but no reward of {config.reward} is a model: use policy"
            )
        name = next(iter(judges))
    if name == "policy":
        name, loading = config.model_name_or_path, Loading.of(config)
    value = load_value_model(name, loading)
    if value.tokenizer.get_vocab() != vocabulary:
        raise ValueError(
            f"the tokenizer of the value model {name} differs from the policy's, and values are "
            "read token by token: use value_model: policy, or a model with the same tokenizer"
        )
    longest = min(n or sys.maxsize for n in (policy.context, config.max_length))
    if (value.context or sys.maxsize) < longest:
        raise ValueError(
            f"the value model {name} has a context of {value.context} tokens, fewer than rows may "
            f"have: set max_length: {value.context}, or use value_model: policy"
        )
    return value
