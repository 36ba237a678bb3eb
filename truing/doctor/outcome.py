"""Rules for learning from a reward: the updates, the responses that came of them, their score."""

from statistics import median

from truing.console import show
from truing.doctor.finding import Finding
from truing.doctor.history import ENOUGH, SURE, History, Series

# Half the squared log-ratio to the policy that sampled, in nats per token (docs/ppo.md); and the
# share of the rollouts in which it may be more.
TOO_FAST, RARELY = 0.1, 0.1
# Share of actions at the clip: what is clipped teaches nothing.
CLIPPED = 0.3
# Below these nothing moved that one could measure.
STILL, STILL_CLIP = 1e-5, 1e-3
# Share of responses that end, against the start; and below which hardly any does.
ENDS_LESS, HARDLY = 0.5, 0.1
# Share of response_length that the mean length comes to when nearly all are cut.
AT_LIMIT = 0.95
# Mean length, against the start: a fifth is another task; a tenth is a policy that ends at once.
SHORT, GONE = 0.2, 0.1
# Entropy of a token, against the start: a fifth is a policy that says the same to everyone.
COLLAPSE = 0.2
# Standard errors that a score must have lost since its best: the best of many windows is above the
# mean by chance alone, so more than for one comparison.
SURELY = SURE + 1
# Share of what was gained that must be lost again to call it a fall.
LOST = 0.5
# Signs of a reward that is cheated: nats of KL per token, factors of length and entropy.
HACK_KL, HACK_LENGTH, HACK_ENTROPY = 0.3, 1.5, 2.0


def factor(series: Series) -> float:
    """By how much a positive series grew from head to tail, 1 where there is too little of it."""
    return series.tail / series.head if len(series) >= ENOUGH and series.head > 0 else 1.0


def updates_too_large(h: History) -> Finding | None:
    """The policy moves too far within a rollout."""
    kl, clip = h.series("policy/approxkl_avg"), h.series("policy/clipfrac_avg")
    fast = kl.above(TOO_FAST)
    clipped = median(clip.values) if len(clip) else 0.0
    if len(fast) <= RARELY * len(kl) and clipped <= CLIPPED:
        return None
    steps = (fast[0], fast[-1]) if fast else clip.span
    return Finding(
        "updates_too_large",
        "warning",
        f"policy/approxkl_avg was above {TOO_FAST} in {len(fast)} of {len(kl)} lines, and "
        f"{clipped:.0%} of the actions were clipped in the median.",
        "The later updates of a rollout learn from responses that the policy would no longer "
        "write, and what is clipped teaches nothing.",
        "Lower learning_rate (by 3), num_ppo_epochs or num_mini_batches, or set target_kl: 0.05.",
        steps,
    )


def updates_too_small(h: History) -> Finding | None:
    """The policy hardly moves, and the score does not either."""
    kl, clip = h.series("policy/approxkl_avg"), h.series("policy/clipfrac_avg")
    score, each = h.series("objective/scores"), h.series("policy/optimizer_steps")
    # Before the first update of a rollout nothing has moved: with one there is nothing to see.
    if len(kl) < ENOUGH or not len(clip) or score.rose or max(each.values, default=1.0) <= 1:
        return None
    if median(kl.values) > STILL or median(clip.values) > STILL_CLIP:
        return None
    return Finding(
        "updates_too_small",
        "warning",
        f"policy/approxkl_avg is {median(kl.values):.1e} in the median, no action is clipped, and "
        f"the score went from {show(score.head)} to {show(score.tail)}."
        if len(score)
        else f"policy/approxkl_avg is {median(kl.values):.1e} in the median.",
        "The policy at the end of a rollout is the one at its start: the updates are too small.",
        "Raise learning_rate by 3, then by 10; with LoRA it may be 10 times that of all weights.",
        kl.span,
    )


def eos_fell(h: History) -> Finding | None:
    """Responses have ceased to end."""
    ends = h.series("completions/eos_rate")
    if not ends.fell or ends.tail >= ENDS_LESS * ends.head:
        return None
    penalty = h.number("missing_eos_penalty")
    return Finding(
        "eos_fell",
        "fault" if ends.tail < HARDLY else "warning",
        f"{ends.head:.1%} of the responses ended by themselves at first, {ends.tail:.1%} at the "
        f"end; missing_eos_penalty is {show(penalty)}.",
        "The reward likes longer texts, or does not see that they are unfinished, and "
        + ("nothing is lost by a missing end." if not penalty else "pays more than the penalty."),
        "Set missing_eos_penalty to a little more than what the scores differ by"
        + ("." if not penalty else f", which {show(penalty)} seems not to be.")
        + " Look at the reward: a length of its own (truing reward-bench) is a common fault.",
        ends.end,
    )


def lengths_at_limit(h: History) -> Finding | None:
    """Nearly all responses are as long as they may be."""
    length, limit = h.series("completions/mean_length"), h.number("response_length")
    if not len(length) or not limit or length.tail < AT_LIMIT * limit:
        return None
    from_start = length.head >= AT_LIMIT * limit
    ends = h.series("completions/eos_rate")
    if len(ends) and ends.tail > ENDS_LESS:
        return None
    return Finding(
        "lengths_at_limit",
        "warning",
        f"The mean length is {show(length.tail)} of at most {limit:.0f} tokens"
        + (", from the start." if from_start else f", after {show(length.head)} at first."),
        "Nearly every response is cut, so the reward judges unfinished texts"
        + (
            ": the model was not taught to end, or not within so few tokens."
            if from_start
            else ", and the policy has learnt that length pays."
        ),
        "Raise response_length; teach endings by SFT on whole responses; set missing_eos_penalty "
        "once some responses end.",
        length.end,
    )


