"""The trainings of the quickstart: the public stages, each with a public config.

recipes/quickstart has the same settings as files, with the reasons.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truing.data.formats import save
from truing.data.schema import Comparison, Demonstration, Provenance
from truing.models.heads import load_reward_model
from truing.models.model import Policy, load_policy
from truing.quickstart.plan import Plan
from truing.rewards import ModelReward
from truing.run import Run
from truing.settings import DpoConfig, RewardConfig, SftConfig
from truing.settings_online import PpoConfig
from truing.stages import online, preference, reward, sft
from truing.stages.outlook import Outlook
from truing.stages.setup import Watch
from truing.worlds import measuring
from truing.worlds.replies import demonstration

BASE = Path(__file__).parents[1] / "worlds" / "base"
SIMULATED = Provenance(source="model", author="world", simulated=True)

TRAINING: dict[str, Any] = {
    "report_to": [],
    "logging_steps": 5,
    "max_length": 256,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "use_cpu": True,
    # Small pieces of a step stay in a CPU's cache: a third quicker than 32 rows at once.
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
}
IMITATION: dict[str, Any] = TRAINING | {
    "learning_rate": 3e-4,
    "num_train_epochs": 1,
}
ROLLOUTS: dict[str, Any] = TRAINING | {
    "warmup_ratio": 0.0,  # it counts rollouts: the first would be learnt from at rate 0
    "logging_steps": 1,
    "response_length": measuring.LONGEST,
    "temperature": 1.0,
    "gradient_accumulation_steps": 8,
    "local_rollout_forward_batch_size": 64,
    "num_mini_batches": 2,
    "share_backbone": True,
}


def imitate(folder: Path, plan: Plan) -> Policy:
    """SFT on demonstrations, about a third of them faulty."""
    rows = [
        Demonstration(case.prompt, demonstration(case, plan.seed), SIMULATED)
        for case in plan.demonstrated()
    ]
    save(rows, folder / "demonstrations.jsonl")
    config = SftConfig(
        **IMITATION,
        output_dir=str(folder / "sft"),
        model_name_or_path=str(BASE),
        dataset_name=str(folder / "demonstrations.jsonl"),
        seed=plan.seed,
    )
    return load_policy(trained(sft.run(config)))


def imitate_chosen(folder: Path, plan: Plan, comparisons: Sequence[Comparison]) -> Policy:
    """SFT on the best replies: what the comparisons are worth without their other half."""
    rows = [Demonstration(row.prompt, row.chosen, SIMULATED) for row in comparisons]
    save(rows, folder / "chosen.jsonl")
    config = SftConfig(
        **IMITATION,
        output_dir=str(folder / "sft_chosen"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "chosen.jsonl"),
        seed=plan.seed,
    )
    return load_policy(trained(sft.run(config)))


def learn_reward(folder: Path, plan: Plan) -> ModelReward:
    """The reward model, started from the supervised model; each reply is read once."""
    quarter: dict[str, Any] = TRAINING | {"per_device_train_batch_size": 4}  # of four replies each
    config = RewardConfig(
        **quarter,
        output_dir=str(folder / "reward"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "rankings.jsonl"),
        eval_dataset_name=str(folder / "comparisons_held_out.jsonl"),
        learning_rate=1e-3,
        num_train_epochs=1,
        per_device_eval_batch_size=16,
        seed=plan.seed,
    )
    return ModelReward(load_reward_model(trained(reward.run(config))))


def prefer(folder: Path, plan: Plan, watch: Watch) -> Policy:
    """DPO from the supervised model, watched on held-out prompts while it runs.

    The best replies are imitated too: without that, sentences got lost that both replies had.
    """
    config = DpoConfig(
        **TRAINING,
        output_dir=str(folder / "dpo"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "extremes.jsonl"),
        learning_rate=1e-4,
        beta=0.2,
        rpo_alpha=1.0,
        num_train_epochs=1,
        per_device_eval_batch_size=16,
        log_completions_steps=21,
        seed=plan.seed,
    )
    return load_policy(trained(preference.run(config, watch=watch)))


def reinforce(folder: Path, plan: Plan, watch: Watch) -> Policy:
    """PPO from the supervised model against the reward model, watched likewise.

    The best replies are mixed in (PPO-ptx): what the reward model cannot tell apart, they keep.
    """
    config = PpoConfig(
        **ROLLOUTS,
        output_dir=str(folder / "ppo"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "rankings.jsonl"),
        reward=[str(folder / "reward")],
        max_steps=plan.rollouts,
        num_ppo_epochs=1,
        learning_rate=2e-4,
        lam=1.0,
        kl_coef=0.1,
        kl_target=2.0,
        kl_horizon=100.0,
        ptx_coef=0.7,
        ptx_dataset_name=str(folder / "chosen.jsonl"),
        log_completions_steps=6,
        seed=plan.seed,
    )
    return load_policy(trained(online.run(config, watch=watch)))


def unbrake(folder: Path, plan: Plan, watch: Watch) -> None:
    """PPO without a KL penalty and in a hurry, on purpose: a warning, not a model to use.

    It trusts the returns as well (``lam`` 1): a critic that has seen so few rollouts misleads a
    policy that nothing holds, and the score itself would collapse before it is gamed.
    """
    steady: dict[str, Any] = ROLLOUTS | {"lr_scheduler_type": "constant"}
    config = PpoConfig(
        **steady,
        output_dir=str(folder / "ppo_without_kl"),
        model_name_or_path=str(folder / "sft"),
        dataset_name=str(folder / "rankings.jsonl"),
        reward=[str(folder / "reward")],
        max_steps=plan.unbraked,
        num_ppo_epochs=2,
        learning_rate=3e-4,
        lam=1.0,
        kl_coef=0.0,
        log_completions_steps=4,
        seed=plan.seed,
    )
    trained(online.run(config, watch=watch))


def trained(done: Run | Outlook) -> Path:
    """The folder of a stage's run; an outlook is of a dry run, which is never asked for here."""
    assert isinstance(done, Run)
    return done.path
