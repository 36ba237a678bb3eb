"""Dialects of one row a judgement: HH transcripts, alpaca, sharegpt, UltraFeedback.

Their plain prompts are meant for a chat model, so they are read as messages, and a prompt in plain
text is written as one user's turn.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from truing.data.dialogue import Notes, Turns, is_transcript, transcript
from truing.data.schema import Comparison, Demonstration, Label, Message, Ranking, Record, Text
from truing.data.sources import Row, describe, refuse

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}
# Other names that sharegpt files in the wild use.
OTHER_ROLES = {
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function_call": "assistant",
}
Values = dict[str, Any]
# What stands beside a dialect's own columns.
OURS = ("provenance", "simulated", "margin")


def each(read: Callable[[Row, Notes], Values]) -> Any:
    """A reader of tables from one of rows."""

    def rows(table: Iterable[Row], kind: type[Record], notes: Notes) -> Iterator[Row]:
        return (replace(row, values=read(row, notes)) for row in table)

    return rows


def want(row: Row, field: str, value: Any, kind: type, needed: str) -> Any:
    """``value``, refused unless it is of ``kind``."""
    if not isinstance(value, kind):
        row.refuse(field, f"{describe(value) if value is not None else 'nothing'} came", needed)
    return value


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def turns_of(record: Any) -> Turns:
    """The prompt as messages."""
    prompt = record.prompt
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def reply(text: Text, number: int) -> str:
    """The content of an answer. Raises DataError unless it is text or one assistant's turn."""
    if isinstance(text, str):
        return text
    if [m.role for m in text] != ["assistant"]:
        came = f"an answer of the turns {[m.role for m in text]}"
        refuse(f"row {number}", came, "one assistant's turn", "Choose another format.")
    return text[0].content


def beside(record: Record) -> Values:
    """What stands beside a dialect's own columns; ``formats`` fills in the provenance."""
    margin = record.margin if isinstance(record, Comparison) else None
    return {} if margin is None else {"margin": margin}


# --- Human/Assistant transcripts ------------------------------------------------------------------


def write_hh(record: Comparison, number: int) -> Values:
    """Both whole conversations, as Anthropic publishes them."""
    return {
        name: _transcript((*turns_of(record), Message("assistant", reply(answer, number))), number)
        for name, answer in (("chosen", record.chosen), ("rejected", record.rejected))
    } | beside(record)


def _transcript(turns: Turns, number: int) -> str:
    named = {"user": "Human", "assistant": "Assistant"}
    if odd := sorted({m.role for m in turns} - named.keys()):
        todo = "Take them out, or choose another format."
        refuse(f"row {number}", f"turns of {odd}", "user and assistant alone", todo)
    text = "".join(f"\n\n{named[m.role]}: {m.content}" for m in turns)
    if not is_transcript(text) or transcript(text) != turns:
        came = "a turn that itself holds '\\n\\nHuman:' or '\\n\\nAssistant:', or no user in front"
        refuse(f"row {number}", came, "turns that can be told apart", "Choose another format.")
    return text


# --- alpaca and sharegpt, as LLaMA-Factory reads them ---------------------------------------------


def _alpaca(row: Row, notes: Notes) -> Values:
    values = dict(row.values)
    asked = want(row, "instruction", values.pop("instruction", None), str, "text")
    more = want(row, "input", values.pop("input", ""), str, "text")
    prompt = []
    if system := want(row, "system", values.pop("system", ""), str, "text"):
        prompt.append(turn("system", system))
    needed = "a list of [question, answer] pairs"
    for pair in want(row, "history", values.pop("history", []), list, needed):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(t, str) for t in pair)
        ):
            row.refuse("history", f"a list with {describe(pair)} came", needed)
        prompt += [turn("user", pair[0]), turn("assistant", pair[1])]
    prompt.append(turn("user", f"{asked}\n{more}" if more else asked))
    return {"prompt": prompt, **_answers(row, values)}


def _answers(row: Row, values: Values) -> Values:
    """``output`` and ``kto_tag`` by our names; a list of two outputs is a pair, as it once was."""
    output = values.pop("output", None)
    if isinstance(output, list) and len(output) == 2:
        values["chosen"], values["rejected"] = output
    elif output is not None and "chosen" not in values:
        values["completion"] = want(row, "output", output, str, "text")
    if "kto_tag" in values:
        values["label"] = values.pop("kto_tag")
    return values


