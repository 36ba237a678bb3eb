"""A cost that is held down: what is paid, how the price moves, and the saddle that is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import judges
from tests.online import column, ran
from tests.unit.stages.test_estimate import drawn
from tests.unit.stages.test_online_tree import (
    BETA,
    LEARNING,
    RESPONSES,
    logps,
    make_tree,
    text,
    tree,
)
from truing.algorithms import Lagrange
from truing.config import ConfigError
from truing.run import Run
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages.estimate import Estimator
from truing.stages.online import RECIPES

Make = Callable[..., Any]
__all__ = ["make_tree", "tree"]  # fixtures
FIXED = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "reward": ["length"]}
PRICED = {"cost": "brevity", "lambda_init": 3.0, "cost_threshold": 0.5, "lambda_lr": 0.2}


def estimator(config: Any, kind: str, **more: Any) -> Estimator:
    return Estimator(config(**(FIXED | {"kl_coef": 0.4} | more)), RECIPES[kind])


@pytest.mark.parametrize(("config", "kind"), [(PpoConfig, "ppo"), (RlooConfig, "rloo")])
def test_reward_cost_and_kl_are_all_divided(config: Any, kind: str) -> None:
    """(r - lambda c - beta KL) / (1 + lambda), which without a cost is a reward of its own."""
    episodes = [e._replace(cost=0.3 * i - 1) for i, e in enumerate(drawn(8))]
    priced = estimator(config, kind, **PRICED, whiten_advantages=False)
    paid = [e._replace(scores=((e.scores[0] - 3 * e.cost) / 4,)) for e in episodes]
    plain = estimator(config, kind, whiten_advantages=False, **{"kl_coef": 0.1})
    (one, figures), (other, wanted) = priced(episodes), plain(paid)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.advantage_T, b.advantage_T, atol=1e-12, rtol=0)
        torch.testing.assert_close(a.return_T, b.return_T, atol=1e-12, rtol=0)
    same = ("objective/rlhf_reward", "objective/non_score_reward", "objective/kl")
    assert [figures[n] for n in same] == pytest.approx([wanted[n] for n in same], abs=1e-12)
    # The score that is told is the reward's own, and the price is the one that was paid.
    mean = sum(e.scores[0] for e in episodes) / 8
    cost = sum(e.cost for e in episodes) / 8
    names = ("objective/scores", "objective/cost", "lagrange/lambda", "objective/kl_coef")
    assert [figures[n] for n in names] == pytest.approx([mean, cost, 3.0, 0.4], abs=1e-12)
    assert priced.price == Lagrange(3.0, 0.5, 0.2).after(cost)
    # Saved and loaded, it goes on as before.
    again = estimator(config, kind, **PRICED, whiten_advantages=False)
    again.restore(priced.state())
    assert again(episodes)[1] == priced(episodes)[1]


def test_a_run_says_what_it_costs_and_goes_on(make: Make, tmp_path: Path) -> None:
    config = make(
        "rloo", cost="tests.judges:early", cost_threshold=-0.5, lambda_lr=1.0, max_steps=3,
        eval_dataset_name=make("rloo").dataset_name, eval_steps=1, save_steps=1,
    )  # fmt: skip
    run = ran(config)
    costs, prices = column(run, "objective/cost"), column(run, "lagrange/lambda")
    state = Lagrange(1.0, -0.5, 1.0)
    for cost, price in zip(costs, prices, strict=True):
        assert price == pytest.approx(state.coef, abs=1e-9)
        state = state.after(cost)
    assert "eval_objective/cost" in run.metrics()[-1] | run.info["summary"]
    assert [(p.role, p.path) for p in Run.open(run.path).parents if p.role == "cost"] == [
        ("cost", "tests.judges:early")
    ]


def test_the_stage_arrives_at_the_saddle_of_a_tree(make_tree: Make, tree: Path) -> None:
    """The best policy of those that keep E c <= d is pi_ref exp((r - lambda* c) / beta) / Z."""
    texts = [text(r) for r in RESPONSES]
    reward_S, cost_S = (
        torch.tensor(judge(["a"] * len(texts), texts), dtype=torch.float64)
        for judge in (judges.tree, judges.tree_cost)
    )
    reference_S = logps(tree).sum(-1)

    def best(price: float) -> torch.Tensor:
        return (reference_S + (reward_S - price * cost_S) / BETA).log_softmax(-1)

    def expected(logp_S: torch.Tensor) -> tuple[float, float]:
        worth = reward_S - BETA * (logp_S - reference_S)
        return float(logp_S.exp() @ worth), float(logp_S.exp() @ cost_S)

    threshold, low, high = 0.0, 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        over = expected(best(middle))[1] > threshold
        low, high = (middle, high) if over else (low, middle)
    gain, free = expected(best(low))[0], expected(best(0.0))
    # The constraint binds, and a fixed price of 1 is not the right one.
    assert free[1] > 0.5
    assert low > 0.3

    more = LEARNING["rloo"] | {"cost": "tests.judges:tree_cost", "lambda_lr": 0.5}
    run = ran(make_tree("rloo", **more, cost_threshold=threshold, max_steps=40))
    worth, cost = expected(logps(run.path).sum(-1))
    start = expected(reference_S)[0]
    # Sampled, and on a transformer: a few hundredths of what lies between the two optima.
    assert abs(cost - threshold) < 0.08
    assert abs(worth - gain) < 0.05 * (gain - start)
    assert column(run, "lagrange/lambda")[-1] == pytest.approx(low, rel=0.15)
    # Bite: without a price it is the free optimum that is found.
    free_of_charge = make_tree("rloo", **LEARNING["rloo"], max_steps=16)
    run = ran(free_of_charge.model_copy(update={"output_dir": f"{run.path} free"}))
    assert expected(logps(run.path).sum(-1))[1] > 0.4


def test_what_is_refused(make: Make) -> None:
    for more, said in (
        ({"lambda_init": 2.0}, "lambda_init has no effect without cost"),
        ({"cost_threshold": 1.0, "lambda_max": 3.0}, "cost_threshold, lambda_max has no effect"),
        ({"cost": "length", "lambda_max": 0.5}, r"lambda_max \(0.5\) lies below lambda_init"),
    ):
        with pytest.raises((ConfigError, ValueError), match=said):
            make("ppo", **more)
    with pytest.raises(ValueError, match=r"tests.judges:nothing, tried out on two"):
        ran(make("ppo", cost="tests.judges:nothing"))
