"""Duties of `truing.algorithms.group`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from tests.algorithms import reference_group as groups
from truing.algorithms import (
    batch_scaled,
    centred,
    flat_groups,
    group_scaled,
    leave_one_out,
    overlong,
)
from truing.keys import generator


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed, "test").normal(size=shape))


def same(got: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=0)


def check_centred(f: Any) -> None:
    # Mean 3: 3 - 3, 1 - 3, 5 - 3.
    same(f(torch.tensor([[3.0, 1.0, 5.0]])), [[0.0, -2.0, 2.0]])
    r = draw(0, 4, 5)
    # Laws: a constant is no advantage; a group's advantages cancel; (G - 1) / G of leave-one-out.
    same(f(r + 7), f(r), 1e-12)
    same(f(r).sum(-1), torch.zeros(4), 1e-12)
    same(f(r), leave_one_out(r) * 4 / 5, 1e-12)


def check_group_scaled(f: Any) -> None:
    # Deviations 0, -2, 2 over a standard deviation of sqrt(8 / 2) = 2, and 0.5 on top.
    same(f(torch.tensor([[3.0, 1.0, 5.0]]), epsilon=0.5), [[0.0, -0.8, 0.8]])
    # One right answer among four, of 0 and 1: (3/4) / (1/2) = 1.5, (-1/4) / (1/2) = -0.5.
    same(f(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), epsilon=0.0), [[1.5, -0.5, -0.5, -0.5]])
    r = draw(0, 4, 5)
    # Laws: neither a constant nor a scale of a group counts; equal rewards are no advantage.
    same(f(r + 7, epsilon=0.0), f(r, epsilon=0.0), 1e-9)
    scale = torch.tensor([[1.0], [2.0], [30.0], [0.1]])
    same(f(r * scale, epsilon=0.0), f(r, epsilon=0.0), 1e-9)
    same(f(torch.full((1, 3), 4.0)), torch.zeros(1, 3))
    same(f(torch.tensor([[0.0, 2.0]])), [[-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4)]])


def check_batch_scaled(f: Any) -> None:
    # Means 2 and 8: -1, 1 and -3, 3. All four: mean 5, deviation sqrt((16 + 4 + 0 + 36) / 3).
    r = torch.tensor([[1.0, 3.0], [5.0, 11.0]])
    deviation = math.sqrt(56 / 3)
    same(f(r, epsilon=0.0), torch.tensor([[-1.0, 1.0], [-3.0, 3.0]]) / deviation)
    same(f(r, epsilon=1.0), torch.tensor([[-1.0, 1.0], [-3.0, 3.0]]) / (deviation + 1))
    # Laws: what is the same for all counts for nothing, nor does a common scale; two groups keep
    # their sizes; a batch of one group is scaled by its own.
    x = draw(0, 4, 5)
    same(f(3 * x + 7, epsilon=0.0), f(x, epsilon=0.0), 1e-9)
    same(f(x, epsilon=0.0), centred(x) / x.std(), 1e-9)
    same(f(x[:1]), group_scaled(x[:1]), 1e-9)
    same(f(torch.full((2, 2), 4.0)), torch.zeros(2, 2))


def check_overlong(f: Any) -> None:
    # Limit 10, buffer 4: free up to 6, then a quarter each, 1 from 10 on.
    got = f(torch.tensor([0, 6, 7, 8, 10, 13]), limit=10, buffer=4)
    same(got, [0.0, 0.0, 0.25, 0.5, 1.0, 1.0])
    assert got.dtype == torch.float64
    # Laws: a longer response never pays less; where all is buffer, it is the share of the limit.
    lengths = torch.arange(30)
    assert (f(lengths, limit=20, buffer=7).diff() >= 0).all()
    same(f(lengths, limit=20, buffer=20), (lengths / 20).clamp(max=1))
    # A buffer of one token is a wall.
    same(f(lengths, limit=20, buffer=1), lengths >= 20)


def check_flat_groups(f: Any) -> None:
    r = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert f(r).tolist() == [True, False, False, True]
    # Law: these are the groups without an advantage, whatever the scale.
    x = torch.cat([draw(0, 3, 4), torch.full((2, 4), 0.1, dtype=torch.float64)])
    assert f(x).tolist() == (centred(x).abs().amax(-1) < 1e-9).tolist()
    # 1e-8 apart is not equal any more.
    apart = torch.tensor([[0.0, 1e-8], [0.0, 0.9e-8], [0.0, 1.1e-8]], dtype=torch.float64)
    assert f(apart).tolist() == [False, True, False]
    # A sum of tenths is no exact number; what it differs by is nothing.
    assert f(torch.tensor([[0.1 + 0.2, 0.3]], dtype=torch.float64)).tolist() == [True]


CHECKS = {
    centred: check_centred,
    group_scaled: check_group_scaled,
    batch_scaled: check_batch_scaled,
    overlong: check_overlong,
    flat_groups: check_flat_groups,
}


def by_own_count(r: Tensor, epsilon: float = 1e-4) -> Tensor:
    return centred(r) / (r.std(-1, correction=0, keepdim=True) + epsilon)


MUTANTS: dict[Any, dict[str, Any]] = {
    centred: {
        "negated": lambda r: -centred(r),
        "leave one out": leave_one_out,
        "no baseline": lambda r: r,
        "mean of all": lambda r: r - r.mean(),
        "over prompts": lambda r: r - r.mean(0, keepdim=True),
    },
    group_scaled: {
        "negated": lambda r, **o: -group_scaled(r, **o),
        "centred only": lambda r, **o: centred(r),
        "population deviation": by_own_count,
        "epsilon dropped": lambda r, epsilon=1e-4: group_scaled(r, epsilon=1e-12),
        "variance": lambda r, epsilon=1e-4: centred(r) / (r.var(-1, keepdim=True) + epsilon),
        "of the batch": batch_scaled,
        "not centred": lambda r, epsilon=1e-4: r / (r.std(-1, keepdim=True) + epsilon),
    },
    batch_scaled: {
        "negated": lambda r, **o: -batch_scaled(r, **o),
        "of the group": group_scaled,
        "mean of all": lambda r, epsilon=1e-4: (r - r.mean()) / (r.std() + epsilon),
        "deviation of what is left": lambda r, epsilon=1e-4: (
            centred(r) / (centred(r).std() + epsilon)
        ),
        "epsilon dropped": lambda r, epsilon=1e-4: batch_scaled(r, epsilon=1e-12),
    },
    overlong: {
        "negated": lambda n, **o: -overlong(n, **o),
        "hard": lambda n, limit, buffer: (n > limit - buffer).double(),
        "buffer behind the limit": lambda n, limit, buffer: overlong(
            n - buffer, limit=limit, buffer=buffer
        ),
        "without end": lambda n, limit, buffer: ((n - limit + buffer) / buffer).clamp(min=0),
        "one off": lambda n, limit, buffer: overlong(n + 1, limit=limit, buffer=buffer),
    },
    flat_groups: {
        "turned over": lambda r: ~flat_groups(r),
        "over prompts": lambda r: flat_groups(r.T),
        "neighbours": lambda r: (r[:, 0] - r[:, 1]).abs() < 1e-8,
        "exactly": lambda r: r.amax(-1) == r.amin(-1),
    },
}


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_golden_values_and_laws_hold_and_bite(function: Any) -> None:
    CHECKS[function](function)
    reference.bites(CHECKS[function], MUTANTS[function])


def test_gradients() -> None:
    r = draw(0, 3, 4).requires_grad_()
    check = torch.autograd.gradcheck
    for f in (centred, group_scaled, batch_scaled):
        assert check(f, r)
        # A higher reward raises its own advantage, and lowers those of its group.
        (slope,) = torch.autograd.grad(f(r)[1, 2], r)
        assert slope[1, 2] > 0
        assert slope[1].argmax() == 2
    (slope,) = torch.autograd.grad(centred(r)[1, 2], r)
    assert (slope[1][torch.tensor([0, 1, 3])] < 0).all()
    assert not slope[[0, 2]].any()
    # A length is a number of tokens; where the penalty rises, it does so by 1 / buffer a token.
    n = torch.tensor([2.0, 7.5, 12.0], dtype=torch.float64, requires_grad=True)
    assert check(lambda x: overlong(x, limit=10, buffer=4), n)
    (slope,) = torch.autograd.grad(overlong(n, limit=10, buffer=4).sum(), n)
    same(slope, [0.0, 0.25, 0.0], 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    r = draw(seed, 4, 7)
    same(centred(r), groups.centred(r.numpy()), 1e-12)
    same(group_scaled(r), groups.group_scaled(r.numpy(), 1e-4), 1e-12)
    same(batch_scaled(r), groups.batch_scaled(r.numpy(), 1e-4), 1e-12)
    n = torch.from_numpy(generator(seed, "lengths").integers(40, size=9))
    same(overlong(n, limit=30, buffer=11), groups.overlong(n.tolist(), 30, 11), 1e-12)
    wanted = [max(group) - min(group) < 1e-8 for group in r.numpy()]
    assert flat_groups(r).tolist() == wanted


def test_the_order_of_prompts_and_of_responses_changes_nothing() -> None:
    r, prompts, answers = draw(0, 4, 5), torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    for f in (centred, group_scaled, batch_scaled):
        same(f(r[prompts]), f(r)[prompts], 1e-12)
        same(f(r[:, answers]), f(r)[:, answers], 1e-12)
    for f in (centred, group_scaled):  # a group knows nothing of the others
        same(torch.cat([f(r[:1]), f(r[1:])]), f(r), 1e-12)
    x = torch.cat([r, torch.ones(1, 5, dtype=torch.float64)])[[4, 0, 1, 2, 3]]
    assert flat_groups(x).tolist() == flat_groups(x[:, answers]).tolist() == [True] + [False] * 4
    n = torch.tensor([3, 9, 7, 12])
    same(overlong(n, limit=10, buffer=5)[prompts], overlong(n[prompts], limit=10, buffer=5))


def test_what_is_refused() -> None:
    for f in (centred, group_scaled, batch_scaled, flat_groups):
        with pytest.raises(ValueError, match=r"two responses to a prompt at least, got 1.*num_gen"):
            f(torch.zeros(4, 1))
        with pytest.raises(ValueError, match=r"floating-point numbers, got torch\.int64"):
            f(torch.zeros(4, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"at least, got 1"):
            f(torch.tensor(1.0))
        with pytest.raises(ValueError, match=r"rewards of shape \(0, 5\) came: a group is needed"):
            f(torch.zeros(0, 5))
    for f in (group_scaled, batch_scaled):
        for epsilon in (-1e-9, math.nan):
            with pytest.raises(ValueError, match=f"epsilon must not be negative, got {epsilon}"):
                f(torch.zeros(4, 2), epsilon=epsilon)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"the rewards \[{wrong}\] came: .* finite"):
            flat_groups(torch.tensor([[1.0, 1.0], [wrong, 0.0]]))
    for buffer in (0, -1, 11):
        with pytest.raises(ValueError, match=f"from 1 to 10, got {buffer}"):
            overlong(torch.tensor([1]), limit=10, buffer=buffer)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "centred group_scaled batch_scaled overlong flat_groups": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "invariance": test_the_order_of_prompts_and_of_responses_changes_nothing,
        "loop": test_equal_to_the_loops,
        "refusal": test_what_is_refused,
    },
    "centred group_scaled batch_scaled overlong": {"gradient": test_gradients},
    "flat_groups": {"gradient": "true or false"},
}
