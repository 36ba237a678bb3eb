"""Write the table of figures in README.md from finished quickstarts: every seed, none picked.

    python scripts/readme_figures.py [RUNS]     RUNS: the folder of quickstart*/; runs by default

Numbers come from each run's summary.json; date and machine from the run.json of its first stage.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- figures -->\n", "<!-- /figures -->"
Figures = Mapping[str, Any]


def win(contest: str) -> Callable[[Figures], str]:
    return lambda figures: percent(figures["win_rate"][contest])


def percent(x: Figures) -> str:
    return f"{100 * x['value']:.0f} % ({100 * x['low']:.0f} to {100 * x['high']:.0f})"


def move(name: str, digits: int) -> Callable[[Figures], str]:
    """A figure of the supervised model, then of DPO and of PPO."""
    return lambda f: before_and_after(f, lambda s: f"{f[name][s]['value']:.{digits}f}")


def before_and_after(figures: Figures, read: Callable[[str], str]) -> str:
    """What ``read`` tells of SFT, then of DPO and PPO."""
    return f"{read('sft')} → {read('dpo')}, {read('ppo')}"


def warning(figures: Figures) -> str:
    """Gold of the run without a KL penalty: at the start, at its best, at the end."""
    gold = figures["overoptimisation"]["gold"]
    return " → ".join(f"{gold[when]:.2f}" for when in ("start", "best", "end"))


# What the table shows, in order: a label and how to read it from a summary.json.
ROWS: dict[str, Callable[[Figures], str]] = {
    "**DPO beats SFT**, by gold": win("dpo_vs_sft"),
    "**PPO beats SFT**, by gold": win("ppo_vs_sft"),
    "SFT beats the base model": win("sft_vs_base"),
    "best of several SFT samples, picked by the reward model, beats SFT": win("best_of_n_vs_sft"),
    "control: SFT on the chosen replies beats SFT": win("chosen_vs_sft"),
    "gold reward, SFT → DPO, PPO": move("gold", 2),
    "every fact right, SFT → DPO, PPO": lambda f: before_and_after(
        f, lambda s: f"{100 * f['facts'][s]['all']['all']['value']:.0f} %"
    ),
    "reward model agrees with new labels": lambda f: percent(f["reward_accuracy"]),
    "ceiling: gold itself agrees with them": lambda f: (
        f"{100 * f['reward_accuracy']['ceiling']:.0f} %"
    ),
    "tokens per reply, SFT → DPO, PPO": move("length", 0),
    "KL to SFT, nats per reply: DPO, PPO": lambda f: ", ".join(
        f"{f['kl'][s]['value']:.1f}" for s in ("dpo", "ppo")
    ),
    "a warning: PPO without KL penalty, gold at its start → best → end": warning,
    "minutes": lambda f: f"{f['seconds']['total'] / 60:.1f}",
    "peak memory": lambda f: f"{f['peak_mb'] / 1024:.1f} GB",
}


def runs(folder: Path) -> list[tuple[Figures, Figures]]:
    """(summary.json, run.json) of each finished quickstart with the annotators' own labels."""
    found: list[tuple[Figures, Figures]] = []
    for file in sorted(folder.glob("quickstart*/summary.json")):
        figures = json.loads(file.read_text(encoding="utf-8"))
        settings = json.loads((file.parent / "sft" / "run.json").read_text(encoding="utf-8"))
        if figures["setup"]["labels"] not in ("shuffled", "flipped"):
            found.append((figures, settings))
    if not found:
        raise SystemExit(f"no finished quickstart in {folder}: run `make quickstart` first")
    return sorted(found, key=lambda run: run[0]["seed"])


def table(found: Sequence[tuple[Figures, Figures]]) -> str:
    """The lines between the marks."""
    head = "| | " + " | ".join(f"seed {figures['seed']}" for figures, _ in found) + " |"
    lines = [head, "|---|" + "---|" * len(found)]
    for label, read in ROWS.items():
        lines.append(f"| {label} | " + " | ".join(read(figures) for figures, _ in found) + " |")
    dates = sorted({run["created"][:10] for _, run in found})
    machines = sorted({machine(run) for _, run in found})
    versions = found[0][0]["versions"]
    lines += [
        "",
        f"Measured {' and '.join(dates)} on {' and '.join(machines)}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, by `truing quickstart --seed N`, "
        f"{found[0][0]['prompts']} held-out prompts. In brackets: 95 % intervals.",
    ]
    return "\n".join(lines) + "\n"


def machine(run: Figures) -> str:
    """Kind of machine: system, architecture, CPUs and threads."""
    system, _, rest = run["machine"]["platform"].partition("-")
    kind = next((a for a in ("x86_64", "aarch64", "arm64") if a in rest), "")
    cpus, threads = run["machine"]["cpus"], run["machine"]["threads"]
    return f"{system} {kind}, {cpus} CPUs, {threads} {'thread' if threads == 1 else 'threads'}"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    before, _, rest = README.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    README.write_text(before + START + table(runs(folder)) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
