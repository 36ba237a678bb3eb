"""`truing quickstart`: the embedded world through every stage, with nothing to download.

demonstrate -> SFT -> sample -> judge -> reward model -> DPO -> evaluate -> report. Each arrow is
the public stage with a public config; budgets are counted in rows and steps, never in seconds, so
the same seed gives the same numbers. All judgements are simulated, and marked so everywhere.
"""

import json
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import save
from truing.data.schema import Demonstration, Provenance
from truing.evaluate import world
from truing.evaluate.report import write_report
from truing.evaluate.summary import Curve, Report, RewardTest, SeedRun, Stage, System
from truing.keys import generator
from truing.models.heads import load_reward_model
from truing.models.model import Loading, Policy, load_policy
from truing.rewards import ModelReward
from truing.run import Run
from truing.settings import DpoConfig, QuickstartConfig, RewardConfig, SftConfig
from truing.stages import preference, reward, sft
from truing.worlds.annotators import Annotator, Labelled, Shown, compare, panel
from truing.worlds.replies import demonstration
from truing.worlds.service import Case, cases

BASE = Path(__file__).parent / "worlds" / "base"

DEMONSTRATIONS = 6000
PAIRS = 4000  # prompts with two samples for the annotators
HELD_OUT_PAIRS = 400
PROMPTS = 500  # held-out prompts of the evaluation
BEST_OF = 8
WATCHED = 100  # held-out prompts looked at during DPO
SIMULATED = Provenance(source="model", author="world", simulated=True)

# On short rows and a CPU eager attention is quicker than sdpa, forwards and backwards.
QUICK = Loading(attn_implementation="eager")
TRAINING: dict[str, Any] = {
    "report_to": [],
    "logging_steps": 5,
    "max_length": 256,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "use_cpu": True,
    "attn_implementation": "eager",
}


class Judged(NamedTuple):
    """Comparisons as labelled, and gold(chosen) - gold(rejected) of each."""

    rows: list[Labelled]
    gold_margins: list[float]


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


def run(config: QuickstartConfig) -> Path:
    """Run the whole loop and write ``report.html`` and ``summary.json``; the report's path."""
    folder, seed = Path(config.output_dir), config.seed
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give another --output-dir, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(folder)
    with clock.part("sft", "Supervised fine-tuning on demonstrations"):
        start = imitate(folder, seed)
    with clock.part("judge", "Sampling pairs, which simulated annotators judge"):
        labelled, held_out = judgements(start, config)
        save([row.comparison for row in labelled.rows], folder / "comparisons.jsonl")
        save([row.comparison for row in held_out.rows], folder / "comparisons_held_out.jsonl")
    with clock.part("reward", "Reward model from the comparisons"):
        scorer = learn_reward(folder, seed)
    with clock.part("sft_chosen", "Control: SFT on the chosen replies"):
        chosen = imitate_chosen(folder, seed, labelled.rows)
    with clock.part("dpo", "Direct preference optimisation"):
        aligned = align(folder, seed, start, scorer)
    with clock.part("evaluate", f"Evaluation on {PROMPTS} held-out prompts"):
        shown = cases(PROMPTS, seed=seed, split="heldout")
        systems = evaluate(shown, seed, start, chosen, aligned, scorer)
        test = world.reward_test(
            scorer,
            [row.comparison for row in held_out.rows],
            train=[row.comparison for row in labelled.rows],
            gold_margins=held_out.gold_margins,
            agreement=[row.agrees for row in held_out.rows],
        )
    page = write_report(folder, describe(config, clock, shown, systems, test, len(labelled.rows)))
    conclude(folder, page)
    return page


