"""Learning without a critic, by the stage: what a method weighs, drops, samples anew and learns."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.online import FREE, column, played, ran, weights
from truing.data.layout import Tokens, padded
from truing.models.model import load_policy
from truing.stages.objective import Lesson
from truing.stages.rollout import Episode

Make = Callable[..., Any]


# --- what is learnt -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FREE)
def test_every_method_learns_and_starts_at_ratio_one(make: Make, kind: str) -> None:
    options = {"max_steps": 8, "per_device_train_batch_size": 96, "response_length": 2}
    options |= {"reward": "tests.judges:early", "temperature": 0.9, "kl_loss_coef": 0.01}
    if kind == "reinforce++ baseline":
        options |= {"num_generations": 4}
    run = ran(make(kind, **options))
    (first, *_), scores = run.metrics(), column(run, "objective/scores")
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)
    assert first["loss/kl_avg"] == pytest.approx(0, abs=1e-6)
    assert 0 <= float(first["sampling/logp_difference"] or 0) < 1e-5
    # Half of a standard deviation of single scores; of these means it is five.
    assert sum(scores[-3:]) / 3 > scores[0] + 0.2
    assert run.info["stage"] == make(kind).stage in ("reinforce", "grpo")
    assert ("reward_std" in first) == (make(kind).group > 1)


@pytest.mark.parametrize(
    ("kind", "estimator"), [("ppo", "k3"), ("rloo", "k2"), ("grpo", "k3"), ("reinforce++", "k2")]
)
def test_a_kl_in_the_loss_holds_the_policy(
    make: Make, kind: str, estimator: str, tmp_path: Path
) -> None:
    ends: list[float] = []
    for coefficient in (0.0, 1.0):
        options: dict[str, Any] = {"kl_loss_coef": coefficient, "kl_coef": 0.0, "max_steps": 10}
        options |= {"kl_loss_estimator": estimator} if coefficient else {}
        config = make(kind, **options, per_device_train_batch_size=32, learning_rate=5e-3)
        run = ran(config.model_copy(update={"output_dir": str(tmp_path / str(coefficient))}))
        ends.append(sum(column(run, "objective/kl")[-3:]) / 3)
        assert len(column(run, "loss/kl_avg")) == (10 if coefficient else 0)
    assert ends[1] < 0.5 * ends[0]


# --- the loss by hand -----------------------------------------------------------------------------

# Two responses, of two tokens and of one, with advantages 1 and -2. Log-ratios to the sampler: 0.1
# and 0.3, and -0.4; to the reference: 0.5 and -0.5, and 1.
ADVANTAGES, GAPS, FAR = (1.0, -2.0), ((0.1, 0.3), (-0.4,)), ((0.5, -0.5), (1.0,))


def lessons(cast: Any) -> list[Lesson]:
    rows = [Tokens((1, 2), (3, 4)), Tokens((1,), (5,))]
    with torch.no_grad():
        own = cast.actor(padded(rows)).logp
    found: list[Lesson] = []
    for row, a, gap, far, logp in zip(rows, ADVANTAGES, GAPS, FAR, own, strict=True):
        here, none = logp[: len(gap)], torch.zeros(len(gap))
        found.append(
            Lesson(
                row,
                here - torch.tensor(gap),
                here - torch.tensor(far),
                torch.tensor([a]),
                none,
                none,
            )
        )
    return found


def loss_of(play: Any, cast: Any, rows: list[Lesson], tokens: float, responses: float) -> Any:
    totals = {"tokens": torch.tensor(tokens), "responses": torch.tensor(responses)}
    return play.objective.loss(cast.actor, play.objective.collate(rows), totals)


E = math.exp
# With a clip of 0.2: tokens -e^0.1, -1.2 (e^0.3 is 1.35) and the worse of 2 e^-0.4 and 1.6; the
# responses -e^0.2 (its mean is 0.2; clipped at 1.2) and that 1.6.
LONG, SHORT, SHUT = -E(0.1) - 1.2, max(2 * E(-0.4), 1.6), 1.6
K3 = (E(-0.5) - 1 + 0.5) + (E(0.5) - 1 - 0.5), E(-1) - 1 + 1
LOSSES: dict[str, tuple[dict[str, Any], float]] = {
    # Within responses: over 2 and 1 tokens, then over 4 responses.
    "grpo": ({"kl_loss_coef": 0.0}, (LONG / 2 + SHORT) / 4),
    "grpo, k3": ({"kl_loss_coef": 0.5}, (LONG / 2 + SHORT + 0.5 * (K3[0] / 2 + K3[1])) / 4),
    # k2 of the response: 0 squared and 1 squared, by halves; each weighs what its tokens do.
    "grpo, k2": (
        {"kl_loss_coef": 0.5, "kl_loss_estimator": "k2"},
        (LONG / 2 + SHORT + 0.5 * (0.0 / 2 + 0.5)) / 4,
    ),
    # Over the longest response that there may be, 6 tokens.
    "dr_grpo": ({}, (LONG + SHORT) / 6 / 4),
    # Over all tokens, and clipped at 1.28 above: -e^0.1 - 1.28.
    "dapo": ({}, (-E(0.1) - 1.28 + SHORT) / 10),
    "dapo, k3": ({"kl_loss_coef": 1.0}, (-E(0.1) - 1.28 + SHORT + K3[0] + K3[1]) / 10),
    # Ratios e^0.2 and e^-0.4 of whole responses, clipped at 1.0004 and at 0.9997.
    "gspo": ({}, (-1.0004 + 2 * 0.9997) / 4),
    "grpo, sequence": (
        {"kl_loss_coef": 0.0, "importance_sampling_level": "sequence"},
        (-1.2 + SHORT) / 4,
    ),
    "dapo, sequence": (
        {"importance_sampling_level": "sequence"},
        (2 * -min(E(0.2), 1.28) + SHORT) / 10,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_by_hand(make: Make, name: str) -> None:
    more, wanted = LOSSES[name]
    play, cast = played(make(name.partition(",")[0], **more))
    rows = lessons(cast)
    batch = play.objective.collate(rows)
    assert play.objective.counts(batch) == {"tokens": 3, "responses": 2}
    loss, _ = loss_of(play, cast, rows, 10.0, 4.0)
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-5)


def test_the_loss_of_cispo_by_hand(make: Make) -> None:
    """Weights e^0.1, e^0.3 and e^-0.4 times the log-probs: the log-probs are the model's own."""
    play, cast = played(make("cispo"))
    rows = lessons(cast)
    loss, stats = loss_of(play, cast, rows, 10.0, 4.0)
    own = [row.logp_T + torch.tensor(gap) for row, gap in zip(rows, GAPS, strict=True)]
    weighed = E(0.1) * own[0][0] + E(0.3) * own[0][1], E(-0.4) * own[1][0]
    assert float(loss.detach()) == pytest.approx(float(-weighed[0] + 2 * weighed[1]) / 10, abs=1e-5)
    assert float(stats["policy/clipfrac_avg"][0]) == 0


