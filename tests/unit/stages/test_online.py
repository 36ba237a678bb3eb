"""PPO and RLOO from a file to a model: what they start from, what they learn, what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.online import KINDS, cast_of, column, louder, played, ran, weights
from truing.models.model import load_policy
from truing.stages import online
from truing.stages.objective import Reinforcement
from truing.stages.rollout import Episode

Write = Callable[..., str]
Make = Callable[..., Any]
# --- sampler and trainer agree --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_the_first_ratio_is_one(make: Make, kind: str, temperature: float) -> None:
    config = make(kind, temperature=temperature, max_steps=1, num_ppo_epochs=1)
    (line,) = ran(config).metrics()
    assert line["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert 0 <= float(line["sampling/logp_difference"] or 0) < 1e-5
    assert line["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)
    assert line["policy/clipfrac_avg"] == 0
    assert line["objective/kl"] == pytest.approx(0, abs=1e-4)


def test_another_temperature_in_training_would_be_seen(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hot(Reinforcement):
        def __init__(self, config: Any, *others: Any, **more: Any) -> None:
            super().__init__(config.model_copy(update={"temperature": 0.9}), *others, **more)

    monkeypatch.setattr(online, "Reinforcement", Hot)
    (line,) = ran(make("ppo", max_steps=1, num_ppo_epochs=1)).metrics()
    assert float(line["sampling/logp_difference"] or 0) > 1e-2


def test_rollouts_draw_from_the_policy_itself(make: Make) -> None:
    """Chi-square of first tokens, through the stage's own sampling, against exact probabilities."""
    config = make("ppo", temperature=0.6, response_length=1)
    play, cast = played(config)
    count = 3000
    prompts = [cast.prompts[0]._replace(key=key) for key in range(count)]
    episodes = play.collector.collect(prompts, stream="rollout", batch_size=1000)
    ids = torch.tensor([cast.prompts[0].ids])
    with torch.no_grad():
        logits = cast.actor.core(ids).logits[0, -1].double()
    seen = torch.bincount(
        torch.tensor([e.tokens.response[0] for e in episodes]), minlength=len(logits)
    )

    def statistic(temperature: float) -> float:
        """Deviations of the common tokens, in standard deviations of chi-square."""
        expected = count * (logits / temperature).softmax(-1)
        common = expected >= 5
        e = torch.cat([expected[common], expected[~common].sum()[None]])
        o = torch.cat([seen[common], seen[~common].sum()[None]])
        freedom = len(e) - 1
        return (float(((o - e) ** 2 / e).sum()) - freedom) / (2 * freedom) ** 0.5

    assert abs(statistic(0.6)) < 4
    assert statistic(1.0) > 20


def test_a_prompt_that_comes_again_is_answered_anew(make: Make) -> None:
    config = make("ppo", per_device_train_batch_size=12, learning_rate=0, max_steps=1)
    play, _ = played(config)
    seen: list[Episode] = []
    collect = play.collector.collect
    play.collector.collect = lambda *a, **k: seen.extend(collect(*a, **k)) or seen[-12:]
    list(play.steps())
    by_prompt: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for e in seen:
        by_prompt.setdefault(e.prompt.ids, set()).add(e.tokens.response)
    assert len(by_prompt) == 6  # each prompt twice, with another answer
    assert all(len(answers) == 2 for answers in by_prompt.values())


# --- what is learnt -------------------------------------------------------------------------------

