"""Whole rankings against their pairs: how much more a ranking tells than the pairs in it."""

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from replications import figures
from replications.record import Measure, Record, over_seeds
from truing.algorithms import bradley_terry, plackett_luce, ranked_pairs
from truing.conformance.spaces import ROUGHLY, draw, least
from truing.keys import generator
from truing.stats.ratings import mean

FEATURES, CANDIDATES = 6, 32
# fn(score_PK) -> loss_P, of responses that stand in the order of their ranks
Loss = Callable[[Tensor], Tensor]


def whole(score_PK: Tensor) -> Tensor:
    return plackett_luce(score_PK, torch.arange(score_PK.shape[1]).expand(score_PK.shape))


def split(score_PK: Tensor) -> Tensor:
    """InstructGPT's mean over all pairs of a ranking."""
    return _pairs(score_PK, ranked_pairs(range(score_PK.shape[1])))


def neighbours(score_PK: Tensor) -> Tensor:
    """Only who stands next to whom, as if these had been compared."""
    return _pairs(score_PK, [(i, i + 1) for i in range(score_PK.shape[1] - 1)])


def _pairs(score_PK: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    better_PN, worse_PN = score_PK[:, torch.tensor(pairs)].unbind(-1)
    return bradley_terry(better_PN.flatten(), worse_PN.flatten()).view(better_PN.shape).mean(-1)


# --- exact: many rankings of the same K responses -------------------------------------------------


def spread(loss: Loss, score_K: Tensor) -> float:
    """The mean squared error of the scores, times the number of rankings, for many of them: the
    trace of H^-1 J H^-1, J the mean square of the slope, H the mean curvature."""
    order_OK = torch.tensor(list(permutations(range(len(score_K)))))
    likely_O = (-whole(score_K[order_OK])).exp()

    def total(s: Tensor) -> Tensor:
        return (likely_O * loss(s[order_OK])).sum()

    curve = torch.autograd.functional.hessian(total, score_K)  # pyright: ignore
    slope = torch.autograd.functional.jacobian(lambda s: loss(s[order_OK]), score_K)  # pyright: ignore
    # A constant changes nothing: with it filled in the curvature can be inverted, and is left out.
    centre = torch.eye(len(score_K), dtype=torch.float64) - 1 / len(score_K)
    inverse = centre @ torch.linalg.inv(torch.as_tensor(curve) + 1 / len(score_K))
    return float(torch.trace(inverse @ (slope.T @ (likely_O[:, None] * slope)) @ inverse.T))


def exact(k: int, apart: float, worlds: int) -> list[float]:
    """The ratio of split to whole, for scores whose standard deviation is ``apart``."""
    scores = (apart * draw(f"k-wise scores {k} {i}", k) for i in range(worlds))
    return [spread(split, score_K) / spread(whole, score_K) for score_K in scores]


# --- sampled: rewards that are linear in features -------------------------------------------------


class Found(NamedTuple):
    """Of one world, means over its runs: squared error of the weights, and the reward lost by
    taking the candidate that they score highest."""

    error: float
    lost: float


def learnt(loss: Loss, world: int, k: int, rankings: int, runs: int, *, real: bool = True) -> Found:
    """Weights from so many rankings of k responses. Not ``real``: orders by lot."""
    true_F = draw(f"k-wise weights {world}", FEATURES)
    random = generator(world, "k-wise", k, rankings)
    seen_RPKF = torch.from_numpy(random.normal(size=(runs, rankings, k, FEATURES)))
    luck_RPK = torch.from_numpy(random.gumbel(size=(runs, rankings, k)))
    worth_RPK = seen_RPKF @ true_F if real else 0.0
    order_RPK = (worth_RPK + luck_RPK).argsort(-1, descending=True)
    seen_RPKF = seen_RPKF.take_along_dim(order_RPK[..., None], 2)

    def total(weights_RF: Tensor) -> Tensor:
        score_RPK = torch.einsum("rpkf,rf->rpk", seen_RPKF, weights_RF)
        return loss(score_RPK.flatten(0, 1)).mean()

    found_RF = least(total, torch.zeros(runs, FEATURES, dtype=torch.float64), ROUGHLY)
    choice_RCF = torch.from_numpy(random.normal(size=(runs, CANDIDATES, FEATURES)))
    worth_RC, best_R = choice_RCF @ true_F, torch.einsum("rcf,rf->rc", choice_RCF, found_RF)
    lost_R = worth_RC.max(-1).values - worth_RC.gather(-1, best_R.argmax(-1, keepdim=True))[:, 0]
    return Found(float((found_RF - true_F).square().sum(-1).mean()), float(lost_R.mean()))


class Size(NamedTuple):
    worlds: int
    runs: int
    rankings: int
    ks: tuple[int, ...]


def gain(found_W: list[Found], other_W: list[Found]) -> list[float]:
    """How many times the squared error of ``other`` is, in each world."""
    return [a.error / b.error for a, b in zip(found_W, other_W, strict=True)]


def efficient(ratio_W: list[float]) -> Measure:
    what = "four responses, sampled: squared error of pairs over that of whole rankings"
    return over_seeds(what, ratio_W, least=1.03)


def consistent(name: str, loss: Loss, size: Size, *, real: bool = True) -> Measure:
    """What is left of the squared error with four times the rankings: a quarter."""
    few = [learnt(loss, w, 4, size.rankings, size.runs, real=real) for w in range(size.worlds)]
    more = [learnt(loss, w, 4, 4 * size.rankings, size.runs, real=real) for w in range(size.worlds)]
    return over_seeds(
        f"{name}: squared error left by four times as many rankings", gain(more, few), most=0.3
    )


def run(quick: bool) -> Record:
    size = Size(4, 25, 100, (2, 4)) if quick else Size(8, 40, 150, (2, 3, 4, 6))

    def all_worlds(loss: Loss, k: int, *, real: bool = True) -> list[Found]:
        return [learnt(loss, w, k, size.rankings, size.runs, real=real) for w in range(size.worlds)]

    found = {k: (all_worlds(split, k), all_worlds(whole, k)) for k in size.ks}
    measures = [
        Measure(
            "two responses, exact: the ratio is 1, but for", abs(exact(2, 1.0, 1)[0] - 1), most=1e-9
        ),
        Measure(
            "four equal responses, exact ratio less 115/108",
            abs(exact(4, 0.0, 1)[0] - 115 / 108),
            most=1e-9,
        ),
        over_seeds(
            "four responses one standard deviation apart, exact ratio",
            exact(4, 1.0, 2 if quick else 12),
        ),
        efficient(gain(*found[4])),
        consistent("whole rankings", whole, size),
        consistent("all pairs", split, size),
        over_seeds(
            "reward lost by the choice: pairs less whole rankings",
            [a.lost - b.lost for a, b in zip(*found[4], strict=True)],
        ),
    ]
    controls = {
        "rankings of two: there is nothing to gain": [efficient(gain(*found[2]))],
        "pairs of neighbours only": [consistent("all pairs", neighbours, size)],
        "orders by lot": [consistent("whole rankings", whole, size, real=False)],
        "order turned over": [consistent("whole rankings", lambda s: whole(s.flip(-1)), size)],
    }
    return Record(
        name="k-wise",
        title="Whole rankings against their pairs",
        claim="The maximum likelihood of whole rankings and that of the pairs they are split into "
        "both find the true reward; that of whole rankings does so with a smaller error.",
        source="Zhu, Jiao and Jordan 2023, arXiv:2301.11270; the split into pairs is that of "
        "Ouyang et al. 2022, arXiv:2203.02155.",
        setup="Exact: the asymptotic squared error (the trace of the sandwich) of the scores of K "
        "responses that are ranked again and again. Sampled: rewards linear in "
        f"{FEATURES} features, {size.rankings} rankings by Plackett-Luce of K responses each, "
        f"{size.worlds} true weights with {size.runs} runs each; the choice is the best of "
        f"{CANDIDATES} new candidates.",
        measures=measures,
        controls=controls,
        caption="Squared error of pairs over that of whole rankings: exact, and sampled",
        differs="The gain is real and small: 115/108, or 6.5 %, for four equal responses, more for "
        "responses that differ and for longer rankings. In the choice of a response it is smaller "
        "than what sampling leaves uncertain here. The paper's bounds are not tested.",
        figure=drawn_up(found, quick),
    )


def drawn_up(found: dict[int, tuple[list[Found], list[Found]]], quick: bool) -> Figure:
    figure, (left, right) = figures.panels(2)
    ks = (2, 3, 4) if quick else (2, 3, 4, 5, 6)
    for apart, colour in ((0.0, figures.SKY), (1.0, figures.BLUE), (2.0, figures.INK)):
        ratios = [float(np.mean(exact(k, apart, 1 if quick else 12))) for k in ks]
        left.plot(ks, ratios, "o-", color=colour, label=f"standard deviation {apart:g}")
    means = [mean(gain(*pair)) for pair in found.values()]
    right.plot(list(found), [m.value for m in means], "o-", color=figures.GREEN)
    figures.band(right, list(found), [m.low for m in means], [m.high for m in means], figures.GREEN)
    for axes in (left, right):
        axes.axhline(1.0, color=figures.FAINT, linewidth=1)
        axes.set_xticks(list(ks if axes is left else found))
    ratio = "squared error, pairs / rankings"
    figures.named(left, "exact, by how far scores lie apart", "responses in a ranking, K", ratio)
    figures.named(
        right, "sampled, linear rewards", "responses in a ranking, K", ratio, legend=False
    )
    return figure
