"""Rewards: whatever turns prompts and completions into numbers, by one protocol.

A reward is named by the folder of a reward run, by a rule of `RULES`, or as ``module:function``.
It sees texts, never token ids, so a reward model may use another tokenizer than the policy.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from truing import console
from truing.algorithms.ensembles import (
    ensemble_mean,
    ensemble_std,
    uncertainty_weighted,
    worst_case,
)
from truing.data.batch import Encoder
from truing.data.schema import Text
from truing.data.steps import StepEncoder
from truing.models.heads import (
    CostModel,
    ProcessRewardModel,
    RewardModel,
    load_reward_model,
    sequence_scores,
)
from truing.models.loading import Loading
from truing.settings import TokenizerTopic
from truing.settings_judging import BestConfig, CompareConfig, RewardBenchConfig


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


class ModelCost(ModelReward):
    """A cost model, asked for costs: higher is worse. As a `ModelReward` it gives minus these."""

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
        sign = -1.0 if isinstance(self.model, CostModel) else 1.0
        return [sign * score for score in super().__call__(prompts, completions)]


SIMULATED_REWARD = "simulated: the reward learnt from judgements that no person made"  # a note


def length(prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
    """Words in the completion: the baseline that a real reward must beat."""
    return [float(len(c.split())) for c in completions]


def brevity(prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
    """Minus the words in the completion."""
    return [-n for n in length(prompts, completions)]


RULES: dict[str, Reward] = {"length": length, "brevity": brevity}


# What the scores of several rewards (M, N) come to, by the name of the setting.
ENSEMBLES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sum": lambda score_MN, _: score_MN.sum(0),
    "mean": lambda score_MN, _: ensemble_mean(score_MN),
    "worst": lambda score_MN, _: worst_case(score_MN),
    "uncertainty": lambda score_MN, coef: uncertainty_weighted(score_MN, coef=coef),
}


def combined(
    scores: Sequence[Sequence[float]], ensemble: str, coef: float | None = None
) -> list[float]:
    """The members' scores (a row for each) as one score of each completion."""
    score_MN = torch.tensor(scores, dtype=torch.float64)
    return ENSEMBLES[ensemble](score_MN, coef or 0.0).tolist()


def spread(scores: Sequence[Sequence[float]]) -> list[float]:
    """How far the members (a row for each) are apart about each completion."""
    return ensemble_std(torch.tensor(scores, dtype=torch.float64)).tolist()


class Ensemble:
    """Several rewards behind the protocol, as one. ``stds``: how far they were apart about each
    completion of the last call."""

    def __init__(
        self, members: Mapping[str, Reward], ensemble: str, coef: float | None = None
    ) -> None:
        self.members, self.ensemble, self.coef = members, ensemble, coef
        self.stds: list[float] = []

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> list[float]:
        """Raises ValueError, with the member's name, for numbers that are not finite."""
        scores: list[list[float]] = []
        for name, member in self.members.items():
            try:
                scores.append(score(member, prompts, completions))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        self.stds = spread(scores)
        return combined(scores, self.ensemble, self.coef)


def models_of(reward: Reward) -> list[ModelReward]:
    """The reward models that it is made of: itself, or some of an ensemble's members."""
    members = reward.members.values() if isinstance(reward, Ensemble) else [reward]
    return [member for member in members if isinstance(member, ModelReward)]


def simulated(reward: Reward) -> bool:
    """Whether the reward learnt from simulated judgements: then its own are no better."""
    return any(judge.model.simulated for judge in models_of(reward))


def judge(config: BestConfig | CompareConfig | RewardBenchConfig) -> Reward:
    """The reward of a command that has no other model: the tokenizer's settings are about it.

    Raises ValueError for the same reward twice.
    """
    loading, template = Loading.of(config), config.chat_template
    members = {name: load_reward(name, loading, template=template) for name in config.reward}
    if len(members) < len(config.reward):
        raise ValueError(f"reward names {config.reward}, one of them twice: name each once")
    reward = next(iter(members.values()))
    if len(members) > 1:
        reward = Ensemble(members, config.ensemble, config.uncertainty_coef)
    names = TokenizerTopic.model_fields
    idle = [n for n, info in names.items() if getattr(config, n) != info.default]
    if idle and not models_of(reward):
        raise ValueError(
            f"{idle[0]} has no effect: the reward {', '.join(members)} is no model, so it has no "
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


def load_cost(name: str, loading: Loading | None = None, *, template: str = "auto") -> Reward:
    """What ``name`` stands for as a cost, higher being worse: a cost model, or as `load_reward`.

    Raises ValueError for a reward model of ours. What another library made is taken at its word,
    aloud.
    """
    found = load_reward(name, loading, template=template)
    if not isinstance(found, ModelReward):
        return found
    if not isinstance(found.model, CostModel):
        if hasattr(found.model.core.config, "reward_kind"):
            raise ValueError(
                f"{name} is a reward model, of which more is better; a cost is what should be low: "
                "train one by `truing reward` with loss_type: cost, or give a rule or a function"
            )
        console.say(
            f"[yellow]{console.plain(name)} does not say whether it is a cost model: its score is "
            "taken for the cost, above 0 for harm[/yellow]"
        )
    return ModelCost(found.model, template=template)


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
