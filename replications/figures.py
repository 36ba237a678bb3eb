"""Figures of the replications: the look of the report's plots, on paper that is always light."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The light colours of truing/evaluate/report.css.j2, which tell apart for the colour-blind too.
INK, FAINT, RULE, PAPER = "#1d1f23", "#666b74", "#e3e3dd", "#fcfcfa"
BLUE, SKY, OCHRE, RED, GREEN, PINK, GREY = (
    "#0072b2", "#3ba0db", "#c58400", "#d55e00", "#009068", "#b3589a", "#7d838c",
)  # fmt: skip
STYLE: Any = {
    "text.parse_math": False,
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": FAINT,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.color": INK,
    "savefig.facecolor": PAPER,
}


def panels(count: int, *, height: float = 3.0) -> tuple[Figure, Sequence[Axes]]:
    """A row of plots."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1 * count, height), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False)
    return figure, list(axes[0])


def band(axes: Axes, x: Any, low: Any, high: Any, colour: str) -> None:
    """The interval around a curve."""
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def named(axes: Axes, title: str, x: str, y: str, *, legend: bool = True, **where: Any) -> None:
    """Title, axes with their units, and the legend."""
    with mpl.rc_context(STYLE):
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if legend:
            axes.legend(**where)
