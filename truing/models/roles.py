"""Several roles on one backbone: each has LoRA adapters and a head of its own on the same weights.

A policy's adapter is always on; a reward or a value model is a `Role` beside it, which puts its own
adapters on for the length of a pass and takes them off again. The policy without any is what it
was before training. So four roles need the memory of one model and some adapters, and each says
what it would say as a model of its own.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig

from truing.models.checkpoint import ADAPTER, BASE, drawing, fingerprint, widen
from truing.models.heads import KINDS, RewardModel, ValueModel, as_value_model
from truing.models.loading import Loading, load_tokenizer, resolve
from truing.models.model import Policy

# The critic's adapter; the policy's is peft's own "default".
VALUE = "value"
_LORA = re.compile(r"\.lora_\w+?\.(\w+)")


@contextmanager
def wearing(network: Any, names: Sequence[str], *, training: bool | None = None) -> Iterator[None]:
    """``network`` with these adapters on inside, together, and no others; none: as it was before
    any. ``training``: its mode inside, if it is to be another.

    peft's own switches also say which adapters learn; these do not. What is computed again for the
    backward pass, outside, is computed with the same adapters.
    """
    before: list[tuple[Any, Any, bool]] = []
    again: list[tuple[Any, Any]] = []
    mode = network.training
    roles = partial(_recomputed, network, tuple(names), training)
    try:
        for module in network.modules():
            if isinstance(module, BaseTunerLayer):
                before.append((module, module._active_adapter, module._disable_adapters))
                module._active_adapter, module._disable_adapters = list(names), not names
            elif checkpointed := module.__dict__.get("_gradient_checkpointing_func"):
                again.append((module, checkpointed))
                module._gradient_checkpointing_func = partial(checkpointed, context_fn=roles)
        if training is not None and training != mode:
            network.train(training)
        yield
    finally:
        for module, active, off in before:
            module._active_adapter, module._disable_adapters = active, off
        for module, checkpointed in again:
            module._gradient_checkpointing_func = checkpointed
        if network.training != mode:
            network.train(mode)


def _recomputed(network: Any, names: tuple[str, ...], training: bool | None) -> tuple[Any, Any]:
    """What is around a layer's forward pass, and around the same pass when it is done again."""
    return nullcontext(), wearing(network, names, training=training)


