"""Driving a loop to its end: what is logged, looked at, evaluated and kept on the way; stopping and
going on."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from truing import console
from truing.data.layout import Tokens
from truing.models.model import Model
from truing.run import Run
from truing.settings import SaveTopic, TrainingConfig
from truing.stages.keeping import Keeper, Snapshot
from truing.stages.learner import Diverged, Objective, evaluate
from truing.stages.trainer import Loop, Step, Training
from truing.writing import write_json

Row = TypeVar("Row")


@contextmanager
def interruptible(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM, inside: asks to stop after this step; a second one stops at once.

    Gives a function that says whether any process was asked; all of them must call it together.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)
        console.say(
            "[yellow]stopping after this step, which will be saved; once more stops at once, and "
            "the run would go on from its last checkpoint[/yellow]"
        )

    def asked() -> bool:
        if accelerator.num_processes == 1:
            return bool(heard)
        flag = torch.tensor(float(bool(heard)), device=accelerator.device)
        return bool(accelerator.reduce(flag) > 0)  # pyright: ignore

    # Only the main thread hears signals.
    here = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, hear) for each in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Tally:
    """Metrics between two lines of the log, and the last of each."""

    def __init__(self, run: Run, every: int) -> None:
        self.run, self.every = run, every
        self.window: list[dict[str, float]] = []
        self.last: dict[str, float] = {}

    def add(self, step: Step, *, final: bool) -> dict[str, float]:
        """Take a step's metrics; the line that is logged where one is due, else nothing."""
        self.window.append(step.metrics)
        if step.step % self.every and not final:
            return {}
        found: dict[str, list[float]] = {}
        for metrics in self.window:
            for name, value in metrics.items():
                found.setdefault(name, []).append(value)
        mean = {name: sum(values) / len(values) for name, values in found.items()}
        mean |= {k: v for k, v in step.metrics.items() if k in ("learning_rate", "lr")}
        self.window = []
        return self.log(step.step, mean | step.counters | {"epoch": step.epoch})

    def log(self, step: int, figures: Mapping[str, float]) -> dict[str, float]:
        self.run.log(step, figures)
        self.last |= figures
        return dict(figures)

    def state(self) -> dict[str, Any]:
        return {"window": self.window, "last": self.last, "logs": self.run.sizes()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.window, self.last = list(state["window"]), dict(state["last"])
        self.run.rewind(state["logs"])


def fit(
    run: Run,
    accelerator: Accelerator,
    model: Model,
    rows: Sequence[Row],
    objective: Objective[Row],
    config: TrainingConfig,
    *,
    held_out: Sequence[Row] = (),
    look: Callable[[], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Train on rows: log, evaluate, look at samples. Returns the last metrics.

    ``look`` is called before the first step, every ``log_completions_steps`` and after the last;
    what it returns is logged.
    """
    loop = Training(
        accelerator,
        model,
        rows,
        objective,
        config,
        seed=config.seed,
        shuffle=config.shuffle_dataset,
    )
    size = config.per_device_eval_batch_size
    evaluation = partial(evaluate, accelerator, model, held_out, objective, size)
    return drive(run, loop, config, assess=evaluation if held_out else None, look=look)


def drive(
    run: Run,
    loop: Loop,
    config: TrainingConfig,
    *,
    assess: Callable[[], Mapping[str, float]] | None = None,
    look: Callable[[], Mapping[str, float]] | None = None,
    shown: str = "loss",
) -> dict[str, float]:
    """Run a loop from its last checkpoint to its end; ``shown`` is the metric beside the bar.

    ``assess`` is called every ``eval_steps`` and after the last step, ``look`` before the first
    too. Returns the last metrics. Raises KeyboardInterrupt once it has stopped and saved.
    """
    name = config.metric_for_best_model or ""
    if name.startswith("eval_") and assess is None:
        raise ValueError(
            f"metric_for_best_model is {name}, but there is nothing to evaluate on: name the rows "
            "in eval_dataset_name, or a metric of the training, such as loss"
        )
    keeper = Keeper(run.path, config, writes=run.writes)
    tally = Tally(run, config.logging_steps)
    begun = go_on(run, loop, keeper, tally)

    def due(every: int | None, step: int) -> bool:
        return bool(every) and step % int(every or 1) == 0

    def looked(step: int) -> None:
        if look and config.log_completions_steps and (figures := look()):
            run.log(step, figures)

    if not begun:
        looked(0)
    stage = run.info["stage"]
    with (
        run.progress(loop.total, stage) as bar,
        interruptible(loop.learner.accelerator) as asked,
        explained(run, loop, keeper),
    ):
        bar.done = begun
        for step in loop.steps():
            number, final = step.step, step.step == loop.total
            bar.advance({shown: step.metrics[shown]})
            fresh = tally.add(step, final=final)
            if assess and (final or due(config.eval_steps, number)):
                fresh |= tally.log(number, assess())
            check_metric(config, tally, fresh)
            if final or due(config.log_completions_steps, number):
                looked(number)
            better, stop = keeper.improves(number, fresh), asked() and not final
            if better or stop or (due(config.save_steps, number) and not final):
                keeper.save(snapshot(number, loop, tally))
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after step {number} of {loop.total}, which is saved: the same "
                    "command goes on from there"
                )
    return conclude(loop, keeper, tally)


@contextmanager
def explained(run: Run, loop: Loop, keeper: Keeper) -> Iterator[None]:
    """Write down the rows behind a divergence, and say what is left."""
    try:
        yield
    except Diverged as error:
        decode = loop.learner.model.tokenizer.decode
        rows = [shown_row(row, decode) for row in error.rows]
        rank = loop.learner.accelerator.process_index
        file = run.path / (f"diverged-{rank}.json" if rank else "diverged.json")
        write_json(file, {"error": str(error), "terms": error.terms, "rows": rows})
        last = f"the checkpoint of step {keeper.steps()[-1]} is" if keeper.steps() else "none is"
        error.args = (f"{error}. Its rows are in {file}; of checkpoints {last} kept",)
        raise


def shown_row(row: Any, decode: Callable[[Any], Any]) -> Any:
    """A row as texts and numbers; what is not finite by its name."""
    if isinstance(row, Tokens):
        return {"prompt": decode(list(row.prompt)), "response": decode(list(row.response))}
    if isinstance(row, Tensor):
        return shown_row(row.tolist(), decode)
    if hasattr(row, "_asdict"):
        return {name: shown_row(value, decode) for name, value in row._asdict().items()}
    if isinstance(row, list | tuple):
        return [shown_row(value, decode) for value in cast(Sequence[Any], row)]
    return str(row) if isinstance(row, float) and not math.isfinite(row) else row


def go_on(run: Run, loop: Loop, keeper: Keeper, tally: Tally) -> int:
    """Bring everything back to the last checkpoint; its step, 0 where there is none."""
    kept = keeper.latest()
    if kept is None:
        run.rewind({})
        return 0
    loop.learner.restore(kept.tensors, kept.plain["learner"])
    loop.restore(kept.step, kept.plain["loop"])
    tally.restore(kept.plain["tally"])
    if run.writes:
        console.say(f"going on after step {kept.step} of {loop.total}")
    return kept.step


def snapshot(step: int, loop: Loop, tally: Tally) -> Snapshot:
    plain = {"learner": loop.learner.state(), "loop": loop.state(), "tally": tally.state()}
    return Snapshot(step, loop.learner.tensors(), plain)


def check_metric(config: TrainingConfig, tally: Tally, fresh: Mapping[str, float]) -> None:
    """Raise ValueError at the first line that should hold the metric by which to choose."""
    name = config.metric_for_best_model
    if name is None or name in tally.last:
        return
    due = any(n.startswith("eval_") for n in fresh) if name.startswith("eval_") else bool(fresh)
    # A step that is skipped has fewer metrics than others.
    if due and config.guard_action != "skip":
        raise no_metric(config, tally)


def no_metric(config: SaveTopic, tally: Tally) -> ValueError:
    return ValueError(
        f"metric_for_best_model: no metric {config.metric_for_best_model!r} was logged; there are "
        f"{', '.join(sorted(tally.last))}"
    )


def conclude(loop: Loop, keeper: Keeper, tally: Tally) -> dict[str, float]:
    """The last metrics; where a best checkpoint was asked for, its model and the step it is of."""
    if keeper.config.metric_for_best_model is None:
        return tally.last
    if keeper.best is None:
        raise no_metric(keeper.config, tally)
    best = keeper.load(keeper.best.step)
    loop.learner.restore_weights(best.tensors, best.plain["learner"])
    return tally.last | {"best_step": best.step, "best_metric": keeper.best.value}
