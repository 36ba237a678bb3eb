"""Prompt and answers in one form: transcripts, message lists, implied prompts."""

import pytest

from truing.data.dialogue import LeftOut, Notes, align, is_transcript, open_prompt, transcript
from truing.data.schema import Message, Text
from truing.data.sources import DataError, Row

ROW = Row("pairs.jsonl", 7, 6, {})


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str) -> Message:
    return Message("assistant", text)


TALK = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A tree?\n\nAssistant:"
TURNS = (user("Hi"), bot("Hello."), user("A tree?"))


def test_transcript_to_turns() -> None:
    # One space behind the colon belongs to the form, a second one to the text.
    assert transcript(TALK + "  Oak.") == (*TURNS, bot(" Oak."))
    assert transcript("Human: Hi\n\nAssistant:") == (user("Hi"), bot(""))
    assert is_transcript("\n\nHuman: Hi")
    assert not is_transcript("Human: the word may begin a text")
    assert not is_transcript((user("\n\nHuman: Hi"),))


def test_open_prompt() -> None:
    assert open_prompt(TALK) == TURNS
    assert open_prompt("\n\nHuman: Hi") == (user("Hi"),)
    assert open_prompt(TALK + " An o") == TALK + " An o"  # begun answers are carried on
    assert open_prompt("Plain.") == "Plain."


OAK, ELM = bot("Oak."), bot("Elm.")
FORMS: dict[str, tuple[Text | None, list[Text]]] = {
    "prompt and answers": (TALK, [" Oak.", " Elm."]),
    "prompt without its end": (TALK.removesuffix("\n\nAssistant:"), ["Oak.", "Elm."]),
    "whole transcripts": (None, [TALK + " Oak.", TALK + " Elm."]),
    "whole, and the prompt": (TALK, [TALK + " Oak.", TALK + " Elm."]),
    "messages": (TURNS, [(OAK,), (ELM,)]),
    "messages, answers as text": (TURNS, ["Oak.", "Elm."]),
    "implied by messages": (None, [(*TURNS, OAK), (*TURNS, ELM)]),
    "messages, and the prompt": (TURNS, [(*TURNS, OAK), (*TURNS, ELM)]),
    "messages, and its question": ("A tree?", [(*TURNS, OAK), (*TURNS, ELM)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_turns(form: str) -> None:
    prompt, answers = FORMS[form]
    assert align(ROW, Notes(), prompt, answers) == (TURNS, (OAK,), (ELM,))


def test_plain_strings_stay() -> None:
    assert align(ROW, Notes(), "Q:", [" a", " b"]) == ("Q:", " a", " b")
    assert align(ROW, Notes(), "Q:", [TALK]) == ("Q:", TALK)  # an answer may quote a transcript
    assert align(ROW, Notes(), "Q?", [(OAK,)]) == ((user("Q?"),), (OAK,))


def test_answers_that_part_early_keep_several_turns() -> None:
    first = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A tree?\n\nAssistant: Oak."
    second = "\n\nHuman: Hi\n\nAssistant: No."
    prompt, chosen, rejected = align(ROW, Notes(), None, [first, second])
    assert prompt == (user("Hi"),)
    assert chosen == (bot("Yes?"), user("A tree?"), OAK)
    assert rejected == (bot("No."),)


def test_people_who_go_on_differently_are_part_of_the_answers() -> None:
    start = (user("Hi"), bot("Yes?"))
    first, second = (*start, user("A tree?"), OAK), (*start, user("Another?"), ELM)
    assert align(ROW, Notes(), None, [first, second]) == (start[:1], first[1:], second[1:])


def test_one_begins_the_other() -> None:
    whole = (user("Hi"), bot("Hello."), user("Bye"), bot("Bye."))
    expected = ((user("Hi"),), whole[1:2], whole[1:])
    assert align(ROW, Notes(), None, [whole[:2], whole]) == expected


def test_equal_conversations_keep_their_last_turn() -> None:
    parts = align(ROW, Notes(), None, [TALK + " Oak."] * 2)
    assert parts == (TURNS, (OAK,), (OAK,))


def test_an_answer_that_runs_on_is_noted() -> None:
    notes = Notes()
    _, answer = align(ROW, notes, TALK, [" Oak.\n\nHuman: Why?"])
    assert answer == (OAK, user("Why?"))
    assert notes.rows["answer ends in a turn that is not the assistant's: kept"] == [7]


def test_no_shared_prompt_is_left_out() -> None:
    with pytest.raises(LeftOut, match="share no prompt"):
        align(ROW, Notes(), None, ["\n\nHuman: A\n\nAssistant: x", "\n\nHuman: B\n\nAssistant: y"])
    with pytest.raises(LeftOut, match="share no prompt"):
        align(ROW, Notes(), None, [(OAK,), (ELM,)])


@pytest.mark.parametrize(
    ("prompt", "answers", "message"),
    [
        (" \n", ["a", "b"], "'prompt': an empty prompt"),
        (None, ["a", "b"], "'prompt': it is missing or null"),
        ("Q?", ["a", (OAK,)], "some are text and some are message lists"),
        ("Another?", [(*TURNS, OAK), (*TURNS, ELM)], "not what the answers begin with"),
    ],
)
def test_refused(prompt: Text | None, answers: list[Text], message: str) -> None:
    with pytest.raises(DataError, match=r"pairs.jsonl, row 7, field .*" + message):
        align(ROW, Notes(), prompt, answers)
