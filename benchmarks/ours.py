"""This side: the product's own stages, from a config to the end, with a gate between their steps.

python -m benchmarks.ours SPEC
"""

import truing  # noqa: F401 - first of all: what it sets is read when torch is loaded

# isort: split
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import work
from benchmarks.side import Gate, begun
from truing.data.layout import Tokens
from truing.generation.engine import Request, Sampling, Trajectory
from truing.generation.local import LocalEngine
from truing.generation.response import Response
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp, measure_tokens, sequence_logps
from truing.settings import DpoConfig, KtoConfig, RewardConfig, SftConfig
from truing.settings_group import GrpoConfig
from truing.settings_online import PpoConfig, RlooConfig
from truing.stages import online, preference, reward, rollout, sft, unpaired
from truing.stages.trainer import Step, Training

STAGES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "sft": (sft.run, SftConfig),
    "reward": (reward.run, RewardConfig),
    "dpo": (preference.run, DpoConfig),
    "kto": (unpaired.run, KtoConfig),
    "grpo": (online.run, GrpoConfig),
    "rloo": (online.run, RlooConfig),
    "ppo": (online.run, PpoConfig),
}
# What the workloads ask for besides `common`, in the words of docs/config.md.
MORE: dict[str, dict[str, Any]] = {
    "dpo": {"beta": work.SETTINGS["beta"]},
    "kto": {"beta": work.SETTINGS["beta"]},
    "grpo": {"kl_loss_coef": 0.04},
    "rloo": {"kl_coef": 0.05},
    # The peer's PPO does not clip gradients.
    "ppo": {
        "kl_coef": 0.05,
        "max_grad_norm": 0.0,
        "num_ppo_epochs": work.PPO_EPOCHS,
    },
}


def common(spec: dict[str, Any]) -> dict[str, Any]:
    workload, folder = work.sized(spec), Path(spec["folder"])
    settings: dict[str, Any] = {
        "model_name_or_path": str(folder / ("scorer" if spec["workload"] == "reward" else "model")),
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "run"),
        "report_to": [],
        "save_steps": 0,
        "use_cpu": spec["cpu"],
        "dtype": "bfloat16" if spec["precision"] == "bf16" else "float32",
        "shuffle_dataset": False,
        "per_device_train_batch_size": workload.batch,
        **({} if spec["cpu"] else {"per_device_eval_batch_size": workload.batch}),
        "learning_rate": work.SETTINGS["learning_rate"],
        "max_grad_norm": work.SETTINGS["max_grad_norm"],
        "lr_scheduler_type": "constant",
        "max_steps": spec["steps"],
    }
    if not workload.online:
        return settings
    settings |= {
        "response_length": work.RESPONSE,
        "num_generations": workload.group,
        "temperature": 1.0,
        **({} if spec["cpu"] else {"local_rollout_forward_batch_size": workload.batch}),
    }
    if spec["workload"] == "ppo":
        del settings["num_generations"]
        return settings | {"reward": [str(folder / "scorer")]}
    return settings | {"reward": ["benchmarks.work:reward"]}


class Given(LocalEngine):
    """Answers with the responses that every side learns from first."""

    def __init__(
        self, policy: Policy, *, respond: Callable[..., tuple[int, ...]], **more: Any
    ) -> None:
        super().__init__(policy, **more)
        self.respond = respond

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Trajectory]:
        rows = [Tokens(r.prompt_ids, self.respond(r.prompt_ids, r.sample)) for r in requests]
        logps = measure_tokens(self.policy, rows, 8, partial(logp, self.policy))
        return [
            Trajectory(
                prompt_key=r.prompt_key,
                sample=r.sample,
                ids=(*row.prompt, *row.response),
                roles=(0,) * len(row.prompt) + (1,) * len(row.response),
                logps=tuple(found.tolist()),
                turns=((len(row.prompt), row.length),),
                finish="stop",
                version=self.policy.version,
                sampling=sampling,
            )
            for r, row, found in zip(requests, rows, logps, strict=True)
        ]


class Cut(Response):
    """Ends where it ends on the other side, too."""

    @cached_property
    def whole(self) -> int:
        """How many tokens it is to have. Drawn once: to draw it for each of them would take longer
        than all else that is done for one."""
        return work.length(self.prompt, self.request.sample)

    def add(self, token: int, logp: float) -> None:
        super().add(work.EOS if len(self.ids) + 1 == self.whole else token, logp)


