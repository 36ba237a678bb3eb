"""`truing doctor` before a training: reads what it would read, tries it, says what looks wrong."""

from truing import console
from truing.doctor.finding import Finding, tell
from truing.doctor.mistakes import MISTAKES, mistakes
from truing.doctor.plan import Stage, batches, duration, planned
from truing.settings import DpoConfig, RewardConfig, SftConfig, TrainingConfig
from truing.settings_group import GrpoConfig, ReinforceConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import online, preference, reward, sft

STAGES: dict[str, tuple[type[TrainingConfig], Stage]] = {
    "sft": (SftConfig, sft.run),
    "reward": (RewardConfig, reward.run),
    "dpo": (DpoConfig, preference.run),
    "ppo": (PpoConfig, online.run),
    "rloo": (RlooConfig, online.run),
    "reinforce": (ReinforceConfig, online.run),
    "grpo": (GrpoConfig, online.run),
}


def run(config: TrainingConfig) -> list[Finding]:
    """Print what a training would do and what looks like a mistake; return the findings.

    ``config`` has ``trial_steps`` beside the settings of the training. Raises what the training
    would raise before its first step.
    """
    name, stage = next((n, s) for n, (kind, s) in STAGES.items() if isinstance(config, kind))
    plan = planned(name, config, stage, config.trial_steps)  # type: ignore[attr-defined]
    console.table("Batches", batches(plan))
    console.table("Time", duration(plan))
    found = mistakes(plan)
    tell(found, list(MISTAKES))
    return found
