"""`logp(model, layout)` is the model's own log-softmax, whatever the layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import tiny_folder
from truing.data.layout import Layout, Tokens, packed, padded, shared
from truing.keys import generator
from truing.models import head
from truing.models import model as module
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp, sequence_logps


def draw_rows(seed: int = 0, count: int = 7, vocabulary: int = 268) -> list[Tokens]:
    """Prompts of 0 to 8 and responses of 1 to 9 tokens."""
    random = generator(seed, "rows")
    ids = lambda low, high: tuple(  # noqa: E731
        int(i) for i in random.integers(vocabulary, size=random.integers(low, high))
    )
    return [Tokens(ids(1, 9), ids(1, 10)) for _ in range(count)]


def full(policy: Policy, tokens: Tokens, temperature: float = 1.0) -> Tensor:
    """Log-probs of a response from the logits of all its positions, by transformers alone."""
    ids = torch.tensor([[*tokens.prompt, *tokens.response]])
    logits = policy.network(input_ids=ids).logits[0] / temperature
    first = len(tokens.prompt)
    places = range(max(first, 1), ids.shape[1])
    return torch.stack([logits[t - 1].log_softmax(-1)[ids[0, t]] for t in places])


def close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0)


@pytest.fixture
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_it_is_the_log_softmax_of_the_full_logits(policy: Policy, temperature: float) -> None:
    rows = [*draw_rows(), Tokens((), (5, 6, 7))]
    got = logp(policy, padded(rows), temperature)
    for row, tokens in zip(got, rows, strict=True):
        wanted = full(policy, tokens, temperature)
        close(row[: len(wanted)], wanted, 1e-5)
        assert (row[len(wanted) :] == 0).all()


def layouts(rows: Sequence[Tokens]) -> list[Layout]:
    return [
        padded(rows, fill=0),
        padded(rows, fill=268),
        padded([*rows, Tokens((1,) * 40, (2,) * 20)]),
        packed(rows, capacity=24, fill=9),
        packed(rows, capacity=100),
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-6)])
def test_no_layout_changes_it(tiny: Path, dtype: str, tolerance: float) -> None:
    """In float64 Llama still rounds: its norms compute in float32."""
    policy, rows = load_policy(tiny, Loading(dtype=dtype)), draw_rows()
    wanted = logp(policy, padded(rows))
    assert wanted.dtype == getattr(torch, dtype)
    for layout in layouts(rows):
        close(logp(policy, layout)[: len(rows), : wanted.shape[1]], wanted, tolerance)
    order = [3, 1, 6, 0, 2, 5, 4]
    mixed = logp(policy, padded([rows[i] for i in order]))
    close(mixed, wanted[order][:, : mixed.shape[1]], tolerance)


# What each does to its logits, made strong enough to be seen.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "qwen2": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"final_logit_softcapping": 0.7, "sliding_window": 4},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_their_own_logits(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny_folder(tmp_path / "m", name, **FAMILIES[name]))
    rows = draw_rows(1)
    got = logp(policy, padded(rows))
    for row, tokens in zip(got, rows, strict=True):
        wanted = full(policy, tokens)
        close(row[: len(wanted)], wanted, 2e-5)
    # Rows longer than the context of 64, which learnt positions must survive.
    close(logp(policy, packed(rows * 2, capacity=100))[:7], got, 2e-5)
    if len(FAMILIES[name]) and name != "mistral":
        plain = lambda self, hidden: self.core.get_output_embeddings()(hidden)  # noqa: E731
        monkeypatch.setattr(Policy, "logits", plain)
        with pytest.raises(ValueError, match="changes its logits in a way this version does not"):
            load_policy(tmp_path / "m")


def test_in_double_precision_layouts_agree_to_1e9(tmp_path: Path) -> None:
    policy = load_policy(tiny_folder(tmp_path / "m", "gpt2"), Loading(dtype="float64"))
    rows = draw_rows(2)
    wanted = logp(policy, padded(rows))
    for layout in layouts(rows):
        if layout.ids_RC.shape[1] <= 64:
            close(logp(policy, layout)[: len(rows), : wanted.shape[1]], wanted, 1e-9)


def gradients(policy: Policy, layout: Layout) -> tuple[Tensor, list[Tensor]]:
    policy.zero_grad()
    out = logp(policy, layout, 1.3)
    (out * torch.arange(out.numel()).view_as(out)).sum().backward()
    return out, [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def test_slices_of_the_head_change_nothing_and_bound_the_logits(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, layout = load_policy(tiny, Loading(dtype="float64")), padded(draw_rows())
    whole, slopes = gradients(policy, layout)
    sizes: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear

    def spied(*given: Any) -> Tensor:
        out = linear(*given)
        sizes.extend([tuple(out.shape)] * (out.shape[-1] == 270))
        return out

    monkeypatch.setattr(head, "CHUNK", 3)
    monkeypatch.setattr(torch.nn.functional, "linear", spied)
    with torch.no_grad():
        close(logp(policy, layout, 1.3), whole, 1e-12)
    # Only scored tokens (rounded up) reach the head, three at a time; never (B, T, V).
    assert max(rows for rows, _ in sizes) == 3
    assert sum(rows for rows, _ in sizes) == -(-layout.scored // module.SCORED) * module.SCORED
    sliced, more = gradients(policy, layout)
    close(sliced, whole, 1e-12)
    assert len(more) == len(slopes) > 10
    for one, other in zip(more, slopes, strict=True):
        close(one, other, 1e-9)


GROUPS = [3, 1, 2]  # responses to each prompt


def answers() -> list[Tokens]:
    """Several responses each to prompts of 1 to 8 tokens, one of them to no prompt."""
    rows = draw_rows(3, sum(GROUPS))
    prompts = [rows[g].prompt for g, size in enumerate(GROUPS) for _ in range(size)]
    placed = [Tokens(p, row.response) for p, row in zip(prompts, rows, strict=True)]
    return [*placed, Tokens((), (4, 5, 6)), Tokens((), (4, 7))]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "granite", "cohere", "phi"])
def test_a_shared_prompt_changes_nothing(name: str, attention: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", name)
    policy = load_policy(folder, Loading(dtype="float64", attn_implementation=attention))
    assert policy.shares_prompts
    rows = answers()
    layout = policy.place(rows)
    kind, rows_there = ("flat", 1) if attention == "sdpa" else ("shared", len(GROUPS) + 2)
    assert (layout.kind, len(layout.ids_RC)) == (kind, rows_there)
    assert policy.reads_spans == (attention == "sdpa")
    got, slopes = gradients(policy, layout)
    wanted, others = gradients(policy, padded(rows))
    # All but GPT-2 compute norms, rotations or softmax in float32 whatever the weights are.
    tolerance = 1e-10 if name == "gpt2" else 1e-5
    close(got, wanted, tolerance)
    for one, other in zip(slopes, others, strict=True):
        close(one, other, 100 * tolerance)


def test_responses_to_one_prompt_do_not_see_each_other(tiny: Path) -> None:
    policy = load_policy(tiny, Loading(dtype="float64"))
    first, second = Tokens((1, 2, 3), (4, 5)), Tokens((1, 2, 3), (6, 7, 8))
    before = logp(policy, shared([first, second]))
    after = logp(policy, shared([first._replace(response=(9, 9)), second]))
    close(after[1], before[1], 1e-12)
    assert (after[0] - before[0]).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"sliding_window": 4}, {"layer_types": "linear"}])
def test_a_model_that_cannot_share_reads_each_prompt(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny_folder(tmp_path / "m", "mistral"))
    kinds = {"layer_types": ["linear_attention"] * 2} if "layer_types" in options else options
    for key, value in kinds.items():
        monkeypatch.setattr(policy.core.config, key, value, raising=False)
    assert not policy.shares_prompts
    assert policy.place(answers()).kind == "padded"


def test_sharing_is_tried_out_before_it_is_used(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes the mask and does not heed it must not be given one."""
    forward = policy.core.base_model.forward
    deaf = lambda **given: forward(**{**given, "attention_mask": None})  # noqa: E731
    monkeypatch.setattr(policy.core.base_model, "forward", deaf)
    assert not policy.shares_prompts


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rounding_shapes_up_changes_nothing_and_keeps_to_the_context(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny_folder(tmp_path, name), Loading(dtype="float64"))
    assert policy.context is not None
    rows = draw_rows()
    long = Tokens((5,) * (policy.context - 9), tuple(range(20, 29)))
    seen: list[int] = []
    policy.core.base_model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    batches = padded(rows), packed(rows, capacity=25), padded([*rows, long]), shared(answers())
    monkeypatch.setitem(policy._trials, ("spans", policy.device), False)
    for layout in batches:
        monkeypatch.setattr(module, "COLUMNS", 7)
        monkeypatch.setattr(module, "SCORED", 5)
        rounded, slopes = gradients(policy, layout)
        assert seen[-1] % 7 == 0 or seen[-1] == policy.context
        monkeypatch.setattr(module, "COLUMNS", 1)
        monkeypatch.setattr(module, "SCORED", 1)
        plain, others = gradients(policy, layout)
        assert seen[-1] == layout.ids_RC.shape[1]
        close(rounded, plain, 1e-12)
        for one, other in zip(slopes, others, strict=True):
            close(one, other, 1e-9)


