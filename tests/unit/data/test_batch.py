"""Texts to ids (one EOS, the prompt's ids those of sampling), and ids to layouts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import BOS, CHAT, END, byte_tokenizer, piece_tokenizer
from truing.data.batch import Encoder
from truing.data.layout import Layout, Tokens, flat, packed, padded, shared
from truing.data.schema import Message

BYTES, PIECES = byte_tokenizer(), piece_tokenizer()
BOTH = pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
TEXT = st.text(st.sampled_from("the in er.:\n aö😀 "), max_size=12)
ASK, SAY = Message("user", "why?"), Message("assistant", "the end")


# --- texts to ids ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("text", [" the end", "the", "", " the end\n", "{eos}", " x{eos}{eos}"])
def test_a_response_ends_in_exactly_one_eos(tokenizer: Any, text: str) -> None:
    text = text.format(eos=tokenizer.eos_token)
    tokens = Encoder(tokenizer).encode("why?", text)
    assert tokens is not None
    assert tokens.response[-1] == tokenizer.eos_token_id
    assert tokens.response.count(tokenizer.eos_token_id) == 1
    assert tokenizer.eos_token_id not in tokens.prompt


@BOTH
@given(prompt=TEXT.filter(bool), response=TEXT)
def test_nothing_is_lost_and_the_prompt_is_that_of_sampling(
    tokenizer: Any, prompt: str, response: str
) -> None:
    encoder = Encoder(tokenizer)
    tokens = encoder.encode(prompt, response)
    assert tokens is not None
    assert tokens.prompt == encoder.prompt(prompt)
    assert encoder.decode(tokens.response) == response
    assert encoder.decode((*tokens.prompt, *tokens.response)) in (
        # SentencePiece puts a space in front of the first word.
        prompt + response,
        " " + prompt + response,
    )


def test_a_response_is_read_as_it_stands_behind_its_prompt() -> None:
    encoder = Encoder(PIECES)
    the, end = encoder._ids("the"), encoder._ids("end")
    tokens = encoder.encode("the", " end")
    assert tokens == Tokens((1, *the), (*end, 2))  # " end" is the word "▁end"
    assert not encoder.counts
    tokens = encoder.encode("the", "end")  # the same letters without the mark of a word's start
    assert tokens == Tokens((1, *the), (*end[1:], 2))
    # "i" and "n" are one token together; the prompt keeps its own, and "n" begins no word.
    tokens = encoder.encode("thi", "n")
    assert tokens == Tokens(encoder.prompt("thi"), (PIECES.convert_tokens_to_ids("n"), 2))
    assert encoder.counts == {"responses split at a token boundary": 1}


def test_bos_stands_in_front_once() -> None:
    template = "{{ bos_token }}" + CHAT
    for chat_template in (CHAT, template):
        tokenizer = piece_tokenizer()
        tokenizer.chat_template = chat_template
        ids = Encoder(tokenizer).prompt((ASK,))
        assert ids[0] == tokenizer.convert_tokens_to_ids(BOS)
        assert ids.count(ids[0]) == 1
    assert Encoder(PIECES).prompt("") == (1,)
    assert Encoder(BYTES).prompt("") == ()


def test_a_template_that_ends_turns_with_eos_and_a_new_line() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT)
    encoder = Encoder(tokenizer)
    tokens = encoder.encode((ASK,), (SAY,))
    assert tokens is not None
    assert tokens.prompt == encoder.prompt((ASK,))
    assert tokenizer.decode(tokens.prompt) == f"[user]why?{END}\n[assistant]"
    assert tokenizer.decode(tokens.response) == f"the end{END}"
    assert encoder.encode((ASK,), "the end") == tokens  # a string is the assistant's message
    with pytest.raises(ValueError, match="in messages came for the plain prompt 'why"):
        encoder.encode("why?", (SAY,))


def test_a_template_that_rewrites_the_turns_before_the_answer() -> None:
    # The answer stands behind another text than the opened prompt: it follows the prompt all the
    # same, so that training and sampling agree.
    dated = "{% if add_generation_prompt %}open:{% else %}shut:{% endif %}" + CHAT
    encoder = Encoder(byte_tokenizer(chat_template=dated))
    tokens = encoder.encode((ASK,), (SAY,))
    assert tokens is not None
    assert tokens.prompt == encoder.prompt((ASK,))
    assert encoder.decode(tokens.response) == "the end"


def test_the_named_templates(tmp_path: Path) -> None:
    talk = (ASK, SAY, Message("user", "so?"))
    plain, hh = Encoder(BYTES, template="plain"), Encoder(BYTES, template="hh")
    assert plain.render(talk, generate=True) == (
        "User: why?\nAssistant: the end\nUser: so?\nAssistant:"
    )
    assert hh.render(talk, generate=True) == (
        "\n\nHuman: why?\n\nAssistant: the end\n\nHuman: so?\n\nAssistant:"
    )
    for encoder in (plain, hh):
        tokens = encoder.encode((ASK,), (SAY,))
        assert tokens is not None
        assert encoder.decode(tokens.response) == " the end"
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    assert Encoder(BYTES, template=str(file)).render(talk, generate=True) == "<why?><the end><so?>"
    with pytest.raises(ValueError, match="neither 'auto', 'plain', 'hh' nor a file"):
        Encoder(BYTES, template="plan").prompt((ASK,))


def test_messages_without_a_template_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"no chat template: set chat_template to 'plain'"):
        Encoder(BYTES).encode((ASK,), (SAY,))


def test_what_is_too_long_is_cut_or_left_out_and_counted() -> None:
    whole = Encoder(BYTES).encode("abc", "defg")
    assert whole is not None
    assert (len(whole.prompt), len(whole.response), whole.length) == (3, 5, 8)
    cut = Encoder(BYTES, max_length=7)
    assert cut.encode("abc", "defg") == Tokens(whole.prompt, whole.response[:4])  # EOS is gone
    assert cut.encode("abcdef", "gh") == Tokens(cut.prompt("abcdef"), cut.prompt("g"))
    assert cut.encode("abcdefg", "h") is None
    assert cut.encode("abc", "def") is not None  # 3 + 3 + EOS fit exactly
    assert cut.counts == {"responses truncated": 2, "prompts too long, left out": 1}
    drop = Encoder(BYTES, max_length=7, truncation_mode="drop")
    assert drop.encode("abc", "defg") is None
    assert drop.encode("abc", "def") is not None
    assert drop.counts == {"responses too long, left out": 1}


def test_each_response_is_encoded_as_if_alone_and_a_long_prompt_counted_once() -> None:
    for mode in ("keep_start", "drop"):
        one, each = (Encoder(BYTES, max_length=7, truncation_mode=mode) for _ in range(2))
        answers = ["d", "defg", "de"]
        wanted = [one.encode("abc", answer) for answer in answers]
        assert list(each.encode_each("abc", answers)) == wanted
        assert each.counts == one.counts
        assert list(each.encode_each("abcdefg", answers)) == []
        assert each.counts["prompts too long, left out"] == 1


@BOTH
def test_special_tokens_are_not_decoded(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    tokens = encoder.encode("the", " end")
    assert tokens is not None
    assert encoder.decode(tokens.response) == " end"
    assert encoder.decode((tokenizer.eos_token_id,)) == encoder.decode(()) == ""


# --- ids to layouts -------------------------------------------------------------------------------

IDS = st.lists(st.integers(1, 99), max_size=6).map(tuple)
SEQUENCES = st.lists(
    st.builds(Tokens, IDS, st.lists(st.integers(1, 99), min_size=1, max_size=6).map(tuple)),
    min_size=1,
    max_size=6,
)
TWO = [Tokens((7, 8), (9, 2)), Tokens((5,), (6, 3, 2, 4))]


def test_a_padded_layout_by_hand() -> None:
    layout = padded(TWO, fill=1)
    assert layout.ids_RC.tolist() == [[7, 8, 9, 2, 1], [5, 6, 3, 2, 4]]
    assert layout.positions_RC.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert layout.documents_RC.tolist() == [[0, 0, 0, 0, -1], [1] * 5]
    assert layout.segments_RC.tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    # The cell in front of a token predicts it.
    assert layout.target_BT.tolist() == [[9, 2, 0, 0], [6, 3, 2, 4]]
    assert layout.row_BT[layout.mask_BT].tolist() == [0, 0, 1, 1, 1, 1]
    assert layout.column_BT[layout.mask_BT].tolist() == [1, 2, 0, 1, 2, 3]
    assert layout.last_B2.tolist() == [[0, 3], [1, 4]]
    assert (layout.scored, layout.kind) == (6, "padded")


def test_a_packed_layout_by_hand() -> None:
    three = [*TWO, Tokens((5,), (6,))]
    layout = packed(three, capacity=7)
    # First fit, longest first: 5 + 2, and 4.
    assert layout.ids_RC.tolist() == [[5, 6, 3, 2, 4, 5, 6], [7, 8, 9, 2, 0, 0, 0]]
    assert layout.documents_RC.tolist() == [[1, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, -1, -1, -1]]
    # Positions restart with each document; each filled cell is one, so that no context is short.
    assert layout.positions_RC.tolist() == [[0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 0, 0, 0]]
    assert layout.last_B2.tolist() == [[1, 3], [0, 4], [0, 6]]
    assert layout.kind == "packed"


def test_a_shared_layout_by_hand() -> None:
    answers = [Tokens((7, 8), (9, 2)), Tokens((7, 8), (3,)), Tokens((5,), (6,)), Tokens((), (4,))]
    layout = shared(answers, fill=1)
    assert layout.kind == "shared"
    assert layout.ids_RC.tolist() == [[7, 8, 9, 2, 3], [5, 6, 1, 1, 1], [4, 1, 1, 1, 1]]
    assert layout.positions_RC.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0], [0] * 5]
    assert layout.documents_RC.tolist() == [[0] * 5, [2, 2, -1, -1, -1], [3, -1, -1, -1, -1]]
    assert layout.segments_RC.tolist() == [[0, 0, 1, 1, 2], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    # Both first tokens are predicted by the prompt's last cell; nothing predicts the last answer.
    assert layout.column_BT.tolist() == [[1, 2], [1, 0], [0, 0], [0, 0]]
    assert layout.target_BT.tolist() == [[9, 2], [3, 0], [6, 0], [0, 0]]
    assert layout.mask_BT.tolist() == [[True, True], [True, False], [True, False], [False, False]]
    assert layout.last_B2.tolist() == [[0, 3], [0, 4], [1, 1], [2, 0]]


def test_a_row_is_shared_by_few() -> None:
    """Attention grows with the square of a row, so a prompt with many answers has several rows."""
    layout = shared([Tokens((7, 8), (i,)) for i in range(6)])
    assert layout.ids_RC.tolist() == [[7, 8, 0, 1, 2, 3], [7, 8, 4, 5, 0, 0]]
    assert layout.last_B2.tolist() == [[0, 2], [0, 3], [0, 4], [0, 5], [1, 2], [1, 3]]


def test_answers_apart_share_nothing() -> None:
    """Only neighbours share a row; without any the layout is the padded one."""
    answers = [Tokens((7,), (9,)), Tokens((5,), (6,)), Tokens((7,), (3, 4))]
    one, other = shared(answers), padded(answers)
    assert one.kind == "padded"
    assert one.ids_RC.tolist() == other.ids_RC.tolist()


def scored(layout: Layout) -> list[list[tuple[int, ...]]]:
    """For each sequence its scored tokens: what came before, and the target."""
    found: list[list[tuple[int, ...]]] = []
    for b in range(len(layout.mask_BT)):
        found.append([])
        for t in range(int(layout.mask_BT[b].sum())):
            row, column = int(layout.row_BT[b, t]), int(layout.column_BT[b, t])
            first = column - int(layout.positions_RC[row, column])
            assert (layout.documents_RC[row, first : column + 2] == b).all()
            seen = layout.ids_RC[row, first : column + 1].tolist()
            found[-1].append((*seen, int(layout.target_BT[b, t])))
    return found


@given(SEQUENCES, st.integers(12, 30), st.booleans(), st.integers(0, 9))
def test_padded_or_packed_the_same_cells_predict_the_same_tokens(
    sequences: list[Tokens], capacity: int, score_prompt: bool, fill: int
) -> None:
    wanted: list[list[tuple[int, ...]]] = []
    for prompt, response in sequences:
        first = max(1, 0 if score_prompt else len(prompt))
        ids = (*prompt, *response)
        wanted.append([ids[: t + 1] for t in range(first, len(ids))])
    options: Any = {"score_prompt": score_prompt, "fill": fill}
    for layout in (padded(sequences, **options), packed(sequences, capacity=capacity, **options)):
        assert scored(layout) == wanted
        assert layout.scored == sum(map(len, wanted))
        empty = layout.documents_RC == -1
        assert (layout.ids_RC[empty] == fill).all()
        assert int((~empty).sum()) == sum(s.length for s in sequences)
        for b, sequence in enumerate(sequences):
            row, column = layout.last_B2[b].tolist()
            assert int(layout.documents_RC[row, column]) == b
            assert int(layout.positions_RC[row, column]) == sequence.length - 1
            here = layout.documents_RC == b
            assert layout.segments_RC[here].sum() == len(sequence.response)
            assert here.any(-1).sum() == 1
    assert layout.ids_RC.shape[1] <= capacity


# Neighbours often answer the same prompt; any part may be empty, but not both.
ANSWERS = (
    st.lists(
        st.builds(
            lambda prompt, ids: Tokens(prompt, tuple(ids) if prompt or ids else (1,)),
            st.sampled_from([(), (7,), (7, 8, 9)]),
            st.lists(st.integers(1, 99), max_size=4),
        ),
        min_size=1,
        max_size=9,
    )
)  # fmt: skip


def token_by_token(layout: Layout, sequences: list[Tokens]) -> None:
    """Each sequence's cells, found by its document and segment, hold it; and so its figures."""
    documents, segments = layout.documents_RC, layout.segments_RC
    for b, (prompt, response) in enumerate(sequences):
        row, last = layout.last_B2[b].tolist()
        own = documents[row] == documents[row, last]
        # A response of no tokens ends where its prompt does, or where the last response did.
        segment = int(segments[row, last]) if response else -1
        seen = own & ((segments[row] == 0) | (segments[row] == segment))
        cells = seen.nonzero().squeeze(-1).tolist()
        assert layout.ids_RC[row, cells].tolist() == [*prompt, *response]
        assert layout.positions_RC[row, cells].tolist() == list(range(len(cells)))
        first = max(1, len(prompt))
        count = int(layout.mask_BT[b].sum())
        assert count == len(prompt) + len(response) - first
        assert layout.row_BT[b, :count].tolist() == [row] * count
        assert layout.column_BT[b, :count].tolist() == cells[first - 1 : -1]
        assert layout.target_BT[b, :count].tolist() == [*prompt, *response][first:]


