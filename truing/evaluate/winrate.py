"""The command `truing winrate`: which of two models a reward prefers, on the same prompts."""

from collections.abc import Sequence
from typing import Any

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import load, to_row
from truing.data.schema import Prompt
from truing.generation.engine import Sampling
from truing.generation.sample import complete
from truing.models.loading import Loading, resolve
from truing.models.model import load_policy
from truing.rewards import load_reward, score, simulated
from truing.settings_judging import SafetyConfig, WinrateConfig
from truing.stats.ratings import length_controlled_win_rate, numbered, win_rate
from truing.writing import check_output, write_json


def run(config: WinrateConfig) -> dict[str, Any]:
    """Sample once from each model for every prompt, score, and count wins; ties are a half.

    The models draw with different random numbers, so equal models tie only by chance. Rows of the
    same prompt are one cluster of the intervals.
    """
    rows = load(config.prompts, Prompt, split=config.dataset_test_split).rows[: config.num_prompts]
    prompts = [p.prompt for p in rows]
    if len(set(prompts)) < 2:
        raise ValueError(
            f"an interval needs at least two prompts, got {len(set(prompts))}: add prompts"
        )
    for name in (config.run_a, config.run_b):
        resolve(name)  # the second, too, before the first has answered everything
    if config.output_file is not None:
        check_output(config.output_file)
    # The tokenizer's settings are about the two policies.
    reward = load_reward(config.reward, Loading.of(config).beside())
    texts, scores = {}, {}
    for side, name in (("a", config.run_a), ("b", config.run_b)):
        texts[side] = completions(config, name, rows, f"winrate {side}")
        scores[side] = score(reward, prompts, texts[side])
    lengths = {side: [len(text.split()) for text in texts[side]] for side in texts}
    clusters = numbered(prompts)
    rate = win_rate(scores["a"], scores["b"], cluster_N=clusters)
    wins = [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(scores["a"], scores["b"], strict=True)]
    controlled = length_controlled_win_rate(wins, lengths["a"], lengths["b"], clusters)
    figures = {
        "run_a": config.run_a,
        "run_b": config.run_b,
        "reward": config.reward,
        "simulated": simulated(reward),
        "win_rate": rate._asdict(),
        "length_controlled_win_rate": controlled._asdict(),
        "mean_words": {side: sum(n) / len(n) for side, n in lengths.items()},
        "mean_reward": {side: sum(s) / len(s) for side, s in scores.items()},
    }
    console.table(
        f"{config.run_a} against {config.run_b}",
        {
            "prompts": len(set(clusters)),
            **({"rows": rate.n} if rate.n > len(set(clusters)) else {}),
            "win rate": f"{rate.value:.3f}  (95 %: {rate.low:.3f} to {rate.high:.3f})",
            "ties": rate.ties,
            "at equal length": f"{controlled.value:.3f}  (95 %: {controlled.low:.3f} to "
            f"{controlled.high:.3f}){' ' + controlled.reason if controlled.reason else ''}",
            **({"the reward learnt from": "simulated judgements"} if figures["simulated"] else {}),
            "mean words": f"{figures['mean_words']['a']:.1f} / {figures['mean_words']['b']:.1f}",
        },
    )
    if config.output_file is not None:
        lines = [
            {"prompt": to_row(p)["prompt"], "a": a, "b": b, "reward_a": ra, "reward_b": rb}
            for p, a, b, ra, rb in zip(
                rows, texts["a"], texts["b"], scores["a"], scores["b"], strict=True
            )
        ]
        write_json(config.output_file, {**figures, "rows": lines})
    return figures


def completions(
    config: WinrateConfig | SafetyConfig, name: str, rows: Sequence[Prompt], stream: str
) -> list[str]:
    """What the model ``name`` answers to each prompt; ``stream`` names its random numbers."""
    policy = load_policy(name, Loading.of(config))
    encoder = Encoder(policy.tokenizer, template=config.chat_template)
    sampling = Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_completion_length=config.max_completion_length,
        seed=config.seed,
        stream=stream,
    )
    done = complete(
        policy,
        encoder,
        [p.prompt for p in rows],
        sampling,
        keys=[p.key for p in rows],
        batch_size=config.generation_batch_size,
    )
    return [encoder.decode(group[0].response_ids) for group in done]
