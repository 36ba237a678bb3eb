"""TRL's losses and advantages through the table (`truing conformance --peer trl`).

What runs is TRL's own code: methods of its trainers, called with an object that has the few
attributes they read in the place of a trainer, and with a model that gives the log-probs it is
told. Two things are done to it. Where a method ends in a mean over the batch, that mean is left
out, so that pairs can be weighted by how often they are drawn. And what a method logs is thrown
away. Written against TRL 1.12 to 1.16.
"""

import importlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from truing.conformance import checks as ours
from truing.conformance.direct import (
    DIRECT,
    FLIPS,
    Direct,
    DirectLoss,
    drawn,
    normalised,
    usual,
)
from truing.conformance.online import RIGHT
from truing.conformance.own import reward_rows
from truing.conformance.rows import Check
from truing.conformance.spaces import Space, bandit, fixed, forest, tree
from truing.conformance.unit import SCORE, UNITS, Unit
from truing.console import say


def module(name: str) -> Any:
    """A module of TRL. Raises ValueError where TRL is not installed."""
    try:
        with warnings.catch_warnings():
            # What it says of itself when it is loaded is not about what is asked of it here.
            warnings.simplefilter("ignore")
            return importlib.import_module(f"trl.{name}")
    except ImportError as error:
        raise ValueError(
            f"TRL cannot be loaded ({error}): pip install trl, or truing with its extra `bench`"
        ) from error


