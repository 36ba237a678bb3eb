"""Episodes to lessons: penalties, scaling, whitening, and no advantage at the optimum."""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from truing.data.layout import Tokens
from truing.keys import generator
from truing.settings_group import GrpoConfig, ReinforceConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages.estimate import Estimator
from truing.stages.online import RECIPES
from truing.stages.rollout import Episode, Prompted

FIXED = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "reward": ["length"]}


def ppo(**more: Any) -> Estimator:
    options = {"whiten_advantages": False, "lam": 1.0} | more
    return Estimator(PpoConfig(**(FIXED | options)), RECIPES["ppo"])


def rloo(**more: Any) -> Estimator:
    return Estimator(RlooConfig(**(FIXED | more)), RECIPES["rloo"])


def reinforce(estimator: str = "reinforce_plus_plus", **more: Any) -> Estimator:
    options = {"advantage_estimator": estimator, "whiten_advantages": False} | more
    return Estimator(ReinforceConfig(**(FIXED | options)), RECIPES[estimator])


def baseline(**more: Any) -> Estimator:
    return reinforce("reinforce_plus_plus_baseline", **more)


def grpo(loss: str = "grpo", **more: Any) -> Estimator:
    return Estimator(GrpoConfig(**(FIXED | {"loss_type": loss} | more)), RECIPES[loss])


def episode(
    scores: Sequence[float] | float = 1.0,
    logp: Sequence[float] = (-1.0, -2.0),
    ref: Sequence[float] = (-1.0, -2.0),
    value: Sequence[float] | None = None,
    finished: bool = True,
    sample: int = 0,
) -> Episode:
    return Episode(
        Prompted(0, "p", (1,)),
        sample,
        Tokens((1,), tuple(range(len(logp)))),
        "text",
        finished,
        tuple(scores) if isinstance(scores, Sequence) else (scores,),
        torch.tensor(logp, dtype=torch.float64),
        torch.tensor(ref, dtype=torch.float64),
        torch.tensor(value or [0.0] * len(logp), dtype=torch.float64),
    )


def drawn(count: int, seed: int = 0) -> list[Episode]:
    """Episodes of unequal lengths with random numbers in them."""
    random = generator(seed, "episodes")
    found: list[Episode] = []
    for i in range(count):
        n = int(random.integers(1, 6))
        logp, ref = (-random.exponential(size=n) for _ in range(2))
        found.append(
            episode(
                random.normal(), logp.tolist(), ref.tolist(), random.normal(size=n).tolist()
            )._replace(sample=i)
        )
    return found


def same(got: Any, wanted: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got, dtype=torch.float64),
        torch.as_tensor(wanted, dtype=torch.float64),
        atol=tolerance,
        rtol=0,
    )


def test_a_lesson_by_hand() -> None:
    one = episode(3.0, (-1.0, -2.0), (-1.5, -1.0), (0.25, 0.5))
    estimator = ppo(kl_coef=0.1, gamma=0.9, lam=0.8)
    (lesson,), figures = estimator([one])
    # KL per token 0.5, -1: rewards -0.05 and 3 + 0.1. d = (-0.05 + 0.9 * 0.5 - 0.25, 3.1 - 0.5).
    same(lesson.advantage_T, [0.15 + 0.72 * 2.6, 2.6])
    same(lesson.return_T, [0.15 + 0.72 * 2.6 + 0.25, 3.1])
    same(lesson.logp_T, [-1.0, -2.0])
    same(lesson.value_T, [0.25, 0.5])
    assert lesson.tokens == one.tokens
    assert figures == pytest.approx(
        {
            "objective/kl": -0.5,
            "objective/entropy": 3.0,
            "objective/non_score_reward": 0.05,
            "objective/rlhf_reward": 3.05,
            "objective/scores": 3.0,
            "objective/kl_coef": 0.1,
            "rewards/length/mean": 3.0,
            "val/num_eos_tokens": 1.0,
            "completions/eos_rate": 1.0,
            "completions/mean_length": 2.0,
            "completions/max_length": 2.0,
            # Returns 2.272 and 3.1, errors 2.022 and 2.6: 1 - 0.083521 / 0.171396.
            "critic/vf_explained_var": 1 - (0.289**2) / (0.414**2),
        },
        abs=1e-9,
    )


