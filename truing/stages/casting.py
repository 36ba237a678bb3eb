"""Who takes part in online learning: policy, critic, reference, rewards and prompts.

All of it is loaded and checked against each other before anything is sampled.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import Dataset, load
from truing.data.layout import Layout, Tokens
from truing.data.schema import Demonstration, Prompt
from truing.lineage import Parent
from truing.models.actor import ActorCritic, shared_head
from truing.models.heads import CostModel, RewardModel, ValueModel, load_value_model
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp
from truing.models.roles import Backbone, Role, Unfit, wearing
from truing.rewards import ModelCost, ModelReward, Reward, load_cost, load_reward, score
from truing.stages import setup
from truing.stages.preference import reference_policy
from truing.stages.rollout import Prompted, encode_prompts
from truing.stages.sft import encode_rows


class Cast(NamedTuple):
    """Everyone in the play, and their parents in the run's records besides the policy."""

    actor: ActorCritic
    reference: Policy | None  # None: the policy itself, its adapters switched off
    rewards: list[Reward]
    cost: Reward | None
    encoder: Encoder
    prompts: list[Prompted]
    held_out: list[Prompted]
    ptx: list[Tokens]
    parents: list[Parent]

    @property
    def judges(self) -> list[Reward]:
        """The rewards, and the cost behind them if there is one."""
        return self.rewards + ([self.cost] if self.cost else [])

    @property
    def onlookers(self) -> dict[str, nn.Module]:
        """The models that are not trained, by their roles."""
        judges = [reward.model for reward in self.rewards if isinstance(reward, ModelReward)]
        several = len(judges) > 1
        roles: dict[str, nn.Module] = {
            f"reward {i}" if several else "reward": model for i, model in enumerate(judges, 1)
        }
        roles |= {"cost": self.cost.model} if isinstance(self.cost, ModelReward) else {}
        return roles | ({"reference": self.reference} if self.reference else {})

    def reference_logp(self, layout: Layout, temperature: float) -> Tensor:
        """Log-probs (B, T) of the scored tokens under the reference policy."""
        if self.reference is not None:
            return logp(self.reference, layout, temperature)
        with wearing(self.actor.policy.network, ()):
            return logp(self.actor.policy, layout, temperature)


def casting(
    config: Any, dataset: Dataset[Prompt], held_out: Dataset[Prompt] | None, *, critic: bool
) -> Cast:
    """Load everyone. Raises ValueError where they do not go together.

    A reward that is a function or a rule is called once, on two made-up answers, in a dry run too.
    """
    policy = load_policy(config.model_name_or_path, Loading.of(config))
    encoder = setup.encoder(config, policy)
    prompts = encode_prompts(dataset, encoder, config.response_length)
    if not prompts:
        raise ValueError(
            f"no prompt of {dataset.name} leaves room for {config.response_length} tokens of a "
            f"response within {encoder.max_length}: lower response_length, shorten the prompts, or "
            "raise max_length, as far as the model's context goes"
        )
    with setup.apart(encoder, "evaluation"):
        shown = encode_prompts(held_out, encoder, config.response_length) if held_out else []
    plain = Loading.of(config).beside()
    setup.adapt(config, policy)
    backbone = Backbone(policy) if config.use_peft else None
    rewards, cost = judged(config, backbone, plain)
    asked = [*zip(config.reward, rewards, strict=True), *([(config.cost, cost)] if cost else [])]
    for name, reward in asked:
        if isinstance(reward, ModelReward):
            reward.batch_size = config.local_rollout_forward_batch_size
            check_reads(name, reward, [*prompts, *shown])
        elif prompts:
            try_out(name, reward, prompts)
    judges = {
        name: reward
        for name, reward in zip(config.reward, rewards, strict=True)
        if isinstance(reward, ModelReward)
    }
    chat = any(not isinstance(p.text, str) for p in prompts)
    value = (
        critic_of(config, policy, judges, encoder, plain, backbone, chat=chat) if critic else None
    )
    reference, parents = onlooker(config, policy)
    if isinstance(value, ValueModel) and not isinstance(value.network, Role):
        setup.adapt(config, value)
    ptx, origins = pretraining_rows(config, encoder)
    parents += [*(Parent.of("reward", name) for name in config.reward), *origins]
    parents += [Parent.of("cost", config.cost)] if config.cost else []
    if critic and config.value_model not in ("auto", "policy", "reward"):
        parents.append(Parent.of("value", config.value_model))
    actor = ActorCritic(
        policy,
        value,
        entropy_counts=config.entropy_coef > 0,
        readers=[reference] if reference else [],
    )
    return Cast(actor, reference, rewards, cost, encoder, prompts, shown, ptx, parents)


