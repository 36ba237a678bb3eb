"""docs/performance.md, from the records alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import (
    DEFAULT,
    GOALS,
    GPU_DEFAULT,
    NOTHING,
    Asked,
    Goal,
    Key,
    figures,
    key_of,
    reaches,
    tally,
    verdicts,
)
from benchmarks.work import ENDS, GPU_ROWS, RESPONSE, SHAPES, WORKLOADS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RECORDS = ROOT / "docs" / "performance"
WHERE = RECORDS / "where.json"
Record = Mapping[str, Any]

HEAD = f"""# Performance

*Written by `make bench` from what it measured.*

Truing beside TRL on the same work: the same model (a Llama of random weights), the same token ids
in the same order, the same loss, optimiser, clipping of gradients and batches, no gradient
checkpointing. Each side is a process of its own that stays alive; they take a timed segment by
turns (three steps, or one of what samples), so whatever the machine does meanwhile falls on all of
them. A ratio is taken within a round; its median, and in brackets the least and the most, are told
of all rounds. A ratio of 2 means twice the tokens a second.

- **Useful tokens** are those that are not padding; for what samples (GRPO, RLOO, PPO, sampling),
  the tokens of completions. **Memory** is the peak of resident memory while steps are taken, as a
  share of plain TRL's.
- **Plain** is TRL as installed; **tuned** is TRL with settings of the machine: thresholds of malloc
  that keep freed memory, and OpenMP's waiting, as Truing sets both for itself; and
  `torch.set_float32_matmul_precision("medium")`, where that keeps the accuracy of float32 (on a CPU
  with AMX it does not, and neither side has it) and not for sampling, which it slows down.
- In **float32** on a CPU with AMX, Truing makes its large products digit by digit, with errors
  of float32's size ([engine.md](engine.md#float32-products) has the figures and what differs); on
  other CPUs its products are torch's.
- **MFU** is the share of the best matrix multiply seen in the same run, in the same number of
  bits and by whichever side's way, that useful work comes to, as if each sequence were computed
  alone and without padding. A prompt that is read once for several responses counts for each of
  them, so a share above 100 % is possible. **x plain at 100 %** is the ratio that a share of 100 %
  would be: where it is below what is asked, plain TRL is already nearer to what the machine can do
  than the floor supposes. Of what samples, a last figure, if there is one, is the share
  while Truing learns, without its sampling.
- **Loss** and **gradient** say how far the two sides are apart in the first optimiser step: the
  loss in its own unit, the gradient as the norm of the difference over the norm. GRPO, RLOO and PPO
  learn in that first step from given responses, the same for both; those of PPO are as long as may
  be, for behind a shorter one TRL's critic learns from one position more. TRL's PPO whitens
  advantages by the unbiased variance, which alone parts the gradients by 1e-3 at this size. They
  are compared behind clipping; the norm by which TRL clips, torch's, loses some of the sum of
  millions of squares on a CPU.
- Prompts have 64 to 256 tokens, responses 32 to 256, log-normal; pairs share the prompt. What
  samples draws up to {RESPONSE} tokens. Each side draws words of its own, but a response ends where
  it ends on the other: that is drawn beforehand, as if it came once in {ENDS} tokens. TRL's PPO
  samples all {RESPONSE} and cuts them.
- Sampling alone is greedy, by a model that walks through its words in a random order, up to the
  first of a set of one word in {ENDS}. So lengths differ, and are the same on both sides. The share
  of responses that are the same, token for token, is told; that a cache is right, tests say.
- The pass of the reference that DPO and KTO make before the first step is charged to the steps.
"""
CONCLUDE = """## What to conclude

{found}
Ratios travel better than tokens a second, and neither travels far: with other lengths, less of a
shared prompt, or on a GPU, they will be others. So they will on a machine that is shared: that of
DPO to plain TRL in float32 was 2.3 once, in an hour that slowed all sides. Run
`python -m benchmarks {example}` on your machine, or `make bench` for all of this page. TRL's
own defaults are not what stands here: gradient checkpointing, which it switches on, would save it
memory and cost it time.
"""
MISSED = """Goals that are not reached on a CPU, and the MFU that each of speed would take:

{rows}

