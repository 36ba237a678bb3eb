"""What the quickstart found: systems measured, curves read back, all of it in one record."""

import json
import platform
import resource
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from truing import console
from truing.evaluate.records import (
    Curve,
    Overoptimisation,
    Report,
    RewardTest,
    SeedRun,
    Stage,
    System,
)
from truing.models.model import Policy
from truing.quickstart.judging import Judged
from truing.quickstart.plan import Plan
from truing.rewards import ModelReward
from truing.run import Run
from truing.settings import QuickstartConfig
from truing.worlds import measuring
from truing.worlds.annotators import panel

# A system's key: its label, how a sentence speaks of it, and how it was made.
SYSTEMS = {
    "base": ("Base", "the raw model", "before any training"),
    "sft": ("SFT", "the supervised model", "trained on demonstrations"),
    "chosen": ("SFT on chosen", "SFT on the chosen replies", "a control"),
    "dpo": ("DPO", "DPO", "trained on the best replies against the worst, the best imitated"),
    "ppo": ("PPO", "PPO", "trained on the reward model, the best replies mixed in"),
}
CONTESTS = [
    ("sft", "base"),
    ("chosen", "sft"),
    ("best_of_n", "sft"),
    ("dpo", "sft"),
    ("ppo", "sft"),
    # What the reward adds to the best replies alone.
    ("ppo", "chosen"),
]
# Run folder, stage, panel, metric and label of each line of the report's plots.
CURVES = [
    ("sft", "SFT", "Loss", "loss", "training"),
    ("reward", "Reward model", "Loss", "loss", "training"),
    ("reward", "Reward model", "Accuracy", "accuracy", "training"),
    ("dpo", "DPO", "Reward", "objective/scores", "reward model"),
    ("dpo", "DPO", "Gold", "objective/gold", "gold"),
    ("dpo", "DPO", "KL to the supervised model", "objective/kl", "KL in nats"),
    ("dpo", "DPO", "Implicit margin", "rewards/margins", "training"),
    ("ppo", "PPO", "Reward", "eval_objective/scores", "reward model"),
    ("ppo", "PPO", "Gold", "eval_objective/gold", "gold"),
    ("ppo", "PPO", "KL to the supervised model", "eval_objective/kl", "KL in nats"),
    ("ppo", "PPO", "Variance the critic explains", "critic/vf_explained_var", "training"),
]


def measure(policies: Mapping[str, Policy], scorer: ModelReward, plan: Plan) -> list[System]:
    """Every system on the same held-out prompts, one sample each at temperature 1; best of n
    stands after the control."""
    shown, start = plan.evaluated(), policies["sft"]
    found: list[System] = []
    for name, policy in policies.items():
        label, spoken, note = SYSTEMS[name]
        found.append(
            measuring.system(
                policy,
                shown,
                name=name,
                label=label,
                seed=plan.seed,
                reference=start,
                note=note,
                spoken=spoken,
            )
        )
    best = measuring.best_of_n(start, shown, scorer, n=plan.best_of, seed=plan.seed)
    found.insert([*policies].index("chosen") + 1, best)
    return found


def test_reward(scorer: ModelReward, labelled: Judged, held_out: Judged) -> RewardTest:
    """The reward model on comparisons of prompts that no training has seen."""
    return measuring.reward_test(
        scorer,
        held_out.comparisons,
        train=labelled.comparisons,
        gold_margins=held_out.gold_margins,
        agreement=[row.agrees for row in held_out.rows],
    )


def describe(
    config: QuickstartConfig,
    plan: Plan,
    stages: Sequence[Stage],
    systems: Sequence[System],
    reward: RewardTest,
    comparisons: int,
) -> Report:
    """Everything that was measured, for the report."""
    folder = Path(config.output_dir)
    return Report(
        title="Truing quickstart: a small model learns customer service",
        simulated=True,
        items=[measuring.item(case) for case in plan.evaluated()],
        systems=systems,
        contests=CONTESTS,
        headline=("dpo", "sft"),
        reference="sft",
        seed=config.seed,
        command=f"truing quickstart --seed {config.seed}",
        versions=versions(),
        stages=stages,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        reward=reward,
        curves=[
            Curve(stage, plot, label, *curve(folder / run, metric))
            for run, stage, plot, metric, label in CURVES
        ],
        overoptimisation=overoptimisation(folder),
        seeds=other_seeds(folder, config),
        setup={
            "base model": "1.1 million parameters, packaged",
            "demonstrations": f"{plan.demonstrations}, of which about a third have a fault",
            "comparisons": f"{comparisons}, all pairs among {plan.samples} samples of each prompt, "
            f"each by one of {len(panel(config.seed))} simulated annotators",
            "labels": {"panel": "as the annotators gave them"}.get(config.labels, config.labels),
        },
        labels={"name": "names", "combination": "fact combinations", "phrasing": "paraphrases"},
        judge=[
            f"truing demo-campaign ledger.sqlite --run-dir {folder}",
            "truing serve ledger.sqlite",
        ],
        gold_marks={"an average demonstration": 0.0, "the best possible reply": 1.0},
    )


def curve(run: Path, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, from the run's own lines."""
    lines = [m for m in Run.open(run).metrics() if m.get(metric) is not None]
    return [float(m["step"] or 0) for m in lines], [float(m[metric] or 0) for m in lines]


def overoptimisation(folder: Path) -> Overoptimisation:
    """The run without a KL penalty, as it was watched."""
    run = folder / "ppo_without_kl"
    steps, proxy = curve(run, "eval_objective/scores")
    (_, gold), (_, kl) = curve(run, "eval_objective/gold"), curve(run, "eval_objective/kl")
    return Overoptimisation("PPO without a KL penalty", steps, proxy, gold, kl)


def other_seeds(folder: Path, config: QuickstartConfig) -> list[SeedRun]:
    """Runs of other seeds beside this one (folders whose names begin alike), none left out but
    the negative controls."""
    found: list[SeedRun] = []
    for file in sorted(folder.parent.glob(f"{folder.name.split('-')[0]}*/summary.json")):
        try:
            figures = json.loads(file.read_text(encoding="utf-8"))
            control = figures["setup"]["labels"] in ("shuffled", "flipped")
            other = SeedRun.read(figures)
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Of another version, or damaged: this run's report must not be lost for it.
            console.say(f"[yellow]{console.plain(f'{file} is left out ({error!r})')}[/yellow]")
            continue
        if other.seed != config.seed and config.labels == "panel" and not control:
            found.append(other)
    return found


def versions() -> dict[str, str]:
    names = ("truing", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