class Sampler(LocalEngine):
    """Samples responses that end where they are to."""

    def _response(self, request: Request, sampling: Sampling) -> Response:
        made = super()._response(request, sampling)
        return Cut(made.request, made.limit, made.draws)


def renamed(name: str, ppo: bool) -> str:
    """A parameter's name in the words of the peer."""
    name = name.replace("network.", "").replace("critic.", "value_model.")
    return name if ppo else name.removeprefix("policy.")


def gated(kind: type[Any], gate: Gate, spec: dict[str, Any]) -> None:
    """Put the gate between the steps of a training loop."""
    original = kind.steps
    ppo = spec["workload"] == "ppo"
    respond = partial(work.given, shape=work.SHAPES[spec["shape"]], whole=ppo)

    def steps(self: Any) -> Iterator[Step]:
        gate.watch(self.learner.model, partial(renamed, ppo=ppo))
        if kind is online.Online:
            read = [(p.ids, ()) for p in self.cast.prompts]
            rollout.LocalEngine = partial(Given, respond=respond)  # pyright: ignore
        else:
            read = [(t.prompt, t.response) for row in self.rows for t in scored(row)]
        gate.told["digest"] = work.digest(read)
        gate.wait()
        for step in original(self):
            rollout.LocalEngine = Sampler
            if ppo:
                length = step.metrics["completions/mean_length"]
                work.seen["tokens"] += round(length * work.sized(spec).batch)
            named = {n[5:]: v for n, v in step.metrics.items() if n.startswith("time/")}
            gate.step(**({"phases": named} if named else {}))
            yield step

    kind.steps = steps


def awaited() -> None:
    """Learning ends when a GPU has done it, not when it was told to."""
    original = online.Online._passes

    def passes(self: Any, lessons: Any) -> dict[str, float]:
        found = original(self, lessons)
        torch.cuda.synchronize()
        return found

    online.Online._passes = passes


def scored(row: Any) -> Sequence[Tokens]:
    """The sequences of a row that the peer's rows have too."""
    if isinstance(row, Tokens):
        return [row]
    return [row.answer] if isinstance(row, unpaired.Thumb) else row.responses


def timed_reference(gate: Gate) -> None:
    """The reference's pass, which stages make once before the first step: its seconds for a row,
    which the runner adds to each step."""
    original = preference.with_reference

    def timed(rows: Sequence[Any], reference: Policy, size: int, *more: Any) -> Any:
        if not gate.cpu:  # a GPU's first pass loads its kernels; steps are not timed cold either
            sequence_logps(reference, [t for row in rows for t in row.responses], 2 * size)
        start = time.perf_counter()
        found = original(rows, reference, size, *more)
        if rows:
            gate.told["reference_seconds_per_row"] = (time.perf_counter() - start) / len(rows)
        return found

    preference.with_reference = unpaired.with_reference = timed


def sample(gate: Gate, spec: dict[str, Any]) -> None:
    """Greedy responses to one batch of prompts after another."""
    workload, folder = work.sized(spec), Path(spec["folder"])
    config = SftConfig(**{**common({**spec, "workload": "sft"}), "dataset_name": "none"})
    policy = load_policy(folder / "model", Loading.of(config))
    engine = LocalEngine(policy, batch_size=workload.batch)
    sampling = Sampling(temperature=0, max_completion_length=work.RESPONSE)
    prompts = [work.ids(row["prompt"]) for row in work.read(folder)]
    gate.told["digest"] = work.digest((p, ()) for p in prompts)
    gate.wait()
    for start in range(0, len(prompts), workload.batch):
        batch = prompts[start : start + workload.batch]
        found = engine.generate([Request(p, i) for i, p in enumerate(batch)], sampling)
        responses = [list(t.response_ids) for t in found]
        work.seen["tokens"] += sum(map(len, responses))
        gate.step(responses=responses)


def main() -> None:
    spec, gate = begun(sys.argv[1])
    if spec["workload"].startswith("sampling"):
        sample(gate, spec)
        return
    for kind in (Training, online.Online):
        gated(kind, gate, spec)
    timed_reference(gate)
    if not spec["cpu"]:
        awaited()
    run, config = STAGES[spec["workload"]]
    run(config(**{**common(spec), **MORE.get(spec["workload"], {})}))


if __name__ == "__main__":
    main()
