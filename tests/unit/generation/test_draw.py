"""One token from a row of logits: exact, whatever the size of the vocabulary."""

from typing import Any

import numpy as np
import pytest
import torch

from truing.generation.draw import BLOCK, choose
from truing.generation.engine import Sampling
from truing.keys import generator

LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def picked(uniform: float, **options: Any) -> int:
    return int(choose(LOGITS, torch.tensor([uniform]).double(), Sampling(**options))[0])


def test_the_first_token_whose_cumulative_probability_exceeds_the_number() -> None:
    # Cumulative: 0.1, 0.5, 0.7, 1.0.
    wanted = {0.0: 0, 0.099: 0, 0.101: 1, 0.499: 1, 0.501: 2, 0.699: 2, 0.701: 3, 0.9999999: 3}
    assert {u: picked(u) for u in wanted} == wanted
    assert picked(0.9, temperature=0) == 1


def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass() -> None:
    # Sorted: 0.4 (1), 0.3 (3), 0.2 (2), 0.1 (0). The two likeliest hold 0.7 >= 0.6.
    grid = [i / 100 for i in range(100)]
    assert {picked(u, top_p=0.6) for u in grid} == {1, 3}
    assert {picked(u, top_p=0.71) for u in grid} == {1, 2, 3}
    assert {picked(u, top_p=0.3) for u in grid} == {1}
    # Among them as likely as before, rescaled: 0.4 / 0.7.
    assert sum(picked(u, top_p=0.6) == 1 for u in grid) == round(100 * 4 / 7) + 1
    # The record stays that of the whole distribution.
    _, recorded = choose(LOGITS, torch.tensor([0.5]).double(), Sampling(top_p=0.3))
    torch.testing.assert_close(recorded, torch.tensor([0.4]).double().log())


def test_the_last_number_below_one_never_picks_an_impossible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.3, -torch.inf, -torch.inf]])
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert int(choose(logits, last, Sampling())[0]) == 2
    for top_p in (0.5, 0.9):
        token, _ = choose(logits, last, Sampling(top_p=top_p))
        assert int(token) in (1, 2)
    assert int(choose(logits, torch.zeros(1).double(), Sampling())[0]) == 0


@pytest.mark.parametrize("size", [5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 4096])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_a_vocabulary_of_any_size_is_one_line_of_cumulative_probabilities(
    size: int, temperature: float
) -> None:
    random = generator(size, "logits")
    logits = torch.from_numpy(random.normal(size=(400, size), scale=3.0))
    uniform = torch.from_numpy(random.random(400))
    token, logp = choose(logits, uniform, Sampling(temperature=temperature))
    for row, number, one, lp in zip(logits.numpy(), uniform.numpy(), token, logp, strict=True):
        mass = np.exp(row / temperature)
        mass /= mass.sum()
        assert int(one) == int((mass.cumsum() <= number).sum())
        assert abs(float(lp) - np.log(mass[int(one)])) < 1e-12
    single, told = choose(logits.float(), uniform, Sampling(temperature=temperature))
    # In float32 a number that lies on an edge may fall to the neighbour.
    assert int((single != token).sum()) <= 1
    same = single == token
    torch.testing.assert_close(told[same], logp[same], atol=1e-5, rtol=0)


def test_greedy_tells_the_log_prob_at_temperature_one() -> None:
    token, logp = choose(LOGITS, torch.zeros(1).double(), Sampling(temperature=0))
    assert int(token) == 1
    torch.testing.assert_close(logp, torch.tensor([0.4]).double().log())
