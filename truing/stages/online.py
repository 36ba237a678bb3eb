"""Reinforcement learning from a reward: PPO with a critic, and those without one.

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

from accelerate import Accelerator
from rich.markup import escape

from truing import console
from truing.algorithms.policy import cispo
from truing.data.schema import Prompt
from truing.keys import generator
from truing.models.heads import ValueModel
from truing.models.model import Policy
from truing.rewards import SIMULATED_REWARD, simulated
from truing.run import Run
from truing.settings_online import OnlineConfig
from truing.stages import outlook, setup
from truing.stages.casting import Cast, casting
from truing.stages.driving import drive
from truing.stages.estimate import (
    Estimator,
    above_mean,
    by_group,
    by_token,
    scaled,
    to_go,
    whole,
)
from truing.stages.learner import Learner, Part, guarded
from truing.stages.objective import (
    RESPONSE,
    Foresight,
    Lesson,
    Pretraining,
    Recipe,
    Reinforcement,
    over_length,
    over_responses,
    over_tokens,
    within_responses,
)
from truing.stages.rollout import Collector, Episode
from truing.stages.sums import gather_sums, means, of_layouts
from truing.stages.trainer import Step, endless, rows_per_step
from truing.writing import write_json

RECIPES = {
    "ppo": Recipe("PPO", by_token, over_tokens, critic=True),
    "rloo": Recipe("RLOO", by_group, over_responses, RESPONSE),
    "reinforce": Recipe("REINFORCE", whole, over_responses, RESPONSE),
    "reinforce_plus_plus": Recipe("REINFORCE++", to_go, over_tokens),
    "reinforce_plus_plus_baseline": Recipe("REINFORCE++ baseline", above_mean, over_tokens),
    "grpo": Recipe("GRPO", scaled, within_responses, level=None),
    "dr_grpo": Recipe("Dr. GRPO", scaled, over_length, level=None),
    "dapo": Recipe("DAPO", scaled, over_tokens, level=None),
    "gspo": Recipe("GSPO", scaled, within_responses, level=None),
    "cispo": Recipe("CISPO", scaled, over_tokens, level=None, surrogate=cispo),
}

# What outlives a rollout, in the run's folder as of the last one.
STATE = "state.json"


class Online:
    """One run: rollouts, estimates and optimiser steps, one after the other."""

    def __init__(
        self, accelerator: Accelerator, cast: Cast, config: OnlineConfig, recipe: Recipe, run: Run
    ) -> None:
        self.accelerator, self.cast, self.config, self.run = accelerator, cast, config, run
        self.total, self.step, self.drawn = config.max_steps, 0, 0
        self.collector = Collector(
            accelerator,
            cast.actor,
            partial(cast.reference_logp, temperature=config.temperature),
            cast.encoder,
            cast.judges,
            config,
        )
        self.estimator = Estimator(config, recipe)
        # With DDP the last pass of a step must reach every weight, the critic's too.
        apart = isinstance(cast.actor.critic, ValueModel) and accelerator.num_processes == 1
        place = cast.actor.place
        self.critic = Foresight(config, place) if apart else None
        self.objective = Reinforcement(config, recipe, place, foresee=not apart)
        rate: float | None = getattr(config, "value_learning_rate", None)
        self.learner = Learner(
            accelerator,
            cast.actor,
            config,
            steps=config.max_steps,
            seed=config.seed,
            rates=dict.fromkeys(cast.actor.critics_own, rate) if rate else None,
        )
        self.short = False  # whether it was said that dynamic sampling did not find enough
        self.ptx, self.reminded = endless(len(cast.ptx), seed=config.seed, shuffle=True), 0

    def steps(self) -> Iterator[Step]:
        """Play and learn; yields after every rollout has been learnt from."""
        config, prompts = self.config, self.cast.prompts
        episodes_each = rows_per_step(config, self.accelerator.num_processes)
        each = episodes_each // config.group
        order = endless(len(prompts), seed=config.seed, shuffle=config.shuffle_dataset)
        before, began = self.step, time.perf_counter()
        order = islice(order, self.drawn, None)
        while self.step < self.total:
            self.step += 1
            self.collector.seconds = {}
            self.collector.read = []  # and what was read for looks and evaluation in between
            episodes, sampled = self.rollout(order, each)
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
            metrics = {**figures, **sampled, **learnt, **self.collector.seconds, **self.read()}
            yield Step(self.step, self.drawn / len(prompts), metrics, counters)

    def rollout(self, order: Iterator[int], each: int) -> tuple[list[Episode], dict[str, float]]:
        """The episodes of a step, of ``each`` prompts; and what dynamic sampling did for it, if it
        is on: groups whose scores are all equal make room for other prompts."""
        config, group = self.config, self.config.group
        if not getattr(config, "dynamic_sampling", False):
            return self.answered(order, each), {}
        kept, flat, scores = list[Episode](), list[Episode](), list[float]()
        rounds, most = 0, getattr(config, "max_num_gen_batches", 1)
        while len(kept) < each * group and rounds < most:
            rounds += 1
            found = self.answered(order, each - len(kept) // group)
            scores += self.estimator.ended(found).tolist()
            for i, equal in enumerate(self.estimator.flat(found)):
                (flat if equal else kept).extend(found[i * group : (i + 1) * group])
        missing = each * group - len(kept)
        if missing and not self.short:
            self.short = True
            console.say(
                f"[yellow]step {self.step}: after {rounds} rounds (max_num_gen_batches) "
                f"{missing // group} of {each} groups still score the same; they are kept, and "
                "teach nothing. Give prompts that are answered rightly now and then, or another "
                "reward; dynamic_sampling/filled counts them from here on[/yellow]"
            )
        return kept + flat[:missing], {
            "dynamic_sampling/rounds": float(rounds),
            "dynamic_sampling/dropped": float((len(flat) - missing) // group),
            "dynamic_sampling/filled": float(missing // group),
            "dynamic_sampling/scores": fmean(scores),
        }

    def answered(self, order: Iterator[int], count: int) -> list[Episode]:
        """The next ``count`` prompts, with a group of responses each."""
        chosen = [self.cast.prompts[i] for i in islice(order, count)]
        # Keyed by when it is drawn: a prompt that comes again gets other numbers.
        chosen = [p._replace(key=self.drawn + i) for i, p in enumerate(chosen)]
        self.drawn += count
        return self.collector.collect(
            chosen,
            stream="rollout",
            group=self.config.group,
            batch_size=self.config.local_rollout_forward_batch_size,
        )

    def read(self) -> dict[str, float]:
        """What reference and critic read of a rollout, counted as the learner counts its own."""
        found = of_layouts(self.collector.read, self.accelerator.num_processes)
        told = means(gather_sums(self.accelerator, found))
        return {name.replace("/", "/rollout_"): value for name, value in told.items()}

    def state(self) -> dict[str, Any]:
        return {**self.estimator.state(), "drawn": self.drawn, "reminded": self.reminded}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        self.step, self.drawn = step, state["drawn"]
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
                parts = self.reminders(size)
                parts += [(self.critic, part)] if self.critic else []
                # The policy gradient last: it reaches every weight, as DDP asks of a last pass.
                lines.append(self.learner.learn(*parts, (self.objective, part)))
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
        kept = ("objective/kl", "objective/scores", "objective/cost", "completions/")
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
    # A step in which no response counted has no loss to tell.
    names = dict.fromkeys(name for line in lines for name in line)
    mean = {name: fmean(line[name] for line in lines if name in line) for name in names}
    ratios = [line["val/ratio"] for line in lines if "val/ratio" in line]
    mean |= {"val/ratio_var": pvariance(ratios)} if ratios else {}
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


def run(config: OnlineConfig, *, watch: setup.Watch | None = None) -> Run | outlook.Outlook:
    """Improve a policy by a reward (docs/ppo.md, docs/reinforce.md, docs/grpo.md). Writes a run
    folder with ``model/`` in it.

    ``watch`` measures the policy every ``log_completions_steps`` in place of the printed samples;
    its figures are logged with ``eval_`` in front, beside those of the rollouts. A dry run
    writes nothing and returns what would happen.
    """
    dataset, held_out = setup.datasets(config, Prompt)
    recipe = RECIPES[config.recipe]
    cast = casting(config, dataset, held_out, critic=recipe.critic)
    if any(map(simulated, cast.judges)):
        noted = {**dataset.noted, SIMULATED_REWARD: dataset.row_numbers}
        dataset = replace(dataset, noted=noted)
    say_what_begins_anew(config)
    planned = schedule(config, len(cast.prompts))
    # What a response is read with of its prompt, which some answers may share.
    each = -(-config.group // min(config.group, cast.actor.sharers)) / config.group
    lengths = [round(each * len(p.ids)) + config.response_length for p in cast.prompts]
    frozen = {role: sum(p.numel() for p in m.parameters()) for role, m in cast.onlookers.items()}
    scored = [config.response_length] * len(lengths)
    asked = max(len(p.ids) for p in cast.prompts)
    ahead = outlook.announce(
        planned, cast.actor, lengths, scored, cast.encoder, dataset, held_out, frozen, asked
    )
    if config.dry_run:
        return ahead
    parents, policy = cast.parents, cast.actor.policy
    opened = setup.opened(config, config.stage, dataset, held_out, ahead.data, parents)
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