def test_flash_attention_gets_packed_rows_in_one(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers sees restarting positions with flash attention only in a batch of one."""
    rows = draw_rows()
    layout, wanted = packed(rows, capacity=24), logp(policy, padded(rows))
    shapes: list[tuple[int, ...]] = []
    policy.core.base_model.register_forward_pre_hook(
        lambda _, __, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    # The kernel is not there on a CPU: a name that reads as its name and looks up another.
    name = type("Name", (str,), {"__str__": lambda self: "flash_attention_2"})
    monkeypatch.setattr(policy.core.config, "_attn_implementation_internal", name("sdpa"))
    close(logp(policy, layout)[:, : wanted.shape[1]], wanted, 1e-5)
    logp(policy, padded(rows))
    width = padded(rows).ids_RC.shape[1]
    assert shapes == [(1, layout.ids_RC.numel()), (len(rows), width + -width % module.COLUMNS)]


def test_padding_that_is_eos_is_no_end(tiny_chat: Path) -> None:
    policy = load_policy(tiny_chat)
    eos = policy.tokenizer.eos_token_id
    assert policy.tokenizer.pad_token_id == eos
    rows = [Tokens((5, eos, 6), (7, eos)), Tokens((4,), (eos, 5, 6, 7, 8, eos))]
    got = logp(policy, padded(rows, fill=eos))
    for row, tokens in zip(got, rows, strict=True):
        wanted = full(policy, tokens)
        close(row[: len(wanted)], wanted, 1e-5)


def test_whole_responses_in_any_batch(policy: Policy) -> None:
    rows = draw_rows(3)
    got = sequence_logps(policy, rows, batch_size=2)
    assert not got.requires_grad
    close(got, torch.stack([full(policy, tokens).sum() for tokens in rows]).detach(), 1e-4)
    close(sequence_logps(policy, rows[::-1], batch_size=5).flip(0), got, 1e-5)
    assert sequence_logps(policy, []).shape == (0,)


def test_dropout_is_off_unless_asked_for(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "gpt2", resid_pdrop=0.4, attn_pdrop=0.4, embd_pdrop=0.4)
    rows = draw_rows()
    calm = load_policy(folder)
    assert calm.training
    wanted = logp(calm, padded(rows))
    close(logp(calm, padded(rows)), wanted, 1e-9)
    wild = load_policy(folder, Loading(disable_dropout=False))
    assert (logp(wild, padded(rows)) - wanted).abs().max() > 0.01
    # Whole responses are measured without it, and training goes on with it.
    close(sequence_logps(wild, rows), wanted.sum(-1).detach(), 1e-5)
    assert wild.training
