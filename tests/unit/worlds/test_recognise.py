"""A prompt tells its whole case, so that the gold reward can stand where any reward stands."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from truing.data.formats import save
from truing.data.schema import Prompt
from truing.quickstart.training import BASE
from truing.rewards import load_reward, score
from truing.settings_online import RlooConfig
from truing.stages import online
from truing.worlds.gold import gold
from truing.worlds.recognise import gold_reward, recognise
from truing.worlds.replies import demonstration
from truing.worlds.service import Split, cases


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_case_is_found_again(split: Split) -> None:
    for case in cases(1500, seed=5, split=split):
        assert recognise(case.prompt) == replace(case, key=0, held_out=frozenset())


def test_it_is_a_reward_by_name() -> None:
    shown = cases(20, seed=6, split="train")
    replies = [demonstration(case, 0) for case in shown]
    reward = load_reward("truing.worlds.recognise:gold_reward")
    wanted = [gold(c, r).total for c, r in zip(shown, replies, strict=True)]
    assert score(reward, [c.prompt for c in shown], replies) == wanted
    assert len(set(wanted)) > 10


def test_a_policy_learns_from_it(tmp_path: Path) -> None:
    rows = [Prompt(case.prompt, case.key) for case in cases(4, seed=7, split="train")]
    config = RlooConfig(
        output_dir=str(tmp_path / "run"),
        model_name_or_path=str(BASE),
        dataset_name=str(save(rows, tmp_path / "prompts.jsonl")),
        reward=["truing.worlds.recognise:gold_reward"],
        response_length=6,
        max_steps=1,
        report_to=[],
        use_cpu=True,
    )
    run = online.run(config)
    assert run is not None
    (line,) = run.metrics()
    assert float(line["objective/scores"] or 0) < 0  # six words are no reply


CASE = cases(1, seed=0, split="train")[0].prompt


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("Tell me a joke", "'Tell me a joke' is not of the service world"),
        (CASE.partition("Order:")[0], "not of the service world"),
        (re.sub("Message: .*", "Message: Hello.", CASE), "no request of the service world"),
        (re.sub("Policy: .*", "Policy: Be kind.", CASE), "'Be kind.' has 0 rules for"),
    ],
)
def test_other_prompts_are_refused(prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gold_reward([prompt], ["A reply."])