def test_rloo_and_ppo_weigh_the_kl_as_their_reward_would(make: Make, tmp_path: Path) -> None:
    """Per response the sum over its tokens, per token the mean over all."""
    cases: list[tuple[str, dict[str, Any], float]] = [
        ("rloo", {}, (K3[0] + K3[1]) / 4),
        ("rloo", {"kl_loss_estimator": "k2"}, (0.0 + 0.5) / 4),
        ("reinforce++", {}, (K3[0] + K3[1]) / 10),
    ]
    for i, (kind, more, wanted) in enumerate(cases):
        losses: list[float] = []
        for coefficient in (0.0, 2.0):
            own = more if coefficient else {}
            config = make(kind, kl_loss_coef=coefficient, **own)
            folder = str(tmp_path / f"{i} {coefficient}")
            play, cast = played(config.model_copy(update={"output_dir": folder}))
            loss, _ = loss_of(play, cast, lessons(cast), 10.0, 4.0)
            losses.append(float(loss.detach()))
        assert losses[1] - losses[0] == pytest.approx(2.0 * wanted, abs=1e-5)


# --- responses that teach nothing -----------------------------------------------------------------


def gradient(play: Any, cast: Any, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*cast.actor.parameters()])])


def test_a_masked_response_teaches_nothing(make: Make) -> None:
    play, cast = played(make("grpo", mask_truncated_completions=True, entropy_coef=0.1))
    rows = lessons(cast)
    masked = [rows[0], rows[1]._replace(counts=False)]
    batch = play.objective.collate(masked)
    assert play.objective.counts(batch) == {"tokens": 2, "responses": 1}
    with_it, stats = loss_of(play, cast, masked, 2.0, 1.0)
    without, _ = loss_of(play, cast, rows[:1], 2.0, 1.0)
    a, b = gradient(play, cast, with_it), gradient(play, cast, without)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert float(stats["loss/policy_avg"][1]) == 2
    # Where none counts the loss is 0, and so is its gradient.
    nothing, _ = loss_of(play, cast, [r._replace(counts=False) for r in rows], 0.0, 0.0)
    assert float(nothing.detach()) == 0
    assert not gradient(play, cast, nothing).any()


