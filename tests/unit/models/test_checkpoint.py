"""What a run leaves behind loads anywhere, is whole or not there, and holds no pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from truing.data.layout import Tokens, padded
from truing.models import checkpoint
from truing.models.checkpoint import add_lora, export, hash_weights
from truing.models.heads import load_reward_model, load_value_model, sequence_scores
from truing.models.loading import Loading
from truing.models.model import Model, load_policy, logp

LORA: Any = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
ROWS = [Tokens((5, 6), (7, 8, 268)), Tokens((9,), (1, 2, 3, 4, 268))]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def stir(model: Model) -> None:
    """Give everything trainable other weights, as training would."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=draw)


def same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_plain_transformers_loads_the_export_and_generates(tiny_chat: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_chat, Loading(eos_token="!"))
    stir(policy)
    folder = export(policy, tmp_path)
    assert folder == tmp_path / "model"
    plain = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    same(plain(IDS).logits, policy.core(IDS).logits)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert tokenizer.eos_token == "!"
    # It stops at the token that ends a response; here that is any token at all.
    ids = plain.generate(IDS, do_sample=False, max_new_tokens=5)
    stop = int(ids[0, 5])
    assert ids.shape == (1, 10)
    policy.tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop)
    policy.core.generation_config.eos_token_id = stop
    plain = AutoModelForCausalLM.from_pretrained(export(policy, tmp_path))
    assert plain.generate(IDS, do_sample=False, max_new_tokens=5).shape == (1, 6)


def test_only_safetensors_are_written(tiny: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny)
    add_lora(policy, **LORA)
    export(policy, tmp_path)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert names >= {"model.safetensors", "adapter_model.safetensors", "tokenizer.json"}
    assert {Path(name).suffix for name in names} <= {".json", ".jinja", ".md", ".safetensors"}


@torch.no_grad()
def test_merged_adapters_are_the_model_that_was_trained(tiny: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny)
    before = logp(policy, padded(ROWS))
    add_lora(policy, **LORA)
    same(logp(policy, padded(ROWS)), before)  # an adapter starts as nothing
    stir(policy)
    trained = logp(policy, padded(ROWS))
    assert (trained - before).abs().max() > 0.05
    folder = export(policy, tmp_path)
    same(logp(load_policy(folder), padded(ROWS)), trained)
    same(logp(policy, padded(ROWS)), trained)  # training may go on with the adapters
    assert any("lora_A" in name for name, p in policy.named_parameters() if p.requires_grad)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "adapter"
    )
    same(adapted(IDS).logits, policy.network(IDS).logits)


def test_only_adapters_are_trained_and_their_start_is_keyed(tiny: Path) -> None:
    def start(seed: int, disturb: int) -> dict[str, Tensor]:
        torch.manual_seed(disturb)
        state = torch.random.get_rng_state()
        policy = load_policy(tiny)
        add_lora(policy, **LORA, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}

    one, again, other = start(0, 1), start(0, 2), start(1, 1)
    # Rank 4 beside 7 matrices in each of 2 layers, A and B.
    assert len(one) == 2 * 7 * 2
    assert all("lora_" in name for name in one)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("load", [load_policy, load_reward_model, load_value_model])
def test_what_is_trained_beside_bfloat16_is_float32(
    tiny: Path, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """In bfloat16 a weight of 1 would not notice AdamW's steps of 1e-3, the head's included."""
    model = load(tiny, Loading(dtype="bfloat16"))
    add_lora(model, **LORA)
    formats = {p.requires_grad: set[torch.dtype]() for p in model.parameters()}
    for p in model.parameters():
        formats[p.requires_grad].add(p.dtype)
    assert formats == {True: {torch.float32}, False: {torch.bfloat16}}
    model(padded(ROWS)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    stir(model)
    back = load(export(model, tmp_path), Loading(dtype="bfloat16"))
    with torch.no_grad():
        gap = (back(padded(ROWS)) - model(padded(ROWS))).abs().max()
    # Merged weights are rounded to eight bits.
    assert 0 < float(gap) < 0.5


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_goes_out_and_comes_back(tiny: Path, tmp_path: Path, lora: bool) -> None:
    model = load_reward_model(tiny)
    if lora:
        add_lora(model, **LORA)
        names = {n for n, p in model.named_parameters() if p.requires_grad}
        assert any(name.endswith("score.modules_to_save.default.weight") for name in names)
        assert len(names) == 2 * 7 * 2 + 1
    stir(model)
    model.shift = 0.75
    scores = sequence_scores(model, ROWS)
    folder = export(model, tmp_path)
    back = load_reward_model(folder)
    assert back.shift == 0.75
    same(sequence_scores(back, ROWS), scores)
    # Other readers see the score without the shift: the same ranking. Padding is not EOS here.
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert plain.config.num_labels == 1
    batch = torch.tensor([[5, 6, 7, 8, 268, 269], [9, 1, 2, 3, 4, 268]])
    with torch.no_grad():
        same(plain(batch).logits.squeeze(-1) - 0.75, scores)


def test_an_export_is_whole_or_not_there(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny)

    def fail(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()  # half of it has been written
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(policy.tokenizer, "save_pretrained", fail)
        with pytest.raises(OSError, match="the disk is full"):
            export(policy, tmp_path)
    assert not (tmp_path / "model").exists()
    good = load_policy(export(policy, tmp_path))
    # A second one replaces the first only when it is whole.
    stir(policy)
    with monkeypatch.context() as patch:
        patch.setattr(policy.tokenizer, "save_pretrained", fail)
        with pytest.raises(OSError, match="the disk is full"):
            export(policy, tmp_path)
    with torch.no_grad():
        same(logp(load_policy(tmp_path / "model"), padded(ROWS)), logp(good, padded(ROWS)))
        export(policy, tmp_path)
        same(logp(load_policy(tmp_path / "model"), padded(ROWS)), logp(policy, padded(ROWS)))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_weights_are_hashed_in_pieces_whatever_works_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = [
        ("a", torch.arange(40.0)),
        ("b", torch.ones(3, 5, dtype=torch.bfloat16).T),
        ("c", torch.tensor(2)),
        ("d", torch.zeros(0)),
    ]
    monkeypatch.setattr(checkpoint, "PIECE", 64)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    own = hash_weights(weights)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert hash_weights(weights) == own
    found = {own, hash_weights(weights[::-1]), hash_weights(weights[:3])}
    for i, (name, weight) in enumerate(weights[:3]):
        for other in ((f"{name}.", weight), (name, weight + 1), (name, weight[None])):
            found.add(hash_weights([*weights[:i], other, *weights[i + 1 :]]))
    later = weights[0][1].clone()
    later[-1] += 1
    found.add(hash_weights([("a", later), *weights[1:]]))
    assert len(found) == 3 + 9 + 1
