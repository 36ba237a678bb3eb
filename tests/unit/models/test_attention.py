"""Texts in one row: each comes out as it does alone, and none sees another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.conftest import tiny_folder
from tests.invariance import double, exact
from truing.data.layout import Layout, Tokens, flat, padded, shared, spans
from truing.keys import generator
from truing.models import model as module
from truing.models.attention import attend
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp, sight

# Two prompts with three and one responses, a text without a prompt, one without a response.
ROWS = [
    Tokens((1, 2, 3), (4, 5)),
    Tokens((1, 2, 3), (6,)),
    Tokens((1, 2, 3), (7, 8, 9, 10)),
    Tokens((11, 12), (13, 14, 15)),
    Tokens((), (16, 17)),
    Tokens((18, 19), ()),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tiny_folder(tmp_path_factory.mktemp("m"), "llama")
    policy = load_policy(folder, Loading(dtype="float64"))
    exact(policy)
    return policy


def slopes(policy: Policy, layout: Layout) -> list[Tensor]:
    """Log-probs and every gradient."""
    policy.zero_grad()
    found = logp(policy, layout, 0.7)
    (found * torch.arange(found.numel()).view_as(found)).sum().backward()
    return [found.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]


def test_the_table_of_spans() -> None:
    layout = flat(ROWS[:5])
    # 3 + 2 cells, then two responses that look back at cells 0 to 3, then two texts and filling.
    wanted = [[0, 5, 0, 0], [5, 6, 0, 3], [6, 10, 0, 3], [10, 15, 0, 0], [15, 17, 0, 0]]
    assert spans(layout.documents_RC, layout.segments_RC)[0, 0].tolist() == wanted
    filled = spans(layout.documents_RC, layout.segments_RC, 4)
    assert filled[0, 0].tolist() == [*wanted, [17, 21, 0, 0]]
    assert (layout.tokens, layout.cells, layout.saved) == (17, 17, 6)


@given(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2), st.integers(1, 3)), min_size=1),
    st.integers(1, 3),
)
def test_spans_see_what_the_mask_shows(runs: list[tuple[int, int, int]], rows: int) -> None:
    """Rows of prompts with and without responses, responses without prompts, and filling."""
    cells: list[tuple[int, int]] = []
    for run, (document, segments, size) in enumerate(runs):
        if document < 0:
            cells += [(-1, 0)] * size
        else:
            first = document % 2  # without a prompt
            for segment in range(first, first + 1 + segments * (first == 0)):
                cells += [(run, segment)] * size
    cells += [(-1, 0)] * (-len(cells) % rows)
    documents_RC, segments_RC = (torch.tensor(x).view(rows, -1) for x in zip(*cells, strict=True))
    seen_RCC = sight(documents_RC, segments_RC)
    found = torch.zeros(len(cells), len(cells), dtype=torch.bool)
    for start, stop, top, end in spans(documents_RC, segments_RC)[0, 0].tolist():
        found[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
        found[start:stop, top:end] = True
    # What filling sees is nobody's business.
    text = documents_RC.view(-1) >= 0
    assert torch.equal(found[text], torch.block_diag(*seen_RCC.int()).bool()[text])


def test_spans_are_attention_under_the_mask_of_the_row() -> None:
    layout = flat(ROWS)
    draw = torch.Generator().manual_seed(0)
    query, key, value, ahead = torch.randn(
        4, 1, 4, layout.cells, 8, dtype=torch.float64, generator=draw
    )
    for each in (inputs := (query, key, value)):
        each.requires_grad_(True)
    table = spans(layout.documents_RC, layout.segments_RC)
    ours, _ = attend(torch.nn.Module(), *inputs, table)
    seen = sight(layout.documents_RC, layout.segments_RC)
    plain = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=seen[:, None])
    torch.testing.assert_close(ours.transpose(1, 2), plain, atol=1e-12, rtol=0)
    grads = [torch.autograd.grad(x, inputs, ahead) for x in (ours.transpose(1, 2), plain)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)

    def found(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(torch.nn.Module(), query, key, value, table)[0]

    small = [x.detach()[:, :1, :, :2].clone().requires_grad_(True) for x in inputs]
    assert torch.autograd.gradcheck(found, small)


def test_one_row_gives_every_gradient_of_padded_rows(policy: Policy) -> None:
    with double():
        assert policy.place(ROWS).kind == "flat"
        wanted = slopes(policy, padded(ROWS))
        for layout in (flat(ROWS), shared(ROWS)):
            for one, other in zip(slopes(policy, layout), wanted, strict=True):
                torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
        backwards = logp(policy, flat(ROWS[::-1]), 0.7).flip(0)
        torch.testing.assert_close(backwards, wanted[0], atol=1e-9, rtol=0)


def test_a_change_in_one_text_moves_no_bit_of_another(policy: Policy) -> None:
    before = logp(policy, flat(ROWS))
    for place in range(len(ROWS)):
        tokens = ROWS[place]
        changed = tokens._replace(response=tuple(99 for _ in tokens.response))
        after = logp(policy, flat([*ROWS[:place], changed, *ROWS[place + 1 :]]))
        for i in range(len(ROWS)):
            assert torch.equal(after[i], before[i]) == (i != place or not tokens.response)


def test_prompts_that_are_scored_stand_for_each_response(policy: Policy) -> None:
    layout = policy.place(ROWS, score_prompt=True)
    assert (layout.kind, layout.saved) == ("flat", 0)
    wanted = logp(policy, padded(ROWS, score_prompt=True))
    torch.testing.assert_close(logp(policy, layout), wanted, atol=1e-6, rtol=0)


def test_a_pass_over_one_row_asks_its_device_for_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would be awaited there. Where tensors have no numbers, asking for one is an error."""
    policy = load_policy(tiny_folder(tmp_path / "m", "llama"), Loading(dtype="bfloat16"))
    policy.network.to("meta")
    for way in ("spans", "tails"):
        monkeypatch.setitem(policy._trials, (way, policy.device), True)

    def blind(_: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **more: Any):
        assert mask.device.type == "cpu"
        return query.transpose(1, 2).contiguous(), None

    def figures(_: Any, hidden_NH: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, ...]:
        return hidden_NH.float().sum(-1), hidden_NH.float().mean(-1)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", blind)
    monkeypatch.setattr(module, "figures", figures)
    layout = policy.place(ROWS).to("meta")
    assert layout.kind == "flat"
    found = policy(layout)
    assert found.shape == layout.mask_BT.shape
    found.sum().backward()


