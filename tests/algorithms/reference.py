"""The formulas of floor 0 once more, as plain float64 loops from the papers.

Nothing of the package is imported here: what is compared must not share its mistakes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def token_logp(logits: Array, targets: NDArray[np.int64]) -> Array:
    """ln softmax(logits)[target], one token at a time."""
    out = np.zeros(targets.shape)
    for place in np.ndindex(*targets.shape):
        row = [float(x) for x in logits[place]]
        highest = max(row)
        total = sum(math.exp(x - highest) for x in row)
        out[place] = row[int(targets[place])] - highest - math.log(total)
    return out


def k1(logp: Array, ref_logp: Array) -> Array:
    """Schulman (2020): the mean of log p/q under p is KL(p || q)."""
    out = np.zeros(logp.shape)
    for place in np.ndindex(*logp.shape):
        out[place] = logp[place] - ref_logp[place]
    return out


def k3(logp: Array, ref_logp: Array) -> Array:
    """Schulman (2020): (r - 1) - log r with r = q/p."""
    out = np.zeros(logp.shape)
    for place in np.ndindex(*logp.shape):
        ratio = math.exp(ref_logp[place]) / math.exp(logp[place])
        out[place] = (ratio - 1) - math.log(ratio)
    return out


def sequence_sum(x: Array, mask: Array) -> Array:
    out = np.zeros(len(x))
    for row, column in np.ndindex(*x.shape):
        if mask[row, column]:
            out[row] += x[row, column]
    return out


def reduce_mean(x: Array, denominator: float) -> float:
    return math.fsum(float(v) for v in x.ravel()) / denominator


def bradley_terry(chosen: Array, rejected: Array, margin: Array) -> Array:
    """InstructGPT eq. 1 with Llama 2's margin: -ln 1 / (1 + e^-(c - r - m))."""
    pairs = zip(chosen, rejected, margin, strict=True)
    return np.array([-math.log(1 / (1 + math.exp(-(c - r - m)))) for c, r, m in pairs])


def soft_bradley_terry(first: Array, second: Array, label: Array, margin: Array) -> Array:
    """Christiano et al. (2017), section 2.2.3: -mu(1) ln P[1 > 2] - mu(2) ln P[2 > 1]."""
    out: list[float] = []
    for f, s, mu, m in zip(first, second, label, margin, strict=True):
        one, two = math.exp(f - m), math.exp(s)
        out.append(-mu * math.log(one / (one + two)) - (1 - mu) * math.log(two / (one + two)))
    return np.array(out)


def centering(chosen: Array, rejected: Array) -> Array:
    """Eisenstein et al. (2023), section 2."""
    return np.array([(c + r) ** 2 for c, r in zip(chosen, rejected, strict=True)])


def score_l2(scores: Array) -> Array:
    """Safe RLHF's regularization of one score: its square."""
    return np.array([s * s for s in scores])


def ranked_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            if ranks[i] < ranks[j]:
                pairs.append((i, j))
    return pairs


def tied_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for i in range(len(ranks)):
        for j in range(i + 1, len(ranks)):
            if ranks[i] == ranks[j]:
                pairs.append((i, j))
    return pairs


def plackett_luce(scores: Sequence[float], ranks: Sequence[int]) -> float:
    """Plackett (1975), one ranking: the product of the shares that the chosen had of what was left,
    where those of the same rank are left together (Breslow 1974)."""
    probability = 1.0
    for i in range(len(scores)):
        left = [scores[j] for j in range(len(scores)) if ranks[j] >= ranks[i]]
        probability *= math.exp(scores[i]) / sum(math.exp(s) for s in left)
    return -math.log(probability)


def squared_error(scores: Array, ratings: Array) -> Array:
    """HelpSteer2's regression: (s - y) times itself."""
    return np.array([(s - y) * (s - y) for s, y in zip(scores, ratings, strict=True)])


def step_cross_entropy(logits: Array, labels: Array) -> Array:
    """Uesato et al. (2022): the log loss of a classifier with two outputs, 0 and z."""
    out: list[float] = []
    for z, y in zip(logits, labels, strict=True):
        right = math.exp(z) / (1 + math.exp(z))
        out.append(-y * math.log(right) - (1 - y) * math.log(1 - right))
    return np.array(out)


