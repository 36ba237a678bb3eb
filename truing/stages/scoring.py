"""What a reward model learns from: rankings in tokens, and the losses on their scores.

A comparison is a ranking of two. Each response is read once, whatever the number of pairs it is in,
and all that is said of a prompt shares a weight of 1 (InstructGPT, arXiv:2203.02155, section 3.5).
"""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from truing.algorithms.comparison import (
    centering,
    ranked_pairs,
    score_l2,
    soft_bradley_terry,
    tied_pairs,
)
from truing.algorithms.cost import cost_sign
from truing.algorithms.ranking import plackett_luce
from truing.algorithms.rating import squared_error
from truing.algorithms.tokens import reduce_mean
from truing.data.batch import Encoder
from truing.data.formats import Dataset
from truing.data.layout import Tokens, padded
from truing.data.schema import Ranking
from truing.stages.columns import harmful_of, margin_of, probability_of, ratings_of
from truing.stages.learner import Batch, Place, Sums, stat

Pairs = tuple[tuple[int, int], ...]


class Ranked(NamedTuple):
    """The responses to one prompt in tokens, their (better, worse) pairs, and what is told of them.

    ``margin``: what the better score should be ahead by. ``probability``: how probable it is that
    the better one wins. ``ties``: pairs of equals that are learnt from. ``ranks``,
    ``ratings``, ``harmful``: of all responses, for a loss that needs them.
    """

    responses: tuple[Tokens, ...]
    pairs: Pairs
    margin: float = 0.0
    probability: float = 1.0
    ties: Pairs = ()
    ranks: tuple[int, ...] = ()
    ratings: tuple[float, ...] = ()
    harmful: tuple[bool, ...] = ()

    @property
    def asked(self) -> bool:
        """Whether it says anything about accuracy: answers that are equal have no right order."""
        return bool(self.pairs)


class Score:
    """Bradley-Terry over the pairs of each ranking, averaged over the rankings of the step.

    ``center``, ``l2``: weights of `centering` for each pair and of `score_l2` for each response.
    """

    def __init__(
        self, center: float | None, place: Place = padded, *, l2: float | None = None
    ) -> None:
        self.center, self.place, self.l2 = center or 0.0, place, l2 or 0.0

    def length(self, row: Ranked) -> int:
        return max(tokens.length for tokens in row.responses)

    def collate(self, rows: Sequence[Ranked]) -> Batch:
        flat: list[Tokens] = []
        better: list[int] = []
        worse: list[int] = []
        weight: list[float] = []
        ordered: list[float] = []
        margin: list[float] = []
        label: list[float] = []
        for row in rows:
            pairs, ties = len(row.pairs), len(row.ties)
            better += [len(flat) + i for i, _ in (*row.pairs, *row.ties)]
            worse += [len(flat) + j for _, j in (*row.pairs, *row.ties)]
            weight += [1 / (pairs + ties) for _ in range(pairs + ties)]
            ordered += [1 / pairs for _ in range(pairs)] + [0.0] * ties
            margin += [row.margin] * pairs + [0.0] * ties
            label += [row.probability] * pairs + [0.5] * ties
            flat += row.responses
        extra = {
            "better": torch.tensor(better, dtype=torch.long),
            "worse": torch.tensor(worse, dtype=torch.long),
            "weight": torch.tensor(weight),
            "ordered": torch.tensor(ordered),
            "margin": torch.tensor(margin),
            "label": torch.tensor(label),
            "share": torch.tensor([1 / len(row.responses) for row in rows for _ in row.responses]),
        }
        return Batch(self.place(flat), extra)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"rankings": float(batch.extra["weight"].sum())}

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        return self.judged(model(batch.layout), batch, totals)

    def judged(
        self, score_B: Tensor, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        """The loss and the figures of scores of which the higher is the better."""
        difference_N = score_B[batch.extra["better"]] - score_B[batch.extra["worse"]]
        right_N = (difference_N > 0).float() + 0.5 * (difference_N == 0).float()
        # Answers that were judged equal have no right order.
        ordered_N = batch.extra["ordered"]
        stats = {
            "accuracy": stat(right_N, ordered_N),
            "margin": stat(difference_N, ordered_N),
            "mean_reward": stat(score_B),
        }
        loss_N = self.losses(score_B, batch)
        if self.l2:  # the mean square of each ranking's scores, in parts
            loss_N = torch.cat([loss_N, self.l2 * score_l2(score_B) * batch.extra["share"]])
        return reduce_mean(loss_N, totals["rankings"]), stats

    def losses(self, score_B: Tensor, batch: Batch) -> Tensor:
        """Losses that add up to 1 of each ranking's."""
        extra = batch.extra
        better_N, worse_N = score_B[extra["better"]], score_B[extra["worse"]]
        loss_N = soft_bradley_terry(better_N, worse_N, extra["label"], extra["margin"])
        if self.center:
            loss_N = loss_N + self.center * centering(better_N, worse_N)
        return loss_N * extra["weight"]


class Listed(Score):
    """Plackett-Luce over each ranking as a whole, averaged over the rankings of the step."""

    def collate(self, rows: Sequence[Ranked]) -> Batch:
        batch = super().collate(rows)
        most, start = max(len(row.responses) for row in rows), 0
        place_PK, rank_PK, mask_PK = torch.zeros(3, len(rows), most, dtype=torch.long)
        for p, row in enumerate(rows):
            k = len(row.responses)
            place_PK[p, :k] = torch.arange(start, start + k)
            rank_PK[p, :k] = torch.tensor(row.ranks)
            mask_PK[p, :k] = 1
            start += k
        whole = {"place": place_PK, "rank": rank_PK, "mask": mask_PK}
        return Batch(batch.layout, {**batch.extra, **whole})

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"rankings": float(len(batch.extra["rank"]))}

    def losses(self, score_B: Tensor, batch: Batch) -> Tensor:
        extra = batch.extra
        loss_P = plackett_luce(score_B[extra["place"]], extra["rank"], extra["mask"])
        better_N, worse_N = score_B[extra["better"]], score_B[extra["worse"]]
        centered_N = self.center * centering(better_N, worse_N) * extra["weight"]
        return torch.cat([loss_P, centered_N])


