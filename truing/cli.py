"""The command line: a table of commands, and how their ends and errors look.

Stages load torch, which takes seconds; so each is imported when its command runs, and help,
mistyped flags and wrong settings are answered at once.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from pydantic import create_model

from truing import (
    console,
    settings,
    settings_collect,
    settings_conformance,
    settings_group,
    settings_judging,
    settings_online,
    settings_web,
)
from truing.config import ConfigError, Topic, nearest, parse


class Command(NamedTuple):
    """A config, the ``module:function`` that takes it, and a line of help."""

    config: type[Topic]
    target: str
    about: str


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        settings.QuickstartConfig,
        "truing.quickstart.loop:run",
        "the whole loop in a small world of its own, with a report; no download",
    ),
    "sft": Command(
        settings.SftConfig, "truing.stages.sft:run", "teach a model to imitate demonstrations"
    ),
    "sample": Command(
        settings_judging.SampleConfig,
        "truing.feedback.collect:sample",
        "write completions of prompts",
    ),
    "compare": Command(
        settings_judging.CompareConfig,
        "truing.feedback.collect:compare",
        "turn samples into comparisons by asking a reward",
    ),
    "best": Command(
        settings_judging.BestConfig,
        "truing.feedback.best:best",
        "keep the best of each prompt's samples by a reward",
    ),
    "convert": Command(
        settings_judging.ConvertConfig,
        "truing.feedback.convert:run",
        "rows of one tool's format into another's",
    ),
    "collect create": Command(
        settings_collect.CollectCreateConfig,
        "truing.feedback.campaigns:create",
        "a campaign of judgements by people, or new versions of its guideline",
    ),
    "collect import": Command(
        settings_collect.CollectImportConfig,
        "truing.feedback.campaigns:import_",
        "what is to be judged, or judgements made elsewhere, into a campaign",
    ),
    "collect export": Command(
        settings_collect.CollectExportConfig,
        "truing.feedback.export:run",
        "what was judged, as files to train on, with a data card",
    ),
    "collect status": Command(
        settings_collect.CollectStatusConfig,
        "truing.feedback.status:status",
        "how far campaigns have come",
    ),
    "collect person": Command(
        settings_collect.CollectPersonConfig,
        "truing.feedback.person:run",
        "what is known of one person: exported, erased",
    ),
    "ledger verify": Command(
        settings_collect.LedgerVerifyConfig,
        "truing.verify:ledger",
        "whether every judgement is what was written",
    ),
    "ledger upgrade": Command(
        settings_collect.LedgerUpgradeConfig,
        "truing.verify:upgrade",
        "a ledger of an older version to this one",
    ),
    "reward": Command(
        settings.RewardConfig, "truing.stages.reward:run", "learn a score from comparisons"
    ),
    "reward-bench": Command(
        settings_judging.RewardBenchConfig,
        "truing.evaluate.reward_bench:run",
        "how often a reward orders held-out pairs rightly",
    ),
    "dpo": Command(
        settings.DpoConfig,
        "truing.stages.preference:run",
        "improve a model from comparisons directly",
    ),
    "kto": Command(
        settings.KtoConfig,
        "truing.stages.unpaired:run",
        "improve a model from thumbs up and down directly",
    ),
    "ppo": Command(
        settings_online.PpoConfig,
        "truing.stages.online:run",
        "improve a model by a reward, with a critic",
    ),
    "rloo": Command(
        settings_online.RlooConfig,
        "truing.stages.online:run",
        "improve a model by a reward, each response against the others of its prompt",
    ),
    "reinforce": Command(
        settings_group.ReinforceConfig,
        "truing.stages.online:run",
        "improve a model by a reward: REINFORCE and REINFORCE++",
    ),
    "grpo": Command(
        settings_group.GrpoConfig,
        "truing.stages.online:run",
        "improve a model by a reward, each response against its group: GRPO and its kin",
    ),
    "winrate": Command(
        settings_judging.WinrateConfig,
        "truing.evaluate.winrate:run",
        "which of two models is better, with its interval",
    ),
    "safety": Command(
        settings_judging.SafetyConfig,
        "truing.evaluate.safety:run",
        "whether a model keeps a limit of cost on held-out prompts, with high confidence",
    ),
    "serve": Command(
        settings_web.ServeConfig,
        "truing.web.serve:run",
        "pages on which people judge, blind, and others lead them",
    ),
    "worker": Command(
        settings_web.WorkerConfig,
        "truing.feedback.worker:run",
        "models' answers into a campaign's queue, for people to judge",
    ),
    "demo-campaign": Command(
        settings_web.DemoCampaignConfig,
        "truing.quickstart.campaign:run",
        "pairs of the quickstart's replies, to judge five yourself",
    ),
    "doctor": Command(
        settings.DoctorConfig,
        "truing.doctor.run:run",
        "what happened in a run, or would in one (truing doctor ppo ...), and what to do",
    ),
    "conformance": Command(
        settings_conformance.ConformanceConfig,
        "truing.conformance.run:run",
        "losses, ours or your own, against optima that are known exactly",
    ),
    "verify": Command(
        settings.VerifyConfig,
        "truing.verify:run",
        "whether a run and all that it was made from are as they were",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 for a failed run, 2 for wrong usage, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except KeyboardInterrupt as stop:
        console.say(str(stop) or "stopped", error=True)
        return 130
    except BrokenPipeError:
        # The reader has gone (`truing --help | head`); what Python still holds goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        _overview()
        return 0
    name, rest = args[0], args[1:]
    if name in ("-V", "--version"):
        print(f"truing {version('truing')}")
        return 0
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        if parts := [known for known in COMMANDS if known.startswith(f"{name} ")]:
            return _error(f"{name} needs one of: truing {', truing '.join(parts)}", 2)
        near = nearest(name, COMMANDS)
        hint = f"did you mean truing {near}?" if near else "truing --help lists all."
        return _error(f"unknown command {name}; {hint}", 2)
    command = COMMANDS[name]
    if name == "doctor" and rest and issubclass(_config(rest[0]), settings.TrainingConfig):
        name, command, rest = f"doctor {rest[0]}", _examined(rest[0]), rest[1:]
    try:
        config = parse(command.config, rest, prog=f"truing {name}")
    except ConfigError as error:
        return _error(f"{error}\nEvery setting: truing {name} --help", 2)
    module, _, function = command.target.partition(":")
    # Threads that wait for each other sleep instead of spinning, which made steps several times
    # slower wherever another program had a core. OpenMP reads it when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        getattr(import_module(module), function)(config)
    except (ValueError, ArithmeticError, OSError, MemoryError) as error:
        if os.environ.get("TRUING_DEBUG") or isinstance(error, BrokenPipeError):
            raise
        return _error(f"{error}\nTRUING_DEBUG=1 shows where.", 1)
    return 0


def _config(name: str) -> type[Topic]:
    """The settings of a command; no training's for a name that is none."""
    return COMMANDS[name].config if name in COMMANDS else Topic