class Unreduced(TorchFunctionMode):
    """The mean over a batch is left out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.mean and args[0].dim() == 1:
            return args[0]
        return func(*args, **(kwargs or {}))


def trainer(**more: Any) -> SimpleNamespace:
    """What the methods read of a trainer, on one process, in evaluation (which only logs less)."""
    none = torch.zeros(())
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        process_index=0,
        num_processes=1,
        # For what is logged alone, but for the GRPO count of tokens, which is not used either.
        gather=lambda x: x.sum().detach() * 0,
        gather_for_metrics=lambda x: x.sum().detach() * 0,
        reduce=lambda x, reduction: x.detach(),
    )
    logs: dict[str, Any] = {name: [] for name in ("prompt", "completion", "advantages", "images")}
    return SimpleNamespace(
        **{
            "accelerator": accelerator,
            "model": SimpleNamespace(training=False),
            "args": SimpleNamespace(
                per_device_train_batch_size=1,
                per_device_eval_batch_size=1,
                gradient_checkpointing_kwargs=None,
                gradient_accumulation_steps=1,
                steps_per_generation=1,
                center_rewards_coefficient=None,
                delta=None,
            ),
            "aux_loss_enabled": False,
            "_metrics": {"eval": defaultdict(list)},
            "_logs": {**logs, "rewards": defaultdict(list), "extra": defaultdict(list)},
            "_total_train_tokens": 0,
            "_tp_size": 1,
            "_none": none,
            **more,
        }
    )


# --- losses on pairs ------------------------------------------------------------------------------


def dpo_loss(loss_type: str, *, label_smoothing: float = 0.0) -> DirectLoss:
    """`DPOTrainer._compute_loss`, on responses of which the first token has all the log-prob.

    ``lengths``: tokens (2, B) of chosen and rejected; 1 each where it is not given.
    """

    def loss(
        c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, *, beta: float, lengths: Tensor | None = None
    ) -> Tensor:
        length_B = (torch.ones(2, len(c)) if lengths is None else lengths).flatten().long()
        longest = int(length_B.max())
        mask = (torch.arange(longest) < length_B[:, None]).long()
        logp = torch.cat([c, r])[:, None] * (torch.arange(longest) == 0)
        outputs = SimpleNamespace(
            log_probs=logp,
            entropy=torch.zeros_like(logp),
            mean_logits=torch.zeros_like(logp),
            is_top1=mask.bool(),
        )
        # One token of a prompt in front.
        whole = torch.nn.functional.pad(mask, (1, 0), value=0)
        inputs = {
            "input_ids": torch.zeros_like(whole),
            "attention_mask": torch.nn.functional.pad(mask, (1, 0), value=1),
            "completion_mask": whole,
            "ref_chosen_logps": rc,
            "ref_rejected_logps": rr,
        }
        self = trainer(
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[loss_type],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=label_smoothing,
            use_weighting=False,
        )
        method = module("trainer.dpo_trainer").DPOTrainer._compute_loss
        with Unreduced():
            return method(self, lambda **_: outputs, inputs, False)

    return loss


def cpo_loss(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, *, beta: float) -> Tensor:
    """`CPOTrainer.cpo_loss` as SimPO with a margin of 0, on means over tokens."""
    self = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=0.0, beta=beta, label_smoothing=0.0)
    method = module("experimental.cpo.cpo_trainer").CPOTrainer.cpo_loss
    return method(self, c, r)[0]


def orpo_loss(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, *, beta: float) -> Tensor:
    """`ORPOTrainer.odds_ratio_loss`, which computes in float32 and which its caller subtracts."""
    method = module("experimental.orpo.orpo_trainer").ORPOTrainer.odds_ratio_loss
    return -method(trainer(beta=1.0), c, r)[0]


def reward_loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """`RewardTrainer.compute_loss`."""
    logits = torch.cat([chosen_B, rejected_B])[:, None]
    inputs = {"attention_mask": torch.ones_like(logits)}
    method = module("trainer.reward_trainer").RewardTrainer.compute_loss
    with Unreduced():
        return method(trainer(), lambda **_: SimpleNamespace(logits=logits), inputs)


def by_length(gain: Callable[[Space], Tensor]) -> Callable[[Space], Tensor]:
    """``log pi = log pi_ref + |y| (gain + c)``, where a loss is on log-ratios over lengths."""

    def target(space: Space) -> Tensor:
        return normalised(lambda c: space.ref_S + space.lengths_S * (gain(space) + c))

    return target


def preferred(space: Space) -> Tensor:
    return space.beats_SS @ drawn(space) / space.beta


EVERY = (bandit, tree, fixed, forest)
PAIRED: dict[str, Direct] = {
    "DPO sigmoid": DIRECT["dpo"]._replace(loss=dpo_loss("sigmoid"), spaces=EVERY),
    "DPO robust": DIRECT["robust"]._replace(loss=dpo_loss("robust", label_smoothing=FLIPS)),
    "DPO ipo": Direct(
        dpo_loss("ipo"),
        "log pi = log pi_ref + |y| (p(y beats mu) / beta + c): over lengths, not IPO's own",
        by_length(preferred),
        usual,
        counted=True,
        spaces=(bandit, tree, fixed),
    ),
    "DPO sigmoid_norm": Direct(
        dpo_loss("sigmoid_norm"),
        "log pi = log pi_ref + |y| (r / beta + c)",
        by_length(lambda space: space.reward_S / space.beta),
        usual,
        counted=True,
        spaces=(bandit, tree, fixed),
    ),
    "CPO simpo": DIRECT["simpo"]._replace(loss=cpo_loss),
    "ORPO odds": DIRECT["orpo"]._replace(loss=orpo_loss),
}
ALONE = {"DPO sigmoid": "dpo", "DPO robust": "robust", "DPO ipo": "ipo", "CPO simpo": "simpo"}

# --- policy gradients -----------------------------------------------------------------------------


def scored(
    name: str, given_BT: Tensor, ref_BT: Tensor, mask_BT: Tensor, score_B: Tensor, **more: Any
) -> Tensor:
    """Advantages (B,) by ``_generate_and_score_completions`` of a trainer, where what is generated
    has these log-probs and scores."""
    lengths = mask_BT.sum(-1).tolist()
    count, policy, reference = len(score_B), SimpleNamespace(training=False), object()
    found = {id(policy): given_BT, id(reference): ref_BT}
    written = [[0] * n for n in lengths]
    generated = ([[0]] * count, written, [""] * count)
    if name == "grpo":
        generated = (*generated[:2], None, generated[2], None, {}, None, None)
    self = trainer(
        model=policy,
        ref_model=reference,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        reward_weights=torch.ones(1),
        reward_clip_range=None,
        normalize_advantages=False,
        reward_func_names=["score"],
        reward_funcs=[None],
        multi_objective_aggregation="sum_then_normalize",
        environment_factories=None,
        environments=None,
        tools=None,
        num_iterations=1,
        use_vllm=False,
        log_multimodal=False,
        _pending_extra_logs={},
        _pending_metrics={},
        _generate=lambda prompts: generated,
        _calculate_rewards=lambda *_: score_B[:, None],
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (found[id(model)], None, None),
        **more,
    )
    self.model.is_gradient_checkpointing = False
    file = module(f"trainer.{name}_trainer")
    method = getattr(file, f"{name.upper()}Trainer")._generate_and_score_completions
    with _alone(file):
        return method(self, [{"prompt": ""}] * count)["advantages"]


class _alone:
    """TRL's gathering over processes asks accelerate, which wants to be set up first; of one
    process, what is gathered is what there is. So is a model without gradient checkpointing."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.names = ("gather", "gather_object", "disable_gradient_checkpointing")

    def __enter__(self) -> None:
        self.before = {n: getattr(self.file, n) for n in self.names if hasattr(self.file, n)}
        for name in self.before:
            setattr(self.file, name, _nothing if name.startswith("disable") else lambda x: x)

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            setattr(self.file, name, value)


def _nothing(*_: Any) -> Any:
    return warnings.catch_warnings()


def rloo_advantage(reward_PG: Tensor) -> Tensor:
    """RLOO's advantages of rewards without a KL."""
    return _grouped("rloo", reward_PG)


