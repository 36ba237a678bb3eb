"""Rules for a run that is not begun: settings that mostly are mistakes, and data that warn.

Each is asked of every plan, and says nothing where it does not apply.
"""

from collections.abc import Callable

from truing import console
from truing.doctor.finding import Finding, sort
from truing.doctor.history import ONLINE_STAGES
from truing.doctor.plan import Plan
from truing.settings_preference import WITHOUT_REFERENCE

# Times the usual learning rate from which on one in either direction is probably a slip.
RATE = 20.0
# Adapters are trained at about ten times the rate of whole weights.
LORA = 10.0
# Share of rows whose end is cut from which on something else is learnt than was written.
CUT = 0.05
# Share of pairs whose chosen answer is the longer, or the shorter, from which on length alone
# nearly decides: of the data that this project knows, all lie between 0.4 and 0.8.
ONE_SIDED = 0.7
# Optimiser steps below which a schedule with warm-up and decay is hardly one.
FEW_STEPS = 10
# Share of the memory that there is, above which other programs may end the run.
FULL = 0.9

Mistake = Callable[[Plan], Finding | None]


def online(plan: Plan) -> bool:
    return plan.stage in ONLINE_STAGES


def kl_off(plan: Plan) -> Finding | None:
    s = plan.settings
    if not online(plan) or s["kl_coef"] or s["kl_loss_coef"] or not plan.learnt:
        return None
    return Finding(
        "kl_off",
        "fault",
        f"kl_coef and kl_loss_coef are 0, and the reward {plan.learnt[0]} is a model.",
        "A learned reward is right near the texts that it learnt from. Without the KL penalty the "
        "policy leaves them, and finds what scores high and is bad.",
        "Set kl_coef to 0.05, or give a kl_target.",
    )


def learning_rate(plan: Plan) -> Finding | None:
    given, usual = plan.settings["learning_rate"], plan.defaults["learning_rate"]
    usual *= LORA if plan.settings["use_peft"] else 1
    if not given:
        return Finding(
            "learning_rate", "fault", "learning_rate is 0.", "Nothing is learnt.", f"Try {usual:g}."
        )
    if usual / RATE <= given <= usual * RATE:
        return None
    far = given / usual
    much = f"{far:,.0f} times" if far > 1 else f"a {1 / far:,.0f}th of"
    small = plan.ahead.parameters < 50_000_000
    return Finding(
        "learning_rate",
        "notice" if far > 1 and small else "warning",
        f"learning_rate is {given:g}, {much} the usual {usual:g} of {plan.stage}"
        f"{' with LoRA' if plan.settings['use_peft'] else ''}.",
        "The usual rates are for models of billions of weights; one of millions bears, and needs, "
        "more."
        if far > 1
        else "So little is learnt in a step that the run may change nothing.",
        f"Try {usual:g}, or watch the first steps: a loss or a KL that leaps says too high.",
    )


def response_length(plan: Plan) -> Finding | None:
    longest = plan.origin.get("data", {}).get("row_tokens", {}).get("longest")
    if not online(plan) or not longest or plan.settings["response_length"] <= longest:
        return None
    return Finding(
        "response_length",
        "notice",
        f"response_length is {plan.settings['response_length']} tokens; the longest row that the "
        f"starting model was trained on, prompt and all, had {longest}.",
        "It has never seen an answer so long. Room is paid for in time, and what fills it is "
        "nothing that demonstrations taught.",
        f"Lower response_length to {longest} or less, and set missing_eos_penalty.",
    )


def reference(plan: Plan) -> Finding | None:
    free = plan.stage == "dpo" and plan.settings["loss_type"] in WITHOUT_REFERENCE
    tied = online(plan) or (plan.stage == "dpo" and not free)
    stage = plan.origin.get("stage")
    if not tied or plan.settings["ref_model_name_or_path"] or stage not in ("dpo", *ONLINE_STAGES):
        return None
    return Finding(
        "reference",
        "warning",
        f"The starting model comes from {stage}, and no reference is named.",
        "The reference is then that model: the KL, and DPO's log-ratios, are counted from where "
        "the last training ended, and each round may go as far again.",
        "Name the supervised model in ref_model_name_or_path, unless that is what is wanted.",
    )