def step_product(logits: Array, mask: Array) -> Array:
    """Lightman et al. (2023): the logarithm of the product of the steps' probabilities."""
    out: list[float] = []
    for row, there in zip(logits, mask, strict=True):
        product = 1.0
        for z, real in zip(row, there, strict=True):
            product *= 1 / (1 + math.exp(-z)) if real else 1.0
        out.append(math.log(product))
    return np.array(out)


def step_minimum(logits: Array, mask: Array) -> Array:
    """The logarithm of the least of them."""
    out: list[float] = []
    for row, there in zip(logits, mask, strict=True):
        steps = [z for z, real in zip(row, there, strict=True) if real]
        out.append(math.log(min(1 / (1 + math.exp(-z)) for z in steps)))
    return np.array(out)


def dpo(policy: Array, reference: Array, beta: float) -> Array:
    """Rafailov et al. (2023), eq. 7. Rows: log-probs of (chosen, rejected) responses."""
    out: list[float] = []
    for (pw, pl), (rw, rl) in zip(policy, reference, strict=True):
        h = beta * (pw - rw) - beta * (pl - rl)
        out.append(-math.log(1 / (1 + math.exp(-h))))
    return np.array(out)


def cdpo(policy: Array, reference: Array, beta: float, smoothing: float) -> Array:
    """Mitchell (2023): cross-entropy of sigmoid(h) with a label of 1 - smoothing."""
    out: list[float] = []
    for (pw, pl), (rw, rl) in zip(policy, reference, strict=True):
        p = 1 / (1 + math.exp(-beta * ((pw - rw) - (pl - rl))))
        out.append(-(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p))
    return np.array(out)


def robust_dpo(policy: Array, reference: Array, beta: float, flips: float) -> Array:
    """Chowdhury et al. (2024): the two losses of a pair, weighted so that flips cancel."""
    out: list[float] = []
    for (pw, pl), (rw, rl) in zip(policy, reference, strict=True):
        h = beta * math.log(math.exp(pw - rw) / math.exp(pl - rl))
        kept, flipped = math.log(1 + math.exp(-h)), math.log(1 + math.exp(h))
        out.append(kept * (1 - flips) / (1 - 2 * flips) - flipped * flips / (1 - 2 * flips))
    return np.array(out)


def ipo(policy: Array, reference: Array, tau: float) -> Array:
    """Azar et al. (2023), eq. 17, with h of their eq. 13 as a ratio of ratios."""
    out: list[float] = []
    for (pw, pl), (rw, rl) in zip(policy, reference, strict=True):
        h = math.log(math.exp(pw) * math.exp(rl) / (math.exp(pl) * math.exp(rw)))
        out.append((h - 1 / tau / 2) ** 2)
    return np.array(out)


def hinge(policy: Array, reference: Array, gamma: float) -> Array:
    """Liu et al. (2023), the normalised hinge of RSO."""
    out: list[float] = []
    for (pw, pl), (rw, rl) in zip(policy, reference, strict=True):
        out.append(max(0.0, 1 - (gamma * (pw - rw) - gamma * (pl - rl))))
    return np.array(out)


def simpo(logp: Array, length: Array, beta: float, gamma: float) -> Array:
    """Meng et al. (2024), eq. 6. Rows: (chosen, rejected) log-probs and lengths in tokens."""
    out: list[float] = []
    for (pw, pl), (nw, nl) in zip(logp, length, strict=True):
        h = beta / nw * pw - beta / nl * pl - gamma
        out.append(-math.log(1 / (1 + math.exp(-h))))
    return np.array(out)


def cpo(logp: Array, length: Array, beta: float, alpha: float) -> Array:
    """Xu et al. (2024): L_prefer + L_NLL, the latter per token and weighted."""
    out: list[float] = []
    for (pw, pl), (nw, _) in zip(logp, length, strict=True):
        chosen, rejected = math.exp(beta * pw), math.exp(beta * pl)
        out.append(-math.log(chosen / (chosen + rejected)) - alpha * pw / nw)
    return np.array(out)


