"""Rewards that cannot be used, and what does not go together in online training."""

from pathlib import Path

from tests.conftest import tiny_folder
from tests.mistakes.bench import OUT, Bench, Case
from tests.online import reward_model

JUDGE = """
calls = []

def score(prompts, completions):
    calls.append(len(completions))
    return {given}
"""


def compare(reward: str) -> Case:
    return lambda b: b.compare(reward)


def ppo(*more: object) -> Case:
    return lambda b: b.online("ppo", *more)


def giving(module: str, given: str) -> Case:
    """A reward of the user's own; modules are remembered, so each case names its own."""

    def make(b: Bench) -> list[str]:
        b.file(f"{module}.py", JUDGE.format(given=given))
        return b.online("ppo", "--reward", f"{module}:score", "--save-steps", 1)

    return make


def over_an_earlier_file(b: Bench) -> list[str]:
    b.file(OUT, "what was compared before\n")
    return b.compare("tests.judges:no_number")


def short_context(b: Bench) -> list[str]:
    tiny = tiny_folder(b.folder / "short", max_position_embeddings=16)
    reward_model(Path(tiny), b.folder / "scorer")
    return b.online("ppo", "--reward", "scorer", rows=[{"prompt": "p" * 40}])


CASES: dict[str, Case] = {
    "reward-rule-unknown": compare("lenght"),
    "reward-folder-missing": compare("runs/reward"),
    "reward-module-missing": compare("my_rewrds:score"),
    "reward-function-missing": compare("tests.judges:vowel"),
    "world-unknown": ppo("--reward", "truing.worlds.travel:gold_reward"),
    "world-of-other-prompts": ppo("--reward", "truing.worlds.recognise:gold_reward"),
    "reward-count": ppo("--reward", "tests.judges:one_too_few"),
    "reward-none": ppo("--reward", "tests.judges:nothing"),
    "reward-nan": ppo("--reward", "tests.judges:no_number"),
    "reward-nan-over-a-file": over_an_earlier_file,
    "reward-one-number": giving("judge_alone", "1.0"),
    "reward-texts": giving("judge_words", "['good' for _ in completions]"),
    "reward-nan-later": giving(
        "judge_late", "[float(i) if len(calls) < 3 else None for i, _ in enumerate(completions)]"
    ),
    "reward-context-short": short_context,
    "no-room-for-a-response": ppo("--response-length", 200),
    "value-model-without-reward-model": ppo("--value-model", "reward"),
    "no-response-ends": ppo("--missing-eos-penalty", 1, "--response-length", 1),
    "idle-tokenizer-setting": lambda b: b.compare("length", "--eos-token", "x"),
}