def test_groups_by_hand() -> None:
    pair = [episode(3.0, ref=(-1.5, -2.0)), episode(1.0, sample=1)]
    lessons, figures = rloo(kl_coef=0.2)(pair)
    # 3 - 0.2 * 0.5 = 2.9 against 1: A = 1.9 and -1.9, one for each response.
    same(torch.cat([lesson.advantage_T for lesson in lessons]), [1.9, -1.9])
    assert figures["objective/rlhf_reward"] == pytest.approx(2 - 0.05)
    assert "critic/vf_explained_var" not in figures
    # Scores 3 and 1: a deviation of sqrt(2).
    assert figures["reward_std"] == pytest.approx(math.sqrt(2))
    assert figures["frac_reward_zero_std"] == 0.0


def advantages(estimator: Estimator, episodes: Sequence[Episode]) -> list[list[float]]:
    lessons, _ = estimator(episodes)
    return [lesson.advantage_T.tolist() for lesson in lessons]


def test_without_a_critic_by_hand() -> None:
    # KLs 0.5 and 0, and -1: what is paid is 3 - 0.2 * 0.5 = 2.9 and 1 + 0.2 = 1.2.
    two = [episode(3.0, ref=(-1.5, -2.0)), episode(1.0, (-1.0,), (0.0,), sample=1)]
    for got, wanted in (
        (advantages(reinforce("reinforce", kl_coef=0.2), two), [[2.9], [1.2]]),
        # What is still to come: the first token has paid its KL when the second is written.
        (advantages(reinforce(kl_coef=0.2), two), [[2.9, 3.0], [1.2]]),
        (advantages(baseline(kl_coef=0.2, num_generations=2), two), [[0.85], [-0.85]]),
        (advantages(grpo("dr_grpo", kl_coef=0.2, num_generations=2), two), [[0.85], [-0.85]]),
    ):
        assert [len(a) for a in got] == [len(a) for a in wanted]
        same(list(chain(*got)), list(chain(*wanted)))
    one = 0.85 / (1.7 / math.sqrt(2) + 1e-4)
    scaled = advantages(grpo(kl_coef=0.2, num_generations=2), two)
    same(list(chain(*scaled)), [one, -one])
    # White: REINFORCE++ over its three tokens, of which 2.9, 3 and 1.2 have mean 7.1 / 3.
    (white, _), (short,) = advantages(reinforce(kl_coef=0.2, whiten_advantages=True), two)
    mean = 7.1 / 3
    deviation = math.sqrt(sum((x - mean) ** 2 for x in (2.9, 3.0, 1.2)) / 3 + 1e-8)
    same([white, short], [(2.9 - mean) / deviation, (1.2 - mean) / deviation])


def test_rewards_are_scaled_by_group_by_batch_or_not() -> None:
    rows = [episode(s, sample=i % 2) for i, s in enumerate((1.0, 3.0, 5.0, 11.0))]
    whole = math.sqrt(56 / 3) + 1e-4  # of 1, 3, 5 and 11 around 5
    for scale, wanted in (
        ("group", [1 / (math.sqrt(2) + 1e-4), 3 / (math.sqrt(18) + 1e-4)]),
        ("batch", [1 / whole, 3 / whole]),
        ("none", [1.0, 3.0]),
    ):
        got = advantages(grpo(num_generations=2, scale_rewards=scale), rows)
        same(list(chain(*got)), [-wanted[0], wanted[0], -wanted[1], wanted[1]])


def test_flat_groups_are_counted_with_their_penalties() -> None:
    rows = [episode(1.0), episode(1.0, sample=1), episode(2.0), episode(0.0, sample=1)]
    _, figures = grpo(num_generations=2)(rows)
    assert figures["frac_reward_zero_std"] == 0.5
    assert figures["reward_std"] == pytest.approx((0 + math.sqrt(2)) / 2)
    estimator = grpo(num_generations=2, missing_eos_penalty=1.0)
    assert estimator.flat(rows) == [True, False]
    assert estimator.flat([rows[0], rows[1]._replace(finished=False)]) == [False]


