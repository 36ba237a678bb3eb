"""What settings say of precision holds in every pass of a run, and nowhere behind it."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import tiny_folder
from truing.config import ConfigError
from truing.data.layout import Layout, Tokens, padded, shared
from truing.generation.engine import Request, Sampling
from truing.generation.llama import Llama
from truing.generation.local import LocalEngine
from truing.models import head, precision
from truing.models.checkpoint import add_lora
from truing.models.loading import Loading
from truing.models.model import Model, Policy, evaluating, load_policy
from truing.run import Run
from truing.settings import DpoConfig, KtoConfig, RewardConfig, SftConfig
from truing.stages import preference, reward, sft, unpaired
from truing.stages.reference import fingerprint

Settings = Callable[..., Any]
Write = Callable[..., str]
ROWS = [{"prompt": f"p{i}", "chosen": " in the end", "rejected": f" er{'!' * i}"} for i in range(6)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The matrix multiplies of passes, by who made them."""
    found: dict[str, set[str]] = {"forward": set(), "backward": set(), "decoding": set()}

    def spy(where: str, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **more: Any) -> Any:
            found[where].add(torch.get_float32_matmul_precision())
            return original(*args, **more)

        monkeypatch.setattr(owner, name, watched)

    spy("forward", Model, "states")
    spy("backward", torch.Tensor, "backward")
    spy("decoding", Llama, "hidden")
    return found


@pytest.mark.parametrize("wanted", ["highest", "high", "medium"])
def test_each_pass_takes_what_is_set(
    tiny: Path, jsonl: Write, settings: Settings, seen: dict[str, set[str]], wanted: str
) -> None:
    data = jsonl("rows", ROWS)
    config = settings(
        DpoConfig, tiny, data, max_steps=1, float32_matmul_precision=wanted,
        eval_dataset_name=data, log_completions_steps=1,
    )  # fmt: skip
    # What is computed before the run begins, to estimate its memory, is none of its passes.
    before = preference.outlook.announce

    def announce(*args: Any, **more: Any) -> Any:
        ahead = before(*args, **more)
        seen["forward"].clear()
        return ahead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference.outlook, "announce", announce)
        run = preference.run(config)
    assert isinstance(run, Run)
    assert seen == {"forward": {wanted}, "backward": {wanted}, "decoding": {"highest"}}
    assert torch.get_float32_matmul_precision() == "highest"


