"""What the columns of a ranking say beside its order, checked."""

import math

from truing.data.schema import Ranking


def margin_of(ranking: Ranking, row: str) -> float:
    """The margin of a ranking. Raises ValueError for one that is no finite number."""
    margin = ranking.provenance.extra.get("margin", 0.0)
    if not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ValueError(
            f"{row}: a ranking with the margin {margin!r} came: it must be a finite number, by "
            "which the better scores should differ from the worse; mend the column or drop it"
        )
    return float(margin)


def probability_of(ranking: Ranking, row: str) -> float:
    """The probability that the better of two wins, 1 if none is told.

    Raises ValueError for another number of answers, for two that tie, and beside a margin.
    """
    extra = ranking.provenance.extra
    told = extra.get("chosen_probability")
    if told is None:
        return 1.0
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0.5 <= told <= 1:
        raise ValueError(
            f"{row}: the chosen_probability {told!r} came: it must be from 0.5 to 1, the "
            "probability that the chosen answer wins; exchange the two if it is below"
        )
    if len(ranking.ranks) != 2 or (len(set(ranking.ranks)) == 1 and told != 0.5):
        raise ValueError(
            f"{row}: a chosen_probability came beside the ranks {list(ranking.ranks)}: it "
            "belongs to two answers of which one is chosen; drop the column there"
        )
    if "margin" in extra:
        raise ValueError(
            f"{row}: a margin and a chosen_probability came: each says how far apart the two "
            "scores should be; keep one of them"
        )
    return float(told)


def ratings_of(ranking: Ranking, row: str) -> tuple[float, ...]:
    """The ``scores`` that a ranking was made of. Raises ValueError for a row without."""
    scores = ranking.provenance.extra.get("scores")
    k = len(ranking.completions)
    told = list[object](scores) if isinstance(scores, list | tuple) else []
    ratings = tuple(
        float(y) for y in told if isinstance(y, int | float) and not isinstance(y, bool)
    )
    if len(told) != k or len(ratings) != k or not all(map(math.isfinite, ratings)):
        came = "no scores" if scores is None else f"the scores {scores!r}"
        raise ValueError(
            f"{row}: {came} came: regression needs a column of them, a finite number for each of "
            f"the {k} answers; rankings and pairs without are for loss_type: bradley_terry"
        )
    return ratings


def harmful_of(ranking: Ranking, row: str) -> tuple[bool, ...]:
    """Of the chosen and the rejected answer of a pair, whether it is harmful.

    Raises ValueError for a row that does not say so, and where the chosen one is the harmful one.
    """
    names = ("chosen_safe", "rejected_safe")
    told = [ranking.provenance.extra.get(name) for name in names]
    if len(ranking.completions) != 2 or any(value not in (0, 1) for value in told):
        raise ValueError(
            f"{row}: {dict(zip(names, told, strict=True))} came with {len(ranking.completions)} "
            "answers: a cost model needs pairs, and of each answer true or false"
        )
    harmful = tuple(not value for value in told)
    safest = ranking.ranks.index(min(ranking.ranks))
    if harmful[safest] and not all(harmful):
        raise ValueError(
            f"{row}: the chosen answer is harmful and the rejected one is safe: chosen must be the "
            "safer one (PKU-SafeRLHF's safer_response_id); exchange them"
        )
    return harmful
