"""Several rewards as one: scores of M members come in, one score each goes out."""

from torch import Tensor


def ensemble_mean(score_MN: Tensor) -> Tensor:
    """The mean over the members.

    Source: Coste et al. 2023 (arXiv:2310.02743), their mean optimisation.
    Shapes: M members' scores of N responses (M, N); result (N,). Raises ValueError otherwise.
    """
    _check_members(score_MN)
    return score_MN.mean(0)


def worst_case(score_MN: Tensor) -> Tensor:
    """The least over the members: nothing is good that any of them finds bad.

    Source: Coste et al. 2023 (arXiv:2310.02743), worst-case optimisation (WCO).
    Shapes: M members' scores of N responses (M, N); result (N,). Raises ValueError otherwise.
    Differs: members must have one zero and one scale, which the paper's have by training alike;
    else the one with the widest scores alone decides.
    """
    _check_members(score_MN)
    return score_MN.amin(0)


def uncertainty_weighted(score_MN: Tensor, *, coef: float) -> Tensor:
    """``mean - coef * variance`` over the members; the variance of a population (by M).

    Source: Coste et al. 2023 (arXiv:2310.02743), uncertainty-weighted optimisation (UWO).
    Shapes: M members' scores of N responses (M, N); result (N,). Raises ValueError otherwise, and
    for a negative ``coef``.
    Differs: others subtract the standard deviation, whose coefficient has another unit. The
    variance is in squares of the score: twice the scale asks for half the coefficient.
    """
    _check_members(score_MN)
    if not coef >= 0:
        raise ValueError(f"the coefficient {coef} came: it must be 0 or above, or doubt would pay")
    return score_MN.mean(0) - coef * score_MN.var(0, unbiased=False)


def ensemble_std(score_MN: Tensor) -> Tensor:
    """How far the members are apart: their standard deviation, of a population (by M).

    Source: the square root of the variance in Coste et al. 2023 (arXiv:2310.02743).
    Shapes: M members' scores of N responses (M, N); result (N,). Raises ValueError otherwise.
    """
    _check_members(score_MN)
    return score_MN.std(0, unbiased=False)


def _check_members(score_MN: Tensor) -> None:
    if score_MN.dim() != 2 or len(score_MN) < 2 or not score_MN.numel():
        raise ValueError(
            f"scores of shape {tuple(score_MN.shape)} came: a row for each member is needed, of "
            "two members and one response at least"
        )