def test_a_rollout_without_an_end_teaches_nothing_and_is_counted(make: Make, tiny: Path) -> None:
    """Of one token, which is no end: the weights stay, and the figures say why."""
    config = make(
        "grpo", mask_truncated_completions=True, response_length=1, max_steps=1, weight_decay=0.0
    )
    run = ran(config)
    (line,) = run.metrics()
    assert line["completions/masked"] == 1.0 - float(line["completions/eos_rate"] or 0)
    if line["completions/masked"] == 1.0:
        assert "loss/policy_avg" not in line
        start = torch.cat([p.detach().flatten() for p in load_policy(tiny).parameters()])
        assert torch.equal(weights(run), start)


# --- dynamic sampling -----------------------------------------------------------------------------


def test_groups_that_score_the_same_make_room_for_others(make: Make) -> None:
    """Prompts with odd numbers score 0 whatever is said, so only even ones are learnt from."""
    config = make("dapo", reward="tests.judges:half", max_steps=3, kl_coef=0.0)
    play, _ = played(config)
    seen: list[list[int]] = []
    learn = play.learn

    def learnt(lessons: Sequence[Lesson]) -> dict[str, float]:
        seen.append([int(row.tokens.prompt[-1]) for row in lessons])
        return learn(lessons)

    play.learn = learnt
    steps = list(play.steps())
    even = {p.ids[-1] for p in play.cast.prompts if int(str(p.text)[1:]) % 2 == 0}
    assert [len(rows) for rows in seen] == [16, 16, 16]
    assert {i for rows in seen for i in rows} <= even
    dropped = 0
    for step in steps:
        figures = step.metrics
        assert figures["dynamic_sampling/rounds"] >= 1
        assert figures["dynamic_sampling/filled"] == 0
        assert figures["frac_reward_zero_std"] == 0
        dropped += int(figures["dynamic_sampling/dropped"])
    assert dropped > 0
    # Every group that was sampled is counted: those learnt from, and those dropped.
    assert play.drawn == 3 * 4 + dropped == steps[-1].epoch * 6
    assert play.state()["drawn"] == play.drawn


def test_what_cannot_be_found_is_filled_counted_and_said(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make("dapo", reward="tests.judges:by_prompt", max_steps=2, max_num_gen_batches=3)
    play, cast = played(config)
    start = [p.detach().clone() for p in cast.actor.parameters()]
    steps = list(play.steps())
    assert [s.metrics["dynamic_sampling/rounds"] for s in steps] == [3, 3]
    assert [s.metrics["dynamic_sampling/filled"] for s in steps] == [4, 4]
    assert [s.metrics["dynamic_sampling/dropped"] for s in steps] == [8, 8]
    assert [s.metrics["frac_reward_zero_std"] for s in steps] == [1, 1]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("4 of 4 groups still score the same") == 1
    # Equal scores are no advantage: nothing was learnt.
    for weight, before in zip(cast.actor.parameters(), start, strict=True):
        torch.testing.assert_close(weight.detach(), before, atol=1e-12, rtol=0)


def test_scores_of_the_dropped_are_told(make: Make) -> None:
    play, _ = played(make("dapo", reward="tests.judges:half", max_steps=1, kl_coef=0.0))
    every: list[float] = []
    answered = play.answered

    def heard(order: Iterator[int], count: int) -> list[Episode]:
        episodes = answered(order, count)
        every.extend(e.scores[0] for e in episodes)
        return episodes

    play.answered = heard
    (step,) = play.steps()
    assert len(every) > 16
    assert step.metrics["dynamic_sampling/scores"] == pytest.approx(sum(every) / len(every))
    assert step.metrics["dynamic_sampling/scores"] != step.metrics["objective/scores"]
