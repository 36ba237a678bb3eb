"""Every figure of a report, computed once. Pure, world-agnostic, without torch.

`summary` turns the raw measurements of a `Report` into the figures of ``summary.json``; the page
shows those same figures and computes none of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from truing.evaluate.records import (
    ALL,
    Curve,
    Item,
    Overoptimisation,
    Reply,
    Report,
    RewardTest,
    Scorer,
    SeedRun,
    Stage,
    System,
)
from truing.stats.ratings import (
    agreement_ceiling,
    distinct_n,
    length_controlled_win_rate,
    mean,
    pair_accuracy,
    rate,
    win_rate,
)

__all__ = [
    "ALL",
    "Curve",
    "Item",
    "Overoptimisation",
    "Reply",
    "Report",
    "RewardTest",
    "Scorer",
    "SeedRun",
    "Stage",
    "System",
    "percent",
    "summary",
    "verdict",
]

BLOCK = 20  # replies per block when diversity is measured


def summary(report: Report) -> dict[str, Any]:
    """Every figure of the report, ready for JSON: intervals as {value, low, high, n}."""
    keys, systems = report.keys, report.systems
    figures: dict[str, Any] = {
        "title": report.title,
        "simulated": report.simulated,
        "seed": report.seed,
        "prompts": len(set(keys)),
        "replies": len(keys),
        "level": 0.95,
        "reward_accuracy": _reward_accuracy(report.reward) if report.reward else None,
        "win_rate": {f"{a}_vs_{b}": _contest(report, a, b) for a, b in report.contests},
        "gold": {s.name: _figure(mean(s.gold, keys)) for s in systems},
        "parts": {s.name: _parts(s, keys) for s in systems},
        "facts": {s.name: _facts(report, s) for s in systems},
        "faults": _faults(report),
        "length": {s.name: _figure(mean(s.lengths, keys)) for s in systems},
        "kl": {s.name: _figure(mean(s.kl, keys)) for s in systems if len(s.kl)},
        "diversity": {s.name: _diversity(s) for s in systems},
        "knowledge": _knowledge(systems),
        "overoptimisation": _overoptimisation(report.overoptimisation),
        "seconds": {s.name: s.seconds for s in report.stages}
        | {"total": sum(s.seconds for s in report.stages)},
        "seconds_per_step": {s.name: s.seconds / s.steps for s in report.stages if s.steps},
        "peak_mb": report.peak_mb,
        "versions": dict(report.versions),
        "command": report.command,
        "setup": dict(report.setup),
    }
    return figures | {"verdict": verdict(report, figures["win_rate"])}


def verdict(report: Report, win_rates: Mapping[str, Any]) -> dict[str, Any]:
    """One sentence about the headline contest: ``outcome`` is better, worse or unclear."""
    a, b = (report.system(name) for name in report.headline)
    contest = f"{a.name}_vs_{b.name}"
    won = win_rates[contest]
    prompts, rows = len(set(report.keys)), len(report.keys)
    where = f"{prompts} held-out prompts"
    if rows != prompts:
        where = f"{rows} replies to {where}"
    ties = {0: "", 1: "; 1 tie counts a half"}.get(
        won["ties"], f"; {won['ties']} ties count a half"
    )
    share = f"{percent(won)} of {where} (95\u00a0% interval {percent(won, 'range')}{ties})."
    mine, theirs = f"{a.spoken or a.label}'s replies", f"{b.spoken or b.label}'s by the gold reward"
    if won["low"] > 0.5:
        outcome, text = "better", f"{mine} beat {theirs} on {share}"
    elif won["high"] < 0.5:
        outcome, text = "worse", f"{mine} did not beat {theirs}: they won on only {share}"
    else:
        outcome, text = "unclear", f"{mine} did not clearly beat {theirs}: they won on {share}"
    return {"contest": contest, "outcome": outcome, "text": text[0].upper() + text[1:]}


def percent(figure: Mapping[str, Any], end: str = "value") -> str:
    """A share, or with ``range`` its interval, in per cent.

    One decimal where the interval is narrow enough to bear it, or where rounding would move an end
    onto 50 % and so hide on which side of it the end lies.
    """
    hidden = any(0 < abs(figure[e] - 0.5) < 0.005 for e in ("low", "high"))
    digits = 1 if hidden or figure["high"] - figure["low"] < 0.02 else 0
    if end == "range":
        return f"{100 * figure['low']:.{digits}f} to {100 * figure['high']:.{digits}f}\u00a0%"
    return f"{100 * figure[end]:.{digits}f}\u00a0%"


def _figure(estimate: Any) -> dict[str, Any]:
    return estimate._asdict()


def _contest(report: Report, a_name: str, b_name: str) -> dict[str, Any]:
    a, b = report.system(a_name), report.system(b_name)
    won_N = [0.5 + 0.5 * ((x > y) - (x < y)) for x, y in zip(a.gold, b.gold, strict=True)]
    level = length_controlled_win_rate(won_N, a.lengths, b.lengths, report.keys)
    won = win_rate(a.gold, b.gold, cluster_N=report.keys)
    return _figure(won) | {"length_controlled": _figure(level)}


def _reward_accuracy(test: RewardTest) -> dict[str, Any]:
    """Each scorer against the noisy labels and against gold, and the labels' own ceiling."""

    def accuracy(scorer: Scorer) -> dict[str, Any]:
        gold_M = [
            m * ((g > 0) - (g < 0)) for m, g in zip(scorer.margins, test.gold_margins, strict=True)
        ]
        against_gold = _figure(pair_accuracy(gold_M, test.keys))
        return _figure(pair_accuracy(scorer.margins, test.keys)) | {"against_gold": against_gold}

    model, *baselines = test.scorers
    ceiling = agreement_ceiling(test.agreement, test.keys)
    return accuracy(model) | {
        "ceiling": ceiling.value,
        "ceiling_interval": _figure(ceiling),
        "baselines": {scorer.name: accuracy(scorer) for scorer in baselines},
    }