def orpo(logp: Array, length: Array, weight: float) -> Array:
    """Hong et al. (2024), eq. 4 to 7, in probabilities."""
    out: list[float] = []
    for (pw, pl), (nw, nl) in zip(logp, length, strict=True):
        w, x = math.exp(pw / nw), math.exp(pl / nl)
        ratio = (w / (1 - w)) / (x / (1 - x))
        out.append(-math.log(w) - weight * math.log(1 / (1 + math.exp(-math.log(ratio)))))
    return np.array(out)


def entropy(logits: Array) -> Array:
    """-sum p ln p, one token at a time."""
    out = np.zeros(logits.shape[:-1])
    for place in np.ndindex(*out.shape):
        weights = [math.exp(float(z)) for z in logits[place]]
        shares = [w / sum(weights) for w in weights]
        out[place] = -sum(p * math.log(p) for p in shares)
    return out


def token_rewards(score: Array, kl: Array, mask: Array, kl_coef: float) -> Array:
    """Ziegler et al. (2019), eq. 2: every token pays its KL, the last one is paid the score."""
    out = np.zeros(kl.shape)
    for b in range(len(kl)):
        steps = [t for t in range(kl.shape[1]) if mask[b, t]]
        for t in steps:
            out[b, t] = -kl_coef * kl[b, t]
        out[b, steps[-1]] += score[b]
    return out


def gae(reward: Array, value: Array, mask: Array, gamma: float, lam: float) -> Array:
    """Schulman et al. (2016), eq. 16, as the sum that it is: sum_l (gamma lam)^l delta_(t+l)."""
    out = np.zeros(reward.shape)
    for b in range(len(reward)):
        steps = [t for t in range(reward.shape[1]) if mask[b, t]]
        values = [value[b, t] for t in steps] + [0.0]
        errors = [reward[b, t] + gamma * values[i + 1] - values[i] for i, t in enumerate(steps)]
        for i, t in enumerate(steps):
            out[b, t] = sum((gamma * lam) ** k * e for k, e in enumerate(errors[i:]))
    return out


def leave_one_out(reward: Array) -> Array:
    out = np.zeros(reward.shape)
    for p, i in np.ndindex(*reward.shape):
        others = [reward[p, j] for j in range(reward.shape[1]) if j != i]
        out[p, i] = reward[p, i] - sum(others) / len(others)
    return out


def whiten(x: Array, mask: Array, keep_mean: bool) -> Array:
    counted = [float(x[place]) for place in np.ndindex(*x.shape) if mask[place]]
    mean = math.fsum(counted) / len(counted)
    variance = math.fsum((c - mean) ** 2 for c in counted) / len(counted)
    out = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        if mask[place]:
            out[place] = (x[place] - mean) / math.sqrt(variance + 1e-8) + mean * keep_mean
    return out


def ppo_clip(logp: Array, old: Array, advantage: Array, clip: float) -> Array:
    """Schulman et al. (2017), eq. 7, negated."""
    out = np.zeros(logp.shape)
    for place in np.ndindex(*logp.shape):
        w, a = math.exp(logp[place]) / math.exp(old[place]), advantage[place]
        out[place] = -min(w * a, min(max(w, 1 - clip), 1 + clip) * a)
    return out


def value_clip(value: Array, old: Array, returns: Array, clip: float) -> Array:
    out = np.zeros(value.shape)
    for place in np.ndindex(*value.shape):
        v, o, r = value[place], old[place], returns[place]
        near = min(max(v, o - clip), o + clip)
        out[place] = 0.5 * max((v - r) ** 2, (near - r) ** 2)
    return out


def bites(check: Callable[[Any], None], mutants: Mapping[str, Any]) -> None:
    """Assert that ``check`` fails for each broken form of the function it checks."""
    for name, mutant in mutants.items():
        try:
            check(mutant)
        except AssertionError:
            continue
        raise AssertionError(f"the check does not notice when the function is broken: {name}")
