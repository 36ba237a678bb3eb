"""Reinforcement learning from a reward: PPO with a critic, RLOO without one.

A recipe is a row of `RECIPES`. A step is a rollout, then ``num_ppo_epochs`` passes over it in
``num_mini_batches`` parts with an optimiser step each, by the loop's own `Learner`.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import torch
from accelerate import Accelerator
from rich.markup import escape
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from truing import console
from truing.algorithms.policy import ppo_clip, value_clip
from truing.algorithms.tokens import k2, reduce_mean
from truing.data.batch import Tokens, padded
from truing.data.schema import Prompt
from truing.keys import generator
from truing.models.model import Policy
from truing.rewards import SIMULATED_REWARD, simulated
from truing.run import Run
from truing.settings_online import OnlineConfig, PpoConfig, RlooConfig
from truing.stages import outlook, setup
from truing.stages.casting import Cast, casting
from truing.stages.driving import drive
from truing.stages.estimate import Estimator, Lesson, Recipe, by_group, by_token
from truing.stages.learner import Batch, Learner, Part, Sums, guarded, stat
from truing.stages.rollout import Collector, Episode
from truing.stages.trainer import Step, endless, rows_per_step
from truing.writing import write_json

RECIPES = {
    "ppo": Recipe("PPO", by_token, critic=True),
    "rloo": Recipe("RLOO", by_group, critic=False),
}

# What outlives a rollout, in the run's folder as of the last one.
STATE = "state.json"


class Reinforcement:
    """The clipped surrogate, the clipped value loss and the entropy bonus, each a mean over all
    actions (tokens, or whole responses) of the optimiser step."""

    def __init__(self, config: Any, recipe: Recipe) -> None:
        self.config, self.recipe = config, recipe

    def length(self, row: Lesson) -> int:
        return row.tokens.length

    def collate(self, rows: Sequence[Lesson]) -> Batch:
        columns = {
            name: pad_sequence([getattr(row, name) for row in rows], batch_first=True).float()
            for name in ("logp_T", "advantage_T", "value_T", "return_T")
        }
        return Batch(padded([row.tokens for row in rows]), columns)

    def counts(self, batch: Batch) -> dict[str, float]:
        tokens = batch.layout.scored
        return {
            "tokens": tokens,
            "actions": tokens if self.recipe.critic else len(batch.layout.last_B2),
        }

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        config, given = self.config, batch.extra
        figures, mask_BT = model(batch.layout, config.temperature), batch.layout.mask_BT
        new_BT, old_BT, on_BT = figures.logp, given["logp_T"], mask_BT
        if not self.recipe.critic:
            # A response is one action; filling is 0 on either side.
            new_BT, old_BT = new_BT.sum(-1, keepdim=True), old_BT.sum(-1, keepdim=True)
            on_BT = torch.ones_like(new_BT).bool()
        policy = ppo_clip(new_BT, old_BT, given["advantage_T"], clip=config.cliprange)
        gap_N = (figures.logp - given["logp_T"])[mask_BT]
        loss = reduce_mean(policy.loss[on_BT], totals["actions"])
        stats = {
            "loss/policy_avg": stat(policy.loss[on_BT]),
            "policy/approxkl_avg": stat(k2(figures.logp, given["logp_T"])[mask_BT]),
            "policy/clipfrac_avg": stat(policy.clipped[on_BT].float()),
            "policy/entropy_avg": stat(figures.entropy[mask_BT]),
            "val/ratio": stat(policy.ratio[on_BT]),
            "sampling/logp_difference": stat(gap_N.abs()),
        }
        if config.entropy_coef:
            bonus = reduce_mean(figures.entropy[mask_BT], totals["tokens"])
            loss = loss - config.entropy_coef * bonus
        if figures.value is not None:
            old_values, targets = given["value_T"], given["return_T"]
            critic = value_clip(figures.value, old_values, targets, clip=config.cliprange_value)
            loss = loss + config.vf_coef * reduce_mean(critic.loss[mask_BT], totals["tokens"])
            stats["loss/value_avg"] = stat(critic.loss[mask_BT])
            stats["val/clipfrac_avg"] = stat(critic.clipped[mask_BT].float())
        return loss, stats


class Pretraining:
    """PPO-ptx: the negative log-likelihood per token of other rows, weighted."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def length(self, row: Tokens) -> int:
        return row.length

    def collate(self, rows: Sequence[Tokens]) -> Batch:
        return Batch(padded(rows), {})

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"tokens": batch.layout.scored}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        # At temperature 1: it is the language model that must not forget.
        logp_BT = model(batch.layout, foresee=False).logp
        loss = -reduce_mean(logp_BT, totals["tokens"])
        return self.coefficient * loss, {"loss/ptx_avg": stat(-logp_BT[batch.layout.mask_BT])}


