"""Rules for learning from a dataset: SFT, reward models and DPO."""

import math

from truing.console import show
from truing.doctor.finding import Finding
from truing.doctor.history import ENOUGH, History

LN2 = math.log(2)

# A fall of the loss that is smaller than this share of it is none.
FLAT = 0.02
# How far above its lowest the held-out loss must end to have risen: less is the wobble of a model
# that still moves, on rows that stay the same.
RISE = 0.02
# A held-out loss this many times the training loss, and this much above it, means memory.
GAP, GAP_NATS = 1.5, 0.05
# Below this loss pairs are told apart as if 95 % of their labels could be foreseen. People agree
# with each other on 65 to 85 %, so what is learnt beyond that are the rows themselves.
MEMORISED = 0.2
# Share of pairs in the right order that is no better than chance, and the pairs that it takes to
# say so: 1 / (2 sqrt(400)) is a standard error of 2.5 points.
CHANCE, PAIRS = 0.55, 400
# Share of the responses without an end above which ending is not learnt.
NO_END = 0.5
# The first loss at step 1 differs from ln 2 by rounding only.
START = 0.01
# The first line may be a mean over steps in which something was learnt, or shaken.
START_LOW, START_HIGH = 0.5, 0.05
# A reward model's new head orders half of the pairs wrongly, and with scores about 1 apart.
HEAD_LOW, HEAD_HIGH = 0.6, 1.1
# A gap between training and held-out accuracy, beyond the interval.
OVERFIT = 0.05
# Without an interval a few hundred pairs leave some 5 points open on either side.
OVERFIT_BARE = 0.15
# A mean margin of 5 says odds of 150 to 1 for an average pair.
MARGIN = 5.0
# A zero that is further from 0 than this is a drift of all scores together.
SHIFT = 10.0
# Share of the chosen responses' negative log-prob that they may lose: at 0.5 a token that had
# probability 0.5 has 0.35, at 1 it has 0.25.
UNSEEN, LARGE, HUGE = 0.02, 0.5, 1.0
# Margins below this share of the fall: both sides fell together, which tells them apart no better.
TOGETHER = 0.1
# Losses of dpo that start at ln 2, and those whose rewards are log-ratios in nats per response.
FROM_LN2 = ("sigmoid", "robust")
# Losses that are the negative log-likelihood of what was judged, in nats.
LIKELIHOODS = ("sigmoid", "bradley_terry", "plackett_luce")
TIED = ("sigmoid", "robust", "ipo", "hinge")


def loss_type(h: History) -> str:
    """Which loss of dpo or reward it was; runs of before there was a choice do not say."""
    return str(h.config.get("loss_type", "bradley_terry" if h.stage == "reward" else "sigmoid"))


def loss_not_falling(h: History) -> Finding | None:
    """The training loss ends where it began, or above."""
    loss = h.series("loss")
    if len(loss) < ENOUGH or loss.fell or -loss.change >= FLAT * abs(loss.head):
        return None
    verb = "rose" if loss.rose else "did not fall"
    mild = h.stage == "sft" and not loss.rose
    return Finding(
        "loss_not_falling",
        "notice" if mild else "warning",
        f"The loss {verb}: {show(loss.head)} in the first fifth of the lines, {show(loss.tail)} "
        f"in the last (noise {show(loss.error)}).",
        "Nothing was learnt that stands out from noise. The rate is too low or too high, the run "
        "too short, the labels are noise, or the model knew it all before"
        + (": it may have written these rows itself." if h.stage == "sft" else "."),
        "Try learning_rate three times higher, and three times lower if it rose; check that the "
        "rows say what you mean by reading some.",
        loss.span,
    )


