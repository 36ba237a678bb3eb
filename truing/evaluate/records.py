"""What was measured: raw, world-agnostic records that `summary` turns into figures. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truing.stats.ratings import Interval

ALL = "all"  # every prompt, and every fact: no kind or fact of a world may be called so


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
class Overoptimisation:
    """A run made to show how a reward is gamed: at each step looked at, the reward that was pushed
    (``proxy``), the one it stands for (``gold``) and the distance gone (``kl``)."""

    label: str
    steps: Sequence[float]
    proxy: Sequence[float]
    gold: Sequence[float]
    kl: Sequence[float]

    @property
    def best(self) -> int:
        """The look at which gold was highest: there one should have stopped."""
        return max(range(len(self.gold)), key=lambda i: self.gold[i])

    @property
    def gamed(self) -> bool:
        """Whether the proxy went on rising from there while gold fell below where it began."""
        return self.proxy[-1] > self.proxy[self.best] and self.gold[-1] < self.gold[0]


@dataclass(frozen=True)
class Stage:
    """What a stage cost; ``steps`` 0 where there are none."""

    name: str
    label: str
    seconds: float
    steps: int = 0


@dataclass(frozen=True)
class SeedRun:
    """The main figures of a whole run with one seed; ``win_rates`` by contest, "dpo_vs_sft"."""

    seed: int
    win_rates: Mapping[str, Interval]
    reward_accuracy: Interval | None
    seconds: float

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> "SeedRun":
        """From the contents of that run's ``summary.json``."""
        accuracy = figures["reward_accuracy"]
        return cls(
            figures["seed"],
            {contest: _interval(won) for contest, won in figures["win_rate"].items()},
            _interval(accuracy) if accuracy else None,
            figures["seconds"]["total"],
        )


@dataclass(frozen=True)
class Report:
    """Everything that was measured. ``contests`` are pairs of system names; the verdict is about
    ``headline``, one of them; ``reference`` is what alignment started from, and what KL is against.

    Systems appear in the order given, the raw model first. ``labels`` gives readable words for the
    names of parts, facts, faults and kinds; ``setup`` lists facts about the run, shown as they are;
    ``judge`` holds commands by which a reader can judge some replies without knowing whose they are.
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
    overoptimisation: Overoptimisation | None = None
    seeds: Sequence[SeedRun] = ()
    setup: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    gold_marks: Mapping[str, float] = field(default_factory=dict)
    judge: Sequence[str] = ()
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


def _interval(figure: Mapping[str, Any]) -> Interval:
    return Interval(figure["value"], figure["low"], figure["high"], figure["n"])


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
    questions = {len(s.knowledge) for s in report.systems if len(s.knowledge)}
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
    if o := report.overoptimisation:
        looks = {len(o.steps), len(o.proxy), len(o.gold), len(o.kl)}
        if len(looks) > 1 or looks == {0}:
            raise ValueError(f"{o.label}: proxy, gold and KL are needed at every step looked at")
    if report.reward and not report.reward.scorers:
        raise ValueError("a reward test needs at least the reward model among its scorers")