def judged(
    config: Any, backbone: Backbone | None, plain: Loading
) -> tuple[list[Reward], Reward | None]:
    """The rewards, and the cost if there is one: adapters on the policy's weights where they were
    trained on the same, which is told, else models of their own."""

    def role(source: str, name: str) -> RewardModel | None:
        if backbone is None or not Path(source).is_dir():
            return None
        found = backbone.reward(source, name, plain)
        if isinstance(found, Unfit):
            console.say(f"{console.plain(source)} has weights of its own: {found.reason}")
            return None
        console.say(f"{console.plain(source)} is an adapter on the policy's weights")
        return found

    rewards: list[Reward] = []
    for i, source in enumerate(config.reward, 1):
        found = role(source, f"reward_{i}" if len(config.reward) > 1 else "reward")
        rewards.append(load_reward(source, plain) if found is None else ModelReward(found))
    if not config.cost:
        return rewards, None
    found = role(config.cost, "cost")
    # Another kind is refused in words there.
    own = load_cost(config.cost, plain) if not isinstance(found, CostModel) else ModelCost(found)
    return rewards, own


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
        # Documents may be long: it is prompts that must not be cut.
        found = encode_rows(rows, replace(encoder, truncation_mode="keep_start"))
    if not found:
        raise ValueError(
            f"no row of {rows.name} can be used ({encoder.told}): raise max_length, or "
            "name other rows in ptx_dataset_name"
        )
    return found, [rows.parent("pretraining dataset")]


def check_reads(name: str, reward: ModelReward, prompts: Sequence[Prompted]) -> None:
    """Raise ValueError for prompts that a reward model has no room for, or no template."""
    if reward.encoder.chat_template is None and any(not isinstance(p.text, str) for p in prompts):
        raise ValueError(
            f"the prompts are messages, but the tokenizer of the reward model {name} has no chat "
            "template: train it by `truing reward` with a chat_template, which is kept with it, "
            "add one to its folder, or give the prompts as text"
        )
    full = [p for p in prompts if not reward.reads(p.text)]
    if full:
        raise ValueError(
            f"{len(full)} of {len(prompts)} prompts fill the reward model's context of "
            f"{reward.model.context} tokens: leave them out, or use a reward model with a longer "
            "one"
        )


def try_out(name: str, reward: Reward, prompts: Sequence[Prompted]) -> None:
    """Call a reward that is no model once, so that a wrong answer is told before any sampling."""
    texts = [prompts[0].text, prompts[-1].text]
    try:
        score(reward, texts, ["Yes.", "I do not know."])
    except ValueError as error:
        raise ValueError(f"{name}, tried out on two short completions: {error}") from error


def critic_of(
    config: Any,
    policy: Policy,
    judges: Mapping[str, ModelReward],
    encoder: Encoder,
    plain: Loading,
    backbone: Backbone | None,
    *,
    chat: bool,
) -> nn.Module:
    """The value function that ``value_model`` names; ``chat``: whether prompts are messages. With
    LoRA it is an adapter on the policy's weights, unless it starts from a model with its own.

    Raises ValueError unless it reads the policy's tokens, as many as there may be.
    """
    if config.share_backbone:
        return shared_head(policy)
    vocabulary = policy.tokenizer.get_vocab()
    name = value_source(config, judges, encoder, chat=chat)
    if name == "policy" and backbone:
        return backbone.value(None, **setup.lora(config))
    if name == "policy":
        return load_value_model(config.model_name_or_path, Loading.of(config))
    judge = judges[name].model if name in judges else None
    if backbone and judge is not None and isinstance(judge.network, Role):
        value = backbone.value(judge, **setup.lora(config))
    else:
        value = load_value_model(name, plain)
    if value.tokenizer.get_vocab() != vocabulary:
        raise ValueError(
            f"the tokenizer of the value model {name} differs from the policy's, and values are "
            "read token by token: use value_model: policy, or a model with the same tokenizer"
        )
    setup.check_context(f"the value model {name}", value, policy, config, "value_model: policy")
    if chat and value.tokenizer.chat_template != encoder.chat_template:
        console.say(
            f"[yellow]the value model {console.plain(name)} knows another chat template than the "
            "one in which it will read messages here, so its first values may be far off: "
            "value_model: policy starts at 0[/yellow]"
        )
    return value


def value_source(
    config: Any, judges: Mapping[str, ModelReward], encoder: Encoder, *, chat: bool
) -> str:
    """What ``value_model`` comes to: policy, or the name of a model. Falls back aloud."""
    if config.value_model == "reward":
        if not judges:
            raise ValueError(
                f"value_model is reward, but no reward of {config.reward} is a model: use policy"
            )
        return next(iter(judges))
    if config.value_model != "auto":
        return config.value_model
    vocabulary = encoder.tokenizer.get_vocab()
    alike = [n for n, r in judges.items() if r.model.tokenizer.get_vocab() == vocabulary]
    told = encoder.chat_template
    found = [n for n in alike if not chat or judges[n].encoder.chat_template == told]
    if alike and not found:
        console.say(
            f"[yellow]the reward model {console.plain(alike[0])} knows another chat template than "
            "the policy, so as a critic it would misread messages: the critic starts from the "
            "policy instead[/yellow]"
        )
    return next(iter(found), "policy")
