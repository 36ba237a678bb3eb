"""Gathering what is to be judged, and the first judge: `truing sample` and `truing compare`."""

from itertools import combinations
from pathlib import Path

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import load, save
from truing.data.schema import Comparison, Demonstration, Prompt, Provenance, Text, unfinished
from truing.generation.engine import Sampling
from truing.generation.sample import complete
from truing.models.loading import Loading
from truing.models.model import load_policy
from truing.rewards import Ensemble, judge, models_of, score, simulated
from truing.settings_judging import ETA, TAU, CompareConfig, SampleConfig
from truing.stats.best_of import gap_probability
from truing.writing import check_output

# What `save` takes: found out before the work, not after it.
ENDINGS = (".jsonl", ".jsonl.gz", ".json")


def sample(config: SampleConfig) -> Path:
    """Write completions: a jsonl row of ``prompt`` and ``completion`` for each sample."""
    check_output(config.output_file, ENDINGS)
    rows = load(config.prompts, Prompt, split=config.dataset_train_split)
    chosen = rows.rows[: config.num_prompts]
    prompts = [p.prompt for p in chosen]
    policy = load_policy(config.model_name_or_path, Loading.of(config))
    encoder = Encoder(policy.tokenizer, template=config.chat_template)
    sampling = Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_completion_length=config.max_completion_length,
        seed=config.seed,
    )
    done = complete(
        policy,
        encoder,
        prompts,
        sampling,
        keys=[p.key for p in chosen],
        samples=config.num_generations,
        batch_size=config.generation_batch_size,
    )
    out = [
        Demonstration(
            prompt,
            encoder.decode(trajectory.response_ids),
            Provenance(
                source="model",
                author=str(config.model_name_or_path),
                extra={"sample": trajectory.sample, "finish_reason": trajectory.finish},
            ),
        )
        for prompt, group in zip(prompts, done, strict=True)
        for trajectory in group
    ]
    save(out, config.output_file)
    cut = sum(t.finish == "length" for group in done for t in group)
    console.table(
        "Samples",
        {
            "prompts": len(prompts),
            "completions": len(out),
            "unfinished (cut at max_completion_length)": cut,
            "file": config.output_file,
        },
    )
    return Path(config.output_file)


def compare(config: CompareConfig) -> Path:
    """Write comparisons of samples of the same prompt, ordered by a reward."""
    check_output(config.output_file, ENDINGS)
    rows = load(config.samples, Demonstration)
    reward = judge(config)
    scores = score(reward, [d.prompt for d in rows.rows], [spoken(d.completion) for d in rows.rows])
    stds = reward.stds if isinstance(reward, Ensemble) else []
    apart = {(d.prompt, spoken(d.completion)): x for d, x in zip(rows.rows, stds, strict=False)}
    groups: dict[Text, list[tuple[float, str, str]]] = {}
    for demonstration, value in zip(rows.rows, scores, strict=True):
        end = str(demonstration.provenance.extra.get("finish_reason", "unknown"))
        judged = (value, spoken(demonstration.completion), end)
        groups.setdefault(demonstration.prompt, []).append(judged)
    source, names = "ai" if models_of(reward) else "verifier", ", ".join(config.reward)
    marked = simulated(reward)
    out: list[Comparison] = []
    equal = unclear = 0
    for prompt, group in groups.items():
        best = sorted(group, key=lambda judged: -judged[0])
        chosen = [(best[0], best[-1])] if config.pairs == "best_worst" else combinations(best, 2)
        for (high, better, end), (low, worse, other_end) in chosen:
            if high == low or better == worse:
                equal += 1
                continue
            if not clear(config, high, low):
                unclear += 1
                continue
            told: dict[str, object] = {"scores": [high, low], "finish_reason": [end, other_end]}
            if apart:
                told["ensemble_std"] = [apart[prompt, better], apart[prompt, worse]]
            who = Provenance(source, names, simulated=marked, extra=told)
            out.append(Comparison(prompt, better, worse, provenance=who))
    if not out and unclear:
        raise ValueError(
            f"none of {unclear} pairs in {config.samples} is clear enough for the reward "
            f"{names}: lower gap_threshold or gap_temperature, or sample more per prompt"
        )
    if not out:
        raise ValueError(
            f"the reward {names} tells no two completions of a prompt in {config.samples} "
            "apart: sample more per prompt (num_generations), or judge by something finer"
        )
    save(out, config.output_file)
    console.table(
        "Comparisons",
        {
            "prompts": len(groups),
            "comparisons": len(out),
            "left out, equal scores or texts": equal,
            **({"left out, below gap_threshold": unclear} if config.pairs == "reward_gap" else {}),
            "with a response that was cut": sum(bool(unfinished(c.provenance)) for c in out),
            **({"the reward learnt from": "simulated judgements"} if marked else {}),
            "file": config.output_file,
        },
    )
    return Path(config.output_file)


def clear(config: CompareConfig, high: float, low: float) -> bool:
    """Whether the reward is sure enough of a pair, where ``pairs: reward_gap`` asks for that."""
    if config.pairs != "reward_gap":
        return True
    (probability,) = gap_probability([high], [low], temperature=config.gap_temperature or TAU)
    return bool(probability >= (config.gap_threshold or ETA))


def spoken(text: Text) -> str:
    """The completion as text."""
    return text if isinstance(text, str) else text[-1].content
