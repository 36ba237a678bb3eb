"""However a response ends, its last token gets the reward, gives the score, and is counted: by EOS,
by another stop, cut, of one token; where EOS is what fills up batches, too."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import EOS, home
from tests.invariance import double, exact, moved
from tests.online import played
from truing.data.layout import Layout, Tokens, packed, padded, shared
from truing.generation import continuous, local
from truing.generation.engine import Request, Sampling, Trajectory
from truing.models.heads import load_reward_model
from truing.models.loading import Loading
from truing.models.model import load_policy, logp
from truing.stages import estimate, rollout
from truing.stages.preference import RECIPES, Pair, Preference

Make = Callable[..., Any]
# 0 is "!", and what fills up the rows of a batch.
STOP, BANG, LENGTH = 33, 0, 4
RESPONSES: dict[str, tuple[int, ...]] = {
    "EOS": (10, 11, EOS),
    "EOS at the length": (10, 11, 12, EOS),
    "cut": (10, 11, 12, 13),
    "EOS at once": (EOS,),
    "another stop": (20, STOP),
    "another stop at once": (STOP,),
    "an end named in the settings": (10, BANG),
}
CUT, SHORT = [name == "cut" for name in RESPONSES], {"a word": (10,), "EOS": (EOS,)}


class Scripted(local.LocalEngine):
    """An engine that samples what is written, one request at a time; how they end it finds out."""

    script: Sequence[tuple[int, ...]] = ()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Trajectory]:
        found: list[Trajectory] = []
        for request in requests:
            ids = iter(self.script[request.prompt_key])

            def choose(logits_BV: Tensor, _: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
                token_B = torch.tensor([next(ids)])  # noqa: B023
                logp_BV = (logits_BV / sampling.temperature).log_softmax(-1)
                return token_B, logp_BV.gather(-1, token_B[:, None]).squeeze(-1)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(continuous, "choose", choose)
                found += super().generate([request], sampling)
        return found


def lessons_of(
    make: Make, script: Sequence[tuple[int, ...]], **more: Any
) -> tuple[list[Any], list[Any]]:
    """Episodes with these responses, and PPO's lessons of them: score i + 1, discounted by half."""
    config = make(
        "ppo", gamma=0.5, lam=1.0, kl_coef=0.0, whiten_advantages=False, missing_eos_penalty=0.25,
        eos_token="!", **more,
    )  # fmt: skip
    play, cast = played(config)
    cast.actor.core.generation_config.eos_token_id = [STOP, EOS]
    # Of prompts of unequal lengths.
    prompts = [cast.prompts[0]._replace(key=i, ids=(7,) * (1 + i % 3)) for i in range(len(script))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripted, "script", script)
        patch.setattr(rollout, "LocalEngine", Scripted)
        episodes = play.collector.collect(prompts, stream="rollout", batch_size=8)
    assert [e.tokens.response for e in episodes] == list(script)
    episodes = [e._replace(scores=(i + 1.0,)) for i, e in enumerate(episodes)]
    return episodes, play.estimator(episodes)[0]


def check_rewards(make: Make) -> None:
    script = list(RESPONSES.values())
    episodes, lessons = lessons_of(make, script, response_length=LENGTH)
    assert [not e.finished for e in episodes] == CUT
    for i, (lesson, response) in enumerate(zip(lessons, script, strict=True)):
        n = len(response)
        # Values are 0 (a new head): what comes back is the discounted score alone.
        wanted = torch.tensor([(i + 1 - 0.25 * CUT[i]) * 0.5 ** (n - 1 - t) for t in range(n)])
        for got in (lesson.advantage_T, lesson.return_T):
            torch.testing.assert_close(got, wanted.double(), atol=1e-6, rtol=0)
        assert len(lesson.logp_T) == n


def test_the_reward_lands_on_the_last_token(make: Make) -> None:
    check_rewards(make)