def overfitting(h: History) -> Finding | None:
    """The held-out loss rises while the training loss falls."""
    held, loss = h.series("eval_loss"), h.series("loss")
    if len(held) < 3 or not len(loss) or loss.change >= 0:
        return None
    low = min(held.values)
    if min(held.values[-2:]) <= low or held.values[-1] < low + RISE * abs(low):
        return None
    step = held.steps[held.values.index(low)]
    kept = h.config.get("metric_for_best_model") == "eval_loss"
    return Finding(
        "overfitting",
        "notice" if kept else "warning",
        f"eval_loss was lowest at step {step} ({show(low)}) and ended at "
        f"{show(held.values[-1])}, while the training loss fell to {show(loss.tail)}.",
        "From there on the model learnt its rows by heart, which does not help on others."
        + (" The model that was written is that of the best step." if kept else ""),
        "Nothing: metric_for_best_model took care of it."
        if kept
        else "Train for fewer epochs, or set metric_for_best_model: eval_loss. After SFT compare "
        "samples before you stop early: people may still prefer the later model.",
        (step, held.steps[-1]),
    )


def loss_gap(h: History) -> Finding | None:
    """The held-out loss is far above the training loss."""
    held, loss = h.series("eval_loss"), h.series("loss")
    if not len(held) or not len(loss):
        return None
    last = held.values[-1]
    if last < GAP * loss.tail or last < loss.tail + GAP_NATS:
        return None
    return Finding(
        "loss_gap",
        "warning",
        f"eval_loss is {show(last)} at the end, the training loss {show(loss.tail)}.",
        "Either the training rows were learnt by heart, or the held-out rows are of another kind.",
        "Compare the two sets first. If they are alike: fewer epochs, a lower rate or more rows.",
        (held.steps[-1], held.steps[-1]),
    )


def no_end_learnt(h: History) -> Finding | None:
    """Most responses come without an end."""
    cut = h.count("responses cut when sampled: no end is learnt")
    # A pair has two responses, a demonstration one.
    responses = h.data_rows * (1 if h.stage == "sft" else 2)
    if not responses or cut <= NO_END * responses:
        return None
    return Finding(
        "no_end_learnt",
        "warning",
        f"{cut} of about {responses:.0f} responses were cut when they were sampled.",
        "Nobody wrote an end there, so no end token is learnt, and the model may forget to stop.",
        "Sample with a larger max_completion_length, so that most responses end by themselves.",
    )


def loss_near_zero(h: History) -> Finding | None:
    """The pairs are told apart with a certainty that no labels have."""
    loss, held = h.series("loss"), h.series("eval_loss")
    # Only the plain losses are nats of a coin's toss; the others have scales of their own.
    if not len(loss) or loss.tail >= MEMORISED or loss_type(h) not in LIKELIHOODS:
        return None
    easy = len(held) > 0 and held.values[-1] < MEMORISED
    return Finding(
        "loss_near_zero",
        "notice" if easy else "warning",
        f"The loss ends at {show(loss.tail)}"
        + (f", on held-out rows at {show(held.values[-1])}." if len(held) else "."),
        "The held-out pairs are as easy: something simple tells the two sides apart."
        if easy
        else "That is far more certainty than people's labels bear. The pairs are learnt by heart"
        + ("." if len(held) else ", or a rule made them; held-out pairs would say which."),
        "Look at what it may be (truing reward-bench compares with length and a bag of words)."
        if easy
        else "One epoch is enough for most sets of pairs. Else lower learning_rate, or gather "
        "more pairs" + ("." if len(held) else "; and hold some out (eval_dataset_name)."),
        loss.end,
    )


def at_chance(h: History) -> Finding | None:
    """The order of the pairs is guessed at the end of training."""
    name = "rewards/accuracies" if h.stage == "dpo" else "accuracy"
    right = h.series(name)
    if not len(right):
        return None
    # A line is a mean over the steps since the one before.
    steps = right.steps[-1] - ([0, *right.steps][-right.fifth - 1])
    pairs = steps * h.rows_per_step
    if pairs < PAIRS or right.tail >= CHANCE:
        return None
    return Finding(
        "at_chance",
        "warning",
        f"{name} is {right.tail:.1%} at the end, over {pairs} pairs or more: a coin has 50 %.",
        "The labels may be noise or in the wrong order for half of the rows, the two sides may be "
        "equal as far as max_length lets the model see, or the rate is too low for so few steps.",
        "Read some pairs. Try learning_rate three times higher. If people made the labels, look "
        "at how far they agree.",
        right.end,
    )


