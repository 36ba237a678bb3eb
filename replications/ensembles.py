"""Several reward models in the place of one: what their disagreement saves from over-optimisation.

The world is that of `replications.counts`.
"""

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from replications import figures
from replications.counts import Array, World
from replications.overoptimisation import NS, curve
from replications.record import Measure, Record, over_seeds
from truing.algorithms import uncertainty_weighted, worst_case
from truing.stats.best_of import best_of_n

LABELS, NOISE, MEMBERS, COEF = 300, 0.25, 5, 0.5
# fn(score_EN) -> score_N
Combined = Callable[[Tensor], Tensor]
RULES: dict[str, Combined] = {
    "mean": lambda score_EN: score_EN.mean(0),
    "worst case": worst_case,
    "uncertainty-weighted": lambda score_EN: uncertainty_weighted(score_EN, coef=COEF),
}
COLOURS: dict[str, str] = dict(
    zip(
        ("single", "mean", "worst case", "uncertainty-weighted"),
        (figures.RED, figures.OCHRE, figures.BLUE, figures.GREEN),
        strict=True,
    )
)


def scores(world: World, members: list[Array]) -> Tensor:
    """Scores (E, N) of the pool, each member's moved to mean 0, as reward models are."""
    score_NE = world.pool_NV @ np.stack(members, 1)
    return torch.from_numpy((score_NE - score_NE.mean(0)).T)


def drawn_again(world: World) -> list[Array]:
    """Five proxies, each learnt from the labels drawn with replacement."""
    return [world.proxy(LABELS, noise=NOISE, member=m) for m in range(MEMBERS)]


def picked(world: World, score_N: Tensor) -> Array:
    """Gold (N,) of the best of each n of `NS`."""
    gold_N = world.gold(world.pool_NV)
    return np.array([best_of_n(gold_N, score_N.numpy(), int(n)) for n in NS])


def wins(end_W: Array, single_W: Array) -> Measure:
    what = f"worst case against single, gold of the best of {NS[-1]}: share of worlds it is ahead"
    return Measure(what, float((end_W >= single_W).mean()), least=0.75)


def ahead(end_W: Array, single_W: Array) -> Measure:
    what = f"worst case less single, gold of the best of {NS[-1]}"
    return over_seeds(what, end_W - single_W, least=0.1)


def run(quick: bool) -> Record:
    worlds = [World(seed) for seed in range(3 if quick else 16)]
    alone = [world.proxy(LABELS, noise=NOISE) for world in worlds]
    members = [scores(world, drawn_again(world)) for world in worlds]
    single = np.array([picked(w, scores(w, [p])[0]) for w, p in zip(worlds, alone, strict=True)])

    def all_worlds(rule: Combined) -> Array:
        return np.array([picked(w, rule(m)) for w, m in zip(worlds, members, strict=True)])

    gold = {"single": single} | {name: all_worlds(rule) for name, rule in RULES.items()}
    end = {name: rows[:, -1] for name, rows in gold.items()}
    lost = {name: rows.max(1) - rows[:, -1] for name, rows in gold.items()}
    measures = [
        wins(end["worst case"], end["single"]),
        ahead(end["worst case"], end["single"]),
        over_seeds("uncertainty-weighted less single", end["uncertainty-weighted"] - end["single"]),
        over_seeds("mean less single", end["mean"] - end["single"]),
        over_seeds("single: gold at its best less gold at the end", lost["single"], least=0.05),
        over_seeds("worst case: gold at its best less gold at the end", lost["worst case"]),
    ]
    best = all_worlds(lambda score_EN: score_EN.max(0).values)[:, -1]
    same = [
        picked(w, worst_case(scores(w, [p] * MEMBERS)))[-1]
        for w, p in zip(worlds, alone, strict=True)
    ]
    lot = [
        picked(w, worst_case(scores(w, [w.proxy(LABELS + m, real=False) for m in range(MEMBERS)])))
        for w in worlds
    ]
    controls = {
        "five times the same member": [ahead(np.array(same), end["single"])],
        "the best case in the place of the worst": [ahead(best, end["single"])],
        "members learnt from labels by lot": [ahead(np.array(lot)[:, -1], end["single"])],
    }
    return Record(
        name="ensembles",
        title="Ensembles of reward models",
        claim="Under label noise an ensemble that goes by its worst member, or takes its variance "
        "off the mean, is over-optimised less than a single reward model; the mean alone helps "
        "less.",
        source="Coste, Anwar, Kirk and Krueger 2023, arXiv:2310.02743.",
        setup=f"The world of over-optimisation. {LABELS} comparisons, {NOISE:.0%} of them turned "
        f"round; {MEMBERS} linear proxies, each learnt from the comparisons drawn with "
        "replacement and moved to mean 0 on the reference; the single one has all comparisons. "
        f"Best of n up to {NS[-1]} by the mean, the worst case, or the mean less {COEF} of the "
        f"population variance; {len(worlds)} worlds, gold in standard deviations of the reference.",
        measures=measures,
        controls=controls,
        caption="Gold of the best of n, picked by a single reward model and by ensembles of five",
        differs="The paper's members differ in the seed of the head and the order of data alone; a "
        "loss with one minimum would make those the same, so that here they differ in their "
        "labels. Each sees fewer labels than the single one, which is why their mean is no better "
        "than it; the paper's single model is one of the members. Only best of n is measured, not "
        "PPO.",
        figure=drawn_up(gold),
    )


def drawn_up(gold: dict[str, Array]) -> Figure:
    figure, (axes,) = figures.panels(1)
    figure.set_size_inches(5.6, 3.4)
    for name, rows in gold.items():
        axes.plot(NS, rows.mean(0), "o-", color=COLOURS[name], label=name)
    for name in ("single", "worst case"):
        curve(axes, NS, gold[name], COLOURS[name])
    axes.set_xscale("log", base=2)
    y = "gold, standard deviations"
    figures.named(axes, f"best of n, {NOISE:.0%} of labels turned", "n, texts to choose from", y)
    return figure
