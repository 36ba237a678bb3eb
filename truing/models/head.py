"""What a model's output head says of tokens, without their logits ever lying side by side.

A slice of hidden states at a time becomes logits, their log-probs and, where asked, entropies; one
buffer turns from logits into their gradient in place. What does not fit into one slice is computed
again in the backward pass; what does is kept.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from truing.algorithms.tokens import entropy, token_logp
from truing.models import gpu
from truing.models.products import digits_here, is_linear, multiply, product

# Scored tokens per slice of the output head: bounds the logits held at once to CHUNK x V.
CHUNK = 2048
# Tokens whose exponentials are held at once besides.
FEW = 256
# In place of a logit of minus infinity: its exponential is 0 all the same, and 0 times it is 0.
LOWEST = -1e30


class Scaling(NamedTuple):
    """What becomes of a head's logits z: ``cap tanh(factor z / cap) / temperature``, or without a
    cap ``factor z / temperature``. Source: Cohere, Granite and Gemma in transformers."""

    factor: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, config: Any, temperature: float = 1.0) -> "Scaling":
        """As a model's config has it."""
        factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
        factor /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return cls(factor, getattr(config, "final_logit_softcapping", None), temperature)  # Gemma

    @property
    def bend(self) -> tuple[float, float, bool]:
        """(a, b, bent): what becomes of z is ``b tanh(a z)`` if bent, else ``b a z``."""
        if self.cap is None:
            return self.factor / self.temperature, 1.0, False
        return self.factor / self.cap, self.cap / self.temperature, True

    def __call__(self, logits: Tensor) -> Tensor:
        """Scaled logits, float32 at least; without a gradient in the place of the logits."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.cap is not None:
            capped = self.cap * torch.tanh(logits * (self.factor / self.cap))
            return capped if self.temperature == 1 else capped / self.temperature
        factor = self.factor / self.temperature
        if factor == 1:
            return logits
        return logits * factor if logits.requires_grad else logits.mul_(factor)

    def backward(self, slope: Tensor, scaled: Tensor | None) -> Tensor:
        """The gradient of what was scaled, in place of that of the ``scaled`` logits."""
        factor = self.factor / self.temperature
        if self.cap is not None and scaled is not None:
            slope.mul_(1 - (scaled * (self.temperature / self.cap)).square_())
        return slope if factor == 1 else slope.mul_(factor)


class _Figures(torch.autograd.Function):
    """Log-probs (N,) and, with ``spread``, entropies (N,) of tokens, from hidden states (N, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scaling: Scaling,
        spread: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.scaling, ctx.spread, kept = scaling, spread, None
        ctx.digits = digits_here()
        pieces: list[tuple[Tensor, ...]] = []
        for start in range(0, len(target_N), CHUNK):
            part = slice(start, start + CHUNK)
            raw_NV = product(hidden_NH[part], weight_VH, ctx.digits, bias_V)
            logits_NV, *found = _read(raw_NV, target_N[part], scaling, spread=spread)
            pieces.append(tuple(found))
            # With a single slice nothing need be computed again.
            kept = logits_NV if len(target_N) <= CHUNK else None
            del raw_NV, logits_NV
        total_N, logp_N, *more = (torch.cat(column) for column in zip(*pieces, strict=True))
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, total_N, *more)
        ctx.kept = kept
        return logp_N, *more

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        hidden_NH, weight_VH, bias_V, target_N, total_N, *more = ctx.saved_tensors
        scaling: Scaling = ctx.scaling
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        hidden_slope = torch.empty_like(hidden_NH) if wants_hidden else None
        weight_slope = torch.zeros_like(weight_VH) if wants_weight else None
        bias_slope = torch.zeros_like(bias_V) if wants_bias else None
        for start in range(0, len(target_N), CHUNK):
            part = slice(start, start + CHUNK)
            logits_NV, ctx.kept = ctx.kept, None
            if logits_NV is None:
                raw_NV = product(hidden_NH[part], weight_VH, ctx.digits, bias_V)
                logits_NV = raw_NV if kernels(raw_NV) else scaling(raw_NV)
                del raw_NV
            told = target_N[part], total_N[part], *(each[part] for each in more)
            towards = [None if g is None else g[part] for g in grads]
            slope_NV = _slope(logits_NV, *told, towards=towards, scaling=scaling)
            slope_NV = slope_NV.to(hidden_NH.dtype)
            if hidden_slope is not None:
                multiply(hidden_slope[part], slope_NV, weight_VH.T, ctx.digits)
            if weight_slope is not None:
                multiply(weight_slope, slope_NV.T, hidden_NH[part].T, ctx.digits, more=True)
            if bias_slope is not None:
                bias_slope += slope_NV.sum(0)
        return hidden_slope, weight_slope, bias_slope, None, None, None


