"""From rewards to advantages: shaped rewards, GAE, leave-one-out, and the two ways to whiten.

Shapes as in `truing.algorithms.tokens`; ``P`` prompts, ``G`` responses to each of them. A position
whose mask is 0 is no step of the episode: it is skipped wherever it stands, and its content is
never read. Whitening takes all it is given as one batch: give it the whole rollout.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.algorithms.tokens import check_shapes

# Added to a variance before its root: a batch of equal numbers has no scale.
EPSILON = 1e-8


def missing_eos(score_B: Tensor, finished_B: Tensor, *, penalty: float) -> Tensor:
    """Scores, less ``penalty`` where the response was cut before it ended.

    Source: the code of Ziegler et al. 2019 (arXiv:1909.08593); Huang et al. 2024
    (arXiv:2403.17031), the "EOS trick". Shapes: (B,) each; result (B,). Raises ValueError when
    shapes differ or the penalty is negative.
    Differs: they *set* a fixed score of -1; TRL and we subtract, so order is kept.
    """
    check_shapes(score=score_B, finished=finished_B)
    if not penalty >= 0:
        raise ValueError(f"the penalty is subtracted, so it must not be negative; got {penalty}")
    return score_B - penalty * (~finished_B.bool()).to(score_B.dtype)


def token_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, kl_coef: float) -> Tensor:
    """Reward of each token: ``-kl_coef * KL_t``, and the score on top at the last token.

    Source: Ziegler et al. 2019, eq. 2, spread over tokens as in their code.
    Shapes: (B,), (B, T), (B, T); result (B, T), 0 where masked. Raises ValueError when shapes
    differ, a sequence has no token or the coefficient is no finite number.
    Differs: TRL puts the score one place behind EOS where there is room; with gamma = 1 the return
    of each response token is the same.
    """
    _check_steps(kl=kl_BT, mask=mask_BT)
    check_shapes(score=score_B, tokens=mask_BT[:, 0])
    if not math.isfinite(kl_coef):
        raise ValueError(f"the KL's coefficient must be a finite number, got {kl_coef}")
    mask_BT = mask_BT.bool()
    if not bool(mask_BT.any(-1).all()):
        raise ValueError("a sequence without a token cannot carry a score: leave it out")
    left_BT = mask_BT.flip(-1).cumsum(-1).flip(-1)
    last_BT = mask_BT & (left_BT == 1)
    penalty_BT = (-kl_coef * kl_BT).masked_fill(~mask_BT, 0.0)
    return penalty_BT + score_B[:, None] * last_BT.to(kl_BT.dtype)


def gae(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimate: ``A_t = d_t + gamma lam A_t'``, ``d_t = r_t + gamma V_t' -
    V_t``, where t' is the next step that counts, and behind the last one V = A = 0.

    Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 16.
    Shapes: (B, T) each; result (B, T), 0 where masked. Raises ValueError when shapes differ or
    gamma or lam lies outside [0, 1].
    Differs: TRL lets padding take part with reward and value 0, which is the same for padding on
    the right only.
    """
    _check_steps(reward=reward_BT, value=value_BT, mask=mask_BT)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in [0, 1], got {gamma} and {lam}")
    # Steps that count move to the front, in their order; then only one sum runs step by step.
    idle_BT = ~mask_BT.bool()
    order_BT = idle_BT.byte().argsort(dim=-1, stable=True)
    idle_BT = idle_BT.gather(-1, order_BT)
    reward_BT = reward_BT.gather(-1, order_BT).masked_fill(idle_BT, 0.0)
    value_BT = value_BT.gather(-1, order_BT).masked_fill(idle_BT, 0.0)
    error_BT = reward_BT + gamma * F.pad(value_BT[:, 1:], (0, 1)) - value_BT
    running_B = torch.zeros_like(error_BT[:, 0])
    columns: list[Tensor] = []
    for error_B in reversed(error_BT.T.contiguous().unbind()):
        running_B = torch.add(error_B, running_B, alpha=gamma * lam)
        columns.append(running_B)
    found_BT = torch.stack(columns[::-1], -1)
    return torch.zeros_like(found_BT).scatter(-1, order_BT, found_BT)


def leave_one_out(reward_PG: Tensor) -> Tensor:
    """Advantage over the mean of the *other* responses: ``A_i = R_i - mean of R_j, j != i``.

    Formula: ``G / (G - 1) * (R_i - mean R)``, unbiased, for the baseline does not see R_i.
    Source: Kool et al. 2019; for RLHF Ahmadian et al. 2024 (arXiv:2402.14740), eq. 9.
    Shapes: (P, G); result (P, G). Raises ValueError for groups of one.
    Differs: GRPO's baseline includes R_i, which scales the advantage by (G - 1) / G.
    """
    group = reward_PG.shape[-1] if reward_PG.dim() else 1
    if group < 2:
        raise ValueError(
            f"leave-one-out needs two responses to a prompt at least, got {group}: the baseline of "
            "one is the mean of the others; raise num_generations"
        )
    return group / (group - 1) * (reward_PG - reward_PG.mean(-1, keepdim=True))


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The counted numbers with mean 0 and variance 1: ``(x - mean) / sqrt(var + 1e-8)``.

    Source: Ziegler et al. 2019, for advantages. Shapes: (B, T) each; result (B, T), 0 where masked.
    Raises ValueError when shapes differ or nothing counts.
    Differs: population variance as in the original (TensorFlow); torch ports divide by n - 1.
    """
    mean, deviation = _moments(x_BT, mask_BT)
    return ((x_BT - mean) / deviation).masked_fill(~mask_BT.bool(), 0.0)


def scale_to_unit(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The counted numbers with variance 1 and the mean they had: ``(x - mean) / std + mean``.

    Source: Ziegler et al. 2019, for rewards: an end of the episode brings no reward, so a shift of
    each token's reward would pay for length.
    Shapes: (B, T) each; result (B, T), 0 where masked. Raises ValueError as `whiten`.
    Differs: torchtune centres where the original keeps the mean, and the other way round.
    """
    mean, deviation = _moments(x_BT, mask_BT)
    return ((x_BT - mean) / deviation + mean).masked_fill(~mask_BT.bool(), 0.0)


def _check_steps(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors are rows of steps, of one shape."""
    check_shapes(**tensors)
    for name, x in tensors.items():
        if x.dim() != 2 or not x.shape[1]:
            raise ValueError(f"rows of steps are needed, (B, T), got {name} of {tuple(x.shape)}")


def _moments(x_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the counted numbers."""
    check_shapes(x=x_BT, mask=mask_BT)
    counted_N = x_BT[mask_BT.bool()]
    if not len(counted_N):
        raise ValueError("there is nothing to whiten: every position is masked")
    return counted_N.mean(), (counted_N.var(correction=0) + EPSILON).sqrt()