What the share lacks: a step's products find their numbers in colder caches than the best one seen,
and what is not products does not count; [where the time goes](#where-the-time-goes) has it. A
decode step waits for weights, and its share is low on any side.
"""
SPENT = """Shares of a step of Truing's, alone on the machine (`python -m benchmarks where`, {date},
commit {commit}, {machine}; float32, shape {shape}). The rest is torch's own operations and Python.
"""
ON_GPU = "On a GPU, bf16 against bf16"
GPU = f"""## {ON_GPU}

No GPU was at hand when this page was written, so nothing on it was measured on one. `python -m
benchmarks all --gpu` runs the same comparisons there, in bfloat16, with shapes of 0.5, 1.5 and 8
billion parameters. [One GPU](one-gpu.md) tells what the recipes take.
"""
GPU_READ = """Weights, moments and passes of both sides are in bfloat16, TRL's by autocast besides.
A step has more rows than on a CPU: {rows}; of PPO half of that.
Memory is that of the GPU. In 16 bits greedy responses part where two words are nearly as likely, so
fewer are equal. What is not in the table was not measured.
Asked for are twice TRL's speed in DPO, GRPO and PPO, and an MFU of {share:.0%} in training. Below
that: {low}.
Sampling, which is a part of GRPO and PPO, waits for weights, so of those it is the MFU of their
learning that is meant, where it was timed. {known}
"""
UNKNOWN = "Why others are below was not looked into on a card."
KNOWN = "[Where the time goes on a GPU](#where-the-time-goes-on-a-gpu) has what the shares lack."
SPENT_ON_GPU = """Kernels of a step of Truing's by what they compute, from one under torch's
profiler, as shares of the time of others without it (`python -m benchmarks where --gpu`). In the
rest no kernel ran: the GPU waited for the host. Of what samples, the shares of its phases too:
sampling, scoring, reading by reference and critic, learning.
"""
PHASES = ("generate", "score", "forward", "learn")
# The share of a GPU's peak that training is asked for.
SHARE = 0.4


def saved() -> list[Record]:
    """The comparisons that there are: those of the default set in its order, then others."""
    files = sorted(RECORDS.glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    found = [record for record in found if "workload" in record]
    places = {key: i for i, key in enumerate([*DEFAULT, *GPU_DEFAULT])}
    return sorted(found, key=lambda r: places.get(key_of(r), len(places)))


def spent() -> Record | None:
    """Where the time of steps goes, as `benchmarks.where` measured it."""
    return json.loads(WHERE.read_text(encoding="utf-8")) if WHERE.exists() else None


def where_on_gpu(shape: str) -> Path:
    return RECORDS / f"where-gpu-{shape}.json"


def spent_on_gpu() -> list[Record]:
    """The same on a GPU, as `benchmarks.where_gpu` measured it, by shapes."""
    files = map(where_on_gpu, SHAPES)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def file_of(key: Key) -> Path:
    return RECORDS / f"{'-'.join(key)}.json"


def render(
    records: Sequence[Record], where: Record | None = None, where_gpu: Sequence[Record] = ()
) -> str:
    """The page, of comparisons and, if that was measured, of `spent` and `spent_on_gpu`."""
    on_cpu = [r for r in records if r["device"] == "cpu"]
    on_gpu = [r for r in records if r["device"] == "gpu"]
    named = {
        "Training, fp32 against fp32": [r for r in on_cpu if trains(r, "fp32")],
        "Sampling, against `transformers.generate`": [
            r for r in on_cpu if r["workload"].startswith("sampling")
        ],
        "Training, bf16 against bf16": [r for r in on_cpu if trains(r, "bf16")],
        ON_GPU: on_gpu,
    }
    parts = [HEAD, conclusion(on_cpu, on_gpu)]
    known = KNOWN if where_gpu else UNKNOWN
    parts += ["\n".join(section(title, rows, known)) for title, rows in named.items() if rows]
    parts += [] if on_gpu else [GPU]
    parts += ["\n".join(shares(where))] if where else []
    parts += ["\n".join(shares_on_gpu(where_gpu))] if where_gpu else []
    return "\n".join([*parts, "\n".join(made(records))])


def write() -> None:
    """The page of all records that there are."""
    PAGE.write_text(render(saved(), spent(), spent_on_gpu()), encoding="utf-8")


def differ(tokens: Sequence[int]) -> bool:
    """Whether the sides' tokens are more than a hundredth apart."""
    return bool(tokens) and max(tokens) > 1.01 * min(tokens)


