"""A loss as a user would write it."""

import torch.nn.functional as F
from torch import Tensor


def dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> Tensor:
    return F.softplus(-beta * (chosen - ref_chosen - rejected + ref_rejected))
