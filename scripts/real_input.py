"""The loop on real input, by the public commands: a pretrained story model learns to be cheerful.

SFT on stories, pairs of its own continuations, a sentiment lexicon as judge, a reward model; then
DPO, PPO at a fixed KL coefficient, and PPO with one that is drawn to a target. Sentiment and
fluency of held-out continuations, before and after. docs/real-data.md shows what this prints.
"""

import argparse
import gzip
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.lexicon_reward import sentiment
from truing.cli import main as truing
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.schema import Demonstration
from truing.models.model import load_policy, sequence_logps
from truing.run import Run
from truing.stats.ratings import mean, paired_difference

QUICK = ("--attn-implementation", "eager", "--use-cpu")
COSINE = ("--lr-scheduler-type", "cosine", *QUICK)
LENGTH = 64  # tokens of a continuation
TRAINED = ("dpo", "ppo", "ppo_adaptive")
KL_TARGET = 8.0  # nats per continuation
LAST = 20  # rollouts at the end, over which a KL is read


def first_sentences(stories: Path, out: Path, n: int) -> None:
    """Prompts: the first sentence of each story."""
    with gzip.open(stories, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    prompts = [re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0] for text in texts]
    lines = [json.dumps({"prompt": p}) for p in dict.fromkeys(prompts) if 20 < len(p) < 200][:n]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def command(*words: object) -> None:
    """Run a truing command; a failure ends the script."""
    code = truing([str(word) for word in words])
    if code:
        raise SystemExit(code)


def bits_per_character(model: Path, samples: Path) -> list[float]:
    """Of each completion given its prompt, under ``model``: how odd the text looks to it."""
    policy = load_policy(model)
    encoder = Encoder(policy.tokenizer, max_length=policy.context)
    rows = [d for d in load(samples, Demonstration).rows if str(d.completion)]
    encoded = [encoder.encode(d.prompt, d.completion) for d in rows]
    # Without the closing token: the original model never saw one.
    whole = [t._replace(response=t.response[:-1]) for t in encoded if t is not None]
    nats = sequence_logps(policy, whole)
    return [
        float(-logp) / math.log(2) / len(str(d.completion))
        for logp, d in zip(nats, rows, strict=True)
    ]


def loop(data: Path, out: Path, *, prompts: int = 600, held_out: int = 200) -> dict[str, Any]:
    """Run the commands in ``out`` on the files of ``data``; the figures before and after."""
    os.environ["LEXICON"] = str(data / "lexicons" / "vader_lexicon.txt")
    model, text = data / "models" / "stories260K-hf", data / "text" / "tinystories"
    out.mkdir(parents=True, exist_ok=True)
    first_sentences(text / "tinystories_cased_train.jsonl.gz", out / "prompts.jsonl", prompts)
    first_sentences(text / "tinystories_lowercase_valid.jsonl.gz", out / "held_out.jsonl", held_out)
    command(
        *("sft", "--output-dir", out / "sft", "--model-name-or-path", model),
        *("--dataset-name", text / "tinystories_cased_train.jsonl.gz", "--max-length", 200),
        *("--max-steps", 60, "--per-device-train-batch-size", 16, "--learning-rate", 3e-4, *COSINE),
    )
    command(
        *("sample", "--model-name-or-path", out / "sft", "--prompts", out / "prompts.jsonl"),
        *("--num-generations", 4, "--max-completion-length", LENGTH),
        *("--output-file", out / "samples.jsonl"),
    )
    command(
        *("compare", "--samples", out / "samples.jsonl"),
        *("--reward", "examples.lexicon_reward:sentiment"),
        *("--output-file", out / "comparisons.jsonl"),
    )
    command(
        *("reward", "--output-dir", out / "reward", "--model-name-or-path", out / "sft"),
        *("--dataset-name", out / "comparisons.jsonl", "--max-length", 200),
        *("--per-device-train-batch-size", 16, "--num-train-epochs", 3, "--learning-rate", 1e-3),
        *COSINE,
    )
    command(
        *("dpo", "--output-dir", out / "dpo", "--model-name-or-path", out / "sft"),
        *("--dataset-name", out / "comparisons.jsonl", "--learning-rate", 3e-4, "--beta", 0.1),
        *("--per-device-train-batch-size", 16, "--num-train-epochs", 2, *COSINE),
    )
    reinforce(out, "ppo", "--max-steps", 40, "--kl-coef", 1.0)
    adaptive = ("--kl-target", KL_TARGET, "--kl-horizon", 400, "--kl-coef", 0.8)
    reinforce(out, "ppo_adaptive", "--max-steps", 80, *adaptive)
    return figures(model, out)


def reinforce(out: Path, name: str, *settings: object) -> None:
    """PPO against the reward model, on the prompts that the comparisons were about."""
    command(
        *("ppo", "--output-dir", out / name, "--model-name-or-path", out / "sft"),
        *("--dataset-name", out / "prompts.jsonl", "--reward", out / "reward"),
        *("--response-length", LENGTH, "--temperature", 1.0),
        *("--value-model", "policy", "--value-learning-rate", 1e-3, "--lam", 0.95),
        *("--per-device-train-batch-size", 64, "--num-mini-batches", 2, "--num-ppo-epochs", 2),
        *("--learning-rate", 1e-4, "--lr-scheduler-type", "constant", *QUICK),
        *settings,
    )


def figures(model: Path, out: Path) -> dict[str, Any]:
    """Sample held-out continuations, and measure their sentiment and fluency before and after; how
    far PPO went."""
    mood: dict[str, Sequence[float]] = {}
    odd: dict[str, list[float]] = {}
    for name in ("sft", *TRAINED):
        told = out / f"held_out_{name}.jsonl"
        command(
            *("sample", "--model-name-or-path", out / name, "--prompts", out / "held_out.jsonl"),
            *("--max-completion-length", LENGTH, "--seed", 1, "--output-file", told),
        )
        rows = load(told, Demonstration).rows
        mood[name] = sentiment([d.prompt for d in rows], [str(d.completion) for d in rows])
        odd[name] = bits_per_character(model, told)
    return {
        "sentiment": {name: mean(values)._asdict() for name, values in mood.items()},
        "sentiment_gain": {n: paired_difference(mood[n], mood["sft"])._asdict() for n in TRAINED},
        "bits_per_character": {name: mean(values)._asdict() for name, values in odd.items()},
        "kl": {name: last_kl(out / name) for name in TRAINED if name != "dpo"},
        "win_rate_by_reward_model": {name: win_rate(out, name) for name in TRAINED},
    }


def last_kl(run: Path) -> float:
    """Mean KL in nats per continuation, over the last rollouts."""
    seen = [m["objective/kl"] for m in Run.open(run).metrics() if "objective/kl" in m]
    return fmean(float("nan") if kl is None else kl for kl in seen[-LAST:])


def win_rate(out: Path, name: str) -> Any:
    """The win rate against SFT on the held-out prompts, by the reward model."""
    command(
        *("winrate", out / name, out / "sft", "--prompts", out / "held_out.jsonl"),
        *("--reward", out / "reward", "--max-completion-length", LENGTH),
        *("--output-file", out / f"winrate_{name}.json"),
    )
    return json.loads((out / f"winrate_{name}.json").read_text(encoding="utf-8"))["win_rate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with lexicons/, models/ and text/")
    parser.add_argument("out", type=Path, help="folder for the runs")
    options = parser.parse_args()
    print(json.dumps(loop(options.data, options.out), indent=2))


if __name__ == "__main__":
    main()
