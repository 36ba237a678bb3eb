"""From texts to trajectories: one group a prompt, keyed by the prompts' own numbers."""

from pathlib import Path

import pytest

from truing.data.batch import Encoder
from truing.data.schema import Message
from truing.generation.engine import Sampling
from truing.generation.sample import complete
from truing.models.model import load_policy

SAMPLING = Sampling(max_completion_length=5, seed=4)


def test_groups_stand_in_the_order_of_the_prompts(tiny: Path) -> None:
    policy = load_policy(tiny)
    encoder = Encoder(policy.tokenizer)
    prompts = ["the cat", "a", "the cat"]
    groups = complete(policy, encoder, prompts, SAMPLING, samples=2, batch_size=4)
    assert [len(group) for group in groups] == [2, 2, 2]
    for key, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        assert [t.prompt_ids for t in group] == [encoder.prompt(prompt)] * 2
        assert [(t.prompt_key, t.sample) for t in group] == [(key, 0), (key, 1)]
    assert len({t.ids for group in groups for t in group}) == 6
    # A key is the draw's name: with the same keys the other way round, the same samples.
    turned = complete(policy, encoder, prompts[::-1], SAMPLING, keys=[2, 1, 0], samples=2)
    assert [[t.ids for t in group] for group in turned] == [
        [t.ids for t in group] for group in groups[::-1]
    ]
    assert (
        complete(policy, encoder, prompts, SAMPLING, keys=[7, 8, 9])[0][0].ids != groups[0][0].ids
    )


def test_messages_are_opened_for_the_answer(tiny_chat: Path) -> None:
    policy = load_policy(tiny_chat)
    encoder = Encoder(policy.tokenizer)
    ((one,),) = complete(policy, encoder, [(Message("user", "hi"),)], SAMPLING)
    assert policy.tokenizer.decode(one.prompt_ids).endswith("hi<|end|>\n[assistant]")


def test_as_many_keys_as_prompts(tiny: Path) -> None:
    policy = load_policy(tiny)
    with pytest.raises(ValueError, match="zip"):
        complete(policy, Encoder(policy.tokenizer), ["a", "b"], SAMPLING, keys=[1])
