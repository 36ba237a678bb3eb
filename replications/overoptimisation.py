"""A proxy reward that is optimised too far: gold rises and falls while the proxy only rises."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from replications import figures
from replications.counts import LENGTH, TOKENS, Array, World
from replications.record import Measure, Record, over_seeds
from truing.conformance.spaces import arms
from truing.stats.best_of import best_of_n, best_of_n_law
from truing.stats.ratings import mean

LABELS = (100, 300, 1000, 3000)
MAIN = 300
KLS = np.array([0, 0.25, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20], float)
NS = 2 ** np.arange(14)


def bound(n: Any) -> Any:
    """``log n - (n - 1) / n``: the KL of the best of n, where no two texts score the same."""
    return np.log(n) - (n - 1) / n


def optimised(world: World, proxy_V: Array, *, sign: int = 1) -> tuple[Array, Array]:
    """Gold and proxy (K,) at each distance of `KLS`, each moved to 0 at the reference."""
    policies = [world.at_distance(proxy_V, kl, sign=sign) for kl in KLS]
    gold_K = np.array([world.expected_gold(policy_V) for policy_V in policies])
    proxy_K = LENGTH * np.array([policy_V @ proxy_V for policy_V in policies])
    return gold_K - gold_K[0], proxy_K - proxy_K[0]


def picked(world: World, proxy_V: Array | None) -> Array:
    """Gold (N,) of the best of each n of `NS`; without a proxy gold itself picks."""
    gold_N = world.gold(world.pool_NV)
    score_N = gold_N if proxy_V is None else world.pool_NV @ proxy_V
    return np.array([best_of_n(gold_N, score_N, int(n)) for n in NS])


def explained(d_K: Array, gold_K: Array, shape: Callable[[Array], Array]) -> float:
    """R^2 of ``d (a - b shape(d))``, fitted by least squares."""
    inner = d_K > 0
    columns = np.stack([d_K[inner], -d_K[inner] * shape(d_K[inner])], 1)
    fit, *_ = np.linalg.lstsq(columns, gold_K[inner], rcond=None)
    left = gold_K[inner] - columns @ fit
    return 1 - float(left @ left) / float(((gold_K[inner] - gold_K[inner].mean()) ** 2).sum())


def best_of_law(ref_S: Tensor, score_S: Tensor, n: int) -> Tensor:
    """Log-probs (S,) of the best of n by score."""
    return torch.from_numpy(best_of_n_law(ref_S.exp().numpy(), score_S.numpy(), n)).log()


def over_bound(*, more: int = 0) -> float:
    """By how much the exact KL of the best of n + ``more`` of 512 arms passes the bound for n."""
    space = arms("many arms", 512)
    over: list[float] = []
    for n in NS[:8]:
        law_S = best_of_law(space.ref_S, space.reward_S, int(n) + more)
        over.append(space.divergence(space.ref_S, from_S=law_S) - bound(n))
    return max(over)


# --- criteria -------------------------------------------------------------------------------------


def rises(gold_WK: Array) -> Measure:
    what = f"{MAIN} labels: gold at its best, standard deviations above the reference"
    return over_seeds(what, gold_WK.max(1), least=0.3)


def falls(gold_WK: Array) -> Measure:
    what = f"{MAIN} labels: gold at its best less gold at 20 nats"
    return over_seeds(what, gold_WK.max(1) - gold_WK[:, -1], least=0.3)


def climbs(proxy_WK: Array) -> Measure:
    what = f"{MAIN} labels: the smallest step of the proxy from one KL to the next"
    return Measure(what, float(np.diff(proxy_WK).min()), least=1e-6)


def within(over: float) -> Measure:
    what = "best of n, counted out: KL less log n - (n - 1) / n, the largest"
    return Measure(what, over, most=1e-9)


def run(quick: bool) -> Record:
    worlds = [World(seed) for seed in range(2 if quick else 8)]
    labels = (100, MAIN, 3000) if quick else LABELS
    rl = {n: [optimised(w, w.proxy(n)) for w in worlds] for n in labels}
    gold = {n: np.array([g for g, _ in rows]) for n, rows in rl.items()}
    proxy_WK = np.array([p for _, p in rl[MAIN]])
    bon_WN = np.array([picked(w, w.proxy(100)) for w in worlds])
    root_N, root_K = np.sqrt(bound(NS)), np.sqrt(KLS)
    form_W = [explained(root_N, row, lambda d: d) for row in bon_WN]
    best = [float(gold[n].max(1).mean()) for n in labels]
    measures = [
        climbs(proxy_WK),
        rises(gold[MAIN]),
        falls(gold[MAIN]),
        over_seeds(f"{MAIN} labels: KL at the best gold, nats", KLS[gold[MAIN].argmax(1)]),
        Measure(
            "gold at its best, the smallest gain from more labels", min(np.diff(best)), least=0.0
        ),
        over_seeds("best of n: R^2 of d (a - b d), d the root of the KL", form_W, least=0.95),
        within(over_bound()),
        over_seeds(
            "RL: R^2 of d (a - b log d)", [explained(root_K, g, np.log) for g in gold[MAIN]]
        ),
        over_seeds(
            "RL: R^2 of d (a - b d)", [explained(root_K, g, lambda d: d) for g in gold[MAIN]]
        ),
    ]
    right = [World(seed, saturates=False) for seed in range(len(worlds))]
    true = np.array([optimised(w, w.likes_V)[0] for w in right])
    lot = [optimised(w, w.proxy(MAIN, real=False)) for w in worlds]
    wrong = [optimised(w, w.proxy(MAIN), sign=-1) for w in worlds]
    controls = {
        "the proxy is gold itself": [falls(true)],
        "labels by lot": [rises(np.array([g for g, _ in lot]))],
        "KL of the wrong sign": [climbs(np.array([p for _, p in wrong]))],
        "n one too small in the bound": [within(over_bound(more=1))],
    }
    return Record(
        name="over-optimisation",
        title="Over-optimisation",
        claim="Optimised against a learnt reward, gold rises and then falls while the learnt "
        "reward goes on rising; with more comparisons the best gold is better; best of n follows "
        "d (a - b d), d the root of its KL, which is log n - (n - 1) / n.",
        source="Gao, Schulman and Hilton 2022, arXiv:2210.10760.",
        setup=f"Texts of {LENGTH} tokens out of {TOKENS}; gold saturates in each token's count, "
        "the proxy is linear in the counts and learnt by Bradley-Terry from comparisons of "
        "texts of the reference. RL is exact: the best policy for the proxy at each price of the "
        f"KL, its gold counted by binomials. Best of n: {len(worlds[0].pool_NV)} texts of the "
        "reference, the unbiased estimator over all subsets of n. Gold in standard deviations of "
        f"the reference; {len(worlds)} worlds.",
        measures=measures,
        controls=controls,
        caption="Gold and proxy by KL under RL, gold by n under best of n",
        differs="The paper's gold is a large reward model, here a formula; the proxy errs because "
        "it is too simple, as well as for want of labels. That gold follows d (a - b log d) under "
        "RL is no criterion: both forms are measured, and here the other fits no worse.",
        figure=drawn_up(gold, proxy_WK, bon_WN),
    )


def drawn_up(gold: dict[int, Array], proxy_WK: Array, bon_WN: Array) -> Figure:
    figure, (left, right) = figures.panels(2, height=3.4)
    colours = (figures.SKY, figures.BLUE, figures.GREEN, figures.INK)
    for (n, gold_WK), colour in zip(gold.items(), colours, strict=False):
        left.plot(KLS, gold_WK.mean(0), color=colour, label=f"gold, {n} labels")
        if n == MAIN:
            curve(left, KLS, gold_WK, colour)
    left.plot(
        KLS, proxy_WK.mean(0), "--", color=figures.RED, label=f"proxy, {MAIN} labels (its unit)"
    )
    curve(right, NS, bon_WN, figures.BLUE)
    right.plot(NS, bon_WN.mean(0), "o-", color=figures.BLUE)
    right.set_xscale("log", base=2)
    title = "RL against the proxy"
    x = "KL from the reference, nats per text"
    figures.named(left, title, x, "standard deviations of gold", loc="lower left")
    y = "gold, standard deviations"
    figures.named(
        right, "best of n, proxy of 100 labels", "n, texts to choose from", y, legend=False
    )
    return figure


def curve(axes: Any, x: Any, rows_WN: Array, colour: str) -> None:
    """The interval of the mean over worlds."""
    found = [mean(column) for column in rows_WN.T]
    figures.band(axes, x, [f.low for f in found], [f.high for f in found], colour)
