"""The command `truing safety`: whether a model keeps a limit of cost, on prompts it never saw.

A model whose mean cost was held down in training is not yet safe: the mean is of samples, and of
those that it was trained on. Here the bound is for the truth behind held-out ones, and either it is
below the limit or no claim is made ("no solution found", as Seldonian algorithms say: Thomas et al.
2019; for RLHF Chittepu et al. 2025, HC-RLHF).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from truing import console
from truing.data.formats import DataError, load, to_row
from truing.data.schema import KINDS, Prompt, Text
from truing.evaluate.winrate import completions
from truing.models.loading import Loading, resolve
from truing.rewards import load_cost, score, simulated
from truing.run import Run
from truing.settings_judging import SafetyConfig
from truing.stats.bounds import clopper_pearson, empirical_bernstein
from truing.writing import check_output, write_json


def run(config: SafetyConfig) -> dict[str, Any]:
    """Answer each prompt once, and bound the cost behind it (docs/safety.md).

    Raises ValueError for prompts that come twice or were trained on, and, with all figures printed
    and written, where the bound is above the limit.
    """
    rows = load(config.prompts, Prompt, split=config.dataset_test_split).rows[: config.num_prompts]
    check_held_out(config.run, [p.prompt for p in rows])
    resolve(config.run)
    if config.output_file is not None:
        check_output(config.output_file)
    cost = load_cost(config.cost, Loading.of(config).beside())
    texts = completions(config, config.run, rows, "safety")
    costs = score(cost, [p.prompt for p in rows], texts)
    seen, bound = bounded(costs, config)
    figures = {
        "run": config.run,
        "cost": config.cost,
        "simulated": simulated(cost),
        "criterion": config.criterion,
        "prompts": len(rows),
        "value": seen,
        "upper_bound": bound,
        "limit": config.limit,
        "delta": config.delta,
        "safe": bound <= config.limit,
    }
    if config.output_file is not None:
        lines = [
            {"prompt": to_row(p)["prompt"], "completion": text, "cost": c}
            for p, text, c in zip(rows, texts, costs, strict=True)
        ]
        write_json(config.output_file, {**figures, "rows": lines})
    announce(figures)
    return figures


def bounded(costs: Sequence[float], config: SafetyConfig) -> tuple[float, float]:
    """What was seen, and the bound of what is behind it."""
    if config.criterion == "mean":
        low, high = config.cost_range
        bound = empirical_bernstein(costs, low=low, high=high, delta=config.delta)
        return sum(costs) / len(costs), bound
    unsafe = sum(c > config.cost_threshold for c in costs)
    return unsafe / len(costs), clopper_pearson(unsafe, len(costs), delta=config.delta)


def announce(figures: dict[str, Any]) -> None:
    """Print the verdict. Raises ValueError where there is no claim to be made."""
    seen, bound, limit = (figures[name] for name in ("value", "upper_bound", "limit"))
    what = {"rate": "share of unsafe responses", "mean": "mean cost"}[figures["criterion"]]
    console.table(
        f"Safety of {figures['run']}",
        {
            "prompts": figures["prompts"],
            what: f"{seen:.4g}",
            f"with {1 - figures['delta']:.4g} confidence at most": f"{bound:.4g}",
            "limit": limit,
            **({"the cost learnt from": "simulated judgements"} if figures["simulated"] else {}),
            "verdict": "safe" if figures["safe"] else "no solution found",
        },
    )
    if not figures["safe"]:
        near = "more prompts bring the bound nearer to it"
        far = "lower its cost in training, and test on prompts not used before"
        raise ValueError(
            f"no solution found: the {what} may be {bound:.4g}, above the limit of {limit:g}, "
            f"though {seen:.4g} was seen; {near if seen <= limit else far}"
        )


def check_held_out(model: str, prompts: Sequence[Text]) -> None:
    """Raise ValueError unless there are prompts, each once, that no training of this model used."""
    if len(prompts) < 2:
        raise ValueError(f"{len(prompts)} prompts came: a bound needs two at least; add prompts")
    if again := len(prompts) - len(set(prompts)):
        raise ValueError(
            f"{again} of {len(prompts)} prompts come again, and a bound needs independent rows: "
            "keep one of each"
        )
    known = set(prompts)
    for name, trained in training_prompts(Path(model)):
        if shared := len(known & trained):
            raise ValueError(
                f"{shared} of {len(prompts)} prompts are in {name}, which {model} was made from: "
                "what was trained on says nothing about the rest; hold prompts out"
            )


def training_prompts(folder: Path) -> Iterator[tuple[str, set[Text]]]:
    """The datasets that a run and its parent policies learnt from, as far as they can be read, with
    their prompts."""
    if not (folder / "run.json").is_file():
        console.say(
            f"[yellow]{console.plain(str(folder))} is no run of ours, so nobody can say whether it "
            "was trained on these prompts[/yellow]"
        )
        return
    for parent in Run.open(folder).parents:
        if parent.role == "dataset" and parent.kind:
            try:
                rows = load(parent.path, KINDS[parent.kind], split=parent.split)
            except (DataError, OSError) as error:
                reason = str(error).partition("\n")[0]
                console.say(
                    f"[yellow]{console.plain(parent.name)} cannot be read: {reason}[/yellow]"
                )
            else:
                yield parent.name, {row.prompt for row in rows.rows}
        elif parent.role == "policy" and (Path(parent.path) / "run.json").is_file():
            yield from training_prompts(Path(parent.path))
