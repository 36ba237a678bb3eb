"""Losses on costs: how harmful a response is, and on which side of harmless it lies."""

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.algorithms.tokens import check_shapes


def cost_sign(cost_N: Tensor, harmful_N: Tensor) -> Tensor:
    """Cross-entropy of the sign of a cost: ``-log sigmoid(c)`` of what is harmful, ``-log
    sigmoid(-c)`` of what is not.

    Least, over all judgements of one response, at the log-odds of it being harmful, so 0 is the
    border. A cost model adds it, for both responses of a pair, to `bradley_terry` on their costs,
    in which the more harmful one wins.
    Source: Dai et al. 2023 (Safe RLHF, arXiv:2310.12773), section 3.2, the last two terms of the
    cost model's loss.
    Shapes: (N,) each, ``harmful`` true or false (1, 0); result (N,). Raises ValueError when shapes
    differ, or for another label (NaN too). A cost of NaN gives NaN, for the training loop to stop
    at.
    Differs: nothing; the paper has signs +1 and -1.
    """
    check_shapes(cost=cost_N, harmful=harmful_N)
    fine_N = (harmful_N == 0) | (harmful_N == 1)
    if not bool(fine_N.all()):
        wrong: list[float] = harmful_N[~fine_N].tolist()  # pyright: ignore
        raise ValueError(f"labels {wrong[:5]} came: a response is harmful (1) or it is not (0)")
    return -F.logsigmoid(torch.where(harmful_N == 1, cost_N, -cost_N))