def test_a_late_end_costs_more_and_more() -> None:
    """Of at most 8 tokens the last 4 cost: 3, 6 and 8 tokens lose 0, half and all of 3."""
    rows = [episode(5.0, (-1.0,) * n, (-1.0,) * n, finished=n < 8) for n in (3, 6, 8)]
    options = {"response_length": 8, "overlong_buffer": 4, "overlong_penalty": 3.0}
    lessons, figures = ppo(**options)(rows)
    same([lesson.advantage_T[-1] for lesson in lessons], [5.0, 3.5, 2.0])
    assert figures["objective/scores"] == pytest.approx(10.5 / 3)
    both, _ = ppo(**options, missing_eos_penalty=1.0, score_clip=1.0)(rows)
    same([lesson.advantage_T[-1] for lesson in both], [1.0, -0.5, -3.0])


def test_advantages_are_bounded_after_whitening() -> None:
    episodes = drawn(20)
    white = flat(ppo(whiten_advantages=True)(episodes)[0], "advantage_T")
    bounded = flat(ppo(whiten_advantages=True, advantage_clip=0.5)(episodes)[0], "advantage_T")
    assert float(white.abs().max()) > 1
    same(bounded, white.clamp(-0.5, 0.5))


def test_a_cut_response_counts_unless_it_is_masked() -> None:
    pair = [episode(finished=False), episode(sample=1)]
    lessons, figures = grpo(num_generations=2)(pair)
    assert [lesson.counts for lesson in lessons] == [True, True]
    assert "completions/masked" not in figures
    lessons, figures = grpo(num_generations=2, mask_truncated_completions=True)(pair)
    assert [lesson.counts for lesson in lessons] == [False, True]
    assert figures["completions/masked"] == 0.5


def test_a_cut_response_pays_and_no_clip_swallows_it() -> None:
    pair = [episode(5.0, finished=False), episode(5.0)]
    lessons, figures = ppo(missing_eos_penalty=2.0, score_clip=1.0)(pair)
    # Clipped to 1, then less 2; the figures show the scores as they came, less 2.
    same([lesson.advantage_T[-1] for lesson in lessons], [-1.0, 1.0])
    assert figures["objective/scores"] == pytest.approx((3 + 5) / 2)
    assert figures["completions/eos_rate"] == 0.5
    without, _ = ppo()(pair)
    same([lesson.advantage_T[-1] for lesson in without], [5.0, 5.0])


def test_several_rewards_are_weighed() -> None:
    config = {"reward": ["length", "brevity"], "reward_weights": [2.0, -0.5]}
    (lesson,), figures = ppo(**config)([episode((3.0, 4.0))])
    assert float(lesson.advantage_T[-1]) == pytest.approx(2 * 3 - 0.5 * 4)
    assert (figures["rewards/length/mean"], figures["rewards/brevity/mean"]) == (3.0, 4.0)
    assert figures["objective/scores"] == pytest.approx(4.0)


def test_running_scaling_and_norm() -> None:
    estimator = ppo(use_score_scaling=True, use_score_norm=True)
    first, _ = estimator([episode(1.0), episode(3.0)])
    # Mean 2, deviation 1.
    same([lesson.advantage_T[-1] for lesson in first], [-1.0, 1.0])
    second, _ = estimator([episode(8.0)])
    # Of 1, 3, 8: mean 4, deviation sqrt(26 / 3).
    same(second[0].advantage_T[-1], 4 / math.sqrt(26 / 3))
    assert estimator.state()["scores"] == {"seen": 3, "mean": 4.0, "squares": 26.0}
    scaled, _ = ppo(use_score_scaling=True)([episode(1.0), episode(3.0)])
    same([lesson.advantage_T[-1] for lesson in scaled], [1.0, 3.0])
    scaled, _ = ppo(use_score_scaling=True)([episode(2.0), episode(6.0)])
    same([lesson.advantage_T[-1] for lesson in scaled], [1.0, 3.0])


def flat(lessons: Sequence[Any], name: str) -> Tensor:
    return torch.cat([getattr(lesson, name) for lesson in lessons])