class Online:
    """One run: rollouts, estimates and optimiser steps, one after the other."""

    def __init__(
        self, accelerator: Accelerator, cast: Cast, config: OnlineConfig, recipe: Recipe, run: Run
    ) -> None:
        self.accelerator, self.cast, self.config, self.run = accelerator, cast, config, run
        self.total, self.step = config.max_steps, 0
        self.collector = Collector(
            accelerator,
            cast.actor,
            partial(cast.reference_logp, temperature=config.temperature),
            cast.encoder,
            cast.rewards,
            config,
        )
        self.estimator = Estimator(config, recipe)
        self.objective = Reinforcement(config, recipe)
        rate = getattr(config, "value_learning_rate", None)
        self.learner = Learner(
            accelerator,
            cast.actor,
            config,
            steps=config.max_steps,
            seed=config.seed,
            rates={"critic.": rate} if rate else None,
        )
        self.ptx, self.reminded = endless(len(cast.ptx), seed=config.seed, shuffle=True), 0

    def steps(self) -> Iterator[Step]:
        """Play and learn; yields after every rollout has been learnt from."""
        config, prompts = self.config, self.cast.prompts
        episodes_each = rows_per_step(config, self.accelerator.num_processes)
        each = episodes_each // config.group
        order = endless(len(prompts), seed=config.seed, shuffle=config.shuffle_dataset)
        before, began = self.step, time.perf_counter()
        order, drawn = islice(order, before * each, None), before * each
        while self.step < self.total:
            self.step += 1
            chosen = [prompts[i] for i in islice(order, each)]
            # Keyed by when it is drawn: a prompt that comes again gets other numbers.
            chosen = [p._replace(key=drawn + i) for i, p in enumerate(chosen)]
            drawn += len(chosen)
            episodes = self.collector.collect(
                chosen,
                stream="rollout",
                group=config.group,
                batch_size=config.local_rollout_forward_batch_size,
            )
            if self.step == 1:
                check_endings(episodes, config)
            lessons, figures = self.estimator(episodes)
            learnt = {} if self.alarmed(figures["objective/kl"], lessons) else self.learn(lessons)
            self.learner.schedule.step()
            if self.run.writes:
                write_json(self.run.path / STATE, self.estimator.state())
            total = self.step * episodes_each
            pace = int((total - before * episodes_each) / (time.perf_counter() - began))
            counters = {"episode": float(total), "eps": float(pace)}
            metrics = {**figures, **learnt, **self.collector.seconds}
            yield Step(self.step, drawn / len(prompts), metrics, counters)

    def state(self) -> dict[str, Any]:
        return {**self.estimator.state(), "reminded": self.reminded}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        self.step = step
        self.estimator.restore(state)
        self.reminded = sum(1 for _ in islice(self.ptx, state["reminded"]))

    def alarmed(self, kl: float, lessons: Sequence[Lesson]) -> bool:
        """Whether the KL's guard says that this rollout is to be skipped."""
        if self.config.guard_kl is None or kl <= self.config.guard_kl:
            return False
        what = f"the KL of rollout {self.step} is {kl:.4g} nats a response, above guard_kl"
        return guarded(self.config, what, ["objective/kl"], lessons)

    def learn(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        """All passes over a rollout, in a new order each; means over the optimiser steps."""
        with self.collector.timed("time/learn"):
            return self._passes(lessons)

    def _passes(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        config = self.config
        size = len(lessons) // config.num_mini_batches
        lines: list[dict[str, float]] = []
        for epoch in range(config.num_ppo_epochs):
            order = generator(config.seed, "minibatch", self.step, epoch).permutation(len(lessons))
            for start in range(0, len(lessons), size):
                part = [lessons[i] for i in order[start : start + size]]
                # The policy gradient last: it reaches every weight, as DDP asks of a last pass.
                lines.append(self.learner.learn(*self.reminders(size), (self.objective, part)))
                if config.target_kl and lines[-1]["policy/approxkl_avg"] > config.target_kl:
                    return summed_up(lines)
        return summed_up(lines)

    def reminders(self, episodes: int) -> list[Part]:
        """The rows of the pretraining loss for an optimiser step, if there is one."""
        if not self.cast.ptx:
            return []
        rows = [self.cast.ptx[i] for i in islice(self.ptx, episodes * self.config.ptx_ratio)]
        self.reminded += len(rows)
        return [(Pretraining(self.config.ptx_coef), rows)]

    def assess(self) -> dict[str, float]:
        """Score, KL and endings on the held-out prompts, one response each."""
        size = self.config.per_device_eval_batch_size
        episodes = self.collector.collect(self.cast.held_out, stream="eval", batch_size=size)
        figures = self.estimator.figures_of(episodes)
        kept = ("objective/kl", "objective/scores", "completions/")
        return {f"eval_{k}": v for k, v in figures.items() if k.startswith(kept)}

    def look(self) -> dict[str, float]:
        """Sample the same few prompts, print what came with its score, and keep it."""
        prompts = (self.cast.held_out or self.cast.prompts)[: self.config.num_completions_to_print]
        episodes = self.collector.collect(prompts, stream="look", batch_size=len(prompts))
        scores = self.estimator.raw_scores(episodes)
        rows: list[dict[str, Any]] = []
        for e, value in zip(episodes, scores, strict=True):
            prompt = self.cast.encoder.decode(e.tokens.prompt)
            reason = "stop" if e.finished else "length"
            line = {"prompt": prompt, "completion": e.text, "score": value}
            rows.append(line | {"finish_reason": reason})
            console.say(
                f"[dim]step {self.step}: ...{escape(prompt[-60:])}[/dim]"
                f"[cyan]{escape(e.text)}[/cyan] {value:+.2f}"
            )
        self.run.log_samples(self.step, rows)
        return {}


def summed_up(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of a rollout's optimiser steps: their means; of the ratio the variance too."""
    mean = {name: fmean(line[name] for line in lines) for name in lines[-1]}
    mean["val/ratio_var"] = pvariance([line["val/ratio"] for line in lines])
    # Before the first update: how far the sampler is from the trainer. Rounding, if all is well.
    mean["sampling/logp_difference"] = lines[0]["sampling/logp_difference"]
    mean["policy/optimizer_steps"] = float(len(lines))
    mean["lr"] = mean.pop("learning_rate")
    return mean


def check_endings(episodes: Sequence[Episode], config: OnlineConfig) -> None:
    """Say aloud that no response of the first rollout ended by itself; refuse it where the penalty
    for that would then be the same for all."""
    if any(e.finished for e in episodes):
        return
    found = (
        f"none of the first {len(episodes)} responses ended within {config.response_length} tokens"
    )
    todo = "raise response_length, or check eos_token and that the model was taught to end"
    if config.missing_eos_penalty:
        raise ValueError(f"{found}, so missing_eos_penalty would teach nothing: {todo}")
    console.say(f"[yellow]{found}: {todo}[/yellow]")


def run(
    config: PpoConfig | RlooConfig, *, watch: setup.Watch | None = None
) -> Run | outlook.Outlook:
    """Improve a policy by a reward (docs/ppo.md). Writes a run folder with ``model/`` in it.

    ``watch`` measures the policy every ``log_completions_steps`` in place of the printed samples;
    its figures are logged with ``eval_`` in front, beside those of the rollouts. A dry run
    writes nothing and returns what would happen.
    """
    dataset, held_out = setup.datasets(config, Prompt)
    recipe = RECIPES[config.recipe]
    cast = casting(config, dataset, held_out, critic=recipe.critic)
    if any(map(simulated, cast.rewards)):
        noted = {**dataset.noted, SIMULATED_REWARD: dataset.row_numbers}
        dataset = replace(dataset, noted=noted)
    say_what_begins_anew(config)
    planned = schedule(config, len(cast.prompts))
    lengths = [len(p.ids) + config.response_length for p in cast.prompts]
    frozen = {role: sum(p.numel() for p in m.parameters()) for role, m in cast.onlookers.items()}
    scored = [config.response_length] * len(lengths)
    ahead = outlook.announce(
        planned, cast.actor, lengths, scored, cast.encoder, dataset, held_out, frozen
    )
    if config.dry_run:
        return ahead
    parents, policy = cast.parents, cast.actor.policy
    opened = setup.opened(config, config.recipe, dataset, held_out, ahead.data, parents)
    with opened as (run, accelerator):
        for model in (cast.actor, *cast.onlookers.values()):
            model.to(accelerator.device)
        play = Online(accelerator, cast, planned, recipe, run)
        figures = drive(
            run,
            play,
            planned,
            assess=play.assess if cast.held_out else None,
            look=partial(watched, watch, policy) if watch else play.look,
            shown="objective/scores",
        )
        accelerator.free_memory()
        return setup.close(run, accelerator, policy, cast.encoder, figures, dataset.notes)


def say_what_begins_anew(config: OnlineConfig) -> None:
    """Where training starts from an online run: its coefficient is not taken over."""
    place = Path(config.model_name_or_path)
    folder = place.parent if place.name == "model" else place
    if (folder / "run.json").is_file() and (folder / STATE).is_file():
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        coefficient = state["kl_controller"]["coef"]
        console.say(
            f"[yellow]{escape(str(folder))} ended with kl_coef {coefficient:.4g}; this run "
            f"starts from its own, {config.kl_coef:.4g}, and with no scores seen yet: set kl_coef "
            "to go on from there[/yellow]"
        )


def watched(watch: setup.Watch, policy: Policy) -> dict[str, float]:
    return {f"eval_{name}": value for name, value in watch(policy).items()}


def schedule(config: Any, prompts: int) -> Any:
    """The settings with the number of rollouts in ``max_steps``, and looks spread over them."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    episodes = config.total_episodes or round(prompts * config.num_train_epochs) * config.group
    steps = config.max_steps
    if steps <= 0:
        steps = max(1, -(-episodes // rows_per_step(config, world)))
    looks = config.log_completions_steps
    if config.num_sample_generations:
        looks = max(1, steps // config.num_sample_generations)
    return config.model_copy(update={"max_steps": steps, "log_completions_steps": looks})
