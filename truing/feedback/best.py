"""`truing best`: the best of each prompt's samples by a reward, as a demonstration to imitate."""

from pathlib import Path

from truing import console
from truing.data.formats import load, save
from truing.data.schema import Demonstration, Provenance, Text, unfinished
from truing.feedback.collect import ENDINGS, spoken
from truing.rewards import judge, models_of, score, simulated
from truing.settings_judging import BestConfig
from truing.writing import check_output


def best(config: BestConfig) -> Path:
    """Write a demonstration for each prompt (docs/best-of-n.md): the highest-scored of its samples,
    the first of equals."""
    check_output(config.output_file, ENDINGS)
    rows = load(config.samples, Demonstration)
    reward = judge(config)
    scores = score(reward, [d.prompt for d in rows.rows], [spoken(d.completion) for d in rows.rows])
    groups: dict[Text, list[tuple[float, Demonstration]]] = {}
    for row, value in zip(rows.rows, scores, strict=True):
        groups.setdefault(row.prompt, []).append((value, row))
    chosen = {prompt: group for prompt, group in groups.items() if len(group) > 1}
    if not chosen:
        raise ValueError(
            f"every prompt of {config.samples} has a single completion, so there is no best: "
            "sample more per prompt (num_generations)"
        )
    source = "ai" if models_of(reward) else "verifier"
    marked = simulated(reward)
    out: list[Demonstration] = []
    for group in chosen.values():
        high, row = max(group, key=lambda judged: judged[0])
        told: dict[str, object] = {
            "n": len(group),
            "score": high,
            "scores": [value for value, _ in group],
            "sampled_from": row.provenance.author,
        }
        if "finish_reason" in row.provenance.extra:
            told["finish_reason"] = row.provenance.extra["finish_reason"]
        who = Provenance(source, ", ".join(config.reward), simulated=marked, extra=told)
        out.append(Demonstration(row.prompt, row.completion, who))
    save(out, config.output_file)
    sizes = sorted(len(group) for group in chosen.values())
    equal = sum(len({value for value, _ in group}) == 1 for group in chosen.values())
    console.table(
        "Best of n",
        {
            "prompts": len(groups),
            "demonstrations": len(out),
            "n, completions per prompt": f"{sizes[0]} to {sizes[-1]}",
            "left out, a single completion": len(groups) - len(chosen),
            "of equal scores, the first taken": equal,
            "that were cut": sum(bool(unfinished(d.provenance)) for d in out),
            "mean score of all": round(sum(scores) / len(scores), 4),
            "mean score of the best": round(
                sum(max(value for value, _ in group) for group in chosen.values()) / len(chosen), 4
            ),
            **({"the reward learnt from": "simulated judgements"} if marked else {}),
            "file": config.output_file,
        },
    )
    return Path(config.output_file)
