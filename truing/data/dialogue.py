"""The text fields of a row -> a prompt and its answers in one form: plain strings, or chat turns.

Knows chat message lists, Anthropic's Human/Assistant transcripts, and conversations whose prompt is
only implied, being what all answers begin with.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, get_args

from truing.data.schema import Message, Role, Text
from truing.data.sources import Row, describe

Turns = tuple[Message, ...]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_FORM = "text or a list of {role, content} messages"


class LeftOut(Exception):
    """Raised inside a reader for a row that is left out; its text becomes the note."""


class Notes:
    """What was noticed while reading: note -> the numbers of the rows it is about."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, row: Row, note: str) -> None:
        self.rows[note].append(row.number)


def blank(text: Text) -> bool:
    """True if there is nothing to read but white space."""
    return not (text if isinstance(text, str) else "".join(m.content for m in text)).strip()


def text_of(row: Row, field: str, value: Any, notes: Notes) -> Text:
    """A string or a list of messages as a `Text`; anything else is refused."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        row.refuse(field, f"{describe(value)} came", _FORM)
    return tuple(_message(row, field, m, notes) for m in value)


def _message(row: Row, field: str, value: Any, notes: Notes) -> Message:
    if not isinstance(value, dict):
        row.refuse(field, f"a list with {describe(value)} came", _FORM)
    role, content = value.get("role"), value.get("content")
    if role is None or role not in get_args(Role):
        row.refuse(field, f"a message with the role {role!r}", f"one of {get_args(Role)}")
    if not isinstance(content, str):
        row.refuse(field, f"a message whose content is {describe(content)}", "a text content")
    for name in sorted(value.keys() - {"role", "content"}):
        notes.add(row, f"message field not kept: {name}")
    return Message(role, content)


def is_transcript(text: Text | None) -> bool:
    """True for a string that begins as Anthropic's helpful-harmless data does."""
    return isinstance(text, str) and (
        text.startswith("\n\nHuman:") or (text.startswith("Human:") and "\n\nAssistant:" in text)
    )


def transcript(text: str) -> Turns:
    """The turns of a Human/Assistant transcript; the one space behind each colon is not content."""
    parts = _TURN.split("\n\n" + text)
    return tuple(
        Message("user" if who == "Human" else "assistant", said.removeprefix(" "))
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    )


def open_prompt(text: Text) -> Text:
    """A transcript that waits for an answer as turns; every other text as it is.

    One that ends inside an answer stays a string, for only a string can be carried on.
    """
    if not isinstance(text, str) or not is_transcript(text):
        return text
    turns = transcript(text)
    if turns[-1].role == "user":
        return turns
    return text if turns[-1].content.strip() else turns[:-1]


def align(row: Row, notes: Notes, prompt: Text | None, answers: list[Text]) -> tuple[Text, ...]:
    """Prompt and answers, (prompt, *answers): all strings, or all turns.

    Transcripts and conversations with an implied prompt are cut where the answers part, in front of
    an assistant's turn.
    """
    if prompt is not None and blank(prompt):
        row.refuse("prompt", "an empty prompt came", "text (plain text goes into a column 'text')")
    strings = [a for a in answers if isinstance(a, str)]
    turns = [a for a in answers if not isinstance(a, str)]
    if strings and turns:
        row.refuse("answers", "some are text and some are message lists", "one form for all")
    if turns:
        parts = _with_turns(row, prompt, turns)
    elif isinstance(prompt, tuple):
        parts = (prompt, *((Message("assistant", a),) for a in strings))
    elif is_transcript(prompt) or _whole(prompt, strings):
        parts = _cut_transcripts(prompt, strings)
        notes.add(row, "Human/Assistant transcript read as messages")
    elif prompt is not None:
        return (prompt, *strings)
    else:
        todo = "Add the column, or write the answers as whole conversations."
        row.refuse("prompt", "it is missing or null", _FORM, todo)
    if any(answer[-1].role != "assistant" for answer in parts[1:]):
        notes.add(row, "answer ends in a turn that is not the assistant's: kept")
    return parts


def _with_turns(row: Row, prompt: Text | None, answers: list[Turns]) -> tuple[Turns, ...]:
    if prompt is not None and all(a[0].role == "assistant" for a in answers):
        asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        return (asked, *answers)
    found, *rest = _cut_shared(answers)
    # A prompt column beside whole conversations has to say the same as they do.
    if prompt is not None and prompt != found and prompt not in [m.content for m in found]:
        row.refuse("prompt", "it is not what the answers begin with", "the same prompt in both")
    return (found, *rest)


def _whole(prompt: str | None, answers: list[str]) -> bool:
    """True if each answer is a transcript of everything, the prompt included."""
    return all(is_transcript(a) and a.startswith(prompt or "") for a in answers)


def _cut_transcripts(prompt: str | None, answers: list[str]) -> tuple[Turns, ...]:
    if prompt is None:
        return _cut_shared([transcript(a) for a in answers])
    given = transcript(prompt)
    n = len(given) - (given[-1].role == "assistant")
    if not _whole(prompt, answers):
        opened = prompt if n < len(given) else prompt + "\n\nAssistant:"
        answers = [opened + a for a in answers]
    return (given[:n], *(transcript(a)[n:] for a in answers))


def _cut_shared(whole: Sequence[Turns]) -> tuple[Turns, ...]:
    """Cut conversations behind the turns they share, so that each answer is the assistant's."""
    # Equal conversations, or a single one, keep their last turn as the answer.
    most = min(map(len, whole)) - 1
    turns = zip(*(w[:most] for w in whole), strict=True)
    n = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, turns))
    while n and any(w[n].role != "assistant" for w in whole):
        n -= 1
    if not n:
        raise LeftOut("conversations that share no prompt")
    return (whole[0][:n], *(w[n:] for w in whole))