def grpo_advantage(reward_PG: Tensor, *, scale: str = "group") -> Tensor:
    """GRPO's; ``scale``: its ``scale_rewards``."""
    return _grouped("grpo", reward_PG, scale_rewards=scale)


def _grouped(name: str, reward_PG: Tensor, **more: Any) -> Tensor:
    count, group = reward_PG.numel(), reward_PG.shape[-1]
    none = torch.zeros(count, 1, dtype=reward_PG.dtype)
    found = scored(
        name,
        none,
        none,
        torch.ones(count, 1, dtype=torch.long),
        reward_PG.flatten(),
        beta=0.0,
        num_generations=group,
        num_generations_eval=group,
        **more,
    )
    return found.view_as(reward_PG)


def clipped_loss(name: str, **more: Any) -> Callable[..., Tensor]:
    """``_compute_loss`` of a trainer, every token being a response of its own."""

    def loss(new_BT: Tensor, old_BT: Tensor, advantage_BT: Tensor, *, clip: float) -> Tensor:
        new_N1, one_N1 = new_BT.reshape(-1, 1), torch.ones(new_BT.numel(), 1)
        self = trainer(
            epsilon_low=clip,
            epsilon_high=clip,
            beta=0.0,
            _get_per_token_logps_and_entropies=lambda *_, **__: (new_N1, 0 * one_N1, None),
            **more,
        )
        inputs = {
            **{n: one_N1.long() for n in ("prompt_ids", "prompt_mask", "completion_ids")},
            "completion_mask": one_N1,
            "old_logps": old_BT.flatten(),
            "old_per_token_logps": old_BT.reshape(-1, 1),
            "advantages": advantage_BT.flatten(),
        }
        file = module(f"trainer.{name}_trainer")
        with Unreduced():
            found = getattr(file, f"{name.upper()}Trainer")._compute_loss(self, None, inputs)
        return found.view_as(new_BT)

    return loss


rloo_loss = clipped_loss("rloo")
grpo_loss = clipped_loss(
    "grpo",
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    importance_sampling_level="token",
    loss_type="grpo",
    use_vllm=False,
    vllm_importance_sampling_correction=False,
    _entropy_bonus_enabled=False,
)


def at_optimum(space: Space, *, beta: float = 1.0, turn: int = 0, first: bool = False) -> float:
    """The largest advantage that RLOO gives at pi*, its KL in the reward."""
    table = space.table_of(space.optimum_S)
    rows = space.together(4)
    given = space.token_logps(table)[rows]
    ref = space.token_logps(space.reference).roll(turn, 0)[rows]
    mask = space.mask_ST[rows]
    mask = mask & (mask.cumsum(-1) == 1) if first else mask
    found = scored(
        "rloo",
        given,
        ref,
        mask if not first else space.mask_ST[rows],
        space.reward_S[rows],
        beta=beta * space.beta,
        num_generations=4,
        num_generations_eval=4,
    )
    return float(found.abs().max())


GRPO = Unit(
    (SCORE,),
    {},
    lambda r: (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-4),
    (),
    {"not scaled": lambda f: lambda r: r - r.mean(-1, keepdim=True)},
)


@cache
def installed() -> str:
    """TRL's version. Raises ValueError where it is not installed."""
    module("trainer.utils")
    return version("trl")


def checks(*, quick: bool) -> Iterator[Check]:
    """All of the above, level after level."""
    say(f"TRL {installed()}")
    for name, against in ALONE.items():
        yield ours.unit_check(f"TRL {name}", PAIRED[name].loss, UNITS[against][1])
    judged = list(reward_rows("TRL reward", reward_loss, quick=quick, against="bradley_terry"))
    yield judged[0]
    yield ours.unit_check("TRL RLOO advantage", rloo_advantage, UNITS["rloo"][1])
    yield ours.unit_check("TRL RLOO loss", rloo_loss, UNITS["ppo"][1])
    yield ours.unit_check("TRL GRPO advantage", grpo_advantage, GRPO)
    yield ours.unit_check("TRL GRPO loss", grpo_loss, UNITS["ppo"][1])
    for make in (tree, fixed, forest):
        space = make()
        yield Check(
            f"TRL RLOO, {space.name}",
            "at the optimum",
            "no sample has an advantage",
            ours.ZERO,
            partial(at_optimum, space),
            {
                "beta doubled": partial(at_optimum, space, beta=2.0),
                "KL added, not subtracted": partial(at_optimum, space, beta=-1.0),
                "reference of other rows": partial(at_optimum, space, turn=1),
            },
        )
    yield from judged[1:]
    for name, of in PAIRED.items():
        yield from ours.direct_checks(f"TRL {name}", of)
    base = RIGHT._replace(compare=rloo_advantage, surrogate=rloo_loss)
    yield ours.sampled("TRL RLOO", "rloo", tree(), base, quick=quick)