def kernels(logits_NV: Tensor) -> Any:
    """`head_gpu`, where it reads such logits; else None."""
    return gpu.kernels("truing.models.head_gpu", logits_NV)


def _read(
    raw_NV: Tensor, target_N: Tensor, scaling: Scaling, *, spread: bool
) -> tuple[Tensor, ...]:
    """Logits as `_slope` takes them, and of each row the logarithm of their sum, the target's
    log-prob and, with ``spread``, the entropy."""
    if home := kernels(raw_NV):
        return raw_NV, *home.read(raw_NV, target_N, scaling.bend, LOWEST, spread=spread)
    logits_NV = scaling(raw_NV)
    total_N = torch.cat([few.logsumexp(-1) for few in logits_NV.split(FEW)])
    chosen_N = logits_NV.gather(-1, target_N[:, None]).squeeze(-1)
    more = (torch.cat([entropy(few) for few in logits_NV.split(FEW)]),) if spread else ()
    return logits_NV, total_N, chosen_N - total_N, *more


def _slope(
    logits_NV: Tensor,
    target_N: Tensor,
    total_N: Tensor,
    *entropies: Tensor,
    towards: Sequence[Tensor | None],
    scaling: Scaling,
) -> Tensor:
    """The gradient of logits before they were scaled, in their place, from those of log-probs and
    entropies: of a log-prob ``1[v = target] - p``, of an entropy H ``-p (log p + H)``."""
    if home := kernels(logits_NV):
        given = logits_NV, target_N, total_N, *entropies
        return home.turn_into_slope(*given, towards=towards, bend=scaling.bend, lowest=LOWEST)
    logp_N1, *spread = (None if g is None else g[:, None] for g in towards)
    scaled_NV = logits_NV.clone() if scaling.cap is not None else None
    dense_NV = logits_NV.sub_(total_N[:, None])
    if spread and spread[0] is not None:
        log_NV = dense_NV.clamp(min=LOWEST)
        dense_NV.exp_()
        weight_NV = log_NV.add_(entropies[0][:, None]).mul_(spread[0])
        dense_NV.mul_(weight_NV if logp_N1 is None else weight_NV.add_(logp_N1)).neg_()
    elif logp_N1 is None:
        return dense_NV.zero_()
    else:
        dense_NV.exp_().mul_(-logp_N1)
    if logp_N1 is not None:
        dense_NV.scatter_add_(1, target_N[:, None], logp_N1)
    return scaling.backward(dense_NV, scaled_NV)


def plain(head: Any) -> bool:
    """Whether a head is its weight and bias and nothing else, which an adapter on it is not."""
    return is_linear(head) and not head._forward_hooks


def figures(
    head: Any, hidden_NH: Tensor, target_N: Tensor, scaling: Scaling, *, spread: bool = False
) -> tuple[Tensor, ...]:
    """Log-probs (N,) of the target tokens and, with ``spread``, entropies (N,), in float32 at
    least, with gradients.

    hidden (N, H); ``head``: what makes logits of it, a linear layer or any module; where it is no
    `plain` layer, each slice is computed by itself and again in the backward pass.
    """
    if plain(head):
        device = hidden_NH.device.type
        weight, bias = head.weight, head.bias
        if torch.is_autocast_enabled(device):
            to = torch.get_autocast_dtype(device)
            hidden_NH, weight = hidden_NH.to(to), weight.to(to)
            bias = None if bias is None else bias.to(to)
        found: Any = _Figures.apply(hidden_NH, weight, bias, target_N, scaling, spread)
        return found

    def slice_of(hidden_NH: Tensor, target_N: Tensor) -> tuple[Tensor, ...]:
        logits_NV = scaling(head(hidden_NH))
        more = (entropy(logits_NV),) if spread else ()
        return (token_logp(logits_NV, target_N), *more)

    pieces: list[Any] = []
    for start in range(0, len(target_N), CHUNK):
        part = hidden_NH[start : start + CHUNK], target_N[start : start + CHUNK]
        again = torch.is_grad_enabled() and len(target_N) > CHUNK
        pieces.append(
            checkpoint(slice_of, *part, use_reentrant=False) if again else slice_of(*part)
        )
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))
