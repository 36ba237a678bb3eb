"""Duties of `truing.algorithms.advantages`: golden, law, gradient, invariance, reference, bite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.algorithms import reference
from truing.algorithms import (
    gae,
    leave_one_out,
    missing_eos,
    scale_to_unit,
    sequence_sum,
    token_rewards,
    whiten,
)
from truing.keys import generator

ON = torch.ones(1, 3, dtype=torch.bool)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(generator(seed, "test").normal(size=shape))


def holes(seed: int, *shape: int) -> Tensor:
    """A mask with gaps anywhere, and one position that counts in each row at least."""
    mask = torch.from_numpy(generator(seed, "mask").random(shape)) < 0.6
    mask[:, shape[1] // 2] = True
    return mask


def same(got: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=0)


def check_missing_eos(f: Any) -> None:
    score, finished = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, False, False])
    same(f(score, finished, penalty=1.5), [2.0, -1 - 1.5, 0.5 - 1.5])
    # Laws: no penalty, no change; among the cut ones the order stays.
    same(f(score, finished, penalty=0.0), score)
    same(f(score, finished.int(), penalty=1.5), f(score, finished, penalty=1.5))


def check_token_rewards(f: Any) -> None:
    kl = torch.tensor([[0.5, -1.0, 2.0], [1.0, 3.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    got = f(torch.tensor([10.0, -4.0]), kl, mask, kl_coef=0.1)
    # -0.05, 0.1, 10 - 0.2; and -0.1, -4 - 0.3, nothing where masked.
    same(got, [[-0.05, 0.1, 9.8], [-0.1, -4.3, 0.0]])
    # Law: a response's rewards add up to score - coef * sum of its KL.
    score, kl, mask = draw(0, 5), draw(1, 5, 7), holes(2, 5, 7)
    same(f(score, kl, mask, kl_coef=0.3).sum(-1), score - 0.3 * sequence_sum(kl, mask), 1e-12)
    # A response of one token is paid and pays at once.
    same(f(score, kl[:, 3:4], mask[:, 3:4], kl_coef=0.3)[:, 0], score - 0.3 * kl[:, 3], 1e-12)


def check_gae(f: Any) -> None:
    reward, value = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    # d = (1 + .9 * 1 - .5, 0 + .9 * -1 - 1, 2 - -1) = (1.4, -1.9, 3); each A = d + .9 * .8 * next:
    # 3; -1.9 + .72 * 3 = .26; 1.4 + .72 * .26 = 1.5872.
    same(f(reward, value, ON, gamma=0.9, lam=0.8), [[1.5872, 0.26, 3.0]])
    # A gap is no step: what stands in it may be anything.
    gap = torch.tensor([[True, False, True]])
    nan = torch.tensor([[0.0, math.nan, 0.0]])
    # d = (1 + .9 * -1 - .5, 3) = (-.4, 3): -.4 + .72 * 3 = 1.76.
    same(f(reward + nan, value + nan, gap, gamma=0.9, lam=0.8), [[1.76, 0.0, 3.0]])
    # Laws: lam = 1 gives return minus value; lam = 0 the error of one step; values that foresee
    # everything leave no advantage.
    r, v, on = draw(0, 3, 6), draw(1, 3, 6), torch.ones(3, 6, dtype=torch.bool)
    rest = r.flip(-1).cumsum(-1).flip(-1)
    same(f(r, v, on, gamma=1.0, lam=1.0), rest - v, 1e-12)
    after = torch.nn.functional.pad(v[:, 1:], (0, 1))
    same(f(r, v, on, gamma=0.7, lam=0.0), r + 0.7 * after - v, 1e-12)
    same(f(r, rest, on, gamma=1.0, lam=0.95), torch.zeros(3, 6), 1e-12)
    # Who looks no step ahead has the reward less the value; so has the only step, and a mask of
    # numbers is a mask.
    same(f(r, v, on.int(), gamma=0.0, lam=1.0), r - v, 1e-12)
    same(f(r[:, :1], v[:, :1], on[:, :1], gamma=0.9, lam=0.8), (r - v)[:, :1], 1e-12)


def check_leave_one_out(f: Any) -> None:
    # 3 - (1 + 5) / 2 = 0; 1 - (3 + 5) / 2 = -3; 5 - (3 + 1) / 2 = 3.
    same(f(torch.tensor([[3.0, 1.0, 5.0]])), [[0.0, -3.0, 3.0]])
    # Of two, each is the other's baseline.
    same(f(torch.tensor([[3.0, 1.0]])), [[2.0, -2.0]])
    r = draw(0, 4, 5)
    # Laws: a constant is no advantage; a group's advantages cancel; G / (G - 1) (r - mean).
    same(f(r + 7), f(r), 1e-12)
    same(f(r).sum(-1), torch.zeros(4), 1e-12)
    same(f(r), 5 / 4 * (r - r.mean(-1, keepdim=True)), 1e-12)


def check_whiten(f: Any) -> None:
    x, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1, 1, 0]])
    # Mean 2, population variance 1.
    same(f(x, mask), [[-1.0, 1.0, 0.0]])
    big, m = 1e3 * draw(0, 4, 6) + 5, holes(1, 4, 6)
    got = f(big, m)[m]
    same(got.mean(), 0.0, 1e-9)
    same(got.var(correction=0), 1.0, 1e-9)
    same(f(torch.full((1, 3), 4.0), ON), torch.zeros(1, 3))


def check_scale_to_unit(f: Any) -> None:
    x, mask = torch.tensor([[1.0, 5.0, 99.0]]), torch.tensor([[1, 1, 0]])
    # Mean 3, population deviation 2: -1 + 3, 1 + 3.
    same(f(x, mask), [[2.0, 4.0, 0.0]])
    big, m = 1e3 * draw(0, 4, 6) + 5, holes(1, 4, 6)
    got = f(big, m)[m]
    same(got.mean(), big[m].mean(), 1e-9)
    same(got.var(correction=0), 1.0, 1e-9)


CHECKS = {
    missing_eos: check_missing_eos,
    token_rewards: check_token_rewards,
    gae: check_gae,
    leave_one_out: check_leave_one_out,
    whiten: check_whiten,
    scale_to_unit: check_scale_to_unit,
}


def discounted_twice(r: Tensor, v: Tensor, m: Tensor, *, gamma: float, lam: float) -> Tensor:
    return gae(r, v, m, gamma=gamma, lam=gamma * lam)


MUTANTS: dict[Any, dict[str, Any]] = {
    missing_eos: {
        "added": lambda s, f, penalty: 2 * s - missing_eos(s, f, penalty=penalty),
        "finished punished": lambda s, f, penalty: missing_eos(s, ~f, penalty=penalty),
        "set instead": lambda s, f, penalty: torch.where(f, s, -penalty),
        "dropped": lambda s, f, penalty: s,
    },
    token_rewards: {
        "KL added": lambda s, k, m, kl_coef: token_rewards(s, k, m, kl_coef=-kl_coef),
        "score at the first": lambda s, k, m, kl_coef: token_rewards(
            s, k.flip(-1), m.flip(-1), kl_coef=kl_coef
        ).flip(-1),
        "score everywhere": lambda s, k, m, kl_coef: (s[:, None] - kl_coef * k) * m,
        "score in the last column": lambda s, k, m, kl_coef: token_rewards(
            s, k * m, torch.ones_like(m), kl_coef=kl_coef
        ),
        "score dropped": lambda s, k, m, kl_coef: token_rewards(0 * s, k, m, kl_coef=kl_coef),
        "mask dropped": lambda s, k, m, kl_coef: (
            token_rewards(s, k * 0, m, kl_coef=1) - kl_coef * k
        ),
    },
    gae: {
        "negated": lambda *x, **o: -gae(*x, **o),
        "mask dropped": lambda r, v, m, **o: gae(r, v, torch.ones_like(m), **o),
        "lam dropped": lambda *x, gamma, lam: gae(*x, gamma=gamma, lam=1.0),
        "gamma dropped": lambda *x, gamma, lam: gae(*x, gamma=1.0, lam=lam),
        "discounted twice": discounted_twice,
        "values dropped": lambda r, v, m, **o: gae(r, 0 * v, m, **o),
        "forwards": lambda r, v, m, **o: gae(r.flip(-1), v.flip(-1), m.flip(-1), **o).flip(-1),
    },
    leave_one_out: {
        "negated": lambda r: -leave_one_out(r),
        "own mean": lambda r: r - r.mean(-1, keepdim=True),
        "no baseline": lambda r: r,
        "over prompts": lambda r: leave_one_out(r.T).T if len(r) > 1 else r,
        "divided by the deviation": lambda r: leave_one_out(r) / r.std(-1, keepdim=True),
    },
    whiten: {
        "mean kept": scale_to_unit,
        "mask dropped": lambda x, m: whiten(x, torch.ones_like(m)),
        "mask turned over": lambda x, m: whiten(x, 1 - m.int()),
        "unbiased": lambda x, m: whiten(x, m) * (1 - 1 / m.sum()).sqrt(),
        "centred only": lambda x, m: x - x[m.bool()].mean(),
    },
    scale_to_unit: {
        "centred": whiten,
        "mask dropped": lambda x, m: scale_to_unit(x, torch.ones_like(m)),
        "divided only": lambda x, m: x / x[m.bool()].std(correction=0) * m,
    },
}


@pytest.mark.parametrize("function", CHECKS, ids=lambda f: f.__name__)
def test_golden_values_and_laws_hold_and_bite(function: Any) -> None:
    CHECKS[function](function)
    reference.bites(CHECKS[function], MUTANTS[function])


def test_gradients() -> None:
    r, v, mask = draw(0, 3, 4).requires_grad_(), draw(1, 3, 4).requires_grad_(), holes(2, 3, 4)
    score, finished = draw(3, 3).requires_grad_(), torch.tensor([True, False, True])
    check = torch.autograd.gradcheck
    assert check(lambda s: missing_eos(s, finished, penalty=0.5), score)
    assert check(lambda s, k: token_rewards(s, k, mask, kl_coef=0.3), (score, r))
    assert check(lambda r, v: gae(r, v, mask, gamma=0.9, lam=0.8), (r, v))
    assert check(leave_one_out, r)
    assert check(lambda x: whiten(x, mask), r)
    assert check(lambda x: scale_to_unit(x, mask), r)
    # A reward raises the advantage of its own step and of every one before it, never behind it.
    whole = torch.ones_like(mask)
    (slope,) = torch.autograd.grad(gae(r, v, whole, gamma=0.9, lam=0.8)[:, 2].sum(), r)
    assert (slope[:, 2:] > 0).all()
    assert (slope[:, :2] == 0).all()
    # A score is paid in full, a KL costs its coefficient; of one's own reward or number more is
    # more, of another's less.
    paid, cost = torch.autograd.grad(token_rewards(score, r, mask, kl_coef=0.3).sum(), (score, r))
    same(paid, torch.ones(3))
    same(cost, -0.3 * mask)
    (paid,) = torch.autograd.grad(missing_eos(score, finished, penalty=0.5).sum(), score)
    same(paid, torch.ones(3))
    for f in (leave_one_out, lambda x: whiten(x, whole), lambda x: scale_to_unit(x, whole)):
        (slope,) = torch.autograd.grad(f(r)[1, 2], r)
        assert slope[1, 2] > 0
    (slope,) = torch.autograd.grad(leave_one_out(r)[1, 2], r)
    # 1 for one's own, -1 / (G - 1) for each other of the prompt, nothing for another prompt.
    same(slope, [[0.0] * 4, [-1 / 3, -1 / 3, 1.0, -1 / 3], [0.0] * 4], 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_loops(seed: int) -> None:
    r, v, mask = draw(seed, 4, 7), draw(seed + 10, 4, 7), holes(seed, 4, 7)
    score, m = draw(seed + 20, 4), mask.numpy()
    wanted = reference.token_rewards(score.numpy(), r.numpy(), m, 0.2)
    same(token_rewards(score, r, mask, kl_coef=0.2), wanted, 1e-12)
    wanted = reference.gae(r.numpy(), v.numpy(), m, 0.97, 0.9)
    same(gae(r, v, mask, gamma=0.97, lam=0.9), wanted, 1e-12)
    # Steps keep their order in long rows too.
    long = draw(seed + 30, 2, 100), draw(seed + 40, 2, 100), holes(seed + 50, 2, 100)
    wanted = reference.gae(*(x.numpy() for x in long), 0.97, 0.9)
    same(gae(*long, gamma=0.97, lam=0.9), wanted, 1e-12)
    wanted = reference.missing_eos(score.numpy(), m[:, 0], 0.7)
    same(missing_eos(score, mask[:, 0], penalty=0.7), wanted, 1e-12)
    same(leave_one_out(r), reference.leave_one_out(r.numpy()), 1e-12)
    same(whiten(r, mask), reference.whiten(r.numpy(), m, False), 1e-12)
    same(scale_to_unit(r, mask), reference.whiten(r.numpy(), m, True), 1e-12)


@pytest.mark.parametrize("side", [(3, 0), (0, 3)])
def test_padding_on_either_side_and_its_content_change_nothing(side: tuple[int, int]) -> None:
    r, v, mask, score = draw(0, 4, 5), draw(1, 4, 5), holes(2, 4, 5), draw(3, 4)
    wide = [torch.nn.functional.pad(x, side, value=99.0) for x in (r, v)]
    far = torch.nn.functional.pad(mask, side, value=False)
    cut = slice(side[0], side[0] + 5)
    for f in (
        lambda r, v, m: token_rewards(score, r, m, kl_coef=0.2),
        lambda r, v, m: gae(r, v, m, gamma=0.9, lam=0.8),
        lambda r, v, m: whiten(r, m),
        lambda r, v, m: scale_to_unit(r, m),
    ):
        got = f(*wide, far)
        assert torch.equal(got[:, cut], f(r, v, mask))
        assert not got[~far].any()


def test_order_and_split_change_nothing() -> None:
    r, order = draw(0, 6, 4), torch.tensor([5, 3, 1, 0, 2, 4])
    whole = leave_one_out(r)
    assert torch.equal(leave_one_out(r[order]), whole[order])
    assert torch.equal(torch.cat([leave_one_out(r[:2]), leave_one_out(r[2:])]), whole)
    same(leave_one_out(r.flip(-1)), whole.flip(-1), 1e-12)
    score, finished = r[:, 0], r[:, 1] > 0
    whole = missing_eos(score, finished, penalty=2.0)
    assert torch.equal(missing_eos(score[order], finished[order], penalty=2.0), whole[order])
    assert torch.equal(missing_eos(score[4:], finished[4:], penalty=2.0), whole[4:])


def test_what_is_refused() -> None:
    one, two, on = torch.zeros(2, 3), torch.zeros(2, 2), torch.ones(2, 3, dtype=torch.bool)
    for call in (
        lambda: gae(one, two, on, gamma=1.0, lam=1.0),
        lambda: token_rewards(torch.zeros(3), one, on, kl_coef=0.1),
        lambda: token_rewards(torch.zeros(2), two, on, kl_coef=0.1),
        lambda: missing_eos(torch.zeros(2), torch.ones(3).bool(), penalty=1.0),
        lambda: whiten(one, on[:, :2]),
        lambda: scale_to_unit(one, on[:, :2]),
    ):
        with pytest.raises(ValueError, match="must have one shape"):
            call()
    for gamma, lam in ((1.1, 1.0), (1.0, 1.1), (-0.1, 1.0), (1.0, -0.1), (1.0, math.nan)):
        with pytest.raises(ValueError, match="gamma and lam must lie in"):
            gae(one, one, on, gamma=gamma, lam=lam)
    for rows in (torch.zeros(3), torch.zeros(2, 3, 1), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match=r"rows of steps are needed, .B, T., got reward of"):
            gae(rows, rows, rows, gamma=1.0, lam=1.0)
        with pytest.raises(ValueError, match=r"rows of steps are needed, .B, T., got kl of"):
            token_rewards(torch.zeros(2), rows, rows, kl_coef=0.1)
    with pytest.raises(ValueError, match="two responses to a prompt at least, got 1"):
        leave_one_out(torch.tensor(1.0))
    with pytest.raises(ValueError, match="a sequence without a token"):
        token_rewards(torch.zeros(2), one, on & torch.tensor([[True], [False]]), kl_coef=0.1)
    with pytest.raises(ValueError, match="the KL's coefficient must be a finite number, got nan"):
        token_rewards(torch.zeros(2), one, on, kl_coef=math.nan)
    for penalty in (-1, math.nan):
        with pytest.raises(ValueError, match=f"must not be negative; got {penalty}"):
            missing_eos(torch.zeros(2), torch.ones(2).bool(), penalty=penalty)
    with pytest.raises(ValueError, match=r"two responses to a prompt at least, got 1.*num_gener"):
        leave_one_out(torch.zeros(4, 1))
    for f in (whiten, scale_to_unit):
        with pytest.raises(ValueError, match="nothing to whiten"):
            f(one, on & False)


# Which test answers for which duty (tests/algorithms/duties.py).
DUTIES = {
    "missing_eos token_rewards gae leave_one_out whiten scale_to_unit": {
        "golden law bite": test_golden_values_and_laws_hold_and_bite,
        "gradient": test_gradients,
        "loop": test_equal_to_the_loops,
        "refusal": test_what_is_refused,
    },
    "token_rewards gae whiten scale_to_unit": {
        "invariance": test_padding_on_either_side_and_its_content_change_nothing,
    },
    "missing_eos leave_one_out": {"invariance": test_order_and_split_change_nothing},
}
