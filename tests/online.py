"""Small online runs for tests: how they are started, and how their figures are read."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tests.conftest import tiny_network
from truing.models.checkpoint import export
from truing.models.heads import load_reward_model
from truing.models.model import load_policy
from truing.run import Run
from truing.settings_group import GrpoConfig, ReinforceConfig
from truing.settings_online import OnlineConfig, PpoConfig, RlooConfig
from truing.stages import online
from truing.stages.casting import Cast, casting
from truing.stages.online import RECIPES, Online

KINDS: dict[str, tuple[type[OnlineConfig], dict[str, Any]]] = {
    "ppo": (PpoConfig, {}),
    "shared": (PpoConfig, {"share_backbone": True}),
    "lora": (PpoConfig, {"use_peft": True, "lora_r": 4}),
    "rloo": (RlooConfig, {"num_generations": 4}),
    "reinforce": (ReinforceConfig, {"advantage_estimator": "reinforce"}),
    "reinforce++": (ReinforceConfig, {}),
    "reinforce++ baseline": (
        ReinforceConfig,
        {"advantage_estimator": "reinforce_plus_plus_baseline"},
    ),
    "grpo": (GrpoConfig, {"num_generations": 4}),
    "dr_grpo": (GrpoConfig, {"num_generations": 4, "loss_type": "dr_grpo"}),
    "dapo": (GrpoConfig, {"num_generations": 4, "loss_type": "dapo"}),
    "gspo": (GrpoConfig, {"num_generations": 4, "loss_type": "gspo"}),
    "cispo": (GrpoConfig, {"num_generations": 4, "loss_type": "cispo"}),
}


def ran(config: Any, **more: Any) -> Run:
    run = online.run(config, **more)
    assert run is not None
    return run


def column(run: Run, name: str) -> list[float]:
    return [float(line[name] or 0) for line in run.metrics() if name in line]


def weights(run: Run) -> Tensor:
    policy = load_policy(run.path)
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def cast_of(config: Any) -> Cast:
    dataset, held_out = online.setup.datasets(config, online.Prompt)
    return casting(config, dataset, held_out, critic=RECIPES[config.recipe].critic)


def played(config: Any) -> tuple[Online, Cast]:
    """The inside of a run that has not begun."""
    cast = cast_of(config)
    run = Run.create(config.output_dir, stage=config.stage, config=config, seed=config.seed)
    accelerator = Accelerator(cpu=True)
    return Online(accelerator, cast, config, RECIPES[config.recipe], run), cast


def reward_model(tiny: Path, folder: Path, **changed: Any) -> Path:
    model = load_reward_model(tiny)
    model.shift = 0.25
    for name, value in changed.items():
        setattr(model.core.config, name, value)
    return export(model, folder)


def louder(tiny: Path, folder: Path, factor: float) -> Path:
    """The tiny model with its logits multiplied, as another model of the same tokenizer."""
    network = tiny_network()
    with torch.no_grad():
        network.lm_head.weight *= factor
    network.save_pretrained(folder)
    load_policy(tiny).tokenizer.save_pretrained(folder)
    return folder
