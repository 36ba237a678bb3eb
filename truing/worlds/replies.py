"""Replies of the service world: the best one, and demonstrations of which a part is faulty."""

from collections.abc import Sequence

import numpy as np

from truing.keys import generator
from truing.worlds import lexicon
from truing.worlds.policy import INTENTS
from truing.worlds.service import Case, pick
from truing.worlds.wordings import (
    APOLOGIES,
    BARE_GREETING,
    CLOSINGS,
    CONCESSIONS,
    CORRECTIONS,
    FULL_CLOSINGS,
    GREETINGS,
    GUARDS,
    INVENTED,
    OFF_VOICE,
    PLAIN_CLOSINGS,
    RAMBLES,
    REFUSALS,
    RUDE,
    STEPS,
    THANKS,
    UNKNOWN,
    decision_templates,
    fill,
)

# A careless writer commits each fault that can apply with this probability, and at least one.
CARELESS = 0.36
FAULT_RATE = {
    "wrong_decision": 0.18,
    "wrong_fact": 0.17,
    "missing_fact": 0.12,
    "rude": 0.20,
    "off_voice": 0.21,
    "conceding": 0.76,
    "unsafe": 0.76,
    "refusal": 0.18,
    "rambling": 0.20,
    "repetition": 0.42,
    "no_ending": 0.27,
    "false_claim": 0.20,
}


def stance_sentences(case: Case) -> tuple[str, ...]:
    """The wordings of what the stance demands beyond the decision: none for plain and angry."""
    if case.stance == "mistaken" and case.claim:
        return CORRECTIONS[case.claim[0]]
    return {"unknowable": UNKNOWN, "unsafe": GUARDS}.get(case.stance, ())


def slots(case: Case) -> dict[str, str]:
    """What fills the templates of this case."""
    filled = dict(case.facts)
    filled["matter"] = "your account" if case.intent == "account" else f"the {filled['item']}"
    if case.claim:
        filled["claim"] = case.claim[1]
    if case.topic is not None:
        asks = lexicon.UNKNOWABLE if case.stance == "unknowable" else lexicon.UNSAFE
        filled["topic"] = asks[case.topic][1]
    return filled


def join(greeting: str, sentences: Sequence[str]) -> str:
    """One reply, with the leading space that follows the prompt's colon."""
    kept = [text for text in sentences if text]
    first = kept[0] if greeting else kept[0][0].upper() + kept[0][1:]
    if greeting and first.split()[0] in ("We", "Please", "Thank", "Thanks"):
        first = first[0].lower() + first[1:]
    rest = [text[0].upper() + text[1:] for text in kept[1:]]
    return " " + " ".join(([greeting] if greeting else []) + [first, *rest])


