"""Rules for learning from a reward: the KL, the critic, and who sampled."""

from statistics import fmean, median

from truing.console import show
from truing.doctor.finding import Finding
from truing.doctor.history import ENOUGH, History

# The KL before the first update is rounding: of each token a little, more in bfloat16.
FIRST_KL, FIRST_KL_COARSE = 0.01, 0.5
# The mean log-ratio of B responses has variance 2 KL / B while the KL is small, so at four standard
# deviations its mean may come to -8 / B; twice that, for real ones have longer tails.
NEGATIVE = 16.0
# Below this size a negative KL is rounding, of which nobody asks.
ROUNDING = 1e-3
# Nats per token. A trained model's entropy is about 0.3 to 1.5: at 0.3 the policy has become
# another writer, at 1 the reference would hardly ever write what it does. It is a fault where it
# also runs away: some tasks ask for another writer.
FAR, LOST = 0.3, 1.0
# Times the KL of the middle that the KL of the end may be, and the nats from which on it matters.
RUNAWAY, SOME_KL = 5.0, 10.0
# Times kl_target: the controller swings about it, half as much again and more on short runs.
OVER, UNDER = 2.0, 0.3
# Rollouts' worth of episodes in kl_horizon above which the coefficient is slow.
SLOW = 20.0
# A gradient shorter than this teaches nothing: all advantages are 0, to rounding.
NO_GRADIENT = 1e-6
# Share of the returns' variance foreseen, over the last third: a critic that knows only the mean
# has 0, and one that is of use on short runs has 0.1 and more.
BLIND = 0.05
# Times the median value loss: between rollouts a factor of 2 is usual.
VALUE_LOSS, VALUE_LOSS_WORSE = 10.0, 100.0
# Where a rise is looked for, from when on it was above this many times the median.
ONSET = 2.0
# Nats per token between sampler and trainer before an update: rounding is 1e-6, in bfloat16 0.02.
PARTED, PARTED_COARSE = 0.01, 0.1
# The ratio before an update is 1.
RATIO = 0.02


def far_apart(h: History, fine: float, coarse: float) -> float:
    """``fine`` for float32, ``coarse`` for number formats of fewer bits."""
    return fine if h.config.get("dtype", "float32") == "float32" else coarse


def kl_start(h: History) -> Finding | None:
    """The KL of the first rollout, before anything was learnt."""
    kl = h.series("objective/kl")
    if not len(kl) or kl.steps[0] != 1:
        return None
    first, steps = kl.values[0], (1, 1)
    if abs(first) <= far_apart(h, FIRST_KL, FIRST_KL_COARSE):
        return Finding(
            "kl_start",
            "expected",
            f"objective/kl starts at {first:.1e}.",
            "The first rollout is sampled before any update, by the model that is the reference, "
            "so only rounding is left.",
            "Nothing.",
            steps,
        )
    other = h.config.get("ref_model_name_or_path")
    return Finding(
        "kl_start",
        "notice" if other else "fault",
        f"objective/kl is {show(first)} in the first rollout, where it should be 0.",
        f"The reference is another model ({other}) than the one that training starts from."
        if other
        else "The reference is not the model that training starts from, or the sampler does not "
        "draw from what the trainer measures.",
        "Nothing, if that reference was meant; the penalty then pulls towards it from the start."
        if other
        else "Look at sampling/logp_difference: if it is large too, it is the sampler. Try dtype: "
        "float32, attn_implementation: eager, and lora_dropout: 0.",
        steps,
    )


def kl_negative(h: History) -> Finding | None:
    """KL estimates below 0."""
    kl = h.series("objective/kl")
    if not len(kl) or min(kl.values) >= -ROUNDING:
        return None
    low = min(kl.values)
    steps = tuple(s for s, v in zip(kl.steps, kl.values, strict=True) if v < -ROUNDING)
    bound = NEGATIVE / h.rows_per_step
    noise = low >= -bound
    return Finding(
        "kl_negative",
        "expected" if noise else "fault",
        f"objective/kl was below 0 in {len(steps)} of {len(kl)} lines, down to {show(low)}.",
        "It is the mean of log π/π_ref over the sampled responses, whose expectation is never "
        "negative, but whose values may be. "
        + (
            f"With {h.rows_per_step} responses a rollout, values down to {-bound:.2g} are noise."
            if noise
            else f"Noise explains values down to about {-bound:.2g}. So these responses were not "
            "drawn from the policy whose log-probs were taken: another temperature, ends that "
            "were dropped, or tokens that were forbidden."
        ),
        "Nothing."
        if noise
        else "Look at sampling/logp_difference, and at a custom generation_config of the model "
        "folder. If that is in order, the rollouts may just be too small: sample more a step.",
        (steps[0], steps[-1]),
    )


