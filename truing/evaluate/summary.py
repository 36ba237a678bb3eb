"""What was measured, and every figure computed from it. Pure, world-agnostic, without torch.

A `Report` holds raw measurements: the replies of each system to the same held-out prompts with what
the gold judge said of each, the reward model's margins, curves, costs. `summary` turns them into
the figures of ``summary.json``; the page shows those same figures and computes none of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truing.stats.ratings import (
    Interval,
    agreement_ceiling,
    distinct_n,
    length_controlled_win_rate,
    mean,
    pair_accuracy,
    rate,
    win_rate,
)

ALL = "all"  # every prompt, and every fact: no kind or fact of a world may be called so
BLOCK = 20  # replies per block when diversity is measured


@dataclass(frozen=True)
class Item:
    """A held-out prompt. ``key`` names it: rows with one key count as one prompt in intervals.

    ``held_out`` says what training never saw of it ("name", "phrasing", ...); ``best`` holds the
    parts of the best possible reply, against which the chips of an example are coloured.
    """

    prompt: str
    key: int
    held_out: frozenset[str] = frozenset()
    best: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Reply:
    """One reply and the gold judgement of it; ``length`` in tokens.

    ``facts`` holds each fact the reply had to state and whether it did so correctly.
    """

    text: str
    gold: float
    parts: Mapping[str, float]
    facts: Mapping[str, bool]
    faults: frozenset[str]
    length: int


@dataclass(frozen=True)
class System:
    """A model or a way of sampling one, with one reply per item, in the items' order.

    ``spoken`` is its name inside a sentence ("the supervised model"); ``note`` says how it was
    made. ``kl`` is, per reply, the log-ratio to the reference in nats; ``knowledge`` whether each
    general-knowledge question was answered correctly. Either may be empty: not measured.
    """

    name: str
    label: str
    replies: Sequence[Reply]
    note: str = ""
    spoken: str = ""
    kl: Sequence[float] = ()
    knowledge: Sequence[bool] = ()

    @property
    def gold(self) -> list[float]:
        return [reply.gold for reply in self.replies]

    @property
    def lengths(self) -> list[int]:
        return [reply.length for reply in self.replies]


@dataclass(frozen=True)
class Scorer:
    """Something that scores replies: its score(chosen) − score(rejected) for each comparison."""

    name: str
    label: str
    margins: Sequence[float]
    note: str = ""


@dataclass(frozen=True)
class RewardTest:
    """Held-out comparisons as labelled. The first scorer is the reward model, the rest baselines.

    ``gold_margins`` is gold(chosen) − gold(rejected); ``agreement`` the probability that a label
    of this pair agrees with gold; ``keys`` the prompt of each comparison.
    """

    scorers: Sequence[Scorer]
    gold_margins: Sequence[float]
    agreement: Sequence[float]
    keys: Sequence[int]


@dataclass(frozen=True)
class Curve:
    """A line over training steps. Curves with one stage and panel share a plot ("DPO", "KL")."""

    stage: str
    panel: str
    label: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    system: str = ""  # takes this system's colour


@dataclass(frozen=True)
class Stage:
    """What a stage cost; ``steps`` 0 where there are none."""

    name: str
    label: str
    seconds: float
    steps: int = 0


@dataclass(frozen=True)
class SeedRun:
    """The main figures of a whole run with one seed."""

    seed: int
    win_rate: Interval
    reward_accuracy: Interval | None
    seconds: float

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> "SeedRun":
        """From the contents of that run's ``summary.json``."""
        accuracy = figures["reward_accuracy"]
        return cls(
            figures["seed"],
            _interval(figures["win_rate"][figures["verdict"]["contest"]]),
            _interval(accuracy) if accuracy else None,
            figures["seconds"]["total"],
        )