def write_alpaca(record: Demonstration | Comparison | Label, number: int) -> Values:
    *before, last = turns_of(record)
    system = before.pop(0).content if before and before[0].role == "system" else ""
    roles = [m.role for m in before]
    if last.role != "user" or roles != ["user", "assistant"] * (len(before) // 2):
        came = f"a prompt of the turns {[m.role for m in turns_of(record)]}"
        todo = "sharegpt can hold these."
        refuse(f"row {number}", came, "system, then user and assistant by turns", todo)
    said = [m.content for m in before]
    row: Values = {"instruction": last.content, "input": ""}
    if system:
        row["system"] = system
    if said:
        row["history"] = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    return row | _judged(record, number, lambda text: text)


def _judged(record: Any, number: int, form: Callable[[str], Any]) -> Values:
    """The answers of a record in alpaca's columns, each in a ``form``."""
    if isinstance(record, Comparison):
        chosen, rejected = reply(record.chosen, number), reply(record.rejected, number)
        return {"chosen": form(chosen), "rejected": form(rejected)} | beside(record)
    tag = {"kto_tag": record.label} if isinstance(record, Label) else {}
    return {"output": form(reply(record.completion, number))} | tag


def _sharegpt(row: Row, notes: Notes) -> Values:
    values = dict(row.values)
    given = want(row, "conversations", values.pop("conversations", None), list, "a list of turns")
    turns = [_said(row, "conversations", m, notes) for m in given]
    if system := want(row, "system", values.pop("system", ""), str, "text"):
        turns.insert(0, turn("system", system))
    if "chosen" in values or "rejected" in values:
        for name in ("chosen", "rejected"):
            values[name] = [_said(row, name, values.get(name), notes)]
        return {"prompt": turns, **values}
    if "kto_tag" not in values:
        return {"messages": turns, **values}
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        row.refuse("conversations", "they do not end with an answer", "a last turn of gpt")
    label = values.pop("kto_tag")
    return {"prompt": turns[:-1], "completion": turns[-1:], "label": label, **values}


def _said(row: Row, field: str, value: Any, notes: Notes) -> dict[str, str]:
    needed = "a turn {from, value}"
    value = want(row, field, value, dict, needed)
    who, said = value.get("from", value.get("role")), value.get("value", value.get("content"))
    if not isinstance(who, str) or who not in ROLES | OTHER_ROLES or not isinstance(said, str):
        row.refuse(field, f"{describe(value)} from {who!r} came", f"{needed} from {list(ROLES)}")
    if who == "function_call":
        notes.add(row, "a function_call read as the assistant's turn")
    return turn((ROLES | OTHER_ROLES)[who], said)


def write_sharegpt(record: Demonstration | Comparison | Label, number: int) -> Values:
    names = {ours: theirs for theirs, ours in ROLES.items()}
    turns = list(turns_of(record))
    row: Values = {}
    if turns[0].role == "system":
        row["system"] = turns.pop(0).content
    said = [{"from": names[m.role], "value": m.content} for m in turns]
    made = _judged(record, number, lambda text: {"from": "gpt", "value": text})
    if "output" in made:
        said.append(made.pop("output"))
    return {"conversations": said, **row, **made}


# --- UltraFeedback --------------------------------------------------------------------------------

_SCORES = ("fine-grained_score", "overall_score")


def _ultrafeedback(row: Row, notes: Notes) -> Values:
    """The mean of the aspects' ratings ranks, for a part of the overall scores is known to be ten
    times too high; those are taken where there is nothing else."""
    values = dict(row.values)
    prompt = want(row, "instruction", values.pop("instruction", None), str, "text")
    needed = "a list of {response, fine-grained_score}"
    given = want(row, "completions", values.pop("completions", None), list, needed)
    answers = [want(row, "completions", a, dict, needed) for a in given]
    texts = [want(row, "completions.response", a.get("response"), str, "text") for a in answers]
    by = next((s for s in _SCORES if all(type(a.get(s)) in (int, float) for a in answers)), None)
    if by is None:
        row.refuse("completions", "some have no score", f"in each a number {' or '.join(_SCORES)}")
    if by != _SCORES[0]:
        notes.add(row, f"ranked by {by}")
    values.pop("models", None)
    told = {"models": [a.get("model", "") for a in answers], "aspects": _aspects(answers)}
    return {
        "prompt": [turn("user", prompt)],
        "completions": [[turn("assistant", text)] for text in texts],
        "scores": [a[by] for a in answers],
        **{name: value for name, value in told.items() if value and any(value)},
        **values,
    }


def _aspects(answers: list[Values]) -> dict[str, list[Any]]:
    """Each aspect's ratings, in the order of the answers; None where none was given."""
    found: dict[str, list[Any]] = {}
    for i, answer in enumerate(answers):
        notes = answer.get("annotations")
        for aspect, said in notes.items() if isinstance(notes, dict) else ():
            rating = said.get("Rating") if isinstance(said, dict) else None
            try:
                number = float(str(rating))
            except ValueError:  # N/A
                continue
            found.setdefault(aspect, [None] * len(answers))[i] = number
    return found


def write_ultrafeedback(record: Ranking, number: int) -> Values:
    """Scores, models and aspects are taken from the provenance, where reading leaves them."""
    turns, told = turns_of(record), record.provenance.extra
    scores, k = told.get("scores"), len(record.completions)
    if [m.role for m in turns] != ["user"]:
        came = f"a prompt of the turns {[m.role for m in turns]}"
        refuse(f"row {number}", came, "one user's turn", "Choose another format.")
    if not isinstance(scores, list) or len(scores) != k:
        came = "a ranking without scores in its provenance"
        refuse(f"row {number}", came, "a score for each answer", "Choose another format.")
    models: Any = told.get("models") or [""] * k
    aspects: Any = told.get("aspects") or {}
    return {
        "instruction": turns[0].content,
        "models": models,
        "completions": [
            {
                "model": models[i],
                "response": reply(text, number),
                _SCORES[0]: scores[i],
                "annotations": {
                    aspect: {"Rating": f"{ratings[i]:g}"}
                    for aspect, ratings in aspects.items()
                    if ratings[i] is not None
                },
            }
            for i, text in enumerate(record.completions)
        ],
    }


def hh(rows: Iterable[Row], kind: type[Record], notes: Notes) -> Iterator[Row]:
    """Transcripts need no translation: `truing.data.dialogue` reads them in any column."""
    return iter(rows)


alpaca, sharegpt, ultrafeedback = each(_alpaca), each(_sharegpt), each(_ultrafeedback)