def reward_start(h: History) -> Finding | None:
    """The first loss of a new head that learns pairs. Of whole rankings it depends on their length,
    of ratings on their spread."""
    loss = h.series("loss")
    if not len(loss) or h.config.get("center_rewards_coefficient"):
        return None
    if loss_type(h) != "bradley_terry":
        return None
    if not HEAD_LOW <= loss.values[0] <= HEAD_HIGH:
        return None
    return Finding(
        "reward_start",
        "expected",
        f"The loss starts at {show(loss.values[0])}, near ln 2 = 0.693 or a little above it.",
        "A new head cannot tell the two sides apart: a pair of equal scores costs ln 2, and the "
        "noise of the head, which orders half of them wrongly, a little more.",
        "Nothing.",
        (loss.steps[0], loss.steps[0]),
    )


def held_out_chance(h: History) -> Finding | None:
    """Held-out pairs are ordered no better than by a coin, or worse."""
    low, high = (h.summary.get(f"eval_accuracy_{end}") for end in ("low", "high"))
    # Of steps a coin is no bar: most are right.
    if low is None or high is None or low > 0.5 or loss_type(h) == "process":
        return None
    told = f"eval_accuracy is {h.summary['eval_accuracy']:.1%} ({low:.1%} to {high:.1%})"
    pairs = f"on {show(h.summary.get('eval_pairs'))} pairs"
    if high < 0.5:
        return Finding(
            "held_out_chance",
            "fault",
            f"{told} {pairs}: below a coin's 50 %, beyond noise.",
            "What was learnt is the opposite of what the held-out rows say.",
            "One of the two sets has chosen and rejected exchanged: look which.",
        )
    return Finding(
        "held_out_chance",
        "warning",
        f"{told} {pairs}: that includes a coin's 50 %.",
        "Nothing shows that the reward knows better from worse on prompts it has not seen.",
        "Hold out more pairs if they are few. Else do not optimise against this reward: gather "
        "more or cleaner comparisons, or start from a better model.",
    )


def reward_overfit(h: History) -> Finding | None:
    """Training accuracy far above the held-out one."""
    held = h.summary.get("eval_accuracy")
    right = h.series("accuracy")
    if held is None or not len(right):
        return None
    high = h.summary.get("eval_accuracy_high")
    if right.tail <= (held + OVERFIT_BARE if high is None else high + OVERFIT):
        return None
    return Finding(
        "reward_overfit",
        "warning",
        f"accuracy is {right.tail:.1%} on the training rows at the end, {held:.1%} on held-out "
        f"ones{'' if high is None else f' (at most {high:.1%})'}.",
        "The rows were learnt by heart. Scores of new texts are then surer than they should be, "
        "and a policy that is trained on them finds where they are wrong.",
        "Train one epoch (num_train_epochs: 1), or with a lower rate, or on more prompts.",
        right.end,
    )


def reward_scale(h: History) -> Finding | None:
    """Scores are further apart than any labels ask for."""
    margin = h.series("margin")
    if not len(margin) or margin.tail <= MARGIN or loss_type(h) == "regression":
        return None
    return Finding(
        "reward_scale",
        "warning",
        f"The mean margin is {show(margin.tail)} at the end: odds of {math.exp(margin.tail):,.0f} "
        "to 1 for an average pair.",
        "Once all pairs are in order the loss still falls with larger scores, so their scale "
        "grows without bound. As a reward such scores drown the KL penalty.",
        "Train for fewer epochs or with a lower rate. In the online stages use_score_scaling "
        "makes the scale not matter.",
        margin.end,
    )


def reward_zero(h: History) -> Finding | None:
    """Where the zero of the scores is."""
    shift, name = h.summary.get("reward_shift"), str(h.summary.get("reward_reference", ""))
    chosen = name.startswith("chosen responses")
    if shift is None or (abs(shift) <= SHIFT and not chosen):
        return None
    # Ratings have a zero of their own, which may be anywhere.
    if abs(shift) > SHIFT and loss_type(h) != "regression":
        return Finding(
            "reward_zero",
            "warning",
            f"The mean score of {name} was {show(shift)} before it was shifted to 0.",
            "The loss sees differences only, so all scores together may drift. It is taken "
            "off at the end, but at such sizes a number format of few bits loses the differences.",
            "Set center_rewards_coefficient: 0.01, which keeps scores near 0.",
        )
    if not chosen:
        return None
    return Finding(
        "reward_zero",
        "notice",
        f"Zero is the mean score of the {name}.",
        "A score of 0 then means: as good as a chosen response. Most of what a policy writes at "
        "first will be below that.",
        "Nothing, if only differences count. Else start from the folder of an SFT run, or name "
        "rows in reward_reference.",
    )


