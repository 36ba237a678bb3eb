"""Rules for a run of any stage: how it ended, learning rate, gradients, rows that were cut."""

import math

from truing.console import show
from truing.data.formats import SIMULATED
from truing.doctor.finding import Finding
from truing.doctor.history import ENOUGH, History

# Share of lines with a learning rate of 0 from which on one must ask what was learnt at all.
RATE_ZERO = 0.5
# Share of the steps spent in warm-up from which on the run hardly saw its learning rate.
WARMUP = 0.8
# Times the median from which on a gradient is a spike: between steps a factor of 2 or 3 is usual.
SPIKE = 10.0
# The longest gradients come first, while a new head or a new task is met: this share is not asked.
SETTLING = 0.2
# Share of rows cut, or left out, above which the model learns from other data than it was given.
CUT = 0.05
# References that a reward model's zero is measured on, at most.
REFERENCES = 1000
# Share of steps that the guards skipped above which they are set too tightly, or the run is sick.
SKIPPED = 0.1


def diverged(h: History) -> Finding | None:
    """A number was not finite, or a guard said stop."""
    if not h.divergence and h.outcome != "diverged":
        return None
    said = str(h.divergence.get("error") or h.error)
    terms = ", ".join(map(str, h.divergence.get("terms", [])[:3]))
    rows = len(h.divergence.get("rows", []))
    seen = f"{said}{f' (terms: {terms})' if terms else ''}; {rows} rows are in diverged.json"
    if h.outcome != "diverged":
        return Finding(
            "diverged",
            "notice",
            f"It diverged once and then went on. What was said: {seen}.",
            "The step was not learnt from, and the run went on from its last checkpoint.",
            "Nothing, if the settings were changed for that; else read those rows.",
        )
    if "guard_action is stop" in said:
        why = "A guard was passed, and guard_action is stop."
    else:
        why = (
            "A number was not finite: mostly a learning rate that is too high, else a faulty row, "
            "a reward that overflows, or a number format too small for this model."
        )
    return Finding(
        "diverged",
        "fault",
        seen,
        why,
        "Read the rows in diverged.json first. If they look like the others, lower learning_rate "
        "(by 3, then by 10), or train with dtype: float32. The same command goes on from the last "
        "checkpoint; changed settings need --force-resume.",
        (h.last_step, h.last_step),
    )


def failed(h: History) -> Finding | None:
    """It ended with an error that is no divergence."""
    if h.outcome != "failed":
        return None
    return Finding(
        "failed",
        "fault",
        f"It ended with an error after step {h.last_step}: {h.error}",
        "The error says so itself.",
        "Mend that; the same command then goes on from the last checkpoint.",
        (h.last_step, h.last_step),
    )


def stopped(h: History) -> Finding | None:
    """It was stopped before its end, or killed, or is still running."""
    if h.outcome not in ("stopped", "running"):
        return None
    of = f" of about {h.total}" if h.total else ""
    why = (
        "It was stopped by Ctrl-C or SIGTERM, and saved."
        if h.outcome == "stopped"
        else "Its record says that it runs: either it does, or it was killed. After that the last "
        "checkpoint counts."
    )
    return Finding(
        "stopped",
        "notice",
        f"It has come to step {h.last_step}{of}. All that is said here is of those steps.",
        why,
        "The same command goes on.",
        (h.last_step, h.last_step),
    )


def not_finite(h: History) -> Finding | None:
    """Logged values that are no finite number."""
    # Where all returns are equal there is no share of their variance to explain.
    idle = "critic/vf_explained_var"
    found: dict[str, list[int]] = {}
    for row in h.rows:
        for name, value in row.items():
            if not math.isfinite(value) and name != idle:
                found.setdefault(name, []).append(int(row["step"]))
    if not found:
        return None
    steps = [step for each in found.values() for step in each]
    names = ", ".join(f"{name} ({len(each)} times)" for name, each in sorted(found.items())[:5])
    return Finding(
        "not_finite",
        "fault",
        f"Metrics that are no finite number: {names}.",
        "Means and variances over them, and what steers by them, are void from there on.",
        "If it is the loss or a gradient, lower learning_rate; if it is a score, look at what the "
        "reward gives for the samples of that step.",
        (min(steps), max(steps)),
    )


def learning_rate_zero(h: History) -> Finding | None:
    """The learning rate was 0, or the warm-up took the run."""
    rate = h.series("lr") if len(h.series("lr")) else h.series("learning_rate")
    if not len(rate):
        return None
    zero = sum(value == 0 for value in rate.values)
    if zero > RATE_ZERO * len(rate):
        return Finding(
            "learning_rate_zero",
            "fault",
            f"The learning rate was 0 in {zero} of {len(rate)} lines.",
            "At a rate of 0 a step changes nothing.",
            "Set learning_rate above 0, and warmup_steps to fewer steps than the run has.",
            rate.span,
        )
    total = h.total or h.last_step
    warmup = h.number("warmup_steps") or (h.number("warmup_ratio") or 0.0) * total
    if h.outcome != "finished" or not warmup or warmup < WARMUP * total:
        return None
    return Finding(
        "learning_rate_zero",
        "warning",
        f"The warm-up takes {show(float(warmup))} of {total} steps; the highest rate that was "
        f"logged is {show(max(rate.values))}, where learning_rate is "
        f"{show(h.number('learning_rate'))}.",
        "In the warm-up the rate rises from 0, and here the run was over before it was through.",
        "Set warmup_ratio: 0.1 in the place of warmup_steps, or train for more steps.",
        rate.span,
    )