def trains(record: Record, precision: str) -> bool:
    return record["precision"] == precision and not record["workload"].startswith("sampling")


def conclusion(records: Sequence[Record], on_gpu: Sequence[Record]) -> str:
    text = ""
    for where, some in {"a CPU": records, "a GPU": on_gpu}.items():
        (held, floors), (reached, goals) = tally([r for r in some if "failed" not in r]).values()
        if floors or goals:
            text += f"On {where} {held} of {floors} floors hold"
            text += f" and {reached} of {goals} goals are reached" if goals else ""
            text += "; the tables show which.\n"
    measured = [r for r in records if "failed" not in r and trains(r, "fp32")]
    if measured:
        by = sorted(measured, key=lambda r: r["ratio_plain"]["median"])
        low, high = (
            f"{r['ratio_plain']['median']:.1f} times ({r['workload']})" for r in (by[0], by[-1])
        )
        text += f"Training takes {low} to {high} the tokens a second of plain TRL.\n"
    example = f"{records[0]['workload']} --shape {records[0]['shape']}" if records else "dpo"
    more = "\n".join(missed(records))
    return CONCLUDE.format(found=text, example=example) + (
        "\n" + MISSED.format(rows=more) if more else ""
    )


def missed(records: Sequence[Record]) -> Iterator[str]:
    """Of each goal that is not reached: how far it is, of speed in shares of the machine's peak."""
    for record in records:
        if "failed" in record:
            continue
        for name, (asked, value, sign) in figures(record).items():
            if not asked.goal or reaches(asked.goal, value, sign):
                continue
            if name == "memory":
                yield f"- {label(record)}, memory: {value:.4f} of {asked.goal:g}"
            else:
                share = record["mfu"]["truing"]
                yield (
                    f"- {label(record)}, x {name}: {value:.2f} of {asked.goal:g}, by an MFU of "
                    f"{100 * share:.0f} %; it would take {100 * share * asked.goal / value:.0f} %"
                )


def section(title: str, records: Sequence[Record], known: str) -> Iterator[str]:
    """Two tables: ratios beside what is asked of them, and what they come from; ``known``: whether
    it was seen where the time goes on a GPU, in words."""
    yield from (f"## {title}", "")
    if title == ON_GPU:
        many = ", ".join(f"{n} times for {s}" for s, n in GPU_ROWS.items())
        low = ", ".join(idle(records)) or "none"
        yield GPU_READ.format(rows=many, share=SHARE, low=low, known=known)
    yield "| | x tuned | floor / goal | x plain | floor / goal | memory | floor / goal |"
    yield "|---|---|---|---|---|---|---|"
    done = [r for r in records if "failed" not in r]
    for record in done:
        goal = GOALS.get(key_of(record), Goal(NOTHING, NOTHING, NOTHING))
        told = verdicts(record)
        cells = [
            ratio(record["ratio_tuned"], told.get("tuned")),
            asked(goal.tuned),
            ratio(record["ratio_plain"], told.get("plain")),
            asked(goal.plain),
            marked(f"{record['memory_plain']:.2f}", told.get("memory")),
            asked(goal.memory),
        ]
        yield f"| {label(record)} | {' | '.join(cells)} |"
    yield from ("", "Bold: at its goal; *italic*: below its floor.", "")
    names = ", ".join(done[0]["peak_mb"]).replace("truing", "Truing") if done else ""
    yield f"| | tokens/s: {names} | peak MB | MFU, % | x plain at 100 % | loss | gradient |"
    yield "|---|---|---|---|---|---|---|"
    for record in done:
        speed = ", ".join(f"{v['median']:.0f}" for v in record["tokens_per_second"].values())
        peak = ", ".join(f"{v:.0f}" for v in record["peak_mb"].values())
        share = ", ".join(f"{100 * v:.0f}" for v in record["mfu"].values())
        share += f" | {record['ratio_plain']['median'] / record['mfu']['truing']:.1f}"
        apart = [small(record[f"{name}_difference"]) for name in ("loss", "gradient")]
        if "equal_tokens" in record:
            apart = [f"equal responses: {record['equal_tokens']:.0%}", ""]
        yield f"| {label(record)} | {speed} | {peak} | {share} | {' | '.join(apart)} |"
    yield ""
    for record in records:
        if "failed" in record:
            yield f"{label(record)} was not measured: {record['failed'].splitlines()[0]}\n"