@pytest.mark.parametrize(
    ("name", "changed"),
    [("mistral", {"sliding_window": 4}), ("llama", {"attention_dropout": 0.1}), ("bloom", {})],
)
def test_models_that_read_no_spans_read_padded_or_masked_rows(
    name: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "m", name, **changed)
    policy = load_policy(folder, Loading(dtype="float64", disable_dropout=False)).eval()
    assert not policy.reads_spans
    layout = policy.place(ROWS[:5])
    assert layout.kind in ("padded", "shared")
    torch.testing.assert_close(
        logp(policy, layout), logp(policy, padded(ROWS[:5])), atol=1e-5, rtol=0
    )


def test_attention_of_another_kind_is_refused() -> None:
    query = torch.zeros(1, 2, 3, 4)
    table = torch.tensor([[[[0, 3, 0, 0]]]])
    with pytest.raises(RuntimeError, match="softcap"):
        attend(torch.nn.Module(), query, query, query, table, softcap=30.0)
    with pytest.raises(RuntimeError, match="no attention by spans"):
        attend(torch.nn.Module(), query, query, query, table, dropout=0.1)


def test_many_rows_of_many_lengths(policy: Policy) -> None:
    random = generator(0, "spans")
    prompts = [tuple(int(i) for i in random.integers(1, 267, size=n)) for n in (5, 9, 1)]
    rows = [
        Tokens(prompt, tuple(int(i) for i in random.integers(1, 267, size=random.integers(1, 9))))
        for prompt in prompts
        for _ in range(5)
    ]
    layout = policy.place(rows)
    assert layout.saved == 4 * (5 + 9 + 1)
    torch.testing.assert_close(logp(policy, layout), logp(policy, padded(rows)), atol=1e-6, rtol=0)
