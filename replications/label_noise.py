"""Flipped labels: where DPO, its conservative and its robust form end."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from replications import figures
from replications.record import Measure, Record, over_seeds
from truing.algorithms import cdpo, dpo, robust_dpo
from truing.conformance.direct import DIRECT, Direct, drawn, minimised, on_ratios
from truing.conformance.spaces import ROUGHLY, Space, draw, least, tree
from truing.keys import generator
from truing.stats.ratings import mean

FLIPS = 0.2
LABELS = (10_000, 30_000, 100_000, 300_000)
METHODS = {"robust DPO": figures.BLUE, "DPO": figures.RED, "conservative DPO": figures.OCHRE}


def worlds(count: int) -> list[Space]:
    """Trees of 15 strings, each with a reference and rewards of its own."""
    space = tree()
    return [
        replace(
            space,
            reference=draw(f"label noise reference {i}", *space.reference.shape),
            reward_S=draw(f"label noise reward {i}", len(space.reward_S)),
        )
        for i in range(count)
    ]


def method(name: str, told: float) -> Direct:
    """A loss that is told that a share ``told`` of the labels is flipped; DPO does not listen."""
    loss = {
        "robust DPO": lambda: on_ratios(robust_dpo, label_smoothing=told),
        "DPO": lambda: on_ratios(dpo),
        "conservative DPO": lambda: on_ratios(cdpo, label_smoothing=told),
    }[name]()
    return DIRECT["dpo"]._replace(loss=loss)


def ends(
    name: str, spaces: list[Space], *, told: float = FLIPS, flips: float = FLIPS
) -> list[float]:
    """KL(pi* || where it ends) on infinitely many labels, in each world."""
    of = method(name, told)._replace(flips=flips)
    return [space.divergence(minimised(of, space)) for space in spaces]


def from_labels(name: str, space: Space, count: int, seed: int, flips: float = FLIPS) -> float:
    """The same, learnt from ``count`` labels."""
    random = generator(seed, "label noise", count)
    size = len(space.reward_S)
    first, second = torch.triu_indices(size, size, 1)
    pair_N = (drawn(space)[first] * drawn(space)[second]).numpy()
    shown_N = random.multinomial(count, pair_N / pair_N.sum())
    wins_N = torch.sigmoid(space.reward_S[first] - space.reward_S[second]).numpy()
    won_N = random.binomial(shown_N, wins_N * (1 - flips) + (1 - wins_N) * flips)
    shown_N, won_N = torch.from_numpy(shown_N), torch.from_numpy(won_N)
    loss, ref_S = method(name, FLIPS).loss, space.ref_S

    def mean(table: Tensor) -> Tensor:
        logp_S = space.logps(table)
        a, b = (logp_S[first], logp_S[second]), (ref_S[first], ref_S[second])
        right_N = won_N * loss(*a, *b, beta=space.beta)
        wrong_N = (shown_N - won_N) * loss(*a[::-1], *b[::-1], beta=space.beta)
        return (right_N + wrong_N).sum() / count

    return space.divergence(space.logps(least(mean, space.reference, ROUGHLY)))


def at_optimum(kl_W: list[float]) -> Measure:
    return Measure("robust DPO: KL from the optimum, nats, the worst world", max(kl_W), most=1e-6)


def away(kl_W: list[float]) -> Measure:
    return Measure("DPO: KL from the optimum, nats, the best world", min(kl_W), least=0.01)


def run(quick: bool) -> Record:
    spaces = worlds(2 if quick else 16)
    robust_W, dpo_W, cdpo_W = (ends(name, spaces) for name in METHODS)
    clean_W = ends("conservative DPO", spaces, flips=0.0)
    counts = LABELS[-1:] if quick else LABELS
    seen = spaces[: 2 if quick else 8]
    learnt = {
        name: np.array([[from_labels(name, s, n, i) for i, s in enumerate(seen)] for n in counts])
        for name in METHODS
    }
    ratio_W = learnt["robust DPO"][-1] / learnt["DPO"][-1]
    measures = [
        at_optimum(robust_W),
        away(dpo_W),
        over_seeds("DPO: KL from the optimum, nats", dpo_W),
        over_seeds("conservative DPO: KL from the optimum, nats", cdpo_W),
        Measure(
            "conservative DPO over DPO, the smallest ratio",
            float(np.min(np.divide(cdpo_W, dpo_W))),
            least=1.1,
        ),
        Measure(
            "conservative DPO on clean labels against DPO on flipped, nats",
            max(abs(a - b) for a, b in zip(clean_W, dpo_W, strict=True)),
            most=1e-6,
        ),
        over_seeds(f"robust DPO over DPO, from {counts[-1]} labels", ratio_W, most=0.1),
    ]
    controls = {
        "robust DPO told that 5 % are flipped": [at_optimum(ends("robust DPO", spaces, told=0.05))],
        "labels shuffled": [at_optimum(ends("robust DPO", spaces, flips=0.5))],
        "conservative DPO in the place of robust": [at_optimum(cdpo_W)],
        "no label is flipped": [away(ends("DPO", spaces, flips=0.0))],
    }
    return Record(
        name="label-noise",
        title="Label noise",
        claim="Where a known share of preference labels is flipped, DPO no longer learns the best "
        "policy, and smoothing the labels (conservative DPO) does not bring it back; the loss "
        "that is unbiased under the flips (robust DPO) does.",
        source="Chowdhury, Kini and Natarajan 2024, arXiv:2403.00409; Mitchell 2023 for "
        "conservative DPO.",
        setup=f"{len(spaces)} trees of 15 strings, each with rewards and a reference drawn anew, "
        f"beta {spaces[0].beta}; all pairs, unequally drawn, labelled by Bradley-Terry on the true "
        f"reward, {FLIPS:.0%} of the labels flipped. Exact: the loss on infinitely many labels, "
        "minimised by L-BFGS (`truing.conformance.direct`). Sampled: the same from "
        f"{counts[0]} to {counts[-1]} labels, in {len(seen)} of the trees.",
        measures=measures,
        controls=controls,
        caption="KL from the optimum: from a number of labels, and by the share that is flipped",
        differs="The paper trains language models and bounds the regret; here the end is exact. "
        "On few labels all three are far off, and where a pair has been seen to go one way only "
        "the robust loss can have no minimum at all: the correction is paid for in variance.",
        figure=drawn_up(counts, learnt, seen),
    )


def drawn_up(counts: Sequence[int], learnt: dict[str, np.ndarray], spaces: list[Space]) -> Figure:
    figure, (left, right) = figures.panels(2)
    shares = (0.05, 0.1, 0.2, 0.3, 0.4)[:: 1 if len(counts) > 1 else 4]
    for name, colour in METHODS.items():
        found_WE = [ends(name, spaces, told=e, flips=e) for e in shares]
        left.plot(shares, np.mean(found_WE, 1), "o-", color=colour, label=name)
        found = [mean(row) for row in learnt[name]]
        right.plot(counts, [f.value for f in found], "o-", color=colour, label=name)
        figures.band(right, counts, [f.low for f in found], [f.high for f in found], colour)
    right.set_xscale("log")
    right.set_yscale("log")
    figures.named(left, "infinitely many labels", "share flipped", "KL from the optimum, nats")
    figures.named(right, "20 % flipped", "labels", "KL from the optimum, nats", legend=False)
    return figure
