"""`truing quickstart`: the embedded world through every stage, with nothing to download.

demonstrate -> SFT -> sample -> judge -> reward model -> DPO, PPO -> evaluate -> report. Each arrow
is the public stage with a public config, so the same seed gives the same numbers. All judgements
are simulated, and marked so everywhere.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from truing import console
from truing.data.formats import save
from truing.evaluate.records import Stage
from truing.evaluate.report import write_report
from truing.models.model import load_policy
from truing.quickstart import account, training
from truing.quickstart.judging import extremes, judge, mislabel, rankings
from truing.quickstart.plan import Plan
from truing.run import Run
from truing.settings import QuickstartConfig
from truing.worlds import measuring
from truing.worlds.annotators import panel
from truing.writing import check_place


@dataclass
class Clock:
    """What each part of the loop cost, in the order they ran. A part is named by its run folder."""

    folder: Path
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def part(self, name: str, label: str) -> Iterator[None]:
        start = time.monotonic()
        console.say(f"[bold]{label}[/bold]")
        yield
        trained = (self.folder / name / "run.json").is_file()
        steps = Run.open(self.folder / name).info["summary"]["weight_version"] if trained else 0
        self.stages.append(Stage(name, label, time.monotonic() - start, steps))


def run(config: QuickstartConfig, plan: Plan | None = None) -> Path:
    """Run the whole loop and write ``report.html`` and ``summary.json``; the report's path."""
    folder = Path(config.output_dir)
    plan = plan or Plan(seed=config.seed)
    if plan.seed != config.seed:
        raise ValueError(
            f"the plan has seed {plan.seed}, the settings {config.seed}: give one seed"
        )
    check_place("output_dir", folder)
    if folder.is_file():
        raise ValueError(f"output_dir {folder} is a file; give the name of a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give another --output-dir, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    clock, people = Clock(folder), panel(plan.seed)
    with clock.part("sft", "Supervised fine-tuning on demonstrations"):
        start = training.imitate(folder, plan)
    with clock.part("judge", "Sampling replies, which simulated annotators compare"):
        labelled = judge(start, plan.compared(), people, plan.seed, samples=plan.samples)
        labelled = mislabel(labelled, config.labels, plan.seed)
        held_out = judge(start, plan.compared_held_out(), people, plan.seed, samples=2)
        ranked = rankings(labelled.comparisons)
        save(labelled.comparisons, folder / "comparisons.jsonl")
        save(held_out.comparisons, folder / "comparisons_held_out.jsonl")
        save(ranked, folder / "rankings.jsonl")
        best_and_worst = extremes(ranked)
        save(best_and_worst, folder / "extremes.jsonl")
    with clock.part("reward", "Reward model from the comparisons"):
        scorer = training.learn_reward(folder, plan)
    with clock.part("sft_chosen", "Control: SFT on the chosen replies"):
        chosen = training.imitate_chosen(folder, plan, best_and_worst)
    watch = measuring.watcher(plan.looked_at(), start, scorer)
    with clock.part("dpo", "Direct preference optimisation"):
        dpo = training.prefer(folder, plan, watch)
    with clock.part("ppo", "Reinforcement learning from the reward model (PPO)"):
        ppo = training.reinforce(folder, plan, watch)
    with clock.part("ppo_without_kl", "A warning: PPO without a KL penalty"):
        training.unbrake(folder, plan, watch)
    with clock.part("evaluate", f"Evaluation on {plan.prompts} held-out prompts"):
        base = load_policy(training.BASE)
        policies = {"base": base, "sft": start, "chosen": chosen, "dpo": dpo, "ppo": ppo}
        systems = account.measure(policies, scorer, plan)
        tested = account.test_reward(scorer, labelled, held_out)
    report = account.describe(config, plan, clock.stages, systems, tested, len(labelled.rows))
    page = write_report(folder, report)
    conclude(folder, page)
    return page


def conclude(folder: Path, page: Path) -> None:
    """Print the figures that matter and where the report lies."""
    figures = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows: dict[str, object] = {
        f"{name.replace('_', ' ')} (gold)": f"{r['value']:.2f}  ({r['low']:.2f} to {r['high']:.2f})"
        for name, r in figures["win_rate"].items()
    }
    accuracy = figures["reward_accuracy"]
    rows["reward model accuracy"] = (
        f"{accuracy['value']:.2f}  ({accuracy['low']:.2f} to {accuracy['high']:.2f}), "
        f"ceiling {accuracy['ceiling']:.2f}"
    )
    over = figures["overoptimisation"]
    rows["without KL, gold: start, best, end"] = (
        f"{over['gold']['start']:.2f}, {over['gold']['best']:.2f} (rollout {over['stop']}), "
        f"{over['gold']['end']:.2f}"
    )
    rows["seconds"] = round(figures["seconds"]["total"])
    rows["peak memory (MB)"] = figures["peak_mb"]
    console.table("Quickstart: every judgement simulated", rows)
    console.say(f"Report: [link]{page}[/link]")
