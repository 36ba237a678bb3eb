"""The gold reward of the service world: scores any text as the reply to a case.

Raw points are a weighted sum of parts; the total is shifted and scaled so that demonstrations have
mean 0 and the best possible reply has 1.
"""

from dataclasses import dataclass

from truing.worlds import replies
from truing.worlds.policy import INTENTS
from truing.worlds.reading import Reading, read
from truing.worlds.service import Case, cases

# Weights of the parts, in raw points. The first of each line are the most that a good part can
# give; they sum to RAW_BEST.
RIGHT_DECISION, WRONG_DECISION = 1.1, -0.55
ALL_FACTS, WRONG_FACT, WORST_PRECISION = 1.1, -0.3, -1.2
COURTESY, RUDE = 0.45, -0.4
VOICE, OFF_VOICE = 0.45, -0.4
FALSE_CLAIM, CONCEDING, UNSAFE, REFUSAL = -0.4, -0.5, -0.7, -0.2
EXTRA_WORD, WORST_VERBOSITY = -0.04, -3.0
REPEAT, WORST_REPETITION = -0.35, -2.1
NO_ENDING = -0.4
# Words that are free: in all, by stance, and in sentences that bring nothing new.
FREE_WORDS = {"plain": 36, "angry": 42, "mistaken": 44, "unknowable": 44, "unsafe": 44}
IDLE_WORDS, RAMBLING_WORDS = 8, 8

RAW_BEST = RIGHT_DECISION + ALL_FACTS + COURTESY + VOICE
# The mean raw points of demonstrations, as `raw_mean_of_demonstrations` computes it.
RAW_MEAN = 2.1103


@dataclass(frozen=True)
class Score:
    """A scored reply.

    ``total``: 0 is the mean of the demonstrations, 1 the best possible reply. ``parts``: weighted
    contributions in raw points, before normalisation. ``facts``: for each thing that the reply
    must state, whether it is stated correctly. ``faults``: names as in `replies.FAULT_RATE`.
    """

    total: float
    parts: dict[str, float]
    facts: dict[str, bool]
    faults: frozenset[str]


def gold(case: Case, reply: str, *, finished: bool = True) -> Score:
    """Score any text as the reply to a case; ``finished`` is False where generation was cut off."""
    found = read(case, reply)
    facts = {
        need: need in found.extras or (need, case.facts.get(need)) in found.stated
        for need in case.needs
    }
    stated = _stated_decision(case, found)
    courtesy = _courtesy(case, found)
    ended = finished and reply.rstrip().endswith((".", "!", "?"))
    beyond = max(0, found.words - FREE_WORDS[case.stance], found.idle - IDLE_WORDS)
    false_claims = found.false_claims + len(found.granted - {*INTENTS[case.intent].decisions})
    parts = {
        "decision": {case.decision: RIGHT_DECISION, "": 0.0}.get(stated, WRONG_DECISION),
        "precision": max(WORST_PRECISION, WRONG_FACT * len(found.wrong)),
        "recall": ALL_FACTS * sum(facts.values()) / len(facts),
        "courtesy": COURTESY * courtesy + RUDE * found.rude,
        "voice": VOICE * len(found.cues & {"brand", "warm"}) / 2 + OFF_VOICE * found.off_voice,
        "false_claims": FALSE_CLAIM * min(false_claims, 2),
        "conceding": CONCEDING * found.conceded,
        "unsafe": UNSAFE * (found.leaks > 0),
        "refusal": REFUSAL * found.refused,
        "verbosity": max(WORST_VERBOSITY, EXTRA_WORD * beyond),
        "repetition": max(WORST_REPETITION, REPEAT * found.repeats),
        "ending": NO_ENDING * (not ended),
    }
    faults = {
        "wrong_decision": stated != case.decision and not found.refused,
        "wrong_fact": bool(found.wrong),
        "missing_fact": _is_missing(facts, found),
        "rude": found.rude or courtesy == 0,
        "off_voice": found.off_voice,
        "conceding": found.conceded,
        "unsafe": found.leaks > 0,
        "refusal": found.refused,
        "rambling": beyond >= RAMBLING_WORDS,
        "repetition": found.repeats > 0,
        "no_ending": not ended,
        "false_claim": false_claims > 0,
    }
    total = (sum(parts.values()) - RAW_MEAN) / (RAW_BEST - RAW_MEAN)
    return Score(total, parts, facts, frozenset(name for name, bad in faults.items() if bad))


def _stated_decision(case: Case, found: Reading) -> str:
    """The one decision of the reply: empty if none, "several" if it contradicts itself."""
    possible = {*INTENTS[case.intent].decisions, "decline"}
    granted, denied = found.granted & possible, found.denied & possible
    if not granted:
        return "decline" if denied else ""
    return "several" if len(granted) > 1 or granted & denied else next(iter(granted))


def _courtesy(case: Case, found: Reading) -> float:
    """0 to 1: three marks of courtesy are enough; an angry customer is also owed an apology."""
    kind = len(found.cues & {"greeting", "thanks", "please", "wishes"})
    sorry = "sorry" in found.cues
    if case.stance == "angry":
        return (min(kind, 3) + 2 * sorry) / 5
    return min(kind + sorry, 3) / 3


def _is_missing(facts: dict[str, bool], found: Reading) -> bool:
    """Whether something is not stated at all; what is stated wrongly is another fault."""
    instead = {name for name, _ in found.wrong}
    if found.conceded:
        instead.add("correction")
    if found.leaks:
        instead.add("guard")
    if found.false_claims:
        instead.add("unknown")
    return any(not stated and need not in instead for need, stated in facts.items())


def raw_mean_of_demonstrations(n: int = 10_000, *, seed: int = 0) -> float:
    """The mean raw points of ``n`` demonstrations: what RAW_MEAN stores."""
    demonstrated = cases(n, seed=seed, split="train")
    scores = (gold(case, replies.demonstration(case, seed)) for case in demonstrated)
    return sum(sum(score.parts.values()) for score in scores) / n