def not_supervised(plan: Plan) -> Finding | None:
    if plan.stage == "sft" or not plan.origin or plan.origin.get("stage") != "reward":
        return None
    return Finding(
        "not_supervised",
        "fault",
        "The starting model is a reward model.",
        "It was taught to score, and its words are lost.",
        "Start from the supervised model.",
    )


def padding(plan: Plan) -> Finding | None:
    if not plan.pad_is_end:
        return None
    return Finding(
        "padding",
        "expected",
        "The tokenizer has no padding token of its own, so the end token fills up batches.",
        "Elsewhere that hides the end token from the loss, and models never learn to stop. Here "
        "padding is masked by position, and the end of a response is learnt.",
        "Nothing.",
    )


def missing_eos(plan: Plan) -> Finding | None:
    if not online(plan) or plan.settings["missing_eos_penalty"] is not None:
        return None
    return Finding(
        "missing_eos",
        "notice",
        "missing_eos_penalty is not set.",
        "A response that is cut is scored like any other, so a reward that likes length teaches "
        "the policy never to end.",
        "Set missing_eos_penalty (1 is usual), unless the reward itself minds.",
    )


def warm_up(plan: Plan) -> Finding | None:
    steps = plan.ahead.steps
    warm = plan.settings["warmup_steps"] or plan.settings["warmup_ratio"] * steps
    if warm < steps or not warm:
        return None
    return Finding(
        "warm_up",
        "fault",
        f"The warm-up takes {warm:g} steps, the run {steps}.",
        "The learning rate never reaches what was asked for.",
        "Lower warmup_steps, or use warmup_ratio: 0.1.",
    )


def few_steps(plan: Plan) -> Finding | None:
    s = plan.settings
    steps = plan.ahead.steps * (s["num_mini_batches"] * s["num_ppo_epochs"] if online(plan) else 1)
    if steps >= FEW_STEPS:
        return None
    size = s["per_device_train_batch_size"] * s["gradient_accumulation_steps"]
    return Finding(
        "few_steps",
        "notice",
        f"There are {steps} optimiser steps in all.",
        f"{plan.ahead.rows:,} rows make few steps of {size}.",
        "Lower gradient_accumulation_steps or per_device_train_batch_size, or raise "
        "num_train_epochs.",
    )


def no_checkpoint(plan: Plan) -> Finding | None:
    every = plan.settings["save_steps"]
    if plan.ahead.steps <= max(every, 1) or every:
        return None
    return Finding(
        "no_checkpoint",
        "notice",
        "save_steps is 0.",
        "A run that is killed begins anew; only one that is asked to stop (Ctrl-C, SIGTERM) saves.",
        "Set save_steps.",
    )


def epochs(plan: Plan) -> Finding | None:
    if plan.stage != "reward" or plan.settings["num_train_epochs"] <= 1:
        return None
    return Finding(
        "epochs",
        "warning",
        f"num_train_epochs is {plan.settings['num_train_epochs']:g} for a reward model.",
        "It learns its pairs by heart from the second pass on (Ouyang et al. 2022, C.2), and its "
        "scores grow without meaning more.",
        "Use 1, or more only with rows to evaluate on.",
    )


def nothing_held_out(plan: Plan) -> Finding | None:
    if plan.stage not in ("reward", "dpo", "sft") or "evaluation_rows" in plan.ahead.data:
        return None
    return Finding(
        "nothing_held_out",
        "notice",
        "There are no rows to evaluate on.",
        "Only the training loss will be seen, which falls for a model that learns by heart too.",
        "Name some in eval_dataset_name.",
    )