@given(ANSWERS, st.integers(1, 4))
def test_what_stands_in_a_row_is_each_sequence(sequences: list[Tokens], fill: int) -> None:
    capacity = max(tokens.length for tokens in sequences) + 3
    for layout in (
        padded(sequences, fill=fill),
        packed(sequences, capacity=capacity, fill=fill),
        shared(sequences, fill=fill),
        flat(sequences, fill=fill),
    ):
        token_by_token(layout, sequences)
        held = sum(tokens.length for tokens in sequences) - layout.saved
        assert layout.tokens == int((layout.documents_RC >= 0).sum()) == held
        place_N, row_N, column_N, target_N = layout.picked_4N
        assert place_N.tolist() == layout.mask_BT.view(-1).nonzero().squeeze(-1).tolist()
        mask_BT = layout.mask_BT
        assert torch.equal(row_N, layout.row_BT[mask_BT])
        assert torch.equal(column_N, layout.column_BT[mask_BT])
        assert torch.equal(target_N, layout.target_BT[mask_BT])
        assert layout.scored == int(mask_BT.sum())


def test_a_layout_that_moves_takes_along_what_is_known_of_it() -> None:
    """A device without numbers cannot be asked for any, as a GPU should not be."""
    here = flat([*TWO, TWO[1]])
    there = here.to("meta")
    assert (there.tokens, there.scored, there.cells) == (here.tokens, here.scored, here.cells)
    assert there.picked_4N.shape == here.picked_4N.shape
    assert torch.equal(there.table, here.table)
    for name, grid in vars(here).items():
        moved = vars(there)[name]
        if name != "table" and isinstance(grid, torch.Tensor):
            assert (moved.shape, moved.dtype, str(moved.device)) == (grid.shape, grid.dtype, "meta")
    assert here.to("cpu") is here
    # What is changed is worked out anew.
    assert replace(here, mask_BT=torch.ones_like(here.mask_BT)).scored == here.mask_BT.numel()


@given(SEQUENCES)
def test_the_fill_is_nothing_but_ids(sequences: list[Tokens]) -> None:
    a, b = packed(sequences, capacity=20, fill=3), packed(sequences, capacity=20, fill=4)
    for name, value in vars(a).items():
        same = value == vars(b)[name]
        assert name == "ids_RC" or (same if isinstance(same, bool) else same.all())
    # One sequence a row: the count goes on, so that nobody needs a mask.
    positions = padded(sequences).positions_RC
    assert torch.equal(positions, torch.arange(positions.shape[1]).expand_as(positions))


def test_what_cannot_be_placed() -> None:
    with pytest.raises(ValueError, match="a sequence of 5 tokens does not fit a row of 4"):
        packed(TWO, capacity=4)
    with pytest.raises(ValueError, match="a sequence of no tokens"):
        padded([Tokens((), ())])
    # The first token of all has nothing that predicts it.
    assert padded([Tokens((), (4,))]).scored == 0
    assert scored(padded([Tokens((), (4, 5))])) == [[(4, 5)]]