def lengths_collapsed(h: History) -> Finding | None:
    """Responses have shrunk to next to nothing."""
    length = h.series("completions/mean_length")
    if len(length) < ENOUGH or factor(length) >= SHORT:
        return None
    return Finding(
        "lengths_collapsed",
        "fault" if factor(length) < GONE else "warning",
        f"The mean length went from {show(length.head)} to {show(length.tail)} tokens.",
        "Each token pays for its KL, and an empty response pays once: under a heavy penalty, or "
        "a reward that is below 0 for whatever is said, the best policy says nothing.",
        "Find what threw the policy off before. Lower kl_coef, or raise kl_horizon so that it "
        "grows more slowly; and look at what the reward gives for an empty response.",
        length.end,
    )


def entropy_collapse(h: History) -> Finding | None:
    """The policy has become nearly certain of every token."""
    entropy = h.series("policy/entropy_avg")
    if len(entropy) < ENOUGH or factor(entropy) >= COLLAPSE:
        return None
    return Finding(
        "entropy_collapse",
        "fault",
        f"policy/entropy_avg fell from {show(entropy.head)} to {show(entropy.tail)} nats a token.",
        "The policy writes nearly the same whatever it is asked, and no longer tries anything "
        "else, so nothing more can be learnt.",
        "Raise kl_coef, lower learning_rate, or set entropy_coef: 0.01. Go back to a model from "
        "before it.",
        entropy.end,
    )


def score_falls(h: History) -> Finding | None:
    """The score has lost again what it had gained, or more."""
    score = h.series("objective/scores")
    if len(score) < ENOUGH:
        return None
    best, where = score.best()
    drop = best - score.tail
    if drop <= SURELY * score.error or drop <= LOST * (best - score.head):
        return None
    return Finding(
        "score_falls",
        "fault" if score.fell else "warning",
        f"objective/scores was {show(score.head)} at first, {show(best)} in steps {where[0]} to "
        f"{where[1]}, and {show(score.tail)} at the end.",
        "The policy was thrown off, or the penalty for the KL outweighs the score by now.",
        "Look at what else went wrong at that time (objective/kl, loss/value_avg, grad_norm). "
        "Lower learning_rate; with held-out prompts metric_for_best_model: eval_objective/scores "
        "keeps the best model.",
        (where[1], score.steps[-1]),
    )


def score_flat(h: History) -> Finding | None:
    """The score has not moved."""
    score = h.series("objective/scores")
    if len(score) < ENOUGH or max(score.values) == min(score.values):
        return None
    if score.rose or score.fell or score.best()[0] - score.head > SURELY * score.error:
        return None
    return Finding(
        "score_flat",
        "warning",
        f"objective/scores was {show(score.head)} at first and {show(score.tail)} at the end: no "
        f"rise beyond noise, whose standard error is {show(score.error)}.",
        "The updates are too small or too few, the penalty holds the policy where it was, or the "
        "reward hardly differs between responses.",
        "Raise learning_rate by 3 or train for longer; sample more responses a step, which takes "
        "noise away; lower kl_coef if objective/kl has stayed near 0.",
        score.span,
    )


def score_hacked(h: History) -> Finding | None:
    """The score rises while other signs say that it is cheated."""
    score = h.series("objective/scores")
    if not score.rose:
        return None
    kl, length = h.series("objective/kl"), h.series("completions/mean_length")
    entropy, signs = h.series("policy/entropy_avg"), list[str]()
    token = kl.tail / length.tail if len(kl) and len(length) and length.tail > 0 else 0.0
    if token > HACK_KL:
        signs.append(f"the KL is {show(token)} nats a token")
    if max(factor(length), 1 / factor(length)) > HACK_LENGTH:
        signs.append(f"the mean length went from {show(length.head)} to {show(length.tail)}")
    if max(factor(entropy), 1 / max(factor(entropy), 1e-9)) > HACK_ENTROPY:
        signs.append(f"the entropy went from {show(entropy.head)} to {show(entropy.tail)}")
    # Where a world knows the truth, it is measured beside the score.
    gold = h.series("eval_objective/gold")
    if len(gold) and gold.values[-1] < gold.values[0]:
        signs.append(f"gold fell from {show(gold.values[0])} to {show(gold.values[-1])}")
    if not signs:
        return None
    return Finding(
        "score_hacked",
        "warning",
        f"objective/scores rose from {show(score.head)} to {show(score.tail)}, while "
        f"{' and '.join(signs)}.",
        "Any reward can be cheated, and this is what it looks like: the score goes on rising while "
        "the texts become another kind of text. Whether they are better, the score cannot say.",
        "Read samples, and compare with the start by something that training did not see (truing "
        "winrate). Raise kl_coef or set kl_target; stop earlier.",
        score.end,
    )


def simulated_reward(h: History) -> Finding | None:
    """The reward was learnt from judgements that no person made."""
    if not any(name.startswith("simulated: the reward") for name in h.summary):
        return None
    return Finding(
        "simulated_reward",
        "notice",
        "The reward learnt from simulated judgements.",
        "What it rewards is what a program was told to prefer, not what people said.",
        "Say so wherever you show this run's scores.",
    )


OUTCOME = (
    updates_too_large,
    updates_too_small,
    eos_fell,
    lengths_at_limit,
    lengths_collapsed,
    entropy_collapse,
    score_falls,
    score_flat,
    score_hacked,
    simulated_reward,
)
