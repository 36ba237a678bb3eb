"""Losses on ratings of one response at a time. Scores come in, unreduced losses go out."""

from torch import Tensor

from truing.algorithms.tokens import check_shapes


def squared_error(score_N: Tensor, rating_N: Tensor) -> Tensor:
    """Squared error ``(s - y)^2`` between a score and the rating that people gave.

    Least, over all ratings of one response, at their mean; unlike a comparison it says where zero
    is and how large one step.
    Source: the regression reward models of Wang et al. 2024 (HelpSteer2, arXiv:2406.08673), which
    regress each of several attributes; this is one of them, or their mean.
    Shapes: (N,) each; result (N,). Raises ValueError when shapes differ, or for a rating that is no
    finite number. A score of NaN gives NaN, for the training loop to stop at.
    Differs: there a model has a score for each attribute, and they are weighed afterwards; here it
    has one. Some libraries halve the error, which is a factor of the learning rate.
    """
    check_shapes(score=score_N, rating=rating_N)
    if not bool(rating_N.isfinite().all()):
        wrong: list[float] = rating_N[~rating_N.isfinite()].tolist()  # pyright: ignore
        raise ValueError(f"the ratings {wrong[:5]} came: each must be a finite number")
    return (score_N - rating_N).square()