def _examined(stage: str) -> Command:
    """The doctor before a training: its settings, and how many steps to try."""
    of = COMMANDS[stage]
    both = create_model(of.config.__name__, __base__=(settings.TrialTopic, of.config))
    both.__doc__ = of.config.__doc__
    return Command(both, "truing.doctor.ahead:run", of.about)


def _error(message: str, status: int) -> int:
    first, _, rest = message.partition("\n")
    console.say(f"[bold red]error:[/bold red] {console.plain(first)}", error=True)
    if rest:
        console.say(f"[dim]{console.plain(rest)}[/dim]", error=True)
    return status


def _overview() -> None:
    rows = "\n".join(f"  [cyan]{name:<16}[/cyan]{c.about}" for name, c in COMMANDS.items())
    console.say(
        "[bold]truing[/bold]: make a language model better with people's feedback, "
        "and show that it is.\n\n"
        "demonstrate -> sample -> judge -> model the reward -> optimise -> evaluate\n\n"
        f"{rows}\n\n"
        "Start with            [cyan]truing quickstart[/cyan]\n"
        "Settings of a stage   [cyan]truing sft --help[/cyan]\n"
        "From a file           [cyan]truing sft --config sft.yaml --learning-rate 1e-5[/cyan]\n"
        "What it would take    [cyan]truing doctor sft --config sft.yaml[/cyan]\n"
        "What happened in it   [cyan]truing doctor runs/sft[/cyan]"
    )