@dataclass(frozen=True)
class Report:
    """Everything that was measured. ``contests`` are pairs of system names; the verdict is about
    ``headline``, one of them; ``reference`` is what alignment started from, and what KL is against.

    Systems appear in the order given, the raw model first. ``labels`` gives readable words for the
    names of parts, facts, faults and kinds; ``setup`` lists facts about the run, shown as they are;
    ``gold_marks`` names points of the gold scale ({"an average demonstration": 0.0}).
    """

    title: str
    simulated: bool
    items: Sequence[Item]
    systems: Sequence[System]
    contests: Sequence[tuple[str, str]]
    headline: tuple[str, str]
    reference: str
    seed: int
    command: str
    versions: Mapping[str, str]
    stages: Sequence[Stage]
    peak_mb: float
    reward: RewardTest | None = None
    curves: Sequence[Curve] = ()
    seeds: Sequence[SeedRun] = ()
    setup: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    gold_marks: Mapping[str, float] = field(default_factory=dict)
    examples: int = 4

    def __post_init__(self) -> None:
        _check(self)

    def system(self, name: str) -> System:
        return next(s for s in self.systems if s.name == name)

    def word(self, name: str) -> str:
        """The readable word for a part, fact, fault or kind."""
        return self.labels.get(name, name.replace("_", " "))

    @property
    def keys(self) -> list[int]:
        return [item.key for item in self.items]


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
        "kl": {s.name: _figure(mean(s.kl, keys)) for s in systems if s.kl},
        "diversity": {s.name: _diversity(s) for s in systems},
        "knowledge": _knowledge(systems),
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
    ties = f"; {won['ties']} ties count a half" if won["ties"] else ""
    share = f"{percent(won)} of {where}"
    interval = f"(95\u00a0% interval {percent(won, 'range')}{ties})"
    pair = f"{a.spoken or a.label}'s replies {{}} {b.spoken or b.label}'s by the gold reward"
    if won["low"] > 0.5:
        outcome, text = "better", f"{pair.format('beat')} on {share} {interval}."
    elif won["high"] < 0.5:
        text = f"{pair.format('did not beat')}: they won on only {share} {interval}."
        outcome = "worse"
    else:
        text = f"{pair.format('did not clearly beat')}: they won on {share} {interval}."
        outcome = "unclear"
    return {
        "contest": contest,
        "outcome": outcome,
        "text": text[0].upper() + text[1:],
    }


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


def _interval(figure: Mapping[str, Any]) -> Interval:
    return Interval(figure["value"], figure["low"], figure["high"], figure["n"])


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
                table.setdefault(kind, {})[name] = _against(mine, before, keys, later)
    return table


def _knowledge(systems: Sequence[System]) -> dict[str, Any]:
    """Share of questions answered, ``lowered`` where training cost the first system's knowledge."""
    known = [s for s in systems if s.knowledge]
    keys = list(range(len(known[0].knowledge))) if known else []
    return {s.name: _against(s.knowledge, known[0].knowledge, keys, True) for s in known}


def _against(
    mine: Sequence[bool], before: Sequence[bool], keys: Sequence[int], later: bool
) -> dict[str, Any]:
    """The share of ``mine``; lowered when it loses to ``before`` row by row beyond chance."""
    lowered = later and win_rate(mine, before, cluster_N=keys).high < 0.5
    return _figure(rate(mine, keys)) | {"lowered": lowered}


def _diversity(system: System) -> dict[str, Any]:
    """Distinct word pairs in blocks of 20 replies: the measure falls with the amount of text."""
    words = [reply.text.split() for reply in system.replies]
    block = min(BLOCK, len(words) // 2)
    starts = range(0, len(words) - block + 1, block)
    return _figure(mean([distinct_n(words[i : i + block]) for i in starts]))


def _check(report: Report) -> None:
    """ValueError for measurements that do not fit together."""
    names = [s.name for s in report.systems]
    if len(set(names)) != len(names) or len(report.items) < 2:
        raise ValueError(f"needed: systems with different names, 2 prompts; got {names}")
    wanted = {report.reference, *report.headline, *(n for pair in report.contests for n in pair)}
    if not wanted <= set(names):
        raise ValueError(f"no system is called {sorted(wanted - set(names))}: there are {names}")
    if report.headline not in report.contests:
        raise ValueError(f"the headline {report.headline} must be one of the contests")
    questions = {len(s.knowledge) for s in report.systems if s.knowledge}
    if len(questions) > 1:
        raise ValueError(f"all systems need the same knowledge questions, got {sorted(questions)}")
    for s in report.systems:
        if len(s.replies) != len(report.items) or len(s.kl) not in (0, len(s.replies)):
            raise ValueError(
                f"system {s.name!r} needs one reply (and one KL, or none) per prompt: "
                f"{len(report.items)} prompts, {len(s.replies)} replies, {len(s.kl)} KL values"
            )
        for i, (reply, first) in enumerate(zip(s.replies, report.systems[0].replies, strict=True)):
            if reply.facts.keys() != first.facts.keys() or ALL in {*reply.facts, *reply.parts}:
                raise ValueError(
                    f"prompt {i}: every system's reply needs the same facts, none called {ALL!r}; "
                    f"{s.name!r} has {sorted(reply.facts)}"
                )
    for c in report.curves:
        if len(c.steps) != len(c.values) or {len(c.low), len(c.high)} - {0, len(c.steps)}:
            raise ValueError(f"curve {c.stage} {c.panel} {c.label}: steps and values differ")
    if report.reward and not report.reward.scorers:
        raise ValueError("a reward test needs at least the reward model among its scorers")
