"""Preference losses without a reference policy, on log-probs of responses.

What is given are sums over a response's tokens or means, as each function says: what stands in the
place of a reference is length (SimPO), imitation (CPO), or both (ORPO). A NaN gives NaN, for the
training loop to stop at.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.algorithms.comparison import bradley_terry
from truing.algorithms.preference import check_pair
from truing.algorithms.tokens import check_shapes


def simpo(chosen_mean_N: Tensor, rejected_mean_N: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Simple preference optimisation: Bradley-Terry on mean log-probs ``s``, with a target margin.

    Formula: ``-log sigmoid(beta (s_w - s_l) - gamma)``, ``s = log pi(y|x) / |y|``.
    Source: Meng, Xia and Chen 2024 (arXiv:2405.14734), eq. 6.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ, beta is not positive or
    gamma is negative.
    Differs: its authors' code is set by the ratio gamma / beta; gamma here is the paper's, and
    TRL's ``simpo_gamma``.
    """
    check_pair(chosen_mean_N, rejected_mean_N, beta)
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}: it is the margin to be reached")
    margin_N = torch.full_like(chosen_mean_N, gamma)
    return bradley_terry(beta * chosen_mean_N, beta * rejected_mean_N, margin_N)


def cpo(
    chosen_logp_N: Tensor, rejected_logp_N: Tensor, nll_N: Tensor, *, beta: float, alpha: float
) -> Tensor:
    """Contrastive preference optimisation: DPO with an even reference, and imitation of the chosen.

    Formula: ``-log sigmoid(beta (log pi_w - log pi_l)) + alpha nll``; ``log pi`` is a sum over
    tokens, ``nll`` the negative log-likelihood of the chosen response.
    Source: Xu et al. 2024 (arXiv:2401.08417), L_prefer (eq. 3) + L_NLL, for which alpha is 1.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ, beta is not positive or
    alpha is negative.
    Differs: the paper's formula has the sum over tokens as nll, TRL's code the mean over all
    response tokens of a micro-batch. The recipe takes the mean over each response's tokens.
    """
    check_pair(chosen_logp_N, rejected_logp_N, beta)
    check_shapes(chosen=chosen_logp_N, nll=nll_N)
    if not alpha >= 0:
        raise ValueError(f"alpha must not be negative, got {alpha}: it is the weight of imitation")
    return bradley_terry(beta * chosen_logp_N, beta * rejected_logp_N) + alpha * nll_N


def log_odds_ratio(chosen_mean_N: Tensor, rejected_mean_N: Tensor) -> Tensor:
    """Log of odds(w) / odds(l), where ``odds = p / (1 - p)`` and p is exp of a mean log-prob.

    Source: Hong, Lee and Thorne 2024 (arXiv:2403.07691), eq. 4 and 5.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ, or for log-probs above 0.
    Differs: p is kept below 1 by the rounding of its number format, so odds are finite. What TRL
    logs as ``log_odds_ratio`` is the log sigmoid of this; this is its ``log_odds_chosen``.
    """
    check_shapes(chosen=chosen_mean_N, rejected=rejected_mean_N)
    highest = torch.maximum(chosen_mean_N, rejected_mean_N).detach()
    if bool((highest > 1e-3).any()):
        raise ValueError(
            f"log-probs must not be above 0, got {float(highest.max()):.4g}: odds are of "
            "probabilities, not of log-ratios"
        )
    return _log_odds(chosen_mean_N) - _log_odds(rejected_mean_N)


def orpo(chosen_mean_N: Tensor, rejected_mean_N: Tensor, nll_N: Tensor, *, beta: float) -> Tensor:
    """Odds ratio preference optimisation: imitation, and a weighted odds ratio of the pair.

    Formula: ``nll - beta log sigmoid(log odds_w - log odds_l)``; beta is the paper's lambda, the
    odds are of mean log-probs.
    Source: Hong, Lee and Thorne 2024 (arXiv:2403.07691), eq. 6 and 7.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ, beta is not positive or a
    log-prob is above 0.
    Differs: the recipe's nll is the mean over the chosen response's tokens; TRL's is over all
    tokens of a micro-batch, the prompts' too.
    """
    check_pair(chosen_mean_N, rejected_mean_N, beta)
    check_shapes(chosen=chosen_mean_N, nll=nll_N)
    return nll_N - beta * F.logsigmoid(log_odds_ratio(chosen_mean_N, rejected_mean_N))


def _log_odds(logp_N: Tensor) -> Tensor:
    logp_N = logp_N.clamp(max=-torch.finfo(logp_N.dtype).eps)
    return logp_N - (-torch.expm1(logp_N)).log()