def grad_norm_spikes(h: History) -> Finding | None:
    """Gradients far longer than the usual one."""
    norm = h.series("grad_norm")
    if len(norm) < ENOUGH:
        return None
    usual = sorted(norm.values)[len(norm) // 2]
    settled = norm.steps[int(SETTLING * len(norm))]
    spikes = [step for step in norm.above(SPIKE * usual) if step >= settled]
    if not usual or not spikes:
        return None
    bound = h.number("max_grad_norm")
    lasting = norm.values[-1] > SPIKE * usual
    lone = len(spikes) == 1 and not lasting and bool(bound)
    return Finding(
        "grad_norm_spikes",
        "notice" if lone else "warning",
        f"grad_norm was up to {show(max(norm.values))} in {len(spikes)} lines, where "
        f"{show(usual)} is usual{', and was so to the end' if lasting else ''}.",
        "A faulty row or a rare kind of row makes one spike; many, or one that lasts, mean that "
        "training is unstable. "
        + (
            f"max_grad_norm {show(bound)} shortens such a gradient, so that one alone does "
            "little harm."
            if bound
            else "max_grad_norm is 0, so nothing shortens them."
        ),
        "Nothing for one spike. Else lower learning_rate or warm up longer, and set "
        f"guard_grad_norm: {show(SPIKE * usual)} with guard_action: stop, which keeps the rows.",
        (spikes[0], spikes[-1]),
    )


def steps_skipped(h: History) -> Finding | None:
    """Steps or rollouts that a guard skipped."""
    skipped = h.series("guard/skipped")
    share = sum(skipped.values) / len(skipped) if len(skipped) else 0.0
    steps = skipped.above(0.0)
    rollouts = [int(row["step"]) for row in h.rows if "objective/kl_coef" in row]
    blind = [s for s in rollouts if s not in {*h.series("grad_norm").steps}]
    if blind:
        share, steps = max(share, len(blind) / len(rollouts)), tuple(sorted({*steps, *blind}))
    if not steps:
        return None
    return Finding(
        "steps_skipped",
        "warning" if share > SKIPPED else "notice",
        f"A guard skipped {share:.1%} of the steps.",
        "guard_grad_norm or guard_kl was passed, and guard_action is skip.",
        "If they are many, the bound is too tight or the run is unstable: look at grad_norm and "
        "objective/kl before you widen it.",
        (steps[0], steps[-1]),
    )


def truncated(h: History) -> Finding | None:
    """Many responses were cut at max_length."""
    bases = {"": h.data_rows, "reference: ": float(REFERENCES)}
    cut = {label: h.count(f"{label}responses truncated") for label in bases}
    share = {label: cut[label] / base for label, base in bases.items() if base}
    worst = max(share, key=lambda label: share[label], default="")
    if share.get(worst, 0.0) <= CUT:
        return None
    what = "reference responses" if worst else "responses"
    base = "at most" if worst else "about"
    return Finding(
        "truncated",
        "warning",
        f"{cut[worst]} {what} were cut at max_length {show(h.config.get('max_length'))}, in "
        f"{base} {bases[worst]:.0f} rows.",
        "A cut response loses its end, so the model learns from texts that stop in the middle"
        + (", and the zero of the reward is the mean of such." if worst else ", and no ending."),
        "Raise max_length (it costs memory), shorten the prompts, or set truncation_mode: drop.",
    )


def left_out(h: History) -> Finding | None:
    """Many rows were left out."""
    notes = {n: h.count(n) for n in h.summary if n.endswith("left out") and ": " not in n}
    lost = sum(notes.values())
    if not h.data_rows or lost / (lost + h.data_rows) <= CUT:
        return None
    names = ", ".join(f"{note}: {count}" for note, count in notes.items())
    return Finding(
        "left_out",
        "warning",
        f"Of about {lost + h.data_rows:.0f} rows {lost} were not used ({names}).",
        "What is left may be another kind of data than you meant: the short prompts, for one.",
        "Raise max_length, or shorten the prompts; mend pairs that are equal in the data.",
    )


def simulated(h: History) -> Finding | None:
    """The rows were made by no person."""
    if not (rows := h.count(SIMULATED)):
        return None
    return Finding(
        "simulated",
        "notice",
        f"{rows} of its rows are marked as simulated.",
        "They were made by a program or a model, not by people.",
        "Say so wherever you show what came of it: it proves that the machinery works, not that "
        "people would like the model.",
    )


RULES = (
    diverged,
    failed,
    stopped,
    not_finite,
    learning_rate_zero,
    grad_norm_spikes,
    steps_skipped,
    truncated,
    left_out,
    simulated,
)
