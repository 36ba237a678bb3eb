"""A tiny transformer that learns: strings of up to four letters out of three, for four prompts.

Its logits at every prefix are one forward pass, and are read as a table over the places of the
space; so what a table can be asked, it can be asked too: each string's probability, the objective,
the regret. Nothing is estimated.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from truing.algorithms import dpo
from truing.conformance import online
from truing.conformance.online import RIGHT, Knobs
from truing.conformance.rows import Check
from truing.conformance.spaces import Space, grown

PROMPTS = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 1]])
LETTERS, LONGEST = 3, 4
# The share of what is to be gained that may be missing, for each algorithm: by steps, not seconds.
BARS = {"rloo": (600, 0.08), "ppo": (600, 0.08), "dpo": (300, 0.08)}


def network(seed: int) -> LlamaForCausalLM:
    """Two layers of 64, always the same for a seed; the end is token 3."""
    config = LlamaConfig(
        vocab_size=LETTERS + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=LETTERS,
        pad_token_id=LETTERS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def letters() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ids that hold every prompt with every prefix, and of each place its row and column.
    Places come as in `grown`: shorter prefixes first, then by letters."""
    inner = LONGEST - 1
    full = torch.cartesian_prod(*[torch.arange(LETTERS)] * inner)
    ids = torch.cat([torch.cat([p.expand(len(full), -1), full], 1) for p in PROMPTS])
    rows: list[int] = []
    columns: list[int] = []
    for prompt in range(len(PROMPTS)):
        for length in range(LONGEST):
            step = LETTERS ** (inner - length)
            rows += [prompt * len(full) + k * step for k in range(LETTERS**length)]
            columns += [PROMPTS.shape[1] - 1 + length] * LETTERS**length
    return ids, torch.tensor(rows), torch.tensor(columns)


class Tiny:
    """An actor whose policy and critic are transformers of their own."""

    rate = 3e-3

    def __init__(self) -> None:
        self.policy, self.critic = network(0), network(1)
        self.ids, self.rows, self.columns = letters()

    def parameters(self) -> Sequence[Tensor]:
        return [*self.policy.parameters(), *self.critic.parameters()]

    def table(self) -> Tensor:
        return self._read(self.policy)

    def values(self) -> Tensor:
        """The critic's first logit."""
        return self._read(self.critic)[:, 0]

    def _read(self, model: LlamaForCausalLM) -> Tensor:
        logits = model(input_ids=self.ids, use_cache=False).logits
        return logits[self.rows, self.columns].double()


@cache
def space() -> Space:
    """121 strings for each of four prompts. The reference is the network before it has learnt."""
    found = grown("transformer", symbols=LETTERS, depth=LONGEST, prompts=len(PROMPTS), beta=1.0)
    with torch.no_grad():
        found.reference.copy_(Tiny().table())
    return found


def learnt(kind: str, knobs: Knobs, steps: int) -> float:
    """The regret after ``steps`` rollouts of 256 samples."""
    return space().regret(online.trained(space(), Tiny(), kind, knobs, steps))


def directly(steps: int, *, beta: float = 1.0, crossed: bool = False) -> float:
    """The regret of DPO after ``steps`` steps on all pairs, softly labelled by Bradley-Terry on the
    true reward. ``beta``: times the space's; ``crossed``: the reference answers other prompts."""
    world, actor = space(), Tiny()
    first, second = world.pairs
    ref_S = world.ref_S.roll(world.each if crossed else 0)
    wins_N = world.beats_SS[first, second]
    optimizer = torch.optim.Adam(actor.parameters(), lr=5e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min((step + 1) / 20, 1 - step / steps)
        ratio_S = world.logps(actor.table()) - ref_S
        pair = ratio_S[first], ratio_S[second]
        won, lost = (dpo(*x, beta=beta * world.beta) for x in (pair, pair[::-1]))
        optimizer.zero_grad()
        (wins_N * won + (1 - wins_N) * lost).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return world.regret(world.logps(actor.table()))


def check(
    name: str, measure: Callable[..., float], broken: dict[str, Callable[[], float]]
) -> Check:
    steps, bar = BARS[name]
    return Check(
        f"{name}, transformer",
        f"transformer, {steps} steps",
        "the most of E[r] - beta KL: the share of it that is missing",
        bar,
        partial(measure, steps=steps),
        broken,
    )


def checks(*, quick: bool) -> Iterator[Check]:
    """None of them where it is to be quick."""
    if quick:
        return
    for kind in ("rloo", "ppo"):
        steps = BARS[kind][0]
        wrong = {"beta doubled": online.BROKEN["beta doubled"]}
        yield check(
            kind,
            partial(learnt, kind, RIGHT),
            {what: partial(learnt, kind, knobs, steps) for what, knobs in wrong.items()},
        )
    steps = BARS["dpo"][0]
    yield check(
        "dpo",
        directly,
        {
            "beta doubled": partial(directly, steps, beta=2.0),
            "reference of another prompt": partial(directly, steps, crossed=True),
        },
    )