def test_whitening_of_advantages_leaves_targets_alone() -> None:
    episodes = drawn(20)
    plain, _ = ppo()(episodes)
    white, _ = ppo(whiten_advantages=True)(episodes)
    a = flat(plain, "advantage_T")
    same(flat(white, "advantage_T"), (a - a.mean()) / (a.var(correction=0) + 1e-8).sqrt())
    same(flat(white, "return_T"), flat(plain, "return_T"))
    same(flat(plain, "return_T"), flat(plain, "advantage_T") + flat(plain, "value_T"))
    groups, _ = rloo(whiten_advantages=True)(episodes)
    assert float(flat(groups, "advantage_T").std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_whitened_rewards_keep_their_mean() -> None:
    episodes = [e._replace(value_T=0 * e.value_T) for e in drawn(20)]
    plain, _ = ppo(kl_coef=0.3)(episodes)
    scaled, _ = ppo(kl_coef=0.3, whiten_rewards=True)(episodes)

    def rewards(lessons: Sequence[Any]) -> Tensor:
        """With gamma = lam = 1 and no values, what each step adds to the return."""
        return torch.cat(
            [x.return_T - torch.nn.functional.pad(x.return_T[1:], (0, 1)) for x in lessons]
        )

    r, s = rewards(plain), rewards(scaled)
    same(s, (r - r.mean()) / (r.var(correction=0) + 1e-8).sqrt() + r.mean())
    assert float(s.std(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_padding_changes_no_lesson(seed: int) -> None:
    """An episode's lesson is the same alone and beside longer ones."""
    episodes = drawn(12, seed)
    together, _ = ppo(kl_coef=0.3, lam=0.9)(episodes)
    for one, lesson in zip(episodes, together, strict=True):
        (alone,), _ = ppo(kl_coef=0.3, lam=0.9)([one])
        same(alone.advantage_T, lesson.advantage_T)
        same(alone.return_T, lesson.return_T)


def test_k3_in_the_reward_is_what_it_says() -> None:
    one = episode(0.0, (-1.0,), (-1.5,))
    (lesson,), figures = ppo(kl_estimator="k3", kl_coef=1.0)([one])
    same(lesson.advantage_T, [-(math.exp(-0.5) - 1 + 0.5)])
    # The reported KL stays the unbiased one.
    assert figures["objective/kl"] == pytest.approx(0.5)


def test_the_controller_moves_after_the_rollout_it_saw() -> None:
    estimator = ppo(kl_coef=0.1, kl_target=1.0, kl_horizon=100.0)
    far = [episode(ref=(-3.0, -4.0))] * 10  # 4 nats
    _, first = estimator(far)
    _, second = estimator(far)
    assert first["objective/kl_coef"] == 0.1
    assert second["objective/kl_coef"] == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    assert estimator.state()["kl_controller"]["coef"] > second["objective/kl_coef"]
    before = estimator.state()
    estimator.figures_of(far)
    assert estimator.state() == before


def optimal(episodes: Sequence[Episode], beta: float, constant: float) -> list[Episode]:
    """The same episodes under a reward whose optimum is the policy they were sampled from:
    r = beta log(pi / ref) + c; and under that policy's exact values, c + beta (what is paid)."""
    found: list[Episode] = []
    for e in episodes:
        kl_T = e.logp_T - e.ref_logp_T
        paid_T = kl_T.cumsum(0) - kl_T
        score = beta * float(kl_T.sum()) + constant
        found.append(e._replace(scores=(score,), value_T=constant + beta * paid_T))
    return found


@pytest.mark.parametrize("make", [ppo, rloo, baseline, grpo])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_at_the_optimum_no_episode_has_an_advantage(
    make: Callable[..., Estimator], lam: float
) -> None:
    episodes = optimal(drawn(16), 0.3, 1.7)
    options: dict[str, Any] = {"lam": lam} if make is ppo else {"num_generations": 4}
    lessons, _ = make(kl_coef=0.3, **options)(episodes)
    # Rounding over the epsilon of a group's deviation.
    assert flat(lessons, "advantage_T").abs().max() < 1e-11
    # Bite: another coefficient, another sign, another reference, another estimate of the KL.
    for wrong, rows in (
        ({"kl_coef": 0.6}, episodes),
        ({"kl_coef": 0.3, "kl_estimator": "k3"}, episodes),
        ({"kl_coef": 0.3}, [e._replace(ref_logp_T=-e.ref_logp_T) for e in episodes]),
        ({"kl_coef": 0.3}, [e._replace(scores=(-e.scores[0],)) for e in episodes]),
    ):
        lessons, _ = make(**wrong, **options)(rows)
        assert flat(lessons, "advantage_T").abs().max() > 1e-2