def test_a_reward_elsewhere_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    right = estimate.token_rewards

    def early(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, **more: Any) -> Tensor:
        """At the token before the last, where there is one."""
        reward_BT = right(score_B, kl_BT, mask_BT, **more)
        turned_BT = reward_BT.roll(-1, -1)
        return torch.where(mask_BT.sum(-1, keepdim=True) > 1, turned_BT, reward_BT)

    def late(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, **more: Any) -> Tensor:
        """In the last column, where a short response has none."""
        return right(score_B, kl_BT, torch.ones_like(mask_BT), **more)

    for wrong in (early, late):
        monkeypatch.setattr(estimate, "token_rewards", wrong)
        with pytest.raises(AssertionError):
            check_rewards(make)


def test_responses_of_one_token(make: Make) -> None:
    episodes, lessons = lessons_of(make, list(SHORT.values()), response_length=1)
    assert [e.finished for e in episodes] == [False, True]
    got = torch.cat([lesson.advantage_T for lesson in lessons])
    torch.testing.assert_close(got, torch.tensor([0.75, 2.0]).double(), atol=1e-6, rtol=0)


# --- scores and sums ------------------------------------------------------------------------------

ROWS = [Tokens((7, EOS, 9), response) for response in [*RESPONSES.values(), *SHORT.values()]]
ROWS += [Tokens((5,), (EOS, EOS)), Tokens((EOS,), (EOS,))]


def layouts() -> Iterator[Layout]:
    for fill in (0, EOS):
        yield padded(ROWS, fill=fill)
        yield packed(ROWS, capacity=9, fill=fill)
        yield shared(ROWS, fill=fill)
        yield moved(padded(ROWS), left=True, more=2, fill=(fill,))


@pytest.fixture(params=[269, EOS], ids=["its own padding", "EOS as padding"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with double():
        yield home(tmp_path, pad_token_id=request.param) / "model"


def test_the_score_is_that_of_the_last_token(model: Path) -> None:
    reward = load_reward_model(model, Loading(dtype="auto"))
    exact(reward)
    with torch.no_grad():
        wanted = torch.stack([alone(reward, row)[-1] for row in ROWS])
        for layout in layouts():
            torch.testing.assert_close(reward(layout), wanted, atol=1e-9, rtol=0)
            # Bite: the cell in front of it, or behind.
            off = layout.last_B2.clone()
            off[:, 1] = (off[:, 1] - 1).abs()
            layout.last_B2.copy_(off)
            assert float((reward(layout) - wanted).abs().max()) > 1e-3


def alone(reward: Any, row: Tokens) -> Tensor:
    """The scores of all prefixes of a row, by transformers alone."""
    ids = torch.tensor([[*row.prompt, *row.response]])
    return reward.core.score(reward.core.model(input_ids=ids).last_hidden_state[0]).squeeze(-1)


def test_sums_count_each_token_of_the_response_once(model: Path) -> None:
    policy = load_policy(model, Loading(dtype="auto"))
    exact(policy)
    sums: list[Tensor] = []
    with torch.no_grad():
        for prompt, response in ROWS:
            ids = torch.tensor([[*prompt, *response]])
            logp_TV = policy.core(input_ids=ids).logits[0].log_softmax(-1)
            at = range(len(prompt) - 1, ids.shape[1] - 1)
            sums.append(logp_TV[at, response].sum())
        wanted = torch.stack(sums)
        for layout in layouts():
            got = logp(policy, layout).sum(-1)
            torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)
        # What DPO sees: each pair's own sums, to a reference of -1 and -2.
        pairs = [Pair(a, b, -1.0, -2.0) for a, b in zip(ROWS[::2], ROWS[1::2], strict=False)]
        objective = Preference(RECIPES["ipo"], {"beta": 0.1}, policy.place)
        for i, pair in enumerate(pairs):
            _, stats = objective.loss(
                policy, objective.collate([pair]), {"pairs": torch.tensor(1.0)}
            )
            found = [stats[f"rewards/{side}"][0] for side in ("chosen", "rejected")]
            ratios = wanted[2 * i : 2 * i + 2] - torch.tensor([-1.0, -2.0])
            torch.testing.assert_close(torch.stack(found), 0.1 * ratios, atol=1e-9, rtol=0)