def leakage(plan: Plan) -> Finding | None:
    data = plan.ahead.data
    rows, shared = data.get("evaluation_rows", 0), data.get("evaluation_prompts_trained_on", 0)
    if not shared:
        return None
    return Finding(
        "leakage",
        "warning",
        f"{shared:,} of {rows:,} evaluation rows have a prompt that is trained on "
        f"({data['evaluation_rows_trained_on']:,} are trained on whole).",
        "What is measured on them is memory, not what was understood.",
        "Split by prompt.",
    )


def repeats(plan: Plan) -> Finding | None:
    data = plan.ahead.data
    if data["repeated_rows"] <= CUT * data["rows"]:
        return None
    return Finding(
        "repeats",
        "notice",
        f"{data['repeated_rows']:,} of {data['rows']:,} rows repeat another.",
        "They count twice, and are learnt by heart first.",
        "Take them out, unless several people judged the same.",
    )


def cut(plan: Plan) -> Finding | None:
    rows = plan.ahead.data["rows"]
    counted = {n: c for n, c in plan.ahead.notes.items() if not n.startswith("evaluation: ")}
    short = counted.get("responses truncated", 0)
    gone = counted.get("prompts too long, left out", 0) + counted.get(
        "responses too long, left out", 0
    )
    if max(short, gone) <= CUT * rows:
        return None
    return Finding(
        "cut",
        "warning",
        f"Of {rows:,} rows {gone:,} are too long and left out, and {short:,} responses are cut.",
        "What is left is another set of data: the short ones, and answers without an end.",
        "Raise max_length, as far as the model's context goes, or shorten the prompts.",
    )


def one_sided(plan: Plan) -> Finding | None:
    share = plan.ahead.data.get("chosen_longer")
    if share is None or 1 - ONE_SIDED < share < ONE_SIDED:
        return None
    return Finding(
        "one_sided",
        "warning",
        f"The chosen answer is the longer one in {share:.0%} of the judgements.",
        "Length alone nearly decides, and is the easiest thing to learn.",
        "Read some pairs. Compare with a length-only judge (truing reward-bench), and look at the "
        "length-controlled win rate (truing winrate).",
    )


def one_label(plan: Plan) -> Finding | None:
    share = plan.ahead.data.get("labels_true")
    if share is None or 1 - FULL < share < FULL:
        return None
    return Finding(
        "one_label",
        "warning",
        f"{share:.0%} of the labels are true.",
        "There is hardly anything to tell apart.",
        "Gather more of the other kind.",
    )


def simulated(plan: Plan) -> Finding | None:
    share = plan.ahead.data.get("simulated")
    if not share:
        return None
    return Finding(
        "simulated",
        "notice",
        f"{share:.0%} of the rows were made by no person.",
        "What comes of it says that the machinery works, not what people would like.",
        "Say so wherever the figures are shown.",
    )


def memory(plan: Plan) -> Finding | None:
    need, have = plan.ahead.memory_mb, plan.have_mb
    if not have or need < FULL * have:
        return None
    most = max(plan.ahead.memory, key=plan.ahead.memory.__getitem__)
    todo = {
        "activations": "Halve per_device_train_batch_size and double gradient_accumulation_steps, "
        "or set gradient_checkpointing: true.",
        "logits": "Halve per_device_train_batch_size and double gradient_accumulation_steps.",
    }.get(most, "Set use_peft: true, or take a smaller model.")
    return Finding(
        "memory",
        "fault" if need > have else "warning",
        f"It needs about {console.memory(need)}, and {console.memory(have)} are free; most goes to "
        f"{most} ({console.memory(plan.ahead.memory[most])}).",
        "The system ends what asks for more than there is.",
        todo,
    )


MISTAKES: dict[str, Mistake] = {
    rule.__name__: rule
    for rule in (
        *(kl_off, not_supervised, reference, learning_rate, warm_up, few_steps, epochs),
        *(response_length, missing_eos, padding, memory, no_checkpoint),
        *(nothing_held_out, leakage, cut, repeats, one_sided, one_label, simulated),
    )
}


def mistakes(plan: Plan) -> list[Finding]:
    """What the rules have to say of a plan, worst first."""
    return sort(rule(plan) for rule in MISTAKES.values())
