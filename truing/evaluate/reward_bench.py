"""The command `truing reward-bench`: a reward model on held-out pairs, beside plain baselines.

A reward model earns its name only if it beats judges that need none: the longer response wins,
and a bag of words that never sees the prompt.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from truing import console
from truing.data.formats import SIMULATED, load
from truing.data.schema import Comparison, Ranking, Text
from truing.models.loading import Loading
from truing.rewards import ModelReward, load_reward, score
from truing.run import write_json
from truing.settings import RewardBenchConfig
from truing.stats.ratings import pair_accuracy

WORDS = 5000  # vocabulary of the bag of words
RIDGE = 1.0


def length_margins(rows: Sequence[Comparison]) -> list[float]:
    """Words in the chosen minus words in the rejected response."""
    return [float(len(plain(c.chosen).split()) - len(plain(c.rejected).split())) for c in rows]


def bag_of_words(train: Sequence[Comparison], test: Sequence[Comparison]) -> list[float]:
    """Margins on ``test`` of a logistic regression on word-count differences of ``train``.

    Bradley-Terry with a linear score of log(1 + count) for each of the ``WORDS`` most frequent
    words, ridge penalty ``RIDGE``: what can be told without the prompt or the word order.
    """
    counts = Counter(
        word for c in train for side in (c.chosen, c.rejected) for word in _words(side)
    )
    index = {word: i for i, (word, _) in enumerate(counts.most_common(WORDS))}
    x_NV, test_NV = (_features(rows, index) for rows in (train, test))

    def loss(weight_V: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin_N = x_NV @ weight_V
        value = np.logaddexp(0, -margin_N).sum() + RIDGE / 2 * weight_V @ weight_V
        return float(value), RIDGE * weight_V - x_NV.T @ expit(-margin_N)

    fit = minimize(loss, np.zeros(len(index)), jac=True, method="L-BFGS-B")
    return [float(margin) for margin in test_NV @ fit.x]


def _features(rows: Sequence[Comparison], index: dict[str, int]) -> csr_array:
    """log(1 + count) of each word, chosen minus rejected, (N, V). A text has few of the words."""
    cells: dict[tuple[int, int], float] = {}
    for n, row in enumerate(rows):
        for sign, text in ((1, row.chosen), (-1, row.rejected)):
            for word, count in Counter(_words(text)).items():
                if word in index:
                    place = n, index[word]
                    cells[place] = cells.get(place, 0.0) + sign * log1p(count)
    places = np.array([*cells], dtype=int).reshape(-1, 2)
    return csr_array(([*cells.values()], tuple(places.T)), shape=(len(rows), len(index)))


def _words(text: Text) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", plain(text).lower())


def plain(text: Text) -> str:
    """The words of a text, chat roles left out."""
    return text if isinstance(text, str) else "\n".join(message.content for message in text)


def run(config: RewardBenchConfig) -> dict[str, Any]:
    """Accuracy of a reward on the pairs of a file, with intervals clustered by prompt."""
    rankings = load(config.dataset_name, Ranking, split=config.dataset_test_split)
    rows, keys = pairs_of(rankings.rows)
    reward = load_reward(config.reward, Loading.of(config))
    if isinstance(reward, ModelReward):
        kept = [i for i, c in enumerate(rows) if reward.reads(c.prompt)]
        if len(kept) < len(rows):
            lost = len(rows) - len(kept)
            console.say(f"[yellow]prompt too long for the reward model, left out: {lost}[/yellow]")
        rows, keys = [rows[i] for i in kept], [keys[i] for i in kept]
    if not rows:
        raise ValueError(
            f"no pair of {rankings.name} can be scored: every prompt fills the reward model's "
            "context, or no ranking has a better and a worse response"
        )
    prompts = [c.prompt for c in rows]
    better = score(reward, prompts, [plain(c.chosen) for c in rows])
    worse = score(reward, prompts, [plain(c.rejected) for c in rows])
    margins = {"reward": [a - b for a, b in zip(better, worse, strict=True)]}
    margins["longer wins"] = length_margins(rows)
    if config.train_dataset_name is not None:
        train, _ = pairs_of(load(config.train_dataset_name, Ranking).rows)
        margins["bag of words"] = bag_of_words(train, rows)
    simulated = SIMULATED in rankings.noted
    figures = {name: pair_accuracy(m, keys)._asdict() for name, m in margins.items()}
    console.table(
        f"{config.reward} on {len(rows)} pairs of {rankings.name}"
        f"{', judged by a simulation' if simulated else ''}",
        {
            name: f"{f['value']:.3f}  (95 %: {f['low']:.3f} to {f['high']:.3f})"
            for name, f in figures.items()
        },
    )
    if config.output_file is not None:
        write_json(config.output_file, {**figures, "simulated": simulated})
    return figures


def pairs_of(rankings: Sequence[Ranking]) -> tuple[list[Comparison], list[int]]:
    """All pairs of each ranking, and the number of the ranking that each came from."""
    rows: list[Comparison] = []
    keys: list[int] = []
    for number, r in enumerate(rankings):
        for better, high in zip(r.completions, r.ranks, strict=True):
            for worse, low in zip(r.completions, r.ranks, strict=True):
                if high < low:
                    rows.append(Comparison(r.prompt, better, worse))
                    keys.append(number)
    return rows, keys