def kl_large(h: History) -> Finding | None:
    """The policy is far from the reference, or runs away from it."""
    kl, length = h.series("objective/kl"), h.series("completions/mean_length")
    if len(kl) < ENOUGH or not len(length) or kl.tail < SOME_KL:
        return None
    middle = fmean(kl.values[2 * kl.fifth : 3 * kl.fifth])
    away, token = kl.tail > RUNAWAY * middle, kl.tail / length.tail
    if token <= FAR and not away:
        return None
    coef = h.series("objective/kl_coef")
    paid = (
        "There is no penalty for it (kl_coef is 0)."
        if len(coef) and not any(coef.values)
        else "The penalty is too weak for this reward, or the updates are too large for it to hold."
    )
    return Finding(
        "kl_large",
        "fault" if away and token > LOST else "warning",
        f"objective/kl is {show(kl.tail)} nats a response at the end, {show(token)} a token"
        + (f", after {show(middle)} in the middle of the run." if away else "."),
        f"{paid} A reward model is right only near the data it saw: out there its scores mean "
        "little.",
        "Raise kl_coef, or set kl_target; lower learning_rate; set guard_kl with guard_action: "
        "stop. Use a model from before, and judge it by something that training did not see.",
        (kl.since(ONSET * median(kl.values)) or kl.end[0], kl.steps[-1]),
    )


def kl_off_target(h: History) -> Finding | None:
    """The adaptive coefficient has not brought the KL to its target."""
    target, kl = h.number("kl_target"), h.series("objective/kl")
    if not target or len(kl) < ENOUGH:
        return None
    over = kl.tail > OVER * target
    if not over and kl.tail >= UNDER * target:
        return None
    coef = h.series("objective/kl_coef")
    ends = " to ".join(show(value) for value in (*coef.values[:1], *coef.values[-1:]))
    horizon = (h.number("kl_horizon") or 0.0) / h.rows_per_step
    slow = f"Lower kl_horizon, which is {horizon:.0f} rollouts' worth of episodes; s"
    quicken = slow if horizon > SLOW else "S"
    return Finding(
        "kl_off_target",
        "warning" if over else "notice",
        f"objective/kl is {show(kl.tail)} at the end, kl_target {show(target)}."
        + (f" kl_coef went from {ends}." if len(coef) else ""),
        "The coefficient moves by at most a fifth of episodes / kl_horizon a rollout, and the KL "
        + (
            "grew faster than that." if over else "has not come so far: the penalty is hardly felt."
        ),
        f"{quicken}tart from a higher kl_coef, lower learning_rate, and set guard_kl."
        if over
        else "Nothing, if the score rose. Else raise learning_rate or train for longer.",
        kl.end,
    )


def no_signal(h: History) -> Finding | None:
    """The reward does not tell responses apart."""
    score, norm = h.series("objective/scores"), h.series("grad_norm")
    if len(score) >= ENOUGH and max(score.values) == min(score.values):
        seen = f"objective/scores was {show(score.values[0])} in all {len(score)} lines."
    elif len(norm) >= ENOUGH and median(norm.values) < NO_GRADIENT:
        seen = f"The median grad_norm is {median(norm.values):.1e}: no response is better or worse."
    else:
        return None
    return Finding(
        "no_signal",
        "fault",
        seen,
        "Where all responses (of a group, in rloo and grpo) have the same reward, every advantage "
        "is 0, and there is nothing to learn.",
        "Print what the reward gives for some samples. A rule that pays all or nothing needs "
        "prompts that are answered rightly now and then; a score_clip may cut everything off; of "
        "groups raise num_generations or temperature (grpo has dynamic_sampling, too).",
        score.span if len(score) else norm.span,
    )