def responses(number: int) -> list[Tokens]:
    """So many responses, each longer than the one before it, two to a prompt."""
    return [
        Tokens(tuple(range(1, 4 + i // 2)), tuple((7 * i + j) % 250 + 1 for j in range(1 + i)))
        for i in range(number)
    ]


def gradients(model: Model, number: Tensor) -> Tensor:
    """All gradients in a row, behind which the model has none."""
    number.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert found.dtype == torch.float32
    model.zero_grad()
    return found


def in_bf16() -> Any:
    start = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "bf16": True}
    return precision.of(SftConfig.model_validate(start))


LAYOUTS: dict[str, Callable[[Policy, list[Tokens]], Layout]] = {
    "spans": lambda policy, rows: policy.place(rows),
    "padded": lambda _, rows: padded(rows),
    "mask": lambda _, rows: shared(rows),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("way", ["sdpa", "eager", "lora", "slices", "checkpointing"])
def test_bf16_is_near_float32(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    attention = "eager" if way == "eager" else "sdpa"
    policy = load_policy(tiny, Loading(attn_implementation=attention))
    if way == "lora":
        add_lora(policy, r=2, alpha=4, dropout=0.0, targets=["q_proj", "lm_head"], seed=0)
    if way == "slices":
        monkeypatch.setattr(head, "CHUNK", 16)
    if way == "checkpointing":
        policy.core.activation_checkpointing_enable()
    rows = responses(10)
    layout = LAYOUTS[kind](policy, rows)
    assert kind != "spans" or attention != "sdpa" or (policy.reads_spans and layout.kind == "flat")
    formats: set[torch.dtype] = set()
    layer = policy.core.model.layers[1].mlp
    layer.down_proj.register_forward_hook(lambda _m, _i, out: formats.add(out.dtype))
    found: list[tuple[float, Tensor]] = []
    for context in (nullcontext(), in_bf16()):
        formats.clear()
        with context:
            logp_BT = policy(layout)
            assert logp_BT.dtype == torch.float32
            loss = -logp_BT.sum() / layout.scored
        found.append((float(loss.detach()), gradients(policy, loss)))
    assert formats == {torch.bfloat16}
    (exact, slope), (rounded, other) = found
    # bfloat16 has 8 bits of mantissa: losses were seen to differ by up to 1e-3 of their size, the
    # cosine of gradients from 1 by up to 3e-4; both would be 0 where nothing was rounded.
    assert rounded == pytest.approx(exact, rel=5e-3)
    assert rounded != exact
    cosine = float(torch.nn.functional.cosine_similarity(slope, other, dim=0))
    assert 0.999 < cosine < 1 - 1e-6


@pytest.mark.parametrize("kind", [RewardConfig, SftConfig, DpoConfig, KtoConfig])
def test_a_run_in_bf16_learns_and_keeps_float32(
    tiny: Path, jsonl: Write, settings: Settings, kind: type[Any]
) -> None:
    run = {RewardConfig: reward, SftConfig: sft, DpoConfig: preference, KtoConfig: unpaired}[kind]
    rows = ROWS if kind is not SftConfig else [
        {"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS
    ]  # fmt: skip
    data, losses = jsonl("rows", rows), dict[bool, list[float]]()
    for bf16 in (False, True):
        config = settings(
            kind, tiny, data, max_steps=4, bf16=bf16, learning_rate=2e-3, eval_dataset_name=data,
            output_dir=str(Path(data).parent / f"run{bf16}"), log_completions_steps=4,
        )  # fmt: skip
        made: Any = run.run(config)
        losses[bf16] = [line["loss"] for line in made.metrics() if "loss" in line]
    kept = load_file(made.path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert losses[True] != losses[False]
    assert losses[True][-1] < losses[True][0]
    # Eight bits of mantissa, over four steps: seen to differ by up to 3e-3.
    assert losses[True] == pytest.approx(losses[False], abs=0.01)


def test_the_sampler_stays_in_float32_so_the_online_stages_have_no_bf16(tiny: Path) -> None:
    policy = load_policy(tiny)
    requests = [Request((5, 6, i), i) for i in range(4)]
    sampling = Sampling(max_completion_length=12, seed=0)
    plain = LocalEngine(policy).generate(requests, sampling)
    with in_bf16():
        engine = LocalEngine(policy)
        drawn = engine.generate(requests, sampling)
    assert engine.counts.path == "llama"
    assert [(t.response_ids, t.logps) for t in drawn] == [(t.response_ids, t.logps) for t in plain]
    layout = padded([Tokens(t.prompt_ids, t.response_ids) for t in drawn])
    sampled = torch.cat([torch.tensor(t.logps) for t in drawn])
    away: list[float] = []
    for context in (nullcontext(), in_bf16()):
        with context, evaluating(policy):
            away.append(float((policy(layout)[layout.mask_BT] - sampled).abs().max()))
    # In float32 the first ratio is 1; in bfloat16 it would not be, with nothing learnt yet.
    assert away[0] < 1e-4
    assert away[1] > 1e-3


@pytest.mark.parametrize("kind", ["ppo", "rloo", "reinforce", "grpo"])
def test_an_online_stage_refuses_bf16(make: Settings, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"bf16 has no place here.*part the trainer's log-probs"):
        make(kind, bf16=True)


def test_bf16_over_bfloat16_is_refused(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    rows = jsonl("rows", ROWS)
    with pytest.raises(
        ConfigError, match=r"bf16 has no effect with dtype bfloat16.*dtype: float32"
    ):
        settings(DpoConfig, tiny, rows, bf16=True, dtype="bfloat16")
    half = tiny_folder(tmp_path / "half", dtype=torch.bfloat16)
    config = settings(DpoConfig, half, rows, bf16=True, dtype="auto", max_steps=1)
    with pytest.raises(ValueError, match=r"those of .*half are in bfloat16: set dtype: float32"):
        preference.run(config)
    assert not (tmp_path / "run").exists()


def test_what_is_kept_and_what_goes_on_know_the_arithmetic(
    tiny: Path, tmp_path: Path, settings: Settings
) -> None:
    policy = load_policy(tiny)
    own = fingerprint(policy)
    with in_bf16():
        assert fingerprint(policy) != own
    with pytest.raises(KeyboardInterrupt), Run.create(
        tmp_path / "run", stage="dpo", config=settings(DpoConfig, tiny, "d"), seed=0
    ):  # fmt: skip
        raise KeyboardInterrupt
    for name, value, said in (
        ("bf16", True, "bf16: was no, is yes"),
        ("float32_matmul_precision", "high", "float32_matmul_precision: was auto, is high"),
    ):
        config = settings(DpoConfig, tiny, "d", **{name: value})
        with pytest.raises(ValueError, match=said):
            Run.create(tmp_path / "run", stage="dpo", config=config, seed=0)


def test_the_estimate_counts_the_copies_of_the_weights(
    tiny: Path, jsonl: Write, settings: Settings
) -> None:
    rows, found = jsonl("rows", ROWS), list[dict[str, float]]()
    for bf16 in (False, True):
        ahead: Any = preference.run(settings(DpoConfig, tiny, rows, dry_run=True, bf16=bf16))
        found.append(ahead.memory)
    more = {"weights in bfloat16": 2 * ahead.parameters / 2**20}
    assert found[1] == found[0] | more