LEARNING: dict[str, dict[str, Any]] = {
    "ppo": {"learning_rate": 3e-3, "vf_coef": 0.5},
    "shared": {"learning_rate": 3e-3},
    "lora": {"learning_rate": 2e-2, "vf_coef": 0.5},
    "rloo": {"learning_rate": 5e-3, "per_device_train_batch_size": 32},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_rises(make: Make, kind: str) -> None:
    options = {"max_steps": 25, "per_device_train_batch_size": 32, "kl_coef": 0.01}
    run = ran(make(kind, **(options | LEARNING[kind])))
    scores = column(run, "objective/scores")
    assert len(scores) == 25
    # A vowel in three answers at the start, of six letters each.
    assert scores[0] < 0.7
    assert sum(scores[-5:]) / 5 > 2 * sum(scores[:3]) / 3
    assert column(run, "objective/kl")[-1] > 0.5


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_a_flipped_reward_lowers_the_score(make: Make, kind: str) -> None:
    """Negative control: the same reward with a weight of -1 is what is run away from."""
    options = {"max_steps": 12, "per_device_train_batch_size": 96, "response_length": 2}
    ends = []
    for sign, name in ((1.0, "up"), (-1.0, "down")):
        config = make(kind, **options, reward="tests.judges:early", reward_weights=[sign])
        config = config.model_copy(update={"output_dir": config.output_dir + name})
        ends.append(column(ran(config), "rewards/tests.judges:early/mean"))
    up, down = ends
    assert up[0] == down[0]
    # Half of a standard deviation of single scores; of these means it is five.
    assert sum(up[-3:]) / 3 > up[0] + 0.2
    assert sum(down[-3:]) / 3 < down[0] - 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_policy_stays_the_reference(make: Make, kind: str, tiny: Path) -> None:
    run = ran(make(kind, learning_rate=0, max_steps=3))
    assert max(map(abs, column(run, "objective/kl"))) < 1e-4
    start = load_policy(tiny)
    for name, weight in load_policy(run.path).state_dict().items():
        torch.testing.assert_close(weight, start.state_dict()[name], atol=1e-6, rtol=0)


def test_it_reaches_the_optimum_of_one_token_answers(make: Make, tiny: Path) -> None:
    """pi* = pi_ref exp(r / beta) / Z over every token, by the stage itself; KL(pi* || pi)."""
    beta, policy = 1.0, load_policy(tiny)
    config = make(
        "rloo", reward="tests.judges:early", kl_coef=beta, response_length=1, num_generations=64,
        per_device_train_batch_size=384, max_steps=40, learning_rate=3e-3,
    )  # fmt: skip
    cast = cast_of(config)
    ids = torch.tensor([p.ids for p in cast.prompts])
    every = [cast.encoder.decode([i]) for i in range(len(policy.tokenizer))]
    reward_V = torch.tensor(cast.rewards[0](["p"] * len(every), every), dtype=torch.float64)

    def logps(model: Any) -> Tensor:
        with torch.no_grad():
            return model.core(ids).logits[:, -1].double().log_softmax(-1)

    best = (logps(policy) + reward_V / beta).log_softmax(-1)

    def regret(model: Any) -> float:
        now = logps(model)
        return float((best.exp() * (best - now)).sum(-1).mean())

    assert regret(policy) > 0.1
    left = regret(load_policy(ran(config).path))
    assert left < 0.1 * regret(policy)


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_at_the_optimum_the_stage_itself_finds_no_advantage(
    make: Make, kind: str, tiny: Path, tmp_path: Path
) -> None:
    """The reward is set to beta log(pi / ref) + 2 by forward passes of plain transformers, so the
    policy is its optimum; what the stage samples, measures and estimates must then add up to 0."""
    other = louder(tiny, tmp_path / "other", 0.7)
    more = {"whiten_advantages": False, "kl_coef": 0.3, "temperature": 1.3, "response_length": 40}
    more |= {"lam": 1.0} if kind == "ppo" else {}
    play, cast = played(make(kind, **more, ref_model_name_or_path=str(other)))
    episodes = play.collector.collect(cast.prompts, stream="rollout", group=4, batch_size=7)

    def plain(model: Any, e: Episode) -> float:
        ids = torch.tensor([[*e.tokens.prompt, *e.tokens.response]])
        with torch.no_grad():
            logp = (model.core(ids).logits[0, :-1].double() / 1.3).log_softmax(-1)
        start = len(e.tokens.prompt) - 1
        return float(logp[range(start, ids.shape[1] - 1), ids[0, start + 1 :]].sum())

    assert cast.reference is not None
    ratios = [plain(cast.actor.policy, e) - plain(cast.reference, e) for e in episodes]
    assert {e.finished for e in episodes} == {True, False}
    assert max(ratios) - min(ratios) > 1
    rated = [
        e._replace(scores=(0.3 * ratio + 2,), value_T=torch.full_like(e.value_T, 2.0))
        for e, ratio in zip(episodes, ratios, strict=True)
    ]
    lessons, _ = play.estimator(rated)
    # Where the values know the constant only, it is the first token's advantage that is 0.
    assert max(abs(float(lesson.advantage_T[0])) for lesson in lessons) < 1e-4
    # Bite: without the last token, the one that ends.
    cut = [e._replace(ref_logp_T=e.ref_logp_T.index_fill(0, torch.tensor([-1]), 0)) for e in rated]
    lessons, _ = play.estimator(cut)
    assert max(abs(float(lesson.advantage_T[0])) for lesson in lessons) > 1e-2


@pytest.mark.parametrize("kind", ["ppo", "shared", "lora"])
def test_checkpointed_activations_change_nothing(make: Make, kind: str, tmp_path: Path) -> None:
    found: list[Tensor] = []
    for again in (False, True):
        config = make(kind, gradient_checkpointing=again, learning_rate=1e-3)
        config = config.model_copy(update={"output_dir": str(tmp_path / str(again))})
        found.append(weights(ran(config)))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