def describe(
    config: QuickstartConfig,
    clock: Clock,
    shown: Sequence[Case],
    systems: Sequence[System],
    test: RewardTest,
    comparisons: int,
) -> Report:
    """Everything that was measured, for the report."""
    people = len(panel(config.seed))
    return Report(
        title="Truing quickstart: a small model learns customer service",
        simulated=True,
        items=[world.item(case) for case in shown],
        systems=systems,
        contests=[("sft", "base"), ("chosen", "sft"), ("best_of_n", "sft"), ("dpo", "sft")],
        headline=("dpo", "sft"),
        reference="sft",
        seed=config.seed,
        command=f"truing quickstart --seed {config.seed}",
        versions=versions(),
        stages=clock.stages,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        reward=test,
        curves=curves(clock.folder),
        seeds=other_seeds(clock.folder, config),
        setup={
            "base model": "1.1 million parameters, packaged",
            "demonstrations": f"{DEMONSTRATIONS}, of which about a third have a fault",
            "comparisons": f"{comparisons}, each by one of {people} simulated annotators",
            "labels": {"panel": "as the annotators gave them"}.get(config.labels, config.labels),
        },
        labels={"name": "names", "combination": "fact combinations", "phrasing": "paraphrases"},
        gold_marks={"an average demonstration": 0.0, "the best possible reply": 1.0},
    )


def imitate(folder: Path, seed: int) -> Policy:
    """SFT on demonstrations, about a third of them faulty."""
    rows = [
        Demonstration(case.prompt, demonstration(case, seed), SIMULATED)
        for case in cases(DEMONSTRATIONS, seed=seed, split="train")
    ]
    save(rows, folder / "demonstrations.jsonl")
    config = SftConfig(
        **TRAINING,
        output_dir=str(folder / "sft"),
        model_name_or_path=str(BASE),
        dataset_name=str(folder / "demonstrations.jsonl"),
        learning_rate=3e-4,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        seed=seed,
    )
    return load_policy(trained(sft.run(config)), QUICK)


def imitate_chosen(folder: Path, seed: int, labelled: Sequence[Labelled]) -> Policy:
    """SFT on the preferred replies: what the comparisons are worth without their other half."""
    rows = [
        Demonstration(row.comparison.prompt, row.comparison.chosen, SIMULATED) for row in labelled
    ]
    save(rows, folder / "chosen.jsonl")
    config = SftConfig(
        **TRAINING,
        output_dir=str(folder / "sft_chosen"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "chosen.jsonl"),
        learning_rate=3e-4,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        seed=seed,
    )
    return load_policy(trained(sft.run(config)), QUICK)


def judgements(policy: Policy, config: QuickstartConfig) -> tuple[Judged, Judged]:
    """Comparisons of two samples a prompt: for training, and of held-out prompts for testing."""
    seed = config.seed
    people = panel(seed)
    # Prompts that neither SFT nor the evaluation uses.
    train = cases(PAIRS, seed=seed, split="train", start=DEMONSTRATIONS)
    test = cases(HELD_OUT_PAIRS, seed=seed, split="heldout", start=PROMPTS)
    labelled = judge(pairs(policy, train, seed), people, seed)
    return mislabel(labelled, config), judge(pairs(policy, test, seed), people, seed)


def judge(shown: Sequence[Shown], people: Sequence[Annotator], seed: int) -> Judged:
    """Each pair judged by one annotator of the panel."""
    rows = compare(shown, people, seed=seed)
    margins: list[float] = []
    for item, row in zip(shown, rows, strict=True):
        a, b = (score.total for score in item.scores)
        margins.append(a - b if row.comparison.chosen == item.replies[0] else b - a)
    return Judged(rows, margins)


def pairs(policy: Policy, shown: Sequence[Case], seed: int) -> list[Shown]:
    """Two different samples for each case, with their gold scores for the simulated annotators."""
    encoder = Encoder(policy.tokenizer)
    found: list[Shown] = []
    done = world.sampled(policy, shown, seed=seed, stream="pairs", samples=2)
    for case, (a, b) in zip(shown, done, strict=True):
        (text_a, score_a), (text_b, score_b) = (world.judged(case, encoder, t) for t in (a, b))
        if text_a != text_b:
            found.append(Shown(case.prompt, (text_a, text_b), (score_a, score_b), case.key))
    return found


def mislabel(judged: Judged, config: QuickstartConfig) -> Judged:
    """The negative controls: labels at random, or every label turned round."""
    if config.labels == "panel":
        return judged
    draws = generator(config.seed, "shuffled labels").random(len(judged.rows))
    turn = [config.labels == "flipped" or draw < 0.5 for draw in draws]
    rows = [
        row._replace(comparison=row.comparison.swap()) if turned else row
        for row, turned in zip(judged.rows, turn, strict=True)
    ]
    margins = [-m if turned else m for m, turned in zip(judged.gold_margins, turn, strict=True)]
    return Judged(rows, margins)


