"""The loop: how a step is cut into micro-batches and ranks changes nothing, and what it logs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from truing.data.layout import Tokens, padded
from truing.keys import generator
from truing.models.checkpoint import add_lora
from truing.models.loading import Loading
from truing.models.model import Model, load_policy, logp
from truing.models.precision import total_norm
from truing.settings import SftConfig
from truing.stages import learner
from truing.stages.learner import Batch, evaluate
from truing.stages.preference import RECIPES, Pair, Preference
from truing.stages.sft import Imitation
from truing.stages.trainer import Step, Training, step_rows, total_steps

DOUBLE = Loading(dtype="float64")


def settings(**more: Any) -> SftConfig:
    """A few steps of Adam at a rate at which small differences would show."""
    start: dict[str, Any] = {"learning_rate": 1e-2, "num_train_epochs": 2, "report_to": "none"}
    fixed = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "use_cpu": True}
    return SftConfig(**(fixed | start | more))


def draw(count: int = 20, seed: int = 0) -> list[Tokens]:
    """Rows of unequal lengths."""
    random = generator(seed, "rows")
    ids = lambda low, high: tuple(  # noqa: E731
        int(i) for i in random.integers(268, size=random.integers(low, high))
    )
    return [Tokens(ids(1, 6), ids(1, 12)) for _ in range(count)]


ROWS = draw()
PAIRS = [Pair(a, b, -20.0, -30.0) for a, b in zip(draw(20, 1), draw(20, 2), strict=True)]


def fit(
    model: Model, rows: Sequence[Any], objective: Any, config: SftConfig, **more: Any
) -> list[Step]:
    options: dict[str, Any] = {"seed": 0} | more
    return list(Training(Accelerator(cpu=True), model, rows, objective, config, **options).steps())


def weights(model: Model) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


SIGMOID = {"beta": 0.3, "label_smoothing": 0.0}


def test_micro_batches_change_nothing(tiny_double: Path) -> None:
    """8 x 1 and 1 x 8 rows: the same weights and figures, in 5 steps of 8. Steps of every stage are
    in tests/unit/stages/test_invariance.py."""
    results: list[tuple[Tensor, list[Step]]] = []
    for size, times in ((8, 1), (1, 8)):
        model = load_policy(tiny_double, DOUBLE)
        config = settings(per_device_train_batch_size=size, gradient_accumulation_steps=times)
        steps = fit(model, ROWS, Imitation(config), config)
        results.append((weights(model), steps))
    (one, wanted), (other, steps) = results
    assert len(steps) == len(wanted) == 5
    torch.testing.assert_close(other, one, atol=1e-9, rtol=0)
    for a, b in zip(steps, wanted, strict=True):
        # How much is filled up is all that may differ.
        assert a.metrics | {"tokens/filling": 0.0} == pytest.approx(
            b.metrics | {"tokens/filling": 0.0}, abs=1e-5
        )
        assert (a.step, a.epoch) == (b.step, b.epoch)


def test_it_is_the_loop_that_one_would_write(tiny_double: Path) -> None:
    """Whole steps, one forward pass each, AdamW and a linear rate, in plain torch."""
    config = settings(
        per_device_train_batch_size=2, gradient_accumulation_steps=3, weight_decay=0.1
    )
    policy = load_policy(tiny_double, DOUBLE)
    steps = fit(policy, ROWS, Imitation(config), config)
    plain = load_policy(tiny_double, DOUBLE)
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    plan = list(step_rows(len(ROWS), config, seed=0, shuffle=True, world=1))
    assert len(plan) == len(steps) == 7
    for number, chosen in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (7 - number) / 7
        layout = padded([ROWS[i] for i in chosen])
        loss = -logp(plain, layout).sum() / layout.scored
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        assert steps[number].metrics["loss"] == pytest.approx(loss.item(), abs=1e-9)
    torch.testing.assert_close(weights(policy), weights(plain), atol=1e-9, rtol=0)


def test_like_lengths_share_a_micro_batch() -> None:
    rows = [Tokens((1,), (2,) * n) for n in (1, 9, 2, 8, 3)]
    batches = learner.micro_batches(rows, Imitation(settings()), 2)
    assert [b.layout.ids_RC.shape for b in batches] == [(2, 10), (2, 4), (1, 2)]


def test_the_same_seed_gives_the_same_bits(tiny: Path) -> None:
    def run(seed: int, disturb: int) -> Tensor:
        torch.manual_seed(disturb)
        policy = load_policy(tiny)
        add_lora(policy, r=2, alpha=4, dropout=0.3, targets="all-linear", seed=seed)
        config = settings(per_device_train_batch_size=4, max_steps=4)
        fit(policy, ROWS, Imitation(config), config, seed=seed)
        return weights(policy)

    assert torch.equal(run(0, 1), run(0, 2))
    assert not torch.equal(run(0, 1), run(1, 1))


# --- which rows, which rate, which steps ----------------------------------------------------------


@example(10, 1.1, 1, 1, 1, True)  # 11.000000000000002 visits
@given(
    st.integers(1, 30),
    st.sampled_from([0.3, 0.5, 1.0, 1.1, 2.0, 2.5]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
)
def test_each_row_is_read_once_an_epoch(
    rows: int, epochs: float, size: int, times: int, world: int, shuffle: bool
) -> None:
    config = settings(
        num_train_epochs=epochs, per_device_train_batch_size=size, gradient_accumulation_steps=times
    )
    plan = list(step_rows(rows, config, seed=3, shuffle=shuffle, world=world))
    step = size * times * world
    flat = [i for chosen in plan for i in chosen]
    visits = -(-rows * round(10 * epochs) // 10)
    assert len(plan) == total_steps(rows, config, world) == max(1, math.ceil(visits / step))
    assert all(len(chosen) == step for chosen in plan[:-1])
    # Every rank has a row in the last step, even if that takes a few more than were asked for.
    assert len(flat) == max(visits, (len(plan) - 1) * step + world)
    for start in range(0, len(flat), rows):
        chunk = flat[start : start + rows]
        assert len(set(chunk)) == len(chunk)
        assert shuffle or chunk == list(range(len(chunk)))
    # The order does not know about ranks or micro-batches.
    single = settings(num_train_epochs=epochs, per_device_train_batch_size=1)
    alone = [
        i for chosen in step_rows(rows, single, seed=3, shuffle=shuffle, world=1) for i in chosen
    ]
    assert flat[: len(alone)] == alone[: len(flat)]


def test_each_epoch_and_each_seed_has_its_own_order() -> None:
    config = settings(num_train_epochs=2, per_device_train_batch_size=50)
    one, two = step_rows(50, config, seed=0, shuffle=True, world=1)
    (other, _) = step_rows(50, config, seed=1, shuffle=True, world=1)
    assert sorted(one) == sorted(two) == sorted(other) == list(range(50))
    assert one != two
    assert one != other


def test_max_steps_takes_the_place_of_epochs() -> None:
    config = settings(max_steps=7, num_train_epochs=1, per_device_train_batch_size=4)
    plan = list(step_rows(5, config, seed=0, shuffle=True, world=2))
    assert [len(chosen) for chosen in plan] == [8] * 7


def test_epochs_and_rates_as_logged(tiny: Path) -> None:
    policy = load_policy(tiny)
    policy.version = 10
    config = settings(num_train_epochs=1.5, warmup_steps=2, per_device_train_batch_size=5)
    steps = fit(policy, ROWS, Imitation(config), config)
    # 30 visits in steps of 5. Two steps of warm-up from 0, then down to 0 over the other four.
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s.epoch for s in steps] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    rates = [s.metrics["learning_rate"] for s in steps]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])
    assert policy.version == 16
    cosine = settings(max_steps=4, lr_scheduler_type="cosine", warmup_ratio=0.25)
    rates = [s.metrics["learning_rate"] for s in fit(policy, ROWS, Imitation(cosine), cosine)]
    # One step of warm-up, then half a cosine: 1, (1 + cos 60°) / 2, (1 + cos 120°) / 2.
    assert rates == pytest.approx([0, 0.01, 0.0075, 0.0025])


class Linear(Imitation):
    """A loss whose gradient is known: ``factor`` times the sum of the log-probs."""

    def __init__(self, factor: float) -> None:
        super().__init__(settings())
        self.factor = factor

    def loss(self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]) -> Any:
        return self.factor * logp(model, batch.layout).sum(), {}


def test_vectors_do_not_decay(tiny: Path) -> None:
    policy = load_policy(tiny)
    with torch.no_grad():
        policy.core.model.norm.weight.fill_(0.5)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    config = settings(weight_decay=0.5, max_steps=1, lr_scheduler_type="constant")
    fit(policy, ROWS, Linear(0.0), config)
    for name, weight in policy.named_parameters():
        # Decoupled: 1 - rate x decay = 0.995.
        wanted = before[name] * (0.995 if weight.ndim > 1 else 1.0)
        torch.testing.assert_close(weight.detach(), wanted)


@pytest.mark.parametrize(("bound", "length"), [(0.0, 3.0), (1.0, 1.0), (5.0, 3.0)])
def test_long_gradients_are_shortened(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, bound: float, length: float
) -> None:
    policy = load_policy(tiny)
    monkeypatch.setattr(
        learner, "make_optimizer", lambda model, *_: torch.optim.SGD(model.parameters(), lr=1.0)
    )
    config = settings(max_steps=1, max_grad_norm=bound, lr_scheduler_type="constant")
    policy.zero_grad()
    (logp(policy, padded(ROWS[:8])).sum()).backward()
    norm = math.sqrt(
        sum(float(p.grad.square().sum()) for p in policy.parameters() if p.grad is not None)
    )
    policy.zero_grad()
    before = weights(policy)
    (step,) = fit(policy, ROWS[:8], Linear(3.0 / norm), config)
    assert step.metrics["grad_norm"] == pytest.approx(3.0, rel=1e-4)
    assert float((weights(policy) - before).norm()) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_nothing(tiny: Path, factor: float) -> None:
    policy = load_policy(tiny)
    before = weights(policy)
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step 1, micro-batch 1 of 1"):
        fit(policy, ROWS, Linear(factor), settings())
    assert torch.equal(weights(policy), before)
    assert policy.version == 0


def test_a_gradient_that_is_no_number_changes_nothing(tiny: Path) -> None:
    class Steep(Linear):
        def loss(self, model: nn.Module, batch: Batch, totals: Mapping[str, Tensor]) -> Any:
            return (0 * logp(model, batch.layout).sum()).abs().sqrt(), {}  # 0, with slope 0 x inf

    policy = load_policy(tiny)
    before = weights(policy)
    with pytest.raises(FloatingPointError, match="the gradient's norm is nan at step 1"):
        fit(policy, ROWS, Steep(0.0), settings())
    assert torch.equal(weights(policy), before)


def test_the_caller_may_stop_and_no_rows_are_refused(tiny: Path) -> None:
    policy = load_policy(tiny)
    config = settings(per_device_train_batch_size=2)
    training = Training(Accelerator(cpu=True), policy, ROWS, Imitation(config), config, seed=0)
    loop = training.steps()
    assert [next(loop).step, next(loop).step] == [1, 2]
    loop.close()
    assert policy.version == 2
    with pytest.raises(ValueError, match="there are no rows to train on"):
        fit(policy, [], Imitation(config), config)


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_activations_change_nothing(tiny: Path, lora: bool) -> None:
    found: list[Tensor] = []
    for again in (False, True):
        policy = load_policy(tiny)
        if lora:
            add_lora(policy, r=2, alpha=4, dropout=0.0, targets="all-linear")
        before = weights(policy)
        config = settings(gradient_checkpointing=again, max_steps=2)
        steps = fit(policy, ROWS, Imitation(config), config)
        assert steps[0].metrics["grad_norm"] > 0
        assert not torch.equal(weights(policy), before)
        found.append(weights(policy))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_evaluation_is_the_mean_over_all_tokens(tiny: Path, batch_size: int) -> None:
    policy = load_policy(tiny)
    add_lora(policy, r=2, alpha=4, dropout=0.5, targets="all-linear")
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight += 0.1
        policy.eval()
        wanted = -logp(policy, padded(ROWS)).sum() / sum(len(r.response) for r in ROWS)
        policy.train()
    before = weights(policy)
    found = evaluate(Accelerator(cpu=True), policy, ROWS, Imitation(settings()), batch_size)
    assert found == {"eval_loss": pytest.approx(float(wanted), rel=1e-5)}
    assert torch.equal(weights(policy), before)
    assert all(p.grad is None for p in policy.parameters())
    assert policy.training


def test_evaluation_weighs_figures_by_their_counts(tiny: Path) -> None:
    policy = load_policy(tiny)
    objective = Preference(RECIPES["sigmoid"], SIGMOID)
    whole = evaluate(Accelerator(cpu=True), policy, PAIRS[:7], objective, 7)
    parts = evaluate(Accelerator(cpu=True), policy, PAIRS[:7], objective, 3)
    assert whole == pytest.approx(parts, abs=1e-4)
    assert whole.keys() >= {"eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"}


def test_every_process_needs_a_row_to_evaluate(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match="2 evaluation rows came for 3 processes"):
        evaluate(accelerator, load_policy(tiny), ROWS[:2], Imitation(settings()), 8)


def test_a_step_learns_what_it_is_shown(tiny: Path) -> None:
    policy = load_policy(tiny)
    config = settings(lr_scheduler_type="constant", max_steps=40)
    losses = [s.metrics["loss"] for s in fit(policy, ROWS[:4], Imitation(config), config)]
    assert losses[0] > 4
    assert losses[-1] < 0.1


def test_batches_move_whole() -> None:
    batch = Batch(padded(ROWS[:2]), {"x": torch.ones(2)})
    moved = replace(batch).to(torch.device("meta"))
    tensors = [t for t in vars(moved.layout).values() if isinstance(t, Tensor)]
    assert {t.device.type for t in [*tensors, *moved.extra.values()]} == {"meta"}
    assert moved.layout.kind == "padded"


def test_a_norm_of_16_bits_is_not_rounded_to_two_digits() -> None:
    grads = [torch.full((1000,), 0.1, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)]
    wanted = sum(float(grad.double().square().sum()) for grad in grads) ** 0.5
    assert float(total_norm(grads)) == pytest.approx(wanted, rel=1e-6)
    exact = [grad.double() for grad in grads]
    assert float(total_norm(exact)) == pytest.approx(wanted, rel=1e-12)
    mixed = [grads[0], exact[1].float()]
    assert float(total_norm(mixed)) == pytest.approx(wanted, rel=1e-6)
    assert float(total_norm([])) == 0
