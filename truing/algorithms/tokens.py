"""Per-token quantities and their reduction.

Shape suffixes, here and everywhere: ``B`` sequences, ``T`` scored tokens of a sequence, ``V``
vocabulary, ``K`` candidates of one prompt, ``N`` any flat list. A ``mask`` is 1 where a token
counts. Functions return unreduced values; a reduction is a separate call that is *given* its
denominator, so that micro-batches, accumulation and ranks cannot change a result.
"""

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape: silent broadcasting hides mistakes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"these tensors must have one shape, got {shapes}")


def token_logp(logits_BTV: Tensor, target_BT: Tensor) -> Tensor:
    """Log-probability of each target token: ``logits[target] - logsumexp(logits)``.

    Shapes: logits (..., V), targets (...) of int64; result (...). The sum over the vocabulary runs
    in float32 at least, whatever the dtype of the logits.
    Raises ValueError when the leading shapes differ.
    """
    if logits_BTV.shape[:-1] != target_BT.shape:
        raise ValueError(
            f"logits {tuple(logits_BTV.shape)} need targets of shape "
            f"{tuple(logits_BTV.shape[:-1])}, got {tuple(target_BT.shape)}"
        )
    logits = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    chosen = logits.gather(-1, target_BT.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of each token's distribution: ``logsumexp(z) - sum softmax(z) z``, in nats.

    Shapes: (..., V); result (...). In float32 at least. A logit of -inf, an impossible token, adds
    nothing.
    """
    logits = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)


def k1(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """KL(pi || ref) estimate ``l = log pi - log ref`` for tokens sampled from pi: unbiased, signed.

    Source: Schulman, "Approximating KL divergence" (2020), k1. Shapes: both (B, T); result (B, T).
    """
    check_shapes(logp=logp_BT, ref_logp=ref_logp_BT)
    return logp_BT - ref_logp_BT


def k2(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """KL estimate ``l^2 / 2``: biased, never negative; right to second order for near policies.

    Source: Schulman (2020), k2. Shapes: both (B, T); result (B, T). PPO's ``approxkl`` is this one.
    """
    return k1(logp_BT, ref_logp_BT).square() / 2


def k3(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """KL(pi || ref) estimate ``exp(-l) - 1 + l``: unbiased under pi, never negative, less variance.

    Source: Schulman (2020), k3. Shapes: both (B, T); result (B, T).
    Differs: some implementations clamp it to +-10; we do not, it would bias large ratios.
    """
    log_ratio_BT = k1(logp_BT, ref_logp_BT)
    return torch.expm1(-log_ratio_BT) + log_ratio_BT


def sequence_sum(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the counted tokens of each sequence. Shapes: both (B, T); result (B,)."""
    check_shapes(x=x_BT, mask=mask_BT)
    # Not x * mask: a NaN in a masked position must not survive.
    return x_BT.masked_fill(~mask_BT.bool(), 0.0).sum(-1)


def sequence_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the counted tokens of each sequence, 0 where none counts. Shapes: both (B, T);
    result (B,)."""
    return sequence_sum(x_BT, mask_BT) / mask_BT.bool().sum(-1).clamp(min=1)


def reduce_mean(x: Tensor, denominator: Tensor | float) -> Tensor:
    """Sum of ``x`` over a denominator the caller counted over the *whole* optimiser step.

    Raises ValueError when the denominator is not positive (an empty step has no mean).
    """
    if not float(denominator) > 0:
        raise ValueError(
            f"the denominator must be positive, got {float(denominator)}: empty batch?"
        )
    return x.sum() / denominator
