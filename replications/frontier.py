"""What reward a method reaches for its KL, beside the most that can be had for it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from replications import figures
from replications.overoptimisation import best_of_law
from replications.record import Measure, Record
from truing.algorithms import dpo
from truing.conformance import transformer
from truing.conformance.direct import DIRECT, minimised
from truing.conformance.online import BROKEN, RIGHT, Knobs, Tabular, trained
from truing.conformance.spaces import Space, forest
from truing.keys import generator

BETAS, NS = (0.25, 0.5, 1.0, 2.0, 4.0), (2, 4, 8, 16, 32, 64)
LABELS, EPOCHS, BATCH, RATE = 50_000, 10, 500, 3e-3
COLOURS = {
    "RLOO": figures.BLUE,
    "PPO": figures.GREEN,
    "DPO": figures.RED,
    "best of n": figures.OCHRE,
}


class Point(NamedTuple):
    """KL from the reference in nats, and reward: both counted out, means over the prompts."""

    kl: float
    reward: float


def point(space: Space, logp_S: Tensor) -> Point:
    reward = float((logp_S.exp() * space.reward_S).sum()) / space.prompts
    return Point(space.divergence(space.ref_S, from_S=logp_S), reward)


def best(space: Space, kl: float) -> float:
    """The most reward at this KL: that of ``pi_ref exp(r / beta) / Z`` for the beta that has it."""
    low, high = 1e-3, 1e4
    for _ in range(100):
        beta = (low * high) ** 0.5
        if point(space, space.tilted(space.reward_S / beta)).kl > kl:
            low = beta
        else:
            high = beta
    return point(space, space.tilted(space.reward_S / high)).reward


def share(space: Space, found: Point) -> float:
    """Of the most that can be gained at its KL, what a point gains."""
    start = point(space, space.ref_S).reward
    return (found.reward - start) / (best(space, found.kl) - start)


def best_of(space: Space, n: int) -> Tensor:
    """Log-probs (S,) of the best of n responses to each prompt."""
    rows = zip(space.ref_S.split(space.each), space.reward_S.split(space.each), strict=True)
    return torch.cat([best_of_law(ref_S, reward_S, n) for ref_S, reward_S in rows])


def tabular(space: Space, kind: str, steps: int, knobs: Knobs = RIGHT) -> Tensor:
    return trained(space, Tabular(space), kind, knobs, steps)


def from_labels(space: Space, actor: transformer.Tiny) -> Tensor:
    """DPO on so many pairs that the reference drew, each with its probability for a label."""
    random = generator(0, "frontier labels")
    p_PS = space.ref_S.exp().view(space.prompts, -1)
    p_PS = (p_PS / p_PS.sum(-1, keepdim=True)).numpy()
    prompt_N = np.arange(LABELS) % space.prompts
    # Two draws from the reference for each prompt in turn.
    string = np.stack(
        [random.choice(space.each, size=(2, LABELS // space.prompts), p=p_S) for p_S in p_PS], -1
    ).reshape(2, LABELS)
    first, second = torch.from_numpy(string + prompt_N * space.each)
    label_N, ref_S = space.beats_SS[first, second], space.ref_S
    label_N = torch.where(first == second, 0.5, label_N)
    optimizer = torch.optim.Adam(actor.parameters(), lr=RATE, betas=(0.9, 0.95))
    steps = EPOCHS * LABELS // BATCH
    for step, rows in enumerate(batches(random)):
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / 20, 1 - step / steps)
        ratio_S = space.logps(actor.table()) - ref_S
        one, other, label = ratio_S[first[rows]], ratio_S[second[rows]], label_N[rows]
        right, wrong = dpo(one, other, beta=space.beta), dpo(other, one, beta=space.beta)
        optimizer.zero_grad()
        (label * right + (1 - label) * wrong).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return space.logps(actor.table())


def batches(random: np.random.Generator) -> Sequence[Tensor]:
    """Row numbers of every step."""
    orders = [random.permutation(LABELS).reshape(-1, BATCH) for _ in range(EPOCHS)]
    return list(torch.from_numpy(np.concatenate(orders)))


# --- criteria -------------------------------------------------------------------------------------


def below(shares: Sequence[float]) -> Measure:
    return Measure(
        "all points: the largest share of the frontier, less 1", max(shares) - 1, most=1e-9
    )


def near(shares: Sequence[float]) -> Measure:
    return Measure(
        "tables, RLOO and PPO: the smallest share of the frontier", min(shares), least=0.95
    )


def regret(what: str, value: float, most: float) -> Measure:
    return Measure(f"{what}: share of what is to be gained that is missing", value, most=most)


def run(quick: bool) -> Record:
    world = forest()
    betas, steps = ((1.0,), 150) if quick else (BETAS, 600)
    laws: dict[str, list[Tensor]] = {
        name: [tabular(world, name.lower(), steps, Knobs(beta=b)) for b in betas]
        for name in ("RLOO", "PPO")
    }
    laws["DPO"] = [minimised(DIRECT["dpo"], replace(world, beta=b * world.beta)) for b in betas]
    laws["best of n"] = [best_of(world, n) for n in NS]
    found = {name: [point(world, law_S) for law_S in rows] for name, rows in laws.items()}
    shares = {name: [share(world, p) for p in points] for name, points in found.items()}
    every = [s for rows in shares.values() for s in rows]
    middle = betas.index(1.0)
    measures = [
        below(every),
        near(shares["RLOO"] + shares["PPO"]),
        *(regret(f"tables, {n}", world.regret(laws[n][middle]), 0.03) for n in ("RLOO", "PPO")),
        Measure("tables, DPO on all pairs: the smallest share", min(shares["DPO"])),
        Measure("tables, best of n: the smallest share", min(shares["best of n"])),
    ]
    added = tabular(world, "rloo", steps, BROKEN["KL added, not subtracted"])
    doubled = tabular(world, "rloo", steps, BROKEN["beta doubled"])
    halved = [share(world, p._replace(kl=p.kl / 2)) for p in found["RLOO"]]
    controls = {
        "KL added, not subtracted": [near([share(world, point(world, added))])],
        "beta doubled": [regret("tables, RLOO", world.regret(doubled), 0.03)],
        "half of the KL is not counted": [below(halved)],
    }
    learnt: dict[str, Point] = {}
    if not quick:
        more, wrong, learnt = by_transformer(2000)
        measures, controls = measures + more, controls | wrong
    return Record(
        name="frontier",
        title="The frontier of reward and KL",
        claim="For every KL from the reference there is a most reward that can be had. PPO and "
        "RLOO come near it, and so does DPO without sampling from the policy.",
        source="Rafailov et al. 2023, arXiv:2305.18290, figure 2 (left), on sentiment of films; "
        "here the frontier is exact.",
        setup="Four prompts with 15 strings each (tables), and four prompts with 121 strings each "
        "for a transformer of two layers of 32; the reference is where it began. The frontier is "
        "pi_ref exp(r / beta) / Z for all beta. RLOO and PPO with the KL in the reward, 256 "
        f"responses a step: {steps} steps for tables, for beta times {betas}, 2,000 for the "
        f"transformer. DPO: of tables on all pairs; of the transformer {LABELS} pairs drawn by the "
        f"reference with their probabilities for labels, {EPOCHS} epochs. Best of n is counted "
        "out. KL and reward of every point are counted too: none may lie above the frontier.",
        measures=measures,
        controls=controls,
        caption="Reward by KL of RLOO, PPO, DPO and best of n, under the exact frontier",
        differs="The paper estimates both axes from samples of language models, and PPO falls far "
        "behind DPO there; in these spaces all three come near. Best of n is the more wasteful the "
        "larger n.",
        figure=drawn_up(world, found, learnt),
    )


def by_transformer(steps: int) -> tuple[list[Measure], dict[str, list[Measure]], dict[str, Point]]:
    world = transformer.space()
    logps = {
        "RLOO": trained(world, transformer.Tiny(), "rloo", RIGHT, steps),
        "PPO": trained(world, transformer.Tiny(), "ppo", RIGHT, steps),
        "DPO": from_labels(world, transformer.Tiny()),
    }
    points = {name: point(world, logp_S) for name, logp_S in logps.items()}
    bars = {"RLOO": 0.03, "PPO": 0.03, "DPO": 0.10}
    measures = [
        regret(f"transformer, {name}", world.regret(logp_S), bars[name])
        for name, logp_S in logps.items()
    ]
    measures += [
        Measure(f"transformer, {name}: share of the frontier", share(world, p))
        for name, p in points.items()
    ]
    doubled = trained(world, transformer.Tiny(), "rloo", BROKEN["beta doubled"], steps // 2)
    controls = {
        "transformer, beta doubled": [regret("transformer, RLOO", world.regret(doubled), 0.03)],
        "transformer, nothing learnt": [regret("transformer, DPO", world.regret(world.ref_S), 0.1)],
    }
    return measures, controls, points


def drawn_up(world: Space, found: dict[str, list[Point]], learnt: dict[str, Point]) -> Figure:
    figure, axes = figures.panels(2 if learnt else 1, height=3.3)
    worlds = [(world, found)]
    if learnt:
        space = transformer.space()
        extra = {name: [p] for name, p in learnt.items()}
        extra["best of n"] = [point(space, best_of(space, n)) for n in NS]
        worlds.append((space, extra))
    titles = ("tables", "transformer of two layers")
    for panel, (space, points), title in zip(axes, worlds, titles, strict=False):
        widest = 1.1 * max(p.kl for rows in points.values() for p in rows)
        kls = np.linspace(0, widest, 100)
        panel.plot(kls, [best(space, kl) for kl in kls], color=figures.INK, label="frontier")
        for name, rows in points.items():
            kl_N, reward_N = np.array(rows).T
            panel.plot(kl_N, reward_N, "o", color=COLOURS[name], label=name)
        figures.named(panel, title, "KL from the reference, nats", "mean reward")
    return figure
