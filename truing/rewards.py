"""Rewards: whatever turns prompts and completions into numbers, by one protocol.

A reward is named by the folder of a reward run, by a rule of `RULES`, or as ``module:function``.
It sees texts, never token ids, so a reward model may use another tokenizer than the policy.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, cast

from truing import console
from truing.data.batch import Encoder
from truing.data.schema import Text
from truing.data.steps import StepEncoder
from truing.models.heads import (
    ProcessRewardModel,
    RewardModel,
    load_reward_model,
    sequence_scores,
)
from truing.models.loading import Loading
from truing.settings import TokenizerTopic
from truing.settings_judging import CompareConfig, RewardBenchConfig


class Reward(Protocol):
    """One number for each (prompt, completion), higher is better."""

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> Sequence[float]: ...


class ModelReward:
    """A reward model behind the protocol, with its own tokenizer and context.

    ``template`` is the encoder's: how it reads messages. ``cut`` counts the completions that were
    longer than the context.
    """

    def __init__(self, model: RewardModel, *, template: str = "auto", batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = batch_size
        self.encoder = Encoder(model.tokenizer, template=template, max_length=model.context)
        if isinstance(model, ProcessRewardModel):
            self.encoder = StepEncoder.of(self.encoder, model.separator)
        self.cut = 0

    def reads(self, prompt: Text) -> bool:
        """Whether the prompt leaves room for a response in the model's context."""
        context = self.model.context
        return context is None or len(self.encoder.prompt(prompt)) < context

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
        """Shifted scores. Raises ValueError for a prompt that fills the model's context."""
        rows = [self.encoder.encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        for number, row in enumerate(rows):
            if row is None:
                raise ValueError(
                    f"prompt {number} leaves no room in the reward model's context of "
                    f"{self.model.context} tokens: leave it out or shorten it"
                )
        if cut := self.encoder.counts.pop("responses truncated", 0):
            console.say(
                f"[yellow]completions cut to the reward model's context of {self.model.context} "
                f"tokens: {cut}[/yellow]"
            )
            self.cut += cut
        whole = [row for row in rows if row is not None]
        return sequence_scores(self.model, whole, self.batch_size).tolist()


SIMULATED_REWARD = "simulated: the reward learnt from judgements that no person made"  # a note


def length(prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
    """Words in the completion: the baseline that a real reward must beat."""
    return [float(len(c.split())) for c in completions]


def brevity(prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
    """Minus the words in the completion."""
    return [-n for n in length(prompts, completions)]


RULES: dict[str, Reward] = {"length": length, "brevity": brevity}


def simulated(reward: Reward) -> bool:
    """Whether the reward learnt from simulated judgements: then its own are no better."""
    return isinstance(reward, ModelReward) and reward.model.simulated


def judge(config: CompareConfig | RewardBenchConfig) -> Reward:
    """The reward of a command that has no other model: the tokenizer's settings are about it."""
    reward = load_reward(config.reward, Loading.of(config), template=config.chat_template)
    names = TokenizerTopic.model_fields
    idle = [n for n, info in names.items() if getattr(config, n) != info.default]
    if idle and not isinstance(reward, ModelReward):
        raise ValueError(
            f"{idle[0]} has no effect: the reward {config.reward} is no model, so it has no "
            "tokenizer; leave it out"
        )
    return reward


def load_reward(name: str, loading: Loading | None = None, *, template: str = "auto") -> Reward:
    """The reward that ``name`` stands for; a model reads messages by ``template``.

    Raises ValueError with the nearest name otherwise.
    """
    if name in RULES:
        return RULES[name]
    if Path(name).is_dir():
        return ModelReward(load_reward_model(name, loading, trained=True), template=template)
    if name.count("/") == 1 and ":" not in name:
        return _from_hub(name, loading, template)
    if ":" in name:
        return imported(name, "the reward", "prompts and completions")
    near = get_close_matches(name, RULES, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"unknown reward {name!r}{hint} Give the folder of a reward run, module:function, or one "
        f"of the rules {sorted(RULES)}"
    )


def _from_hub(name: str, loading: Loading | None, template: str) -> Reward:
    try:
        return ModelReward(load_reward_model(name, loading, trained=True), template=template)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"unknown reward {name!r}: there is no such folder, and the hub gave no such model "
            f"({reason}). Give the folder of a reward run, or a hub name owner/name"
        ) from error


def imported(name: str, what: str, takes: str) -> Callable[..., Any]:
    """The function that ``module:function`` names. Raises ValueError, in words of ``what`` it is to
    be and what it ``takes``."""
    module, _, function = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
        if not callable(found):
            raise AttributeError(f"it is {found!r}, which cannot be called")
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot load {what} {name} ({error}): name an importable module (the current folder "
            f"counts) and a function taking {takes}"
        ) from error
    return found


def score(reward: Reward, prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
    """The reward's numbers, checked: as many as completions, each of them finite.

    Raises ValueError naming the first row that has None, NaN, infinity or no number at all.
    """
    found: object = reward(prompts, completions)
    try:
        scores = list(cast(Iterable[Any], found))
    except TypeError as error:
        raise ValueError(
            f"the reward returned {found!r} for {len(completions)} completions: it must return a "
            "list with a number for each, in order"
        ) from error
    if len(scores) != len(completions):
        raise ValueError(
            f"the reward returned {len(scores)} numbers for {len(completions)} completions: it "
            "must return one for each, in order"
        )
    for row, value in enumerate(scores):
        if not _finite(value):
            raise ValueError(
                f"the reward gave {value!r} for completion {row} ({completions[row][:60]!r}): it "
                "must be a finite number"
            )
    return [float(value) for value in scores]


def _finite(value: Any) -> bool:
    if not isinstance(value, int | float) and not hasattr(value, "__float__"):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, RuntimeError):  # such as a tensor of several numbers
        return False
