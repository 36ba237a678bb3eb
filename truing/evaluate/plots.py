"""The report's plots as inline SVG that follows the page: its fonts, its colours, its dark mode.

Matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables:
``--ink``, ``--faint``, ``--rule``, ``--page`` and one ``--s0`` ... ``--s7`` per system. No pyplot,
so there is no global figure; the same input gives the same text.
"""

import re
from collections.abc import Sequence
from html import escape
from io import StringIO
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, FAINT, RULE, PAGE = "#0b0a01", "#0b0a02", "#0b0a03", "#0b0a04"
SERIES = tuple(f"#0b0b0{i}" for i in range(8))
_VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", PAGE: "--page"} | {
    stand_in: f"--s{i}" for i, stand_in in enumerate(SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",  # real text in the page's font: sharp, small, and it can be read aloud
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": FAINT,
    "axes.facecolor": "none",
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
}


_STEP = 0.135  # inches between the dots of a row


class Dot(NamedTuple):
    """An estimate with its interval; ``colour`` is a number of `SERIES`."""

    value: float
    low: float
    high: float
    colour: int
    hollow: bool = False


class Row(NamedTuple):
    """A labelled row of dots, drawn one below the other when there are several."""

    label: str
    dots: Sequence[Dot]


class Line(NamedTuple):
    """A curve; ``colour`` is a number of `SERIES`, or None for ink."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: int | None


def dot_plot(
    rows: Sequence[Row],
    name: str,
    *,
    percent: bool,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """Rows of estimates with their intervals, each under its label; ``marks`` are vertical lines.

    Labels stand above their rows, not beside them, so that the plot stays legible on a phone.
    """
    with mpl.rc_context(_STYLE):
        heights = [0.30 + _STEP * len(row.dots) for row in rows]
        above, below = (0.26 if marks else 0.04), 0.28
        tall = sum(heights) + above + below
        figure = Figure(figsize=(4.2, tall), facecolor="none")
        axes = figure.add_axes((0.02, below / tall, 0.94, sum(heights) / tall))
        top = 0.0
        for row, height in zip(rows, heights, strict=True):
            axes.annotate(
                row.label, (0, top + 0.15), (0, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center",
                bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
            for i, dot in enumerate(row.dots):
                _dot(axes, dot, top + 0.32 + _STEP * i)
            top += height
        axes.set_ylim(top, 0)
        axes.set_yticks([])
        if from_zero:
            axes.set_xlim(left=0)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if percent:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
        _mark(axes, marks)
        return _svg(figure, name)


def line_plot(
    lines: Sequence[Line], title: str, name: str, *, marks: Sequence[tuple[float, str]] = ()
) -> str:
    """Curves over steps, each named at its right end where there are several; ``marks`` are
    vertical lines."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 2.1), facecolor="none")
        several = len(lines) > 1
        axes = figure.add_axes((0.13, 0.13, 0.62 if several else 0.84, 0.68))
        dashes = iter([(None, None), (4, 1.5), (1.5, 1.5), (6, 1, 1, 1)] * len(lines))
        for line in lines:
            colour = INK if line.colour is None else SERIES[line.colour]
            style = next(dashes) if line.colour is None else (None, None)
            if len(line.low):
                axes.fill_between(
                    line.steps, line.low, line.high, color=colour, alpha=0.15, linewidth=0
                )
            axes.plot(line.steps, line.values, color=colour, linewidth=1.6, dashes=style)
        axes.margins(x=0.02)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelcolor=FAINT)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        figure.text(0.01, 0.99, title, va="top", fontsize=10, color=INK)
        _mark(axes, marks)
        if several:
            _name_ends(axes, lines)
        return _svg(figure, name)


def _mark(axes: Axes, marks: Sequence[tuple[float, str]]) -> None:
    """Vertical lines, each with its name above it on the side that has more room."""
    low, high = axes.get_xlim()
    for x, label in marks:
        axes.axvline(x, color=FAINT, linewidth=1, dashes=(3, 2), zorder=1)
        axes.annotate(
            label, (x, 1), (0, 4), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=FAINT, fontsize=8.5,
            ha="left" if x < low + 0.5 * (high - low) else "right",
        )  # fmt: skip


def _dot(axes: Axes, dot: Dot, y: float) -> None:
    colour = SERIES[dot.colour]
    axes.plot([dot.low, dot.high], [y, y], color=colour, linewidth=1.6, alpha=0.55)
    axes.plot(
        dot.value, y, "o", color=colour, markersize=6,
        markerfacecolor=PAGE if dot.hollow else colour, markeredgewidth=1.4,
    )  # fmt: skip


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Names beside the last points, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.11 * (high - low)
    height = low - gap
    for line in sorted(lines, key=lambda line: line.values[-1]):
        height = max(height + gap, line.values[-1])
        axes.annotate(
            line.label, (1, height), (5, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=8.5, annotation_clip=False,
            color=INK if line.colour is None else SERIES[line.colour],
        )  # fmt: skip


def _svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element, named for screen readers, in the page's colours."""
    out = StringIO()
    # Marker and clip ids are hashes salted by the name: several plots can share one page.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    text = re.sub(
        r'.*?<svg[^>]* viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{escape(name)}"'
        ' xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
        flags=re.DOTALL,
    )
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    return text