def learn_reward(folder: Path, seed: int) -> ModelReward:
    """The reward model, started from the supervised model."""
    config = RewardConfig(
        **TRAINING,
        output_dir=str(folder / "reward"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "comparisons.jsonl"),
        eval_dataset_name=str(folder / "comparisons_held_out.jsonl"),
        learning_rate=3e-4,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        seed=seed,
    )
    return ModelReward(load_reward_model(trained(reward.run(config)), QUICK))


def align(folder: Path, seed: int, start: Policy, scorer: ModelReward) -> Policy:
    """DPO from the supervised model, watched on held-out prompts while it runs."""
    config = DpoConfig(
        **TRAINING,
        output_dir=str(folder / "dpo"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "comparisons.jsonl"),
        learning_rate=1e-4,
        beta=0.2,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        log_completions_steps=20,
        seed=seed,
    )
    shown = cases(WATCHED, seed=seed, split="heldout", start=PROMPTS + HELD_OUT_PAIRS)
    watch = world.watcher(shown, start, scorer)
    return load_policy(trained(preference.run(config, watch=watch)), QUICK)


def evaluate(
    shown: Sequence[Case],
    seed: int,
    start: Policy,
    chosen: Policy,
    aligned: Policy,
    scorer: ModelReward,
) -> list[System]:
    """Every system on the same held-out prompts, one sample each at temperature 1."""
    table = [
        ("base", "Base", load_policy(BASE, QUICK), "the raw model", "before any training"),
        ("sft", "SFT", start, "the supervised model", "trained on demonstrations"),
        ("chosen", "SFT on chosen", chosen, "SFT on the chosen replies", "a control"),
        ("dpo", "DPO", aligned, "DPO", "trained on comparisons"),
    ]
    systems = [
        world.system(
            policy,
            shown,
            name=name,
            label=label,
            seed=seed,
            reference=start,
            note=note,
            spoken=spoken,
        )
        for name, label, policy, spoken, note in table
    ]
    systems.insert(3, world.best_of_n(start, shown, scorer, n=BEST_OF, seed=seed))
    return systems


def curves(folder: Path) -> list[Curve]:
    """The lines of the report's plots, from the runs' own metrics."""
    wanted = [
        ("sft", "SFT", "Loss", "loss", "training"),
        ("reward", "Reward model", "Loss", "loss", "training"),
        ("reward", "Reward model", "Accuracy", "accuracy", "training"),
        ("dpo", "DPO", "Reward", "objective/scores", "reward model"),
        ("dpo", "DPO", "Gold", "objective/gold", "gold"),
        ("dpo", "DPO", "KL to the supervised model", "objective/kl", "KL in nats"),
        ("dpo", "DPO", "Implicit margin", "rewards/margins", "training"),
    ]
    found: list[Curve] = []
    for name, stage, panel_name, metric, label in wanted:
        lines = [m for m in Run.open(folder / name).metrics() if m.get(metric) is not None]
        steps = [float(m["step"] or 0) for m in lines]
        found.append(Curve(stage, panel_name, label, steps, [float(m[metric] or 0) for m in lines]))
    return found


def other_seeds(folder: Path, config: QuickstartConfig) -> list[SeedRun]:
    """Runs of other seeds beside this one (folders whose names begin alike), none left out but
    the negative controls."""
    found: list[SeedRun] = []
    for file in sorted(folder.parent.glob(f"{folder.name.split('-')[0]}*/summary.json")):
        figures = json.loads(file.read_text(encoding="utf-8"))
        control = figures["setup"]["labels"] in ("shuffled", "flipped")
        if figures["seed"] != config.seed and config.labels == "panel" and not control:
            found.append(SeedRun.read(figures))
    return found


def trained(done: Run | None) -> Path:
    """The folder of a stage's run; None would mean a dry run, which is never asked for here."""
    assert done is not None
    return done.path


def versions() -> dict[str, str]:
    names = ("truing", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


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
    rows["seconds"] = round(figures["seconds"]["total"])
    rows["peak memory (MB)"] = figures["peak_mb"]
    console.table("Quickstart: every judgement simulated", rows)
    console.say(f"Report: [link]{page}[/link]")
