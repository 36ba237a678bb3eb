"""What each stage learns from in an optimiser step of `tests.invariance`, by name.

A new stage is one row of `CASES`; an online one comes with its row of `tests.online.KINDS`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.conftest import tiny_folder
from tests.online import FREE, KINDS, cast_of
from truing.config import check
from truing.data.layout import Tokens, padded
from truing.keys import generator
from truing.models.heads import load_reward_model, of_kind
from truing.models.loading import Loading
from truing.models.model import load_policy, logp, sequence_logps
from truing.settings import DpoConfig, KtoConfig, SftConfig
from truing.stages import online, preference, scoring
from truing.stages.estimate import Estimator
from truing.stages.learner import Part
from truing.stages.online import Pretraining, Reinforcement
from truing.stages.preference import Order, Orders, Pair, Preference
from truing.stages.process import Process, Solution
from truing.stages.rollout import Episode
from truing.stages.scoring import Ranked
from truing.stages.sft import Imitation
from truing.stages.unpaired import Thumb, Unpaired

EOS, PAD, COUNT = 268, 269, 8
MIXED = [int(i) for i in generator(0, "order").permutation(COUNT)]
NAMED: dict[str, Any] = {
    "model_name_or_path": "m",
    "dataset_name": "d",
    "output_dir": "o",
    "use_cpu": True,
}


def home(folder: Path, name: str = "llama", **changed: Any) -> Path:
    """A folder of all that the stages read; ``changed``: what the model's config says instead."""
    tiny_folder(folder / "model", name, dtype=torch.float64)
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    for rows, key in (("prompts", "prompt"), ("texts", "text")):
        lines = [json.dumps({key: "the cat in " + "!" * i}) for i in range(COUNT)]
        (folder / f"{rows}.jsonl").write_text("\n".join(lines))
    return folder


def drawn(count: int, seed: int = 0) -> list[Tokens]:
    """Rows of unequal lengths, some of one token, that end in EOS or are cut; with EOS in some
    prompts, too."""
    random = generator(seed, "rows")

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in random.integers(1, 267, size=random.integers(low, high)))

    rows = [Tokens(ids(1, 6), (*ids(0, 12), EOS)) for _ in range(count)]
    rows[0], rows[1] = Tokens((7, EOS, 9), ids(3, 6)), Tokens((5,), (EOS,))
    return rows


def answers(count: int, *, each: int) -> list[tuple[Tokens, ...]]:
    """Several responses to each prompt."""
    columns = [drawn(count, seed) for seed in range(each)]
    return [
        tuple(Tokens(row[0].prompt, (*one.response, i)) for i, one in enumerate(row))
        for row in zip(*columns, strict=True)
    ]


class Case(NamedTuple):
    """A stage: what learns (from its home), and what it learns from in an optimiser step."""

    model: Callable[[Path], Any]
    parts: Callable[[Any, Path], list[Part]]


def case(
    load: Callable[..., Any], objective: Callable[[Any], Any], rows: Callable[..., Any]
) -> Case:
    """A stage of one objective. ``objective``: of the model. ``rows``: of the model as well."""
    return Case(
        lambda folder: load(folder / "model", Loading(dtype="auto")),
        lambda model, _: [(objective(model), rows(model))],
    )


def imitation(**options: Any) -> Case:
    config = SftConfig(**NAMED | options)
    return case(load_policy, lambda model: Imitation(config, model.place), lambda _: drawn(COUNT))


def rankings(_: Any) -> list[Ranked]:
    """Rankings of two to four with ties, margins and ratings, so that any loss can read them."""
    random, found = generator(0, "rankings"), list[Ranked]()
    for i, responses in enumerate(answers(COUNT, each=4)):
        k = 2 + i % 3
        ratings = tuple(float(x) for x in random.normal(size=k))
        ranks = tuple(sorted(ratings, reverse=True).index(y) for y in ratings)
        ties = () if k == 2 else ((0, 1),)
        pairs = [p for p in scoring.ranked_pairs(ranks) if tuple(sorted(p)) not in ties]
        told: dict[str, Any] = {"ties": ties, "ranks": ranks, "ratings": ratings}
        told["harmful"] = tuple(y < 0 for y in ratings)
        told |= {"probability": 0.75} if k == 2 else {"margin": 0.5}
        found.append(Ranked(responses[:k], tuple(pairs), **told))
    return found


def rewarding(loss: str) -> Case:
    objective = scoring.RECIPES[loss].objective
    return case(load_reward_model, lambda model: objective(0.1, model.place), rankings)