def critic_blind(h: History) -> Finding | None:
    """The critic foresees nothing."""
    worth = h.series("critic/vf_explained_var")
    if len(worth) < ENOUGH:
        return None
    third = len(worth) // 3
    last = fmean(worth.values[-third:])
    if last > BLIND:
        return None
    shared = bool(h.config.get("share_backbone"))
    harmless = last >= -BLIND and h.series("objective/scores").rose
    return Finding(
        "critic_blind",
        "notice" if harmless else "warning",
        f"critic/vf_explained_var is {show(last)} over the last third of the run.",
        "The critic foresees "
        + (
            "less than the mean of the returns would, so the advantages are noisier than without "
            "it."
            if last < -BLIND
            else "no more than the mean of the returns, so PPO has no baseline to speak of: it "
            "learns, but from noise that a critic should take away."
        ),
        "Raise value_learning_rate (10 times learning_rate), vf_coef or cliprange_value"
        + (", or give it a model of its own (share_backbone: false)" if shared else "")
        + "; on short runs start it from the policy (value_model: policy). truing rloo and truing "
        "grpo need none.",
        (worth.steps[-third], worth.steps[-1]),
    )


def value_loss_exploded(h: History) -> Finding | None:
    """The value loss has grown out of all proportion."""
    loss = h.series("loss/value_avg")
    if len(loss) < ENOUGH:
        return None
    usual = median(loss.values[: len(loss) // 2])
    worst = max(loss.values[-loss.fifth :])
    if not usual or worst < VALUE_LOSS * usual:
        return None
    began = loss.since(ONSET * usual) or loss.end[0]
    kl = h.series("objective/kl")
    away = kl.since(ONSET * median(kl.values)) if len(kl) else None
    shared = bool(h.config.get("share_backbone"))
    return Finding(
        "value_loss_exploded",
        "fault" if worst > VALUE_LOSS_WORSE * usual else "warning",
        f"loss/value_avg was about {show(usual)} in the first half and {show(worst)} at the end: "
        f"it has been above twice that since step {began}"
        + (f", the KL above twice its median since step {away}." if away else "."),
        (
            "The critic is a head on the policy (share_backbone), so its loss moves the policy, "
            "and max_grad_norm then leaves the policy's own gradient next to nothing. "
            if shared
            else "The critic is thrown off, so the advantages are noise and move the policy. "
        )
        + "A policy that is moved so pays KL, the penalty makes the returns larger, and the value "
        "loss with them: each feeds the other.",
        ("Set share_backbone: false, or lower vf_coef. " if shared else "")
        + "Lower learning_rate (or value_learning_rate), set guard_kl and guard_grad_norm with "
        "guard_action: stop, and use_score_scaling if the scores are large. The model of this "
        "run's end is not to be used.",
        (began, loss.steps[-1]),
    )


def sampler_differs(h: History) -> Finding | None:
    """Sampler and trainer disagree before the first update of a rollout."""
    gap, ratio = h.series("sampling/logp_difference"), h.series("val/ratio")
    bound = far_apart(h, PARTED, PARTED_COARSE)
    steps = gap.above(bound)
    once = set(h.series("policy/optimizer_steps").values) == {1.0}
    off = [s for s, v in zip(ratio.steps, ratio.values, strict=True) if abs(v - 1) > RATIO]
    if steps:
        seen = (
            f"sampling/logp_difference was up to {show(max(gap.values))} nats a token, where "
            "rounding is far less."
        )
    elif once and off and far_apart(h, True, False):
        steps = tuple(off)
        seen = (
            f"val/ratio was off 1 in {len(off)} of {len(ratio)} lines, though each rollout has a "
            "single update, before which the ratio is 1."
        )
    else:
        return None
    dropout = h.number("lora_dropout") or h.config.get("disable_dropout") is False
    return Finding(
        "sampler_differs",
        "fault",
        seen,
        "The log-probs that a response was sampled by are not those that the trainer computes: "
        + ("dropout is on." if dropout else "two kernels, or a number format of few bits.")
        + " The ratios are then wrong from the start.",
        "Set lora_dropout: 0 and disable_dropout: true."
        if dropout
        else "Try dtype: float32 and attn_implementation: eager.",
        (steps[0], steps[-1]),
    )


ONLINE = (
    # What sets off others first.
    value_loss_exploded,
    kl_start,
    kl_negative,
    kl_large,
    kl_off_target,
    no_signal,
    critic_blind,
    sampler_differs,
)
