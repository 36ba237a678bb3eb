"""How a rollout is sampled changes neither what comes nor what is measured of it."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.online import played
from truing.generation import local
from truing.stages.rollout import Collector, Episode, Prompted

Make = Callable[..., Any]
GROUP = 4


def collected(collector: Collector, prompts: Sequence[Prompted], **how: Any) -> list[Episode]:
    return collector.collect(
        prompts, stream="rollout", **({"group": GROUP, "batch_size": 32} | how)
    )


def same(got: Sequence[Episode], wanted: Sequence[Episode]) -> None:
    """The same responses, their ends and scores, and to 1e-6 what was measured of their tokens."""
    assert [replaced(e) for e in got] == [replaced(e) for e in wanted]
    for one, other in zip(got, wanted, strict=True):
        for name in ("logp_T", "ref_logp_T", "value_T"):
            ours, theirs = getattr(one, name), getattr(other, name)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def replaced(episode: Episode) -> Episode:
    return episode._replace(logp_T=None, ref_logp_T=None, value_T=None)  # pyright: ignore


def start(make: Make, tiny_double: Path, kind: str) -> tuple[Collector, list[Prompted]]:
    play, cast = played(make(kind, model=tiny_double, dtype="auto"))
    with torch.no_grad():  # values that are not all 0
        for name, weight in cast.actor.named_parameters():
            if name.startswith("critic") and not weight.any():
                weight += 0.1
    prompts = [p._replace(ids=(*p.ids, *[7] * i)) for i, p in enumerate(cast.prompts)]
    return play.collector, prompts


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_batches_order_and_groups_change_no_episode(
    make: Make, tiny_double: Path, kind: str
) -> None:
    collector, prompts = start(make, tiny_double, kind)
    wanted = collected(collector, prompts)
    assert len({e.tokens for e in wanted}) > GROUP * len(prompts) * 3 / 4
    for size in (1, 5):
        same(collected(collector, prompts, batch_size=size), wanted)
    same(collected(collector, prompts[::-1]), wanted)
    # A smaller group is the start of a larger one, and a prompt alone is what it is among others.
    same(collected(collector, prompts, group=2), [e for e in wanted if e.sample < 2])
    same(collected(collector, prompts[3:4]), [e for e in wanted if e.prompt.key == 3])


def test_draws_that_depend_on_their_batch_are_noticed(
    make: Make, tiny_double: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector, prompts = start(make, tiny_double, "ppo")
    keyed, turns = local.uniforms, count()

    def by_turn(seed: int, stream: str, keys: Sequence[Any], longest: int) -> Any:
        return keyed(seed, stream, [(next(turns), 0) for _ in keys], longest)

    monkeypatch.setattr(local, "uniforms", by_turn)
    wanted = collected(collector, prompts)
    with pytest.raises(AssertionError):
        same(collected(collector, prompts, batch_size=5), wanted)
