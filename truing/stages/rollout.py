"""Rollouts: prompts to episodes, an episode being a sampled response and all that is known of it.

The policy's log-probs are those that it sampled by. Rewards see texts; the reference and the critic
see the tokens. Each process samples its share, then all of them hold all episodes: what follows
(baselines, whitening, minibatches) is the same on every one, however many there are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from truing.data.batch import Encoder
from truing.data.formats import Dataset
from truing.data.layout import Layout, Tokens
from truing.data.schema import Prompt, Text
from truing.generation.engine import Request, Sampling, Trajectory
from truing.generation.local import LocalEngine
from truing.models.actor import ActorCritic
from truing.models.model import measure_tokens
from truing.rewards import Reward, score
from truing.settings_online import OnlineConfig
from truing.stages.learner import Diverged


class Prompted(NamedTuple):
    """A prompt as text and in tokens; ``key`` names its random numbers."""

    key: int
    text: Text
    ids: tuple[int, ...]


class Episode(NamedTuple):
    """A response, whether it ended by itself, and what was measured of it: each reward's number
    and the cost; of each token the log-prob it was sampled with, the reference's, and the value
    before it."""

    prompt: Prompted
    sample: int
    tokens: Tokens
    text: str
    finished: bool
    scores: tuple[float, ...]
    logp_T: Tensor
    ref_logp_T: Tensor
    value_T: Tensor
    cost: float = 0.0


# Log-probs (B, T) of a layout's scored tokens under the reference policy.
Reference = Callable[[Layout], Tensor]


def encode_prompts(dataset: Dataset[Prompt], encoder: Encoder, room: int) -> list[Prompted]:
    """The prompts in tokens; one that leaves less than ``room`` tokens is left out and counted."""
    found: list[Prompted] = []
    for row in dataset.rows:
        ids = encoder.prompt(row.prompt)
        if encoder.max_length is not None and len(ids) + room > encoder.max_length:
            encoder.counts["prompts too long, left out"] += 1
        else:
            found.append(Prompted(len(found), row.prompt, ids))
    return found


class Collector:
    """Samples episodes and measures them."""

    def __init__(
        self,
        accelerator: Accelerator,
        actor: ActorCritic,
        reference: Reference,
        encoder: Encoder,
        rewards: Sequence[Reward],
        config: OnlineConfig,
    ) -> None:
        self.accelerator, self.actor, self.reference = accelerator, actor, reference
        self.encoder, self.rewards, self.config = encoder, rewards, config
        # Seconds by phase, since it was last emptied; and what the reference and the critic read.
        self.seconds: dict[str, float] = {}
        self.read = list[Layout]()

    def collect(
        self, prompts: Sequence[Prompted], *, stream: str, group: int = 1, batch_size: int
    ) -> list[Episode]:
        """``group`` episodes for each prompt, side by side, in the order of the prompts' keys."""
        config, rank = self.config, self.accelerator.process_index
        sampling = Sampling(
            temperature=config.temperature,
            max_completion_length=config.response_length,
            seed=config.seed,
            stream=stream,
        )
        pairs = [(p, Request(p.ids, p.key, i)) for p in prompts for i in range(group)]
        mine = pairs[rank :: self.accelerator.num_processes]
        with self.timed("time/generate"):
            engine = LocalEngine(self.actor.policy, batch_size=batch_size)
            done = engine.generate([request for _, request in mine], sampling)
        found = self._measured([prompt for prompt, _ in mine], done, batch_size)
        return sorted(gather_object(found), key=lambda e: (e.prompt.key, e.sample))

    def _measured(
        self, prompts: Sequence[Prompted], done: Sequence[Trajectory], batch_size: int
    ) -> list[Episode]:
        rows = [Tokens(t.prompt_ids, t.response_ids) for t in done]
        texts = [self.encoder.decode(row.response) for row in rows]
        with self.timed("time/score"):
            # A process may have no share of a few responses, and rewards need not know none.
            columns = [
                score(reward, [p.text for p in prompts], texts) if texts else []
                for reward in self.rewards
            ]
        costs = columns.pop() if self.config.cost else [0.0] * len(done)
        with self.timed("time/forward"):
            seen = measure_tokens(self.actor, rows, batch_size, self._seen)
            ref_logps, values = ([x_T2[:, i] for x_T2 in seen] for i in range(2))
        logps = [torch.tensor(t.logps, dtype=torch.float64) for t in done]
        for term, column in (
            ("log-prob", logps),
            ("reference log-prob", ref_logps),
            ("value", values),
        ):
            check_finite(term, column, rows)
        return [
            Episode(
                prompts[i],
                t.sample,
                rows[i],
                texts[i],
                t.finish == "stop",
                tuple(column[i] for column in columns),
                logps[i],
                ref_logps[i].double(),
                values[i].double(),
                costs[i],
            )
            for i, t in enumerate(done)
        ]

    def _seen(self, layout: Layout) -> Tensor:
        """Reference log-probs and values (B, T, 2); values of 0 where there is no critic."""
        self.read.append(layout)
        logp_BT = self.reference(layout)
        blind = self.actor.critic is None
        value_BT = torch.zeros_like(logp_BT) if blind else self.actor.value(layout)
        return torch.stack([logp_BT, value_BT.to(logp_BT.dtype)], -1)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds inside to ``seconds[phase]``."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def check_finite(term: str, columns: Sequence[Tensor], rows: Sequence[Tokens]) -> None:
    """Raise `Diverged` for the responses of which a number is not finite."""
    bad = [row for row, column in zip(rows, columns, strict=True) if not column.isfinite().all()]
    if bad:
        raise Diverged(
            f"the {term} of {len(bad)} of {len(rows)} responses is not finite: nothing was learnt "
            "from them. Lower learning_rate, or check the model that gave it",
            [term],
            bad,
        )
