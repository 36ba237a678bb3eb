"""The report: one self-contained HTML page and ``summary.json`` beside it. Data in, files out.

The page needs no network and no script, follows the reader's light or dark mode, prints, and reads
on a phone. Everything that came from a model or a user is escaped.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from truing import console
from truing.evaluate.plots import Dot, Line, Row, dot_plot, line_plot
from truing.evaluate.summary import ALL, Item, Reply, Report, SeedRun, System, percent, summary


class Chip(NamedTuple):
    """A sub-score at a glance; ``level`` is good, part, bad or even."""

    level: str
    text: str


def write_report(folder: Path, report: Report) -> Path:
    """Write ``report.html`` and ``summary.json`` into the folder; the path of the page."""
    figures = summary(report)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render(report, figures), encoding="utf-8")
    return page


def render(report: Report, figures: Mapping[str, Any]) -> str:
    """The page as text; ``figures`` is `summary` of the same report."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "pct": percent,
        "num": _num,
        "plain": _plain,
        "pick": lambda mapping, key: mapping.get(key),
        "find": lambda key, mapping: mapping.get(key),
        "digits": _digits,
        "time": _time,
        "memory": console.memory,
        "word": report.word,
    }
    shown = range(min(report.examples, len(report.items)))
    spans = _spans(report)
    return env.get_template("report.html.j2").render(
        report=report,
        f=figures,
        all=ALL,
        colour={s.name: i % 8 for i, s in enumerate(report.systems)},
        examples=[(report.items[i], _columns(report, i, spans)) for i in shown],
        plots={name: Markup(svg) for name, svg in _plots(report, figures).items()},
        panels=_panels(report),
        warning=_warning(report),
        later=_later(report),
        fault_names=_by_rate(figures["faults"][report.reference]),
        seeds=_seeds(report, figures),
        lowered=_lowered(figures["facts"][report.headline[0]]),
    )


def _columns(
    report: Report, index: int, spans: Mapping[str, tuple[float, float]]
) -> list[tuple[System, Reply, dict[str, list[Chip]]]]:
    """(system, reply, chips) for one prompt."""
    item = report.items[index]
    replies = [(system, system.replies[index]) for system in report.systems]
    return [(system, reply, chips(report, item, reply, spans)) for system, reply in replies]


def chips(
    report: Report, item: Item, reply: Reply, spans: Mapping[str, tuple[float, float]]
) -> dict[str, list[Chip]]:
    """Scores, facts and faults of one reply, coloured; groups without a chip are left out.

    A part is good within 5 % of its observed span of the best possible reply (or, not knowing that,
    of the best seen), bad below half of the span, and part of the way between.
    """
    scores: list[Chip] = []
    for name, value in reply.parts.items():
        low, high = spans[name]
        best = (item.best or {}).get(name, high)
        short = (best - value) / (high - low) if high > low else None
        level = "even" if short is None else ("good", "part", "bad")[(short > 0.05) + (short > 0.5)]
        scores.append(Chip(level, f"{report.word(name)} {_plain(value)}"))
    groups = {
        "Scores": scores,
        "Facts": [Chip("good" if ok else "bad", report.word(n)) for n, ok in reply.facts.items()],
        "Faults": [Chip("bad", report.word(name)) for name in sorted(reply.faults)],
    }
    return {title: group for title, group in groups.items() if group}