def solving() -> Case:
    """Solutions of one to three steps, that end anywhere."""

    def load(folder: Path, loading: Loading) -> Any:
        told = {"step_separator": "\n", "step_aggregation": "product"}
        return of_kind(load_reward_model(folder, loading), "process", **told)

    def rows(_: Any) -> list[Solution]:
        random, found = generator(0, "solutions"), list[Solution]()
        pairs = answers(COUNT // 2, each=2)
        for i, tokens in enumerate(one for pair in pairs for one in pair):
            size = min(1 + i % 3, len(tokens.response))
            ends = sorted(int(e) for e in random.permutation(len(tokens.response))[:size])
            found.append(Solution(tokens, tuple(ends), tuple(e % 2 == 0 for e in ends)))
        return found

    return case(load, lambda model: Process(model.place), rows)


def near(model: Any, rows: Sequence[Sequence[Tokens]]) -> list[list[float]]:
    """Reference log-probs near the policy's, so that the losses do not lie in their flat parts."""
    flat = sequence_logps(model, [one for row in rows for one in row]).double()
    off = generator(0, "reference").normal(0, 2, size=len(flat))
    return (flat + torch.from_numpy(off)).view(len(rows), -1).tolist()


def comparing(loss: str) -> Case:
    config = check(DpoConfig, NAMED | {"loss_type": loss})
    recipe = preference.RECIPES[loss]

    def rows(model: Any) -> list[Any]:
        if recipe.ranked:
            ranked, each = answers(COUNT, each=3), ((1, 0, 2), (0, 1, 1))
            orders = (each[i % 2] for i in range(COUNT))
            return [
                Order(row, ranks, tuple(scoring.ranked_pairs(ranks)), tuple(logps))
                for row, ranks, logps in zip(ranked, orders, near(model, ranked), strict=True)
            ]
        pairs = answers(COUNT, each=2)
        return [Pair(*row, *logps) for row, logps in zip(pairs, near(model, pairs), strict=True)]

    kind = Orders if recipe.ranked else Preference
    return case(load_policy, lambda model: kind(recipe, config.loss_options, model.place), rows)


def thumbing() -> Case:
    """Thumbs up and down, each with a response to another prompt for its reference point."""
    config = check(KtoConfig, NAMED | {"desirable_weight": 1.5})

    def rows(model: Any) -> list[Thumb]:
        rows = drawn(COUNT)
        others = [
            Tokens(a.prompt, b.response) for a, b in zip(rows, rows[1:] + rows[:1], strict=True)
        ]
        both = list(zip(rows, others, strict=True))
        near_them = zip(both, near(model, both), strict=True)
        return [Thumb(a, i % 3 > 0, b, *x) for i, ((a, b), x) in enumerate(near_them)]

    return case(load_policy, lambda model: Unpaired(config.loss_options, model.place), rows)


def playing(kind: str, **more: Any) -> Case:
    """Online learning from a made-up rollout, by the stage's own cast, estimates and losses."""

    def config(folder: Path) -> Any:
        base, own = (KINDS | FREE)[kind]
        start: dict[str, Any] = {
            "model_name_or_path": str(folder / "model"),
            "dataset_name": str(folder / "prompts.jsonl"),
            "reward": "tests.judges:vowels",
            "response_length": 16,
            "dtype": "auto",
            "entropy_coef": 0.01,
        }
        texts = {"ptx_dataset_name": str(folder / "texts.jsonl")} if "ptx_coef" in more else {}
        return check(base, NAMED | start | texts | own | more)

    def model(folder: Path) -> Any:
        actor = cast_of(config(folder)).actor
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():  # new heads and adapters are 0, and hold back the gradients behind
            for _, weight in sorted(actor.named_parameters()):
                if weight.requires_grad and not weight.any():
                    weight.copy_(torch.randn(weight.shape, generator=random) / 8)
        return actor

    def parts(actor: Any, folder: Path) -> list[Part]:
        done = config(folder)
        recipe, cast = online.RECIPES[done.recipe], cast_of(done)
        lessons, _ = Estimator(done, recipe)(episodes(actor, cast, done))
        reminders = [(Pretraining(done.ptx_coef), cast.ptx)] if cast.ptx else list[Part]()
        return [*reminders, (Reinforcement(done, recipe), lessons)]

    return Case(model, parts)


def episodes(actor: Any, cast: Any, config: Any) -> list[Episode]:
    """Responses that a policy near this one might have sampled, in its groups."""
    random, found = generator(0, "episodes"), list[Episode]()
    with torch.no_grad():
        for i, tokens in enumerate(drawn(COUNT)):
            logp_T = logp(actor.policy, padded([tokens]))[0].double()
            own, ref, value = (
                torch.from_numpy(random.normal(0, 0.3, size=len(logp_T))) for _ in range(3)
            )
            prompt = cast.prompts[i // config.group]._replace(key=i // config.group)
            score, cut = float(random.normal()), tokens.response[-1] != EOS
            found.append(
                Episode(
                    prompt, i % config.group, tokens, "", not cut, (score,),
                    logp_T + own, logp_T + ref, value,
                )
            )  # fmt: skip
    return found


CASES: dict[str, Case] = {
    "sft": imitation(),
    "sft whole": imitation(completion_only_loss=False),
    **{f"reward {loss}": rewarding(loss) for loss in scoring.RECIPES},
    "reward process": solving(),
    "kto": thumbing(),
    **{f"dpo {loss}": comparing(loss) for loss in preference.RECIPES},
    **{f"online {kind}": playing(kind) for kind in KINDS | FREE},
    "online ptx": playing("ppo", ptx_coef=0.5),
}
