"""Equilibria, saddles and bounded costs, each found again by another way; a network as a table."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from truing.conformance import games, hybrids, transformer
from truing.conformance.rows import found
from truing.conformance.spaces import cycle, least


def test_nash_of_a_cycle_by_hand() -> None:
    """P(0 beats 1) = .5 + a, P(1 beats 2) = .5 + b, P(2 beats 0) = .5 + c: p = (b, c, a) / sum."""
    wins = cycle().beats_SS
    torch.testing.assert_close(wins + wins.T, torch.ones(3, 3, dtype=torch.float64))
    a, b, c = (float(wins[i, j]) - 0.5 for i, j in ((0, 1), (1, 2), (2, 0)))
    by_hand = torch.tensor([b, c, a], dtype=torch.float64) / (a + b + c)
    torch.testing.assert_close(games.nash(wins), by_hand, atol=1e-12, rtol=0)


def test_a_response_that_beats_all_is_nash_alone() -> None:
    wins = torch.tensor([[0.5, 0.4, 0.9], [0.6, 0.5, 0.7], [0.1, 0.3, 0.5]], dtype=torch.float64)
    assert games.nash(wins).tolist() == [0.0, 1.0, 0.0]
    assert games.exploitability(wins, games.nash(wins)) == 0
    with pytest.raises(ValueError, match="must sum to 1"):
        games.nash(wins.fill_diagonal_(0.9))


def test_playing_against_oneself_comes_to_nash_on_the_mean() -> None:
    """Multiplicative weights: the mean of all iterates is the equilibrium, the last goes round."""
    wins = cycle().beats_SS
    logp, total = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(), torch.zeros(3)
    for _ in range(4000):
        logp = (logp + 0.05 * wins @ logp.exp()).log_softmax(0)
        total = total + logp.exp()
    assert games.exploitability(wins, total / 4000) < 1e-2
    assert games.exploitability(wins, logp.exp()) > 2e-2


def test_the_regularised_nash_leaves_the_reference_as_far_as_it_pays() -> None:
    space = cycle()
    assert games.residual(space, games.regularised_nash(space)) < 1e-12
    tied = replace(space, beta=1e4)
    assert tied.divergence(games.regularised_nash(tied), tied.ref_S) < 1e-6


def test_the_saddle_is_one() -> None:
    """The least that any mixture of the groups allows is the most that the worse-off group gets:
    the dual value is the primal one."""
    made = games.groups()
    space = made.space
    assert 0 < made.weight < 1
    kl = space.divergence(space.ref_S, space.optimum_S)
    primal = float(made.means(made.weight).min()) - space.beta * kl
    dual = {w: float(space.beta * made.at(w).log_z) for w in (0.2, made.weight, 0.9)}
    assert primal == pytest.approx(dual[made.weight], abs=1e-12)
    assert min(dual, key=dual.__getitem__) == made.weight


def test_the_constrained_optimum_is_found_by_a_penalty_too() -> None:
    """An augmented Lagrangian, which knows no lambda, comes to the same policy."""
    made = games.costs()
    plain, cost_S = made.at(0.0), made.value_2S[1]
    shift = 0.0
    table = plain.reference
    for _ in range(12):

        def loss(table: torch.Tensor, shift: float = shift) -> torch.Tensor:
            logp_S = plain.logps(table)
            over = (logp_S.exp() * cost_S).sum() - made.LIMIT
            return -plain.objective(logp_S) + shift * over + 5 * over**2

        table = least(loss, table)
        shift += 10 * float((plain.logps(table).exp() * cost_S).sum() - made.LIMIT)
    assert shift == pytest.approx(made.weight, abs=1e-6)
    assert made.space.divergence(plain.logps(table)) < 1e-9


def test_what_is_added_moves_the_optimum_where_it_should() -> None:
    for check in (hybrids.entropy_check(), hybrids.steering_check()):
        assert found(check).passed


def test_the_table_of_the_transformer_is_the_transformer() -> None:
    """Every conditional, against one forward pass for its prefix alone."""
    space, actor = transformer.space(), transformer.Tiny()
    assert len(space.reward_S) == 4 * 121
    sums = space.ref_S.exp().view(4, -1).sum(-1)
    # The network computes in float32.
    assert sums.tolist() == pytest.approx([1.0] * 4, abs=1e-6)
    prefixes = [p for n in range(4) for p in product(range(3), repeat=n)]
    for prompt, place in ((0, 0), (1, 2), (2, 11), (3, 39)):
        ids = [*transformer.PROMPTS[prompt].tolist(), *prefixes[place]]
        with torch.no_grad():
            alone = actor.policy(input_ids=torch.tensor([ids])).logits[0, -1].double()
        torch.testing.assert_close(space.reference[prompt * 40 + place], alone, atol=1e-5, rtol=0)


def test_the_transformer_learns_and_the_wrong_one_does_not() -> None:
    """Few steps: much of what is missing is gained, and less with another reference."""
    right, crossed = (transformer.directly(40, crossed=c) for c in (False, True))
    assert 0 < right < 0.8
    assert right < crossed