def label(record: Record) -> str:
    return f"{record['workload']}, {record['shape']}"


def idle(records: Sequence[Record]) -> Iterator[str]:
    """Trainings that take less of a GPU's peak than they are asked for."""
    for record in records:
        if "failed" in record or not trains(record, record["precision"]):
            continue
        if (share := record["mfu"].get("learning", record["mfu"]["truing"])) < SHARE:
            yield f"{label(record)} ({share:.0%})"


def shares(where: Record) -> Iterator[str]:
    """Where the time of steps goes."""
    kinds = [*next(iter(where["steps"].values()))["shares"]]
    yield from ("## Where the time goes", "", SPENT.format(**where))
    yield f"| | seconds | {' | '.join(kinds)} | the rest |"
    yield "|---" * (len(kinds) + 3) + "|"
    for name, step in where["steps"].items():
        parts = [step["shares"][kind] for kind in kinds]
        cells = [f"{100 * part:.0f} %" for part in (*parts, 1 - sum(parts))]
        yield f"| {name} | {step['seconds']:.2f} | {' | '.join(cells)} |"
    yield ""


def shares_on_gpu(records: Sequence[Record]) -> Iterator[str]:
    """Where the time of steps on a GPU goes."""
    kinds = [*next(iter(records[0]["steps"].values()))["shares"]]
    yield from ("## Where the time goes on a GPU", "", SPENT_ON_GPU)
    for record in records:
        told = (record[name] for name in ("shape", "date", "machine", "commit"))
        yield from ("Shape {}, {}, {}, commit {}:".format(*told), "")
        yield f"| | seconds | {' | '.join(kinds)} | no kernel | phases |"
        yield "|---" * (len(kinds) + 4) + "|"
        for name, step in record["steps"].items():
            parts = [step["shares"][kind] for kind in kinds]
            cells = [f"{100 * part:.0f} %" for part in (*parts, max(0.0, 1 - sum(parts)))]
            phases = [f"{100 * step['phases'][n]:.0f} %" for n in PHASES if n in step["phases"]]
            cells += [", ".join(phases)]
            yield f"| {name} | {step['seconds']:.3f} | {' | '.join(cells)} |"
        yield ""


def ratio(found: Mapping[str, float] | None, told: str | None) -> str:
    if found is None:
        return ""
    middle = marked(f"{found['median']:.2f}", told)
    return f"{middle} ({found['min']:.2f} to {found['max']:.2f})"


def marked(text: str, told: str | None) -> str:
    return {"goal": f"**{text}**", "below": f"*{text}*"}.get(told or "", text)


def asked(goal: Asked) -> str:
    if goal == NOTHING:
        return ""
    return " / ".join("-" if value is None else f"{value:g}" for value in goal)


def small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def made(records: Sequence[Record]) -> Iterator[str]:
    """How it was measured, and on what."""
    if not records:
        yield "Nothing was measured yet.\n"
        return
    yield from ("## How this was measured", "")
    shapes = ", ".join(
        f"{name} has {s.parameters / 1e6:.1f} M parameters (hidden {s.hidden}, {s.layers} layers, "
        f"{s.vocabulary} words)"
        for name, s in SHAPES.items()
        if any(r["shape"] == name for r in records)
    )
    yield f"Shapes: {shapes}."
    batches = ", ".join(
        f"{name} {w.batch}" for name, w in WORKLOADS.items() if not name.startswith("sampling")
    )
    yield f"Rows (pairs, responses) of an optimiser step, or of a rollout: {batches}."
    yield ""
    done = [r for r in records if "failed" not in r]
    for told in dict.fromkeys(
        (r["machine"], r["date"], r["commit"], tuple(r["versions"].items())) for r in done
    ):
        machine, day, commit, versions = told
        names = ", ".join(f"{name} {version}" for name, version in versions)
        rows = ", ".join(
            label(r)
            for r in done
            if told == (r["machine"], r["date"], r["commit"], tuple(r["versions"].items()))
        )
        yield f"- {rows}: {day}, commit {commit}, {machine}; {names}."
    # Greedy responses that part by rounding are told elsewhere.
    drawn = [r for r in done if not r["workload"].startswith("sampling")]
    if apart := ", ".join(label(r) for r in drawn if differ([*r.get("tokens", {}).values()])):
        yield f"- Of {apart}, each side drew responses with lengths of its own."
    yield ""
