"""The command `truing reward-bench`: a reward model on held-out pairs, beside plain baselines.

A reward model earns its name only if it beats judges that need none: the longer response wins,
and a bag of words that never sees the prompt.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import log1p
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from truing import console
from truing.data.formats import SIMULATED, load
from truing.data.schema import Comparison, Ranking, Text
from truing.rewards import Ensemble, Reward, judge, models_of, score, simulated
from truing.settings_judging import RewardBenchConfig
from truing.stats.ratings import numbered, pair_accuracy
from truing.writing import check_output, write_json

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
    train: list[Comparison] = []
    if config.train_dataset_name is not None:
        train, _ = pairs_of(load(config.train_dataset_name, Ranking).rows)
    if config.output_file is not None:
        check_output(config.output_file)
    reward = judge(config)
    models = models_of(reward)
    read = [r for r in rankings.rows if all(model.reads(r.prompt) for model in models)]
    rows, keys = pairs_of(read)
    left_out = {
        "prompts too long for the reward model, left out": len(rankings) - len(read),
        "rankings without a pair, left out": sum(len(set(r.ranks)) == 1 for r in read),
    }
    if not rows:
        raise ValueError(
            f"no pair of {rankings.name} can be scored: every prompt fills the reward model's "
            "context, or no ranking has a better and a worse response"
        )
    counts = rankings.notes | {note: count for note, count in left_out.items() if count}
    for note, count in counts.items():
        console.say(f"[yellow]{escape(note)}: {count}[/yellow]")
    margins = {"reward": reward_margins(reward, rows), "longer wins": length_margins(rows)}
    if cut := max((model.cut for model in models), default=0):  # said by the model itself
        counts["responses cut to the reward model's context"] = cut
    if train:
        margins["bag of words"] = bag_of_words(train, rows)
    marked = SIMULATED in rankings.noted
    accuracies = {name: pair_accuracy(m, keys)._asdict() for name, m in margins.items()}
    told = {
        name: f"{f['value']:.3f}  (95 %: {f['low']:.3f} to {f['high']:.3f})"
        for name, f in accuracies.items()
    }
    if isinstance(reward, Ensemble):
        told["members apart by (mean std)"] = f"{fmean(reward.stds):.3f}"
    if simulated(reward):
        told["the reward learnt from"] = "simulated judgements"
    console.table(
        f"{', '.join(config.reward)} on {len(rows)} pairs of {rankings.name}"
        f"{', judged by a simulation' if marked else ''}",
        told,
    )
    figures = {**accuracies, "counts": counts, "simulated": marked or simulated(reward)}
    if isinstance(reward, Ensemble):
        figures["ensemble_std"] = fmean(reward.stds)
    if config.output_file is not None:
        write_json(config.output_file, figures)
    return figures


def reward_margins(reward: Reward, rows: Sequence[Comparison]) -> list[float]:
    """Score of the chosen minus that of the rejected response. Each response is scored once,
    whatever the number of pairs it is in."""
    sides = [(c.prompt, plain(text)) for c in rows for text in (c.chosen, c.rejected)]
    once = list(dict.fromkeys(sides))
    scores = score(reward, [prompt for prompt, _ in once], [text for _, text in once])
    known = dict(zip(once, scores, strict=True))
    found = [known[side] for side in sides]
    return [better - worse for better, worse in zip(found[::2], found[1::2], strict=True)]


def pairs_of(rankings: Sequence[Ranking]) -> tuple[list[Comparison], list[int]]:
    """All pairs of each ranking, and the number of the prompt that each is about."""
    rows: list[Comparison] = []
    for r in rankings:
        for better, high in zip(r.completions, r.ranks, strict=True):
            for worse, low in zip(r.completions, r.ranks, strict=True):
                if high < low:
                    rows.append(Comparison(r.prompt, better, worse))
    return rows, numbered(c.prompt for c in rows)