def _names(systems: Sequence[System], of: Callable[[Reply], Any]) -> list[str]:
    return sorted({name for s in systems for reply in s.replies for name in of(reply)})


def _parts(system: System, keys: Sequence[int]) -> dict[str, Any]:
    """Mean of each part over the replies that carry it."""
    values: dict[str, tuple[list[float], list[int]]] = {}
    for reply, key in zip(system.replies, keys, strict=True):
        for name, value in reply.parts.items():
            row = values.setdefault(name, ([], []))
            row[0].append(value)
            row[1].append(key)
    known = {name: row for name, row in sorted(values.items()) if len(set(row[1])) > 1}
    return {name: _figure(mean(*row)) for name, row in known.items()}


def _faults(report: Report) -> dict[str, dict[str, Any]]:
    names = _names(report.systems, lambda reply: reply.faults)
    return {
        s.name: {
            name: _figure(rate([name in r.faults for r in s.replies], report.keys))
            for name in names
        }
        for s in report.systems
    }


def _facts(report: Report, system: System) -> dict[str, dict[str, Any]]:
    """{kind: {fact: figure}}, with ``lowered`` where training on from the reference cost accuracy.

    Only systems listed after the reference can be marked: the raw model before it knew nothing yet.
    The facts of a kind are judged as one family (Bonferroni): of many, one always looks lowered.
    """
    start = report.system(report.reference)
    later = report.systems.index(system) > report.systems.index(start)
    kinds = [ALL, *sorted({kind for item in report.items for kind in item.held_out})]
    names = _names([start], lambda reply: reply.facts)
    table: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        rows = [i for i, item in enumerate(report.items) if kind in {ALL, *item.held_out}]
        for name in [ALL, *names]:
            cells = [
                (system.replies[i].facts[fact], correct, report.items[i].key)
                for i in rows
                for fact, correct in start.replies[i].facts.items()
                if name in (ALL, fact)
            ]
            if len({key for *_, key in cells}) > 1:
                mine, before, keys = (list(column) for column in zip(*cells, strict=True))
                level = 1 - 0.05 / (1 if name == ALL else len(names))
                table.setdefault(kind, {})[name] = _against(mine, before, keys, later, level)
    return table


def _knowledge(systems: Sequence[System]) -> dict[str, Any]:
    """Share of questions answered, ``lowered`` where training cost the first system's knowledge."""
    known = [s for s in systems if len(s.knowledge)]
    keys = list(range(len(known[0].knowledge))) if known else []
    return {s.name: _against(s.knowledge, known[0].knowledge, keys, True) for s in known}


def _against(
    mine: Sequence[bool],
    before: Sequence[bool],
    keys: Sequence[int],
    later: bool,
    level: float = 0.95,
) -> dict[str, Any]:
    """The share of ``mine``; lowered when it loses to ``before`` row by row beyond chance."""
    lowered = later and win_rate(mine, before, cluster_N=keys, level=level).high < 0.5
    return _figure(rate(mine, keys)) | {"lowered": lowered}


def _overoptimisation(run: Overoptimisation | None) -> dict[str, Any] | None:
    """The step at which one should have stopped, and what was measured before, there and after."""
    if run is None:
        return None
    lines = {"proxy": run.proxy, "gold": run.gold, "kl": run.kl}
    return {
        "stop": round(run.steps[run.best]),
        "last": round(run.steps[-1]),
        "gamed": run.gamed,
    } | {
        name: {"start": line[0], "best": line[run.best], "end": line[-1]}
        for name, line in lines.items()
    }


def _diversity(system: System) -> dict[str, Any]:
    """Distinct word pairs in blocks of 20 replies: the measure falls with the amount of text."""
    words = [reply.text.split() for reply in system.replies]
    block = min(BLOCK, len(words) // 2)
    starts = range(0, len(words) - block + 1, block)
    return _figure(mean([distinct_n(words[i : i + block]) for i in starts]))