class Role(nn.Module):
    """Stands for a network of its own in a `RewardModel`: a head, and adapters on a backbone that
    is another's. Its parameters are the head's; the adapters move and are kept with the backbone.

    ``passes`` counts how often it was asked.
    """

    def __init__(self, backbone: Any, names: tuple[str, ...], config: Any, score: nn.Linear):
        super().__init__()
        # In a tuple, where torch does not take it for a part.
        self._shared = (backbone,)
        self.names, self.config, self.score = names, config, score
        self.passes = 0

    @property
    def backbone(self) -> Any:
        return self._shared[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def base_model(self, **inputs: Any) -> Any:
        """What transformers' body says, as this role."""
        self.passes += 1
        with wearing(self.backbone, self.names, training=self.training):
            return self.backbone.get_base_model().base_model(**inputs)

    def adapter(self) -> dict[str, nn.Parameter]:
        """The parameters of its own adapter, by their names in the backbone."""
        return adapter_of(self.backbone, self.names[-1])


def adapter_name(parameter: str) -> str | None:
    """The adapter that a parameter of that name belongs to, if it does to any."""
    found = _LORA.search(parameter)
    return found and found[1]


def adapter_of(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    return {n: p for n, p in network.named_parameters() if adapter_name(n) == name}


class Unfit(NamedTuple):
    """Why a model cannot be a role on a backbone."""

    reason: str


class Backbone:
    """A policy with LoRA adapters, and those who may read through its weights."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.network = policy, policy.network
        self.print = fingerprint(policy.core.base_model)

    def reward(self, source: Path | str, name: str, loading: Loading) -> RewardModel | Unfit:
        """The reward model of a run as the adapter ``name``, if it was trained on these weights."""
        place = Path(resolve(source))
        found = self._fits(place)
        if isinstance(found, Unfit):
            return found
        state: dict[str, Tensor] = load_file(place.parent / ADAPTER / "adapter_model.safetensors")
        heads = [key for key in state if key.endswith(".score.weight")]
        if len(heads) != 1:
            return Unfit("its adapter comes without a head of its own")
        weight = state.pop(heads[0])
        self._add(name, found)
        result = set_peft_model_state_dict(self.network, state, adapter_name=name)
        own = adapter_of(self.network, name)
        if result.unexpected_keys or len(own) != len(state):
            raise ValueError(
                f"the adapter of {source} does not fit the network it says it belongs to: is the "
                "folder whole? Train it again, or remove its folder adapter/, and the merged model "
                "is read"
            )
        for parameter in own.values():
            parameter.requires_grad_(False)
        config: Any = AutoConfig.from_pretrained(
            place, trust_remote_code=loading.trust_remote_code, num_labels=1
        )
        role = self._role((name,), config, weight)
        role.requires_grad_(False)
        kind = KINDS[getattr(config, "reward_kind", "score")]
        return kind(role, load_tokenizer(place, loading))

    def value(
        self,
        judge: RewardModel | None,
        *,
        r: int,
        alpha: int,
        dropout: float,
        targets: str | list[str],
        seed: int = 0,
    ) -> ValueModel:
        """A value model with an adapter of its own, which learns. It starts from ``judge``, a role
        on this backbone, whose adapter stays on below it; else it foresees nothing yet. The rest
        as `truing.models.checkpoint.add_lora` takes it.
        """
        names: tuple[str, ...] = ()
        config = copy.deepcopy(self.policy.core.config)
        weight = torch.zeros(1, config.get_text_config().hidden_size)
        tokenizer = self.policy.tokenizer
        kind: type[RewardModel] = RewardModel
        if judge is not None:
            names, config = judge.network.names, copy.deepcopy(judge.core.config)
            weight, tokenizer = judge.core.score.weight.detach().clone(), judge.tokenizer
            kind = type(judge)
        config_of = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
        self._add(VALUE, config_of, seed)
        for parameter in adapter_of(self.network, VALUE).values():
            parameter.requires_grad_(True)
        scorer = kind(self._role((*names, VALUE), config, weight), tokenizer)
        scorer.fresh = judge is None
        return as_value_model(scorer)

    def _fits(self, place: Path) -> LoraConfig | Unfit:
        folder = place.parent / ADAPTER
        if place.name != "model" or not (folder / "adapter_config.json").is_file():
            return Unfit("it is no run of `truing reward` with use_peft, so its weights are others")
        if not (folder / BASE).is_file():
            return Unfit("its adapter does not say which weights it was trained on")
        told = json.loads((folder / BASE).read_text(encoding="utf-8"))
        if told["sha256"] != self.print:
            return Unfit(
                "its adapter was trained on other weights than the policy starts from, or on the "
                "same in another dtype"
            )
        config = PeftConfig.from_pretrained(str(folder))
        # peft names the two that a classifier's head may have.
        more = set(getattr(config, "modules_to_save", None) or ()) - {"score", "classifier"}
        if not isinstance(config, LoraConfig) or more:
            what = f"trains {', '.join(sorted(more))} besides" if more else "is no LoRA"
            return Unfit(f"its adapter {what}")
        config.modules_to_save, config.task_type = None, None
        config.inference_mode = False
        return config

    def _add(self, name: str, config: LoraConfig, seed: int = 0) -> None:
        with drawing(seed):
            self.network.add_adapter(name, config)
        widen(adapter_of(self.network, name).values())
        # peft has those learn that are on: the policy's own.
        assert all(not p.requires_grad for p in adapter_of(self.network, name).values())

    def _role(self, names: tuple[str, ...], config: Any, weight: Tensor) -> Role:
        like = self.policy.core.config
        config._attn_implementation = like._attn_implementation
        dtype = torch.promote_types(self.network.dtype, torch.float32)
        score = nn.Linear(weight.shape[1], 1, bias=False, device=self.policy.device, dtype=dtype)
        with torch.no_grad():
            score.weight.copy_(weight)
        return Role(self.network, names, config, score)
