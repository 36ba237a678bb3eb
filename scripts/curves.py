"""Draw docs/ppo.png: PPO in the quickstart, and the run without a KL penalty, from their metrics.

python -m scripts.curves [RUN]     RUN: a finished quickstart; runs/quickstart by default
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from truing.quickstart.account import curve

TARGET = Path(__file__).resolve().parents[1] / "docs" / "ppo.png"


def rewards(axes: Axes, folder: Path, name: str, title: str) -> None:
    for metric, label in (("scores", "reward model"), ("gold", "gold")):
        line = curve(folder / name, f"eval_objective/{metric}")
        axes.plot(*line, marker="o", markersize=3, label=label)
    axes.set_title(title)
    axes.legend(frameon=False)


def distance(axes: Axes, folder: Path, name: str, title: str) -> None:
    line = curve(folder / name, "eval_objective/kl")
    axes.plot(*line, marker="o", markersize=3, color="C2")
    axes.set_title(title)


def draw(folder: Path) -> Figure:
    """Four panels: reward and KL, with the penalty and without it."""
    settings = yaml.safe_load((folder / "ppo" / "config.yaml").read_text(encoding="utf-8"))
    stop = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["overoptimisation"]
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)
    rewards(a, folder, "ppo", "PPO: reward")
    distance(b, folder, "ppo", "PPO: KL in nats per reply, drawn to a target (dashed)")
    b.axhline(settings["kl_target"], color="grey", linewidth=1, linestyle="--")
    rewards(c, folder, "ppo_without_kl", "without KL penalty: reward, and where to stop (dashed)")
    distance(d, folder, "ppo_without_kl", "without KL penalty: KL in nats per reply")
    for axes in (c, d):
        if stop["gamed"]:
            axes.axvline(stop["stop"], color="grey", linewidth=1, linestyle="--")
    for axes in (a, b, c, d):
        axes.set_xlabel("rollouts")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 10}):
        draw(folder).savefig(TARGET, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
