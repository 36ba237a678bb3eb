"""Rewards for steps against a reward for answers, where wrong solutions may be lucky."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from replications import figures
from replications.chains import (
    STEPS,
    Chains,
    chains,
    logits,
    outcome_reward,
    process_reward,
    rolled_out,
    worth,
)
from replications.record import Measure, Record, over_seeds
from truing.algorithms import step_minimum, step_product
from truing.stats.ratings import mean

LUCK, ROLLOUTS, BEST = 0.15, 8, 64
Score = Callable[[Tensor, Tensor], Tensor]


def picked(test: Chains, weight_G: Tensor, n: int = BEST, score: Score = step_product) -> float:
    """How often the best of n by score has no wrong step."""
    score_N = score(logits(weight_G, test.seen_NSF), torch.ones_like(test.right_NS))
    right_PN, score_PN = (x.view(-1, BEST)[:, :n] for x in (test.right_NS.all(-1), score_N))
    chosen_P = right_PN.gather(-1, score_PN.argmax(-1, keepdim=True))
    return float(chosen_P.double().mean())


def agreement(label_NS: Tensor, worth_NS: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([label_NS.flatten(), worth_NS.flatten()]))[0, 1])


class World:
    """One draw of a solver, of solutions to learn from and of solutions to choose from."""

    def __init__(self, seed: int, count: int, problems: int, luck: float = LUCK) -> None:
        self.seed, self.luck = seed, luck
        self.seen = chains(seed, "seen", count, luck=luck)
        self.test = chains(seed, "test", BEST * problems, luck=luck)
        self.right_NS = self.seen.right_NS.double()
        self.worth_NS = worth(self.seen, luck)
        self.label_NS = rolled_out(self.worth_NS, seed, ROLLOUTS)
        self.process = process_reward(self.seen, self.right_NS)
        self.outcome = outcome_reward(self.seen)

    def gain(self, weight_G: Tensor | None = None) -> float:
        """How much more often the process reward picks a right solution than the outcome's."""
        weight_G = self.process if weight_G is None else weight_G
        return picked(self.test, weight_G) - picked(self.test, self.outcome)


def ahead(gain_W: list[float]) -> Measure:
    what = f"best of {BEST}, {LUCK:.0%} lucky: right by steps less right by answers"
    return over_seeds(what, gain_W, least=0.02)


def ahead_twice(gain_W: list[float]) -> Measure:
    return over_seeds(f"the same, {2 * LUCK:.0%} lucky", gain_W, least=0.05)


def told(agreement_W: list[float]) -> Measure:
    what = f"labels from {ROLLOUTS} rollouts: correlation with the true worth of a step"
    return over_seeds(what, agreement_W, least=0.9)


def run(quick: bool) -> Record:
    seeds, count, problems = (3, 2000, 150) if quick else (8, 4000, 500)
    worlds = [World(seed, count, problems) for seed in range(seeds)]
    twice = [World(seed, count, problems, 2 * LUCK) for seed in range(seeds)]
    never = [World(seed, count, problems, 0.0) for seed in range(seeds)]

    def right(of: Callable[[World], Tensor], score: Score = step_product) -> list[float]:
        return [picked(w.test, of(w), score=score) for w in worlds]

    from_rollouts = [process_reward(w.seen, w.label_NS) for w in worlds]
    measures = [
        ahead([w.gain() for w in worlds]),
        ahead_twice([w.gain() for w in twice]),
        told([agreement(w.label_NS, w.worth_NS) for w in worlds]),
        over_seeds(
            "solutions that are right",
            [float(w.test.right_NS.all(-1).double().mean()) for w in worlds],
        ),
        over_seeds(f"right of the best of {BEST}: by answers", right(lambda w: w.outcome)),
        over_seeds(f"right of the best of {BEST}: by steps, product", right(lambda w: w.process)),
        over_seeds(
            f"right of the best of {BEST}: by steps, minimum",
            right(lambda w: w.process, step_minimum),
        ),
        over_seeds(
            f"right of the best of {BEST}: by labels from rollouts",
            [picked(w.test, p) for w, p in zip(worlds, from_rollouts, strict=True)],
        ),
    ]
    return Record(
        name="process-rewards",
        title="Rewards for steps and for answers",
        claim="A reward learnt from labels of steps picks right solutions more often than one "
        "learnt from whether the answer is right, and rollouts can label the steps.",
        source="Lightman et al. 2023, arXiv:2305.20050; Uesato et al. 2022, arXiv:2211.14275; for "
        "rollouts Wang et al. 2023 (Math-Shepherd), arXiv:2312.08935.",
        setup=f"Solutions of {STEPS} steps, of which features tell up to chance whether they are "
        f"right; {LUCK:.0%} of the wrong solutions have a right answer all the same, by a step "
        f"that guesses. Both rewards are the same linear reader of {count} solutions: of labels of "
        "steps, or of answers, which are right with the probability that all steps are. Best of "
        f"{BEST} for {problems} problems, right if no step is wrong; {seeds} worlds. Rollouts: the "
        f"share of {ROLLOUTS} with a right answer; the true worth of a step is counted.",
        measures=measures,
        controls=controls(worlds, never),
        caption="Right solutions among the best of n, by steps and by answers",
        differs="The papers' solutions are mathematics by language models. Without luck the two "
        "do not differ here: what sets them apart is right answers for wrong reasons alone, and "
        "not that steps say more than answers.",
        figure=drawn_up(worlds, twice),
    )


def controls(worlds: list[World], never: list[World]) -> dict[str, list[Measure]]:
    """``never``: the same worlds without luck."""
    copied = [
        process_reward(w.seen, w.seen.answer_N.double()[:, None].expand(-1, STEPS)) for w in worlds
    ]
    lot = [process_reward(w.seen, w.right_NS.roll(1, 0)) for w in worlds]
    return {
        "no wrong solution is lucky": [ahead([w.gain() for w in never])],
        "the answer's label for every step": [
            ahead([w.gain(p) for w, p in zip(worlds, copied, strict=True)])
        ],
        "steps' labels of other solutions": [
            ahead([w.gain(p) for w, p in zip(worlds, lot, strict=True)])
        ],
        "rollouts of other solutions": [
            told([agreement(w.label_NS.roll(1, 0), w.worth_NS) for w in worlds])
        ],
    }


def drawn_up(worlds: list[World], twice: list[World]) -> Figure:
    figure, panels = figures.panels(2)
    ns = [2**k for k in range(7)]
    y = "share of solutions that are right"
    for axes, some, luck in zip(panels, (worlds, twice), (LUCK, 2 * LUCK), strict=True):
        for name, colour in (("process", figures.BLUE), ("outcome", figures.RED)):
            rows = [mean([picked(w.test, getattr(w, name), n) for w in some]) for n in ns]
            label = "labels of steps" if name == "process" else "labels of answers"
            axes.plot(ns, [r.value for r in rows], "o-", color=colour, label=label)
            figures.band(axes, ns, [r.low for r in rows], [r.high for r in rows], colour)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0.6, 1.02)
        figures.named(
            axes, f"{luck:.0%} of wrong solutions lucky", "n, solutions to choose from", y
        )
    return figure
