"""Estimates: episodes to lessons, a lesson being a response with its advantages and targets.

What outlives a rollout lives here: the KL coefficient and the running moments of scores.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from truing.algorithms.advantages import (
    gae,
    leave_one_out,
    missing_eos,
    scale_to_unit,
    token_rewards,
    whiten,
)
from truing.algorithms.controllers import KLController, Moments
from truing.algorithms.group import batch_scaled, centred, flat_groups, group_scaled, overlong
from truing.algorithms.policy import explained_variance
from truing.algorithms.tokens import k1, k2, k3, sequence_sum
from truing.settings_online import OnlineConfig
from truing.stages.objective import Lesson, Recipe
from truing.stages.rollout import Episode

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
SCALES = {"group": group_scaled, "batch": batch_scaled, "none": centred}


class Experience(NamedTuple):
    """A rollout of B episodes as float64 tensors, filled on the right up to T tokens."""

    score_B: Tensor
    kl_BT: Tensor
    value_BT: Tensor
    mask_BT: Tensor


# Advantages: (experience, settings, KL coefficient) -> (B, T) by token or (B, 1) by response.


def by_token(x: Experience, config: Any, kl_coef: float) -> Tensor:
    """PPO's: token rewards, seen through the critic."""
    reward_BT = token_rewards(x.score_B, x.kl_BT, x.mask_BT, kl_coef=kl_coef)
    if config.whiten_rewards:
        reward_BT = scale_to_unit(reward_BT, x.mask_BT)
    return gae(reward_BT, x.value_BT, x.mask_BT, gamma=config.gamma, lam=config.lam)


def to_go(x: Experience, config: Any, kl_coef: float) -> Tensor:
    """REINFORCE++: all that is still earned from a token on: GAE of values that are 0."""
    reward_BT = token_rewards(x.score_B, x.kl_BT, x.mask_BT, kl_coef=kl_coef)
    return gae(reward_BT, torch.zeros_like(reward_BT), x.mask_BT, gamma=1.0, lam=1.0)


def whole(x: Experience, config: Any, kl_coef: float) -> Tensor:
    """REINFORCE: the response's whole reward, KL included."""
    return (x.score_B - kl_coef * sequence_sum(x.kl_BT, x.mask_BT))[:, None]


def by_group(x: Experience, config: Any, kl_coef: float) -> Tensor:
    """RLOO: the whole reward, against the others of its prompt."""
    return leave_one_out(whole(x, config, kl_coef).view(-1, config.group)).view(-1, 1)


def above_mean(x: Experience, config: Any, kl_coef: float) -> Tensor:
    """REINFORCE++ with a baseline: the whole reward, against the mean of its prompt."""
    return centred(whole(x, config, kl_coef).view(-1, config.group)).view(-1, 1)


def scaled(x: Experience, config: Any, kl_coef: float) -> Tensor:
    """GRPO and its kin: the same, in the units that ``scale_rewards`` names."""
    reward_PG = whole(x, config, kl_coef).view(-1, config.group)
    return SCALES[config.scale_rewards](reward_PG).view(-1, 1)