def _spans(report: Report) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each part over all replies."""
    spans: dict[str, tuple[float, float]] = {}
    for system in report.systems:
        for reply in system.replies:
            for name, value in reply.parts.items():
                low, high = spans.get(name, (value, value))
                spans[name] = min(low, value), max(high, value)
    return spans


def _plots(report: Report, figures: Mapping[str, Any]) -> dict[str, str]:
    colour = {s.name: i % 8 for i, s in enumerate(report.systems)}
    label = {s.name: s.label for s in report.systems}

    def dot(figure: Mapping[str, Any], name: str, hollow: bool = False) -> Dot:
        return Dot(figure["value"], figure["low"], figure["high"], colour[name], hollow)

    wins = [
        Row(f"{label[a]} against {label[b]}", [dot(won, a), dot(won["length_controlled"], a, True)])
        for (a, b), won in zip(report.contests, figures["win_rate"].values(), strict=True)
    ]
    gold = [Row(label[name], [dot(x, name)]) for name, x in figures["gold"].items()]
    facts = [
        Row(
            "all prompts" if kind == ALL else f"held out: {report.word(kind)}",
            [dot(figures["facts"][name][kind][ALL], name) for name in _later(report)],
        )
        for kind in figures["facts"][report.reference]
    ]
    after, before = report.headline[0], report.reference
    faults = [
        Row(
            report.word(name),
            [dot(figures["faults"][s][name], s, s == before) for s in (before, after)],
        )
        for name in _by_rate(figures["faults"][before])
    ]
    marks = [(x, name) for name, x in report.gold_marks.items()]
    drawn = {
        "wins": dot_plot(wins, "Win rates", percent=True, marks=[(0.5, "no difference")]),
        "gold": dot_plot(gold, "Gold reward by system", percent=False, marks=marks),
    }
    if facts:
        drawn["facts"] = dot_plot(facts, "Exact fact accuracy", percent=True)
    if faults:
        drawn["faults"] = dot_plot(
            faults, "Fault rates before and after", percent=True, from_zero=True
        )
    return drawn | _reward_plot(report, figures)


def _later(report: Report) -> list[str]:
    """The reference and the systems after it: those whose facts alignment could have harmed."""
    names = [s.name for s in report.systems]
    return names[names.index(report.reference) :]


def _reward_plot(report: Report, figures: Mapping[str, Any]) -> dict[str, str]:
    if not report.reward:
        return {}
    accuracy = figures["reward_accuracy"]
    model, *others = report.reward.scorers
    rows = [(model, accuracy), *((o, accuracy["baselines"][o.name]) for o in others)]
    drawn = [
        Row(s.label, [Dot(a["value"], a["low"], a["high"], 1 if s is model else 0)])
        for s, a in rows
    ]
    marks = [(0.5, "a coin"), (accuracy["ceiling"], "ceiling")]
    return {"reward": dot_plot(drawn, "Reward model accuracy", percent=True, marks=marks)}


def _panels(report: Report) -> list[Markup]:
    """A plot per stage and panel, in the order in which the curves were given."""
    colour = {s.name: i % 8 for i, s in enumerate(report.systems)}
    lines: dict[str, list[Line]] = {}
    for c in report.curves:
        if len(c.steps):
            line = Line(c.label, c.steps, c.values, c.low, c.high, colour.get(c.system))
            lines.setdefault(f"{c.stage}: {c.panel}", []).append(line)
    return [Markup(line_plot(drawn, title, title)) for title, drawn in lines.items()]


def _warning(report: Report) -> list[Markup]:
    """Proxy and gold of the run that was meant to go wrong, and how far it went."""
    if (run := report.overoptimisation) is None:
        return []
    marks = [(run.steps[run.best], "stop here")] if run.gamed else []
    pairs = [("reward model", run.proxy), ("gold", run.gold)]
    rewards = [Line(name, run.steps, values, (), (), None) for name, values in pairs]
    distance = [Line("KL", run.steps, run.kl, (), (), None)]
    return [
        Markup(line_plot(rewards, "Reward", f"{run.label}: reward", marks=marks)),
        Markup(line_plot(distance, "KL in nats", f"{run.label}: KL", marks=marks)),
    ]


def _by_rate(faults: Mapping[str, Any]) -> list[str]:
    """Names of faults, the most frequent first."""
    return sorted(faults, key=lambda name: (-faults[name]["value"], name))


def _seeds(report: Report, figures: Mapping[str, Any]) -> list[SeedRun]:
    """Every seed that ran, this one among them, by number."""
    runs = {run.seed: run for run in report.seeds} | {report.seed: SeedRun.read(figures)}
    return [runs[seed] for seed in sorted(runs)]


def _lowered(facts: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """(cells surely below the reference, all cells)."""
    marks = [figure["lowered"] for row in facts.values() for figure in row.values()]
    return sum(marks), len(marks)


def _num(figure: Mapping[str, Any], end: str = "value", digits: int | None = None) -> str:
    """A mean, or with ``range`` its interval, by default with the digits its interval bears."""
    digits = _digits([figure]) if digits is None else digits
    if end == "range":
        return f"{_num(figure, 'low', digits)} to {_num(figure, 'high', digits)}"
    return _plain(figure[end], digits)


def _digits(figures: Iterable[Mapping[str, Any] | None]) -> int:
    """Decimals that the narrowest interval of a row bears, so that a row reads evenly."""
    widths = [f["high"] - f["low"] for f in figures if f and f["high"] > f["low"]]
    return min(max(math.ceil(-math.log10(min(widths))), 0), 3) if widths else 2


def _plain(value: float, digits: int = 2) -> str:
    """A number with a true minus sign and no negative zero."""
    return f"{value:z.{digits}f}".replace("-", "\u2212")


def _time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
