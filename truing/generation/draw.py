"""One token for each row of logits: inverse transform of a keyed uniform number, in two steps."""

import torch
from torch import Tensor, nn

from truing.generation.engine import Sampling

# Tokens summed at once: a number finds its block by the blocks' sums, then its token therein.
BLOCK = 128


def choose(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The token each uniform number picks, and its log-prob at the sampling temperature.

    Inverse transform: the first token whose cumulative probability exceeds the number. Blocks add
    up in float64, so that a vocabulary of 200k tokens loses nothing; what costs is one exponential
    a token. Shapes: (B, V), (B,) -> (B,), (B,) in float64.
    """
    if sampling.temperature not in (0, 1):
        logits_BV = logits_BV / sampling.temperature
    most_B1 = logits_BV.amax(-1, keepdim=True)
    mass_BNK = _blocks((logits_BV - most_B1).exp_())
    sums_BN = mass_BNK.sum(-1).double().cumsum(-1)
    log_total_B = sums_BN[:, -1].log()
    if sampling.temperature == 0:
        token_B = logits_BV.argmax(-1)
    else:
        if sampling.top_p < 1:
            mass_BNK = _blocks(_likeliest(mass_BNK.flatten(1).double(), sampling.top_p))
            sums_BN = mass_BNK.sum(-1).cumsum(-1)
        token_B = _pick(mass_BNK, sums_BN, uniform_B)
    chosen_B = (logits_BV.gather(-1, token_B[:, None]) - most_B1).squeeze(-1)
    return token_B, chosen_B.double() - log_total_B


def _likeliest(mass_BV: Tensor, top_p: float) -> Tensor:
    """The masses without those outside the smallest set of tokens that holds ``top_p`` of them."""
    sorted_BV, order_BV = mass_BV.sort(-1, descending=True)
    sums_BV = sorted_BV.cumsum(-1)
    outside_BV = sums_BV - sorted_BV >= top_p * sums_BV[:, -1:]
    return mass_BV.masked_fill(outside_BV.gather(-1, order_BV.argsort(-1)), 0.0)


def _pick(mass_BNK: Tensor, sums_BN: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose cumulative mass exceeds ``uniform_B`` of the whole; ``sums_BN`` are
    the cumulative masses of the blocks."""
    wanted_B1 = uniform_B[:, None] * sums_BN[:, -1:]
    block_B1 = torch.searchsorted(sums_BN, wanted_B1, right=True)
    before_B1 = nn.functional.pad(sums_BN, (1, 0)).gather(-1, block_B1)
    rows_B = torch.arange(len(mass_BNK), device=mass_BNK.device)
    inside_BK = mass_BNK[rows_B, block_B1.squeeze(-1)].double().cumsum(-1)
    # A block's sum was rounded in another order: what is wanted must stay below this one, or the
    # block's last tokens would be picked, which may be impossible.
    wanted_B1 = torch.minimum(wanted_B1 - before_B1, inside_BK[:, -1:] * (1 - 2.0**-53))
    return (block_B1 * BLOCK + torch.searchsorted(inside_BK, wanted_B1, right=True)).squeeze(-1)


def _blocks(mass_BV: Tensor) -> Tensor:
    """(B, V) as (B, N, `BLOCK`), with impossible tokens behind where V is odd."""
    more = -mass_BV.shape[-1] % BLOCK
    padded_BV = nn.functional.pad(mass_BV, (0, more)) if more else mass_BV
    return padded_BV.unflatten(-1, (-1, BLOCK))