class Estimator:
    """Turns rollouts into lessons, and into the figures that are logged of them."""

    def __init__(self, config: OnlineConfig, recipe: Recipe) -> None:
        self.config, self.recipe = config, recipe
        self.weights = config.reward_weights or [1.0] * len(config.reward)
        self.controller = KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self.moments = Moments()

    def __call__(self, episodes: Sequence[Episode]) -> tuple[list[Lesson], dict[str, float]]:
        """Lessons in the order of the episodes. Moves the moments before, the controller after."""
        raw = self.raw_scores(episodes)
        self.moments = self.moments.after(raw)
        x = self.experience(episodes, torch.tensor(self.shaped(raw), dtype=torch.float64))
        coef = self.controller.coef
        advantage_BT = self.recipe.advantage(x, self.config, coef)
        by_response = advantage_BT.shape[1] == 1
        mask_BT = torch.ones_like(advantage_BT).bool() if by_response else x.mask_BT
        return_BT = advantage_BT + x.value_BT
        figures = self.figures(episodes, raw, x) | {"objective/kl_coef": coef}
        if self.recipe.critic:
            worth = explained_variance(x.value_BT, return_BT, x.mask_BT)
            figures["critic/vf_explained_var"] = float(worth)
        if self.config.group > 1:
            reward_PG = x.score_B.view(-1, self.config.group)
            figures["reward_std"] = float(reward_PG.std(-1).mean())
            figures["frac_reward_zero_std"] = float(flat_groups(reward_PG).double().mean())
        if self.config.whiten_advantages:
            advantage_BT = whiten(advantage_BT, mask_BT)
        if bound := self.config.advantage_clip:
            advantage_BT = advantage_BT.clamp(-bound, bound)
        masked = getattr(self.config, "mask_truncated_completions", False)
        if masked:
            figures["completions/masked"] = fmean(not e.finished for e in episodes)
        lessons = [
            Lesson(
                e.tokens,
                e.logp_T,
                e.ref_logp_T,
                advantage_BT[i][mask_BT[i]],
                e.value_T,
                return_BT[i, : len(e.value_T)],
                e.finished or not masked,
            )
            for i, e in enumerate(episodes)
        ]
        self.controller = self.controller.after(figures["objective/kl"], len(episodes))
        return lessons, figures

    def raw_scores(self, episodes: Sequence[Episode]) -> list[float]:
        """The weighted sum of each episode's rewards, as they came."""
        return [sum(w * s for w, s in zip(self.weights, e.scores, strict=True)) for e in episodes]

    def shaped(self, scores: Sequence[float]) -> list[float]:
        """Scores as they are paid: scaled and clipped where the settings say so."""
        config, moments = self.config, self.moments
        mean = moments.mean if config.use_score_norm else 0.0
        scale = moments.deviation if config.use_score_scaling else 1.0
        bound = config.score_clip or float("inf")
        return [min(max((s - mean) / scale, -bound), bound) for s in scores]

    def experience(self, episodes: Sequence[Episode], score_B: Tensor) -> Experience:
        """The episodes as tensors. The penalties for their ends come after any scaling and
        clipping, which might swallow them."""
        score_B = self.ended(episodes, score_B)
        logp_BT, ref_logp_BT, value_BT = (
            pad_sequence([getattr(e, name) for e in episodes], batch_first=True)
            for name in ("logp_T", "ref_logp_T", "value_T")
        )
        lengths_B = torch.tensor([len(e.logp_T) for e in episodes])
        mask_BT = torch.arange(logp_BT.shape[1]) < lengths_B[:, None]
        kl_BT = ESTIMATORS[self.config.kl_estimator](logp_BT, ref_logp_BT)
        return Experience(score_B, kl_BT, value_BT, mask_BT)

    def ended(self, episodes: Sequence[Episode], score_B: Tensor | None = None) -> Tensor:
        """Scores, those that came where none are given, less what is lost for a missing or a late
        end."""
        config = self.config
        if score_B is None:
            score_B = torch.tensor(self.raw_scores(episodes), dtype=torch.float64)
        finished_B = torch.tensor([e.finished for e in episodes])
        score_B = missing_eos(score_B, finished_B, penalty=config.missing_eos_penalty or 0.0)
        if config.overlong_buffer is None:
            return score_B
        length_B = torch.tensor([len(e.logp_T) for e in episodes])
        limit, buffer = config.response_length, config.overlong_buffer
        return score_B - config.overlong_penalty * overlong(length_B, limit=limit, buffer=buffer)

    def flat(self, episodes: Sequence[Episode]) -> list[bool]:
        """Of each group, whether its responses all score the same, penalties included."""
        return flat_groups(self.ended(episodes).view(-1, self.config.group)).tolist()

    def figures(
        self, episodes: Sequence[Episode], raw: Sequence[float], x: Experience
    ) -> dict[str, float]:
        """What TRL logs of a rollout, by its names, and what one should look at besides."""
        finished = [e.finished for e in episodes]
        scores = self.ended(episodes, torch.tensor(raw, dtype=torch.float64))
        paid = -self.controller.coef * float(sequence_sum(x.kl_BT, x.mask_BT).mean())
        lengths = [len(e.logp_T) for e in episodes]
        columns = zip(*(e.scores for e in episodes), strict=True)
        return {
            "objective/kl": fmean(float((e.logp_T - e.ref_logp_T).sum()) for e in episodes),
            "objective/entropy": fmean(-float(e.logp_T.sum()) for e in episodes),
            "objective/non_score_reward": paid,
            "objective/rlhf_reward": paid + float(x.score_B.mean()),
            "objective/scores": float(scores.mean()),
            **{
                f"rewards/{n}/mean": fmean(c)
                for n, c in zip(self.config.reward, columns, strict=True)
            },
            "val/num_eos_tokens": float(sum(finished)),
            "completions/eos_rate": fmean(finished),
            "completions/mean_length": fmean(lengths),
            "completions/max_length": float(max(lengths)),
        }

    def figures_of(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The figures alone: nothing is learnt, and no state moves."""
        raw = self.raw_scores(episodes)
        score_B = torch.tensor(self.shaped(raw), dtype=torch.float64)
        return self.figures(episodes, raw, self.experience(episodes, score_B))

    def state(self) -> dict[str, Any]:
        """What a later run would have to know to go on."""
        return {"kl_controller": self.controller._asdict(), "scores": self.moments._asdict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.controller = KLController(**state["kl_controller"])
        self.moments = Moments(**state["scores"])
