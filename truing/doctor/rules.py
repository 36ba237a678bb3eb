"""The table of rules, and which of them a stage is asked."""

from truing.doctor import common, offline, online, outcome
from truing.doctor.finding import Finding, Rule, sort
from truing.doctor.history import ONLINE_STAGES, History

_ONLINE: tuple[Rule, ...] = (*online.ONLINE, *outcome.OUTCOME)
_OF_STAGE: dict[str, tuple[Rule, ...]] = {
    "sft": offline.SFT,
    "reward": offline.REWARD,
    "dpo": offline.DPO,
    **dict.fromkeys(ONLINE_STAGES, _ONLINE),
}


def asked(stage: str) -> dict[str, Rule]:
    """The rules that a run of this stage is asked, by name."""
    return {rule.__name__: rule for rule in (*common.RULES, *_OF_STAGE.get(stage, ()))}


RULES: dict[str, Rule] = {name: rule for stage in _OF_STAGE for name, rule in asked(stage).items()}


def findings(history: History) -> list[Finding]:
    """What the rules have to say of a run, worst first."""
    return sort(rule(history) for rule in asked(history.stage).values())
