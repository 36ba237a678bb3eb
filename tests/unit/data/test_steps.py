"""Solutions in steps: where each ends in tokens, found in the ids alone and from the text."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from truing.data.batch import Encoder
from truing.data.schema import Message
from truing.data.steps import StepEncoder, separator_ids, split_steps, step_ends

TEXT = " the first\n then a b\nin all\n"


def encoder(model: Path, separator: str = "\n", **more: object) -> StepEncoder:
    plain = Encoder(AutoTokenizer.from_pretrained(model), **more)  # pyright: ignore
    return StepEncoder.of(plain, separator)


def test_a_text_is_split_and_blank_steps_are_none() -> None:
    assert split_steps(TEXT, "\n") == [" the first", " then a b", "in all"]
    assert split_steps("\na\n \n\nb", "\n") == ["a", "b"]
    assert split_steps("a\n\n\nb", "\n\n") == ["a", "\nb"]
    assert split_steps("no separator", "\n") == ["no separator"]
    assert split_steps(" \n", "\n") == []


@pytest.mark.parametrize("model", ["tiny", "tiny_bos", "tiny_chat"])
@pytest.mark.parametrize("separator", ["\n", "\n\n", " ки", "er"])
def test_ends_from_ids_are_those_of_the_text(
    model: str, separator: str, request: pytest.FixtureRequest
) -> None:
    """By the ids: wherever the separator's stand. By the text: decode ever more tokens, and see
    when the text so far is so many whole steps."""
    encode = encoder(request.getfixturevalue(model), separator)
    steps = [" the first", " then a bé", "in all 漢", "x"]
    row = encode.encode("a prompt:", separator.join(steps))
    assert row is not None
    assert row.response[-1] == encode.eos
    ends = step_ends(row.response, encode.mark)
    assert len(ends) == 4
    assert ends[-1] == len(row.response) - 1
    for k, end in enumerate(ends[:-1], start=1):
        so_far = separator.join(steps[:k]) + separator
        assert encode.decode(row.response[: end + 1]) == so_far
        shorter = [encode.decode(row.response[:n]) for n in range(end + 1)]
        assert so_far not in shorter
    assert encode.decode(row.response) == separator.join(steps)
    assert encode.counts == {}


@pytest.mark.parametrize("model", ["tiny", "tiny_bos"])
def test_where_nothing_merges_steps_are_tokens_of_the_whole(
    model: str, request: pytest.FixtureRequest
) -> None:
    """Here no token reaches over a separator, so one by one is what all at once would be, and the
    ends are those of the characters."""
    encode = encoder(request.getfixturevalue(model))
    plain = Encoder(encode.tokenizer)
    text = TEXT.rstrip("\n")
    row, whole = encode.encode("p", text), plain.encode("p", text)
    assert row == whole
    assert row is not None
    told = encode.tokenizer("p" + text, add_special_tokens=False, return_offsets_mapping=True)
    last = [i + 1 for i, sign in enumerate("p" + text) if sign == "\n"]
    spans = told["offset_mapping"]
    skipped = len(spans) - (len(row.response) - 1)  # the prompt; EOS has no characters
    by_characters = [i - skipped for i, (_, end) in enumerate(spans) if end in last]  # pyright: ignore
    assert step_ends(row.response, encode.mark) == [*by_characters, len(row.response) - 1]


def test_a_token_never_reaches_over_the_end_of_a_step(tiny: Path) -> None:
    """The tokenizer would read " t" and "th" together; the separator " " takes the space away."""
    encode = encoder(tiny, " ")
    row = encode.encode("p", "in the end")
    assert row is not None
    assert [encode.decode([i]) for i in row.response[:-1]] == ["in", " ", *"the", " ", *"end"]
    assert step_ends(row.response, encode.mark) == [1, 5, 9]


def test_a_response_without_separator_is_one_step(tiny: Path) -> None:
    encode = encoder(tiny)
    for text in ("all in one", "ends with one\n\n", ""):
        row = encode.encode("p", text)
        assert row is not None
        assert step_ends(row.response, encode.mark) == [len(row.response) - 1]


def test_messages_are_split_like_text(tiny_chat: Path) -> None:
    encode = encoder(tiny_chat)
    prompt = (Message("user", "hi"),)
    row = encode.encode(prompt, TEXT)
    assert row is not None
    assert len(step_ends(row.response, encode.mark)) == 3
    assert encode.encode(prompt, (Message("assistant", TEXT),)) == row


def test_a_separator_that_overlaps_itself_is_found_from_the_left() -> None:
    assert step_ends([7, 5, 5, 5, 8], [5, 5]) == [2, 4]
    assert step_ends([7, 5, 5], [5, 5]) == [2]
    assert step_ends([5], [5]) == [0]
    assert step_ends([], [5]) == [-1]


def test_a_separator_that_is_nothing_is_refused(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    with pytest.raises(ValueError, match="the step_separator '' is nothing to this tokenizer"):
        separator_ids(tokenizer, "")