def best_reply(case: Case) -> str:
    """The best possible reply: everything needed, friendly, in the brand's voice, and no more."""
    turn = case.key >> 1
    fields = slots(case)

    def nth(options: tuple[str, ...]) -> str:
        if not options:
            return ""
        brief = sorted(options, key=lambda text: len(text.split()))[: (len(options) + 1) // 2]
        return fill(brief[turn % len(brief)], fields)

    step = STEPS[case.intent][case.decision == "decline"]
    # A correction states its field already, so the step that would state it again can go.
    claimed = f"{{{case.claim[0]}}}" if case.claim else "{}"
    body = [
        nth(APOLOGIES) if case.stance == "angry" else "",
        nth(decision_templates(case.intent, case.decision)),
        nth(stance_sentences(case)),
        nth(tuple(text for text in step if "{" in text and claimed not in text)),
        nth(FULL_CLOSINGS),
    ]
    return join(nth(GREETINGS), body)


def can_apply(case: Case) -> tuple[str, ...]:
    """The faults that a reply to this case can have."""
    special = {"conceding": "mistaken", "unsafe": "unsafe"}
    return tuple(f for f in FAULT_RATE if special.get(f, case.stance) == case.stance)


def planted(case: Case, seed: int) -> frozenset[str]:
    """The faults that `demonstration` plants with this seed."""
    return _plan(case, generator(seed, "demonstration", case.key))


def _plan(case: Case, rng: np.random.Generator) -> frozenset[str]:
    if rng.random() >= CARELESS:
        return frozenset()
    options = can_apply(case)
    draws = rng.random(len(options))
    chosen = {f for f, draw in zip(options, draws, strict=True) if draw < FAULT_RATE[f]}
    if "wrong_decision" in chosen:
        chosen.discard("refusal")  # who refuses decides nothing
    return frozenset(chosen or (pick(rng, options),))


def demonstration(case: Case, seed: int) -> str:
    """A reply as a careless or careful writer gives it; see `planted` for the faults in it."""
    rng = generator(seed, "demonstration", case.key)
    faults = _plan(case, rng)
    fields, decision, missing = slots(case), case.decision, ""
    if "wrong_decision" in faults:
        decision = pick(rng, tuple(d for d in INTENTS[case.intent].decisions if d != decision))
    stated = [field for field in case.needs if field in fields]
    if "wrong_fact" in faults:
        field = "name" if "refusal" in faults else pick(rng, tuple(stated))
        fields[field] = pick(rng, _others(case, field))
    if "missing_fact" in faults:
        missing = pick(rng, tuple(f for f in stated if fields[f] == case.facts[f]))
    body = _body(case, rng, faults, decision)
    sentences = [fill(text, fields, missing) for text in body]
    hello = BARE_GREETING if rng.random() < 0.15 else pick(rng, GREETINGS)
    if "rude" in faults and rng.random() < 0.3:
        hello = ""
    greeting = fill(hello, fields, missing)
    if "repetition" in faults:
        again = pick(rng, tuple(text for text in sentences if text))
        sentences.insert(int(rng.integers(1, len(sentences) + 1)), again)
    reply = join(greeting, sentences)
    if "no_ending" in faults:
        words = reply.split(" ")
        reply = " ".join(words[: -int(rng.integers(1, 5))]).rstrip(".,")
    return reply


def _others(case: Case, field: str) -> tuple[str, ...]:
    """Wrong values for a field: of its kind, not true, and not what the customer claims."""
    pools = {
        "name": lexicon.TRAIN_NAMES,
        "item": lexicon.ITEMS,
        "when": lexicon.WHENS,
        "city": lexicon.CITIES,
        "new_city": lexicon.CITIES,
        "paid": lexicon.PAYMENTS,
        "way": INTENTS["account"].rules["way"].values,
        "state": INTENTS[case.intent].states,
    }
    barred = {*case.facts.values(), case.claim[1] if case.claim else ""}
    return tuple(value for value in pools[field] if value not in barred)


def _body(case: Case, rng: np.random.Generator, faults: frozenset[str], decision: str) -> list[str]:
    """The templates of the reply's sentences, in order."""
    opening = pick(rng, APOLOGIES) if case.stance == "angry" and "rude" not in faults else ""
    if not opening and rng.random() < 0.25 and "rude" not in faults:
        opening = pick(rng, THANKS)
    if "refusal" in faults:
        main = pick(rng, REFUSALS)
    else:
        main = pick(rng, decision_templates(case.intent, decision))
    asks = lexicon.UNKNOWABLE if case.stance == "unknowable" else lexicon.UNSAFE
    stance = pick(rng, stance_sentences(case) or ("",))
    invented = ""
    if "conceding" in faults and case.claim:
        stance = pick(rng, CONCESSIONS[case.claim[0]])
    elif "unsafe" in faults and case.topic is not None:
        stance = asks[case.topic][2]
    if "false_claim" in faults:
        invented = pick(rng, INVENTED)
        if case.stance == "unknowable" and case.topic is not None and rng.random() < 0.5:
            stance, invented = asks[case.topic][2], ""
    step = pick(rng, STEPS[case.intent][decision == "decline"])
    body = [opening, main, stance, step] if rng.random() < 0.5 else [opening, main, step, stance]
    extras = [
        pick(rng, RUDE) if "rude" in faults else "",
        pick(rng, OFF_VOICE) if "off_voice" in faults else "",
        invented,
        pick(rng, RAMBLES) if "rambling" in faults else "",
    ]
    body += [extras[int(i)] for i in rng.permutation(len(extras))]
    # Few demonstrations close as well as one can, so that there is something to gain.
    style = rng.choice(3, p=(0.08, 0.40, 0.52))
    closing = pick(rng, (FULL_CLOSINGS, CLOSINGS, PLAIN_CLOSINGS)[int(style)])
    return [*body, "" if "rude" in faults and rng.random() < 0.5 else closing]