def dpo_start(h: History) -> Finding | None:
    """The first loss, where the policy is the reference; nothing is said of other starts."""
    loss = h.series("loss")
    if not len(loss) or loss_type(h) not in FROM_LN2:
        return None
    first, step = loss.values[0], loss.steps[0]
    line = "" if step == 1 else f", as the mean of the first {step} steps"
    near = abs(first - LN2) <= START if step == 1 else START_LOW <= first <= LN2 + START_HIGH
    if near:
        return Finding(
            "dpo_start",
            "expected",
            f"The loss starts at {show(first)}{line}: ln 2 = 0.693 to begin with.",
            "At the start the policy is the reference, so both implicit rewards are 0, and a pair "
            "without a margin costs -log(1/2) = ln 2, whatever the model and data.",
            "Nothing.",
            (1, step),
        )
    if step > 1 and first < LN2:
        return None  # much may be learnt in so many steps
    other = h.config.get("ref_model_name_or_path")
    return Finding(
        "dpo_start",
        "notice" if other else "fault" if step == 1 else "warning",
        f"The loss starts at {show(first)}{line}, not at ln 2 = 0.693.",
        f"The reference is another model ({other}), so margins are not 0 at the start."
        if other
        else "The policy that learns is not the reference that was measured, or the first steps "
        "threw it off: dropout is on, the rate is far too high, or the number format is coarse.",
        "Nothing, if that reference was meant."
        if other
        else "Check disable_dropout and lora_dropout, warm up (warmup_ratio: 0.1), and try "
        "dtype: float32.",
        (1, step),
    )


def chosen_falls(h: History) -> Finding | None:
    """The chosen responses become less likely."""
    chosen, margin = h.series("rewards/chosen"), h.series("rewards/margins")
    logp, beta = h.series("logps/chosen"), h.number("beta")
    if not (len(chosen) and len(margin) and len(logp) and beta) or loss_type(h) not in TIED:
        return None
    # Nats per response, against the reference on the same rows: no noise of which rows came.
    fall = -chosen.tail / beta
    share = fall / max(abs(logp.tail + fall), 1e-9)
    if share < UNSEEN:
        return None
    told = (
        f"The chosen responses lost {show(fall)} nats against the reference ({share:.0%} of "
        f"their {show(-logp.tail - fall)}); the margin is {show(margin.tail)}."
    )
    if margin.tail < TOGETHER * -chosen.tail:
        return Finding(
            "chosen_falls",
            "fault",
            told,
            "Both sides fall together and are told apart no better: the model unlearns the texts "
            "of the data, and nothing is gained for it.",
            "Lower learning_rate, raise beta, and check that the pairs differ in what matters.",
            chosen.end,
        )
    if share < LARGE:
        return Finding(
            "chosen_falls",
            "expected",
            told,
            "DPO asks for a difference only, and the rejected responses fell further. What the "
            "pair loses goes to texts that are in neither.",
            "Nothing. Look at samples (log_completions_steps) and at truing winrate.",
            chosen.end,
        )
    return Finding(
        "chosen_falls",
        "fault" if share >= HUGE else "warning",
        told,
        "The margins grow, but the model leaves the data: the probability goes to texts that "
        "nobody has judged.",
        "Raise beta, lower learning_rate, or stop earlier; and read samples of it.",
        chosen.end,
    )


SFT = (loss_not_falling, overfitting, loss_gap, no_end_learnt)
PAIRWISE = (loss_not_falling, overfitting, loss_gap, loss_near_zero, at_chance)
REWARD = (*PAIRWISE, reward_start, held_out_chance, reward_overfit, reward_scale, reward_zero)
DPO = (*PAIRWISE, no_end_learnt, dpo_start, chosen_falls)
