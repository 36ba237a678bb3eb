"""Every recipe loads, passes a dry run, and explains its numbers."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from truing.cli import COMMANDS, main
from truing.config import from_yaml
from truing.quickstart import training
from truing.quickstart.plan import Plan
from truing.settings import TrainingConfig
from truing.settings_online import OnlineConfig

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
# Rows that fit a stage: what its own file in data/ or on the hub would look like.
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": f"Say {i}.", "completion": f" The number {i}."} for i in range(40)],
    "dpo": [{"prompt": f"Say {i}.", "chosen": f" {i}", "rejected": " No."} for i in range(40)],
    # The completions are for the pretraining loss.
    "ppo": [{"prompt": f"Say {i}.", "completion": " Yes."} for i in range(40)],
    "rloo": [{"prompt": f"Say {i}."} for i in range(40)],
    "grpo": [{"prompt": f"Say {i}."} for i in range(40)],
    "reward": [
        {"prompt": f"Say {i}.", "completions": [f" {i}", " no", " I will not"], "ranks": [0, 1, 1]}
        for i in range(40)
    ],
}  # fmt: skip


def config_of(recipe: Path) -> TrainingConfig:
    config = from_yaml(COMMANDS[recipe.stem].config, recipe)
    assert isinstance(config, TrainingConfig)
    return config


def words_for(recipe: Path, model: Path, rows: str, out: Path) -> list[str]:
    """The recipe with a small model and local rows in the place of its own."""
    words = [recipe.stem, "--config", str(recipe), "--model-name-or-path", str(model)]
    words += ["--dataset-name", rows, "--output-dir", str(out), "--use-cpu", "--dry-run"]
    text = recipe.read_text(encoding="utf-8")
    words += ["--eval-dataset-name", rows] if re.search("eval_(dataset_name|steps):", text) else []
    words += ["--ptx-dataset-name", rows] if "ptx_dataset_name" in text else []
    if "reward:" in text:
        # No reward model either, so the critic starts from the policy; a context of 160 tokens.
        words += ["--response-length", "16"]
        words += [] if "ensemble:" in text else ["--reward", "length"]
        words += ["--reward", "length", "brevity"] if "ensemble:" in text else []
        words += ["--value-model", "policy"] if "value_model" in text else []
        words += ["--overlong-buffer", "4"] if "overlong_buffer" in text else []
    return words


def steps_of(config: TrainingConfig) -> int:
    """Steps of a recipe on 40 rows."""
    if config.max_steps > 0:
        return config.max_steps
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if isinstance(config, OnlineConfig) and config.total_episodes:
        return math.ceil(config.total_episodes / per_step)
    group = config.group if isinstance(config, OnlineConfig) else 1
    return math.ceil(40 * config.num_train_epochs * group / per_step)


def test_the_recipes_are_there() -> None:
    folders = {"quickstart", "hh-chat-lora-0.5b", "instructgpt", "best-of-n", "rs-dpo"}
    assert {r.parent.name for r in RECIPES} == folders | {"ppo-max", "dapo", "ensemble"}
    assert {r.stem for r in RECIPES} == set(ROWS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.parent.name}/{r.stem}")
def test_a_recipe_passes_a_dry_run(
    recipe: Path,
    tiny: Path,
    tmp_path: Path,
    jsonl: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = jsonl("rows", ROWS[recipe.stem])
    status = main(words_for(recipe, tiny, rows, tmp_path / "run"))
    shown, seen = capsys.readouterr()
    assert status == 0, seen
    config = config_of(recipe)
    figures = dict(re.findall(r"│ (.+?) +│ +([\d,.]+) │", shown))
    assert figures["rows"] == "40"
    assert figures["steps"] == f"{steps_of(config):,}"
    assert int(figures["tokens in all"].replace(",", "")) > 0
    assert float(figures["memory, estimated (MB)"].replace(",", "")) > 0
    fewer = figures["trainable parameters"] != figures["parameters"]
    # Beside an online policy stands its reference, which is not trained.
    assert fewer == (config.use_peft or isinstance(config, OnlineConfig))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.parent.name}/{r.stem}")
def test_a_recipe_says_why(recipe: Path) -> None:
    """A comment stands beside or above each number, and the head shows the command."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    head = "\n".join(lines[: lines.index(next(x for x in lines if not x.startswith("#")))])
    assert f"truing {recipe.stem}" in head
    assert f"--config recipes/{recipe.parent.name}/{recipe.stem}.yaml" in head
    for line, above in zip(lines[1:], lines, strict=False):
        if re.match(r"(?!seed)\w+: [\d.]", line):
            assert " # " in line or above.startswith("#"), line


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.parent.name}/{r.stem}")
def test_a_slip_in_a_recipe_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slip = tmp_path / "recipe.yaml"
    slip.write_text(recipe.read_text(encoding="utf-8") + "\nwarmup_step: 3\n", encoding="utf-8")
    assert main([recipe.stem, "--config", str(slip), "--dry-run"]) == 2
    assert "unknown setting warmup_step. Did you mean warmup_steps?" in capsys.readouterr().err


class Stopped(Exception):
    """Raised in the place of a stage, once its config is known."""


def test_the_quickstart_recipes_are_what_the_quickstart_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, TrainingConfig] = {}

    def stage(name: str) -> Callable[..., NoReturn]:
        def run(config: TrainingConfig, **_: object) -> NoReturn:
            seen[name] = config
            raise Stopped

        return run

    stages = {"sft": training.sft, "reward": training.reward, "dpo": training.preference}
    for name, module in (stages | {"ppo": training.online}).items():
        monkeypatch.setattr(module, "run", stage(name))
    nothing: Any = None
    plan = Plan(demonstrations=2, watched=2)
    for train, rest in (
        (training.imitate, ()),
        (training.learn_reward, ()),
        (training.prefer, (nothing,)),
        (training.reinforce, (nothing,)),
    ):
        with pytest.raises(Stopped):
            train(tmp_path, plan, *rest)
    files = ("dataset_name", "eval_dataset_name", "ptx_dataset_name")
    places = {"output_dir", "model_name_or_path", "reward", *files}
    for name, config in seen.items():
        recipe = config_of(ROOT / "recipes" / "quickstart" / f"{name}.yaml")
        assert recipe.model_dump(exclude=places) == config.model_dump(exclude=places), name
        # The same files, in the quickstart's own folder.
        for place in files:
            ours, theirs = getattr(recipe, place, None), getattr(config, place, None)
            assert (ours and Path(ours).name) == (theirs and Path(theirs).name)
    assert set(seen) == {"sft", "reward", "dpo", "ppo"}


def test_every_recipe_is_plain_yaml() -> None:
    for recipe in RECIPES:
        assert json.dumps(yaml.safe_load(recipe.read_text(encoding="utf-8")))