class Rated(Score):
    """Squared error of each score, a mean over the responses of a ranking and over the rankings."""

    def collate(self, rows: Sequence[Ranked]) -> Batch:
        batch = super().collate(rows)
        told = {
            "rating": torch.tensor([y for row in rows for y in row.ratings]),
            "rankings": torch.tensor(len(rows)),
        }
        return Batch(batch.layout, {**batch.extra, **told})

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"rankings": float(batch.extra["rankings"])}

    def losses(self, score_B: Tensor, batch: Batch) -> Tensor:
        return squared_error(score_B, batch.extra["rating"]) * batch.extra["share"]


class Cost(Score):
    """Bradley-Terry on costs, of which the safer has the lower, and the cross-entropy of their
    signs: of both sides of a pair, so twice the mean over its responses."""

    def collate(self, rows: Sequence[Ranked]) -> Batch:
        batch = super().collate(rows)
        harmful = torch.tensor([harm for row in rows for harm in row.harmful])
        return Batch(batch.layout, {**batch.extra, "harmful": harmful})

    def loss(
        self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        cost_B = model(batch.layout)
        loss, stats = self.judged(-cost_B, batch, totals)
        del stats["mean_reward"]
        right_B = ((cost_B > 0) == batch.extra["harmful"]).float()
        return loss, stats | {"accuracy_sign": stat(right_B), "mean_cost": stat(cost_B)}

    def losses(self, score_B: Tensor, batch: Batch) -> Tensor:
        sign_B = cost_sign(-score_B, batch.extra["harmful"])
        return torch.cat([super().losses(score_B, batch), 2 * sign_B * batch.extra["share"]])


class Judged(NamedTuple):
    """A ranking as it came, where, and the responses that are left with their ranks and their
    places in it."""

    ranking: Ranking
    row: str
    kept: tuple[tuple[Tokens, int], ...]
    places: tuple[int, ...]

    def pairs(self, ordered: Sequence[tuple[int, int]], counts: Counter[str]) -> Pairs:
        """Those of the pairs whose texts differ; the others are counted."""
        found = tuple((i, j) for i, j in ordered if self.kept[i][0] != self.kept[j][0])
        if len(found) < len(ordered):
            counts["pairs equal after truncation, left out"] += len(ordered) - len(found)
        return found

    def unused(self, counts: Counter[str]) -> None:
        """Count what the loss does not use."""
        if "margin" in self.ranking.provenance.extra:
            counts["margins, which this loss does not use"] += 1
        if self.ranking.provenance.extra.get("chosen_probability") is not None:
            counts["chosen probabilities, which this loss does not use"] += 1


def in_pairs(judged: Judged, counts: Counter[str], ties: str) -> Ranked | None:
    """For Bradley-Terry. A pair whose probability is 1/2 is a tie that someone wrote down, and
    stays whatever ``ties`` says."""
    responses, ranks = zip(*judged.kept, strict=True)
    margin = margin_of(judged.ranking, judged.row)
    probability = probability_of(judged.ranking, judged.row)
    even = probability == 0.5
    pairs = () if even else judged.pairs(ranked_pairs(ranks), counts)
    tied = [(0, 1)][: len(ranks) - 1] if even else tied_pairs(ranks) if ties == "half" else []
    # Equal texts have equal scores: to learn that they tie is to learn nothing.
    equals = judged.pairs(tied, counts)
    if not pairs and not equals:
        counts["rankings without a pair, left out"] += 1
        return None
    return Ranked(responses, pairs, margin, probability, equals)


def as_a_whole(judged: Judged, counts: Counter[str], ties: str) -> Ranked | None:
    """For Plackett-Luce. What is left of a ranking is one too, so a response may be missing."""
    ranks_of: dict[Tokens, set[int]] = {}
    for tokens, rank in judged.kept:
        ranks_of.setdefault(tokens, set()).add(rank)
    # One text at two places is no order; at one place it is a tie.
    kept = [(tokens, rank) for tokens, rank in judged.kept if len(ranks_of[tokens]) == 1]
    if len(kept) < len(judged.kept):
        counts["answers equal after truncation, left out"] += len(judged.kept) - len(kept)
    if len(kept) < 2:
        counts["rankings without a pair, left out"] += 1
        return None
    responses, ranks = zip(*kept, strict=True)
    if ties == "drop" and len(set(ranks)) < len(ranks):
        counts["rankings with ties, left out"] += 1
        return None
    judged.unused(counts)
    pairs, equals = tuple(ranked_pairs(ranks)), tuple(tied_pairs(ranks))
    return Ranked(responses, pairs, ties=equals, ranks=ranks)


def as_ratings(judged: Judged, counts: Counter[str], ties: str) -> Ranked:
    """For regression. The pairs that figures are told of are those of the ratings."""
    ratings = ratings_of(judged.ranking, judged.row)
    judged.unused(counts)
    kept = tuple(ratings[place] for place in judged.places)
    best = sorted(set(kept), reverse=True)
    pairs = tuple(ranked_pairs([best.index(rating) for rating in kept]))
    return Ranked(tuple(tokens for tokens, _ in judged.kept), pairs, ratings=kept)


def as_costs(judged: Judged, counts: Counter[str], ties: str) -> Ranked | None:
    """For a cost model. Without one of the two there is no pair, and its sign goes along."""
    harmful = harmful_of(judged.ranking, judged.row)
    judged.unused(counts)
    responses, ranks = zip(*judged.kept, strict=True)
    pairs = judged.pairs(ranked_pairs(ranks), counts)
    if not pairs:
        counts["rankings without a pair, left out"] += 1
        return None
    return Ranked(responses, pairs, harmful=harmful)


class Recipe(NamedTuple):
    """What is learnt from a ranking, and what its row becomes."""

    objective: type[Score]
    row: Callable[[Judged, Counter[str], str], Ranked | None]


RECIPES: dict[str, Recipe] = {
    "bradley_terry": Recipe(Score, in_pairs),
    "plackett_luce": Recipe(Listed, as_a_whole),
    "regression": Recipe(Rated, as_ratings),
    "cost": Recipe(Cost, as_costs),
}


def encode_rankings(
    dataset: Dataset[Ranking],
    encoder: Encoder,
    *,
    loss_type: str = "bradley_terry",
    ties: str = "drop",
) -> list[Ranked]:
    """Token rankings for a recipe; a response or a ranking that is left out is counted.

    ``ties``: what becomes of answers with equal ranks (`truing.settings.RewardTopic`).
    """
    rows: list[Ranked] = []
    for number, ranking in enumerate(dataset.rows):
        own = dataset.row_numbers[number] if dataset.row_numbers else number + 1
        encoded = list(encoder.encode_each(ranking.prompt, ranking.completions))
        if not encoded:
            continue
        places = tuple(i for i, tokens in enumerate(encoded) if tokens is not None)
        if not places:
            encoder.counts["rankings without a pair, left out"] += 1
            continue
        kept = [(t, r) for t, r in zip(encoded, ranking.ranks, strict=True) if t is not None]
        judged = Judged(ranking, f"{dataset.name}, row {own}", tuple(kept), places)
        if made := RECIPES[loss_type].row(judged, encoder.counts, ties):
            rows.append(made)
    return rows


class Scale(NamedTuple):
    """The mean and the standard deviation of ratings."""

    mean: float
    std: float

    @classmethod
    def of(cls, rows: Sequence[Ranked]) -> "Scale":
        """That of all ratings, each counting alike. Raises ValueError where they are all equal."""
        ratings = [rating for row in rows for rating in row.ratings]
        std = statistics.pstdev(ratings)
        if not std:
            raise ValueError(
                f"all {len(ratings)} ratings are {ratings[0]:g}, so there is nothing to learn from "
                "them: rate with more than one number"
            )
        return cls(statistics.fmean(ratings), std)

    def standard(self, rows: Sequence[Ranked]) -> list[Ranked]:
        """The rows with ratings of mean 0 and standard deviation 1, if they are those measured."""
        return [
            row._replace(ratings=tuple((y - self.mean) / self.std for y in row.ratings))
            for row in rows
        ]
