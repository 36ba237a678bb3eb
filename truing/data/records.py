"""One row of named values -> one record of a kind: which columns are read, and how.

`READERS` is the table: for each kind, the sets of columns that it can be made of. A reader
raises LeftOut for a row to leave out, and notes whatever else it changed, dropped or doubts.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeGuard, get_args

from truing.data.dialogue import LeftOut, Notes, Turns, align, blank, open_prompt, text_of
from truing.data.schema import (
    Comparison,
    Demonstration,
    Label,
    Prompt,
    Provenance,
    Ranking,
    Record,
    Source,
    Steps,
    Text,
)
from truing.data.sources import Row, Table, describe, refuse

Columns = tuple[str, ...]
Reader = Callable[[Row, Notes], Record]

# Other names for a column, tried where no set of columns fits by its own names.
ALIASES: Mapping[str, Columns] = {
    "prompt": ("query", "question"),
    "completion": ("response", "answer"),
    "completions": ("responses",),
}
# Lists about the answers of a row, in their order.
ABOUT_ANSWERS = ("scores", "finish_reason")
_OURS = {f.name for f in fields(Provenance)}


def columns_for(table: Table, kind: type[Record]) -> Columns:
    """The first set of columns in ``READERS[kind]`` that the table has, by name or alias."""
    if kind not in READERS:
        raise ValueError(f"the kind {kind!r} came; needed: {[k.__name__ for k in READERS]}")
    present = sorted({column for row in table.rows for column in row.values})
    for aliases in ({}, ALIASES):
        for needs in READERS[kind]:
            if all(_name(present, column, aliases) for column in needs):
                return needs
    needed = " or ".join(" + ".join(needs) for needs in READERS[kind])
    todo = f"No {kind.__name__.lower()} can be made of these: rename or add columns."
    return refuse(table.name, f"the columns {present}", needed, todo)


def record_of(row: Row, kind: type[Record], needs: Columns, notes: Notes) -> Record | None:
    """Read a row by the table's columns, or by others if it holds none of those."""
    if not any(_name(row.values, column, ALIASES) for column in needs):
        fitting = (other for other in READERS[kind] if all(c in row.values for c in other))
        needs = next(fitting, needs)
    values = dict(row.values)
    for column in needs:
        name = _name(values, column, ALIASES)
        if name is None:
            row.refuse(column, "it is missing or null", f"the columns {' + '.join(needs)}")
        if name != column:
            notes.add(row, f"column {name!r} read as {column!r}")
            values[column] = values.pop(name)
    try:
        record = READERS[kind][needs](replace(row, values=values), notes)
    except LeftOut as reason:
        notes.add(row, f"{reason}: left out")
        return None
    made = vars(record)
    answers = [made[name] for name in ("completion", "chosen", "rejected") if name in made]
    if any(map(blank, (*answers, *made.get("completions", ())))):
        notes.add(row, "empty answer: kept")
    return record


def _name(present: Iterable[str], column: str, aliases: Mapping[str, Columns]) -> str | None:
    return next((c for c in (column, *aliases.get(column, ())) if c in present), None)


def _texts(row: Row, notes: Notes, answers: Mapping[str, Any]) -> tuple[Text, list[Text]]:
    """The prompt and the answers (field -> value), in one form."""
    given = row.values.get("prompt")
    prompt = None if given is None else text_of(row, "prompt", given, notes)
    found = [text_of(row, field, value, notes) for field, value in answers.items()]
    prompt, *texts = align(row, notes, prompt, found)
    return prompt, texts


def _fields(row: Row, *names: str) -> dict[str, Any]:
    return {name: row.values[name] for name in names}


def _provenance(row: Row, notes: Notes, *used: str) -> Provenance:
    """The columns ``provenance`` and ``simulated``; every column not yet ``used`` becomes extra."""
    rest = {column: v for column, v in row.values.items() if column not in used}
    given = rest.get("provenance")
    if isinstance(given, dict) and given.keys() <= _OURS:
        del rest["provenance"]
        made = Provenance(**{k: _checked(row, k, v) for k, v in given.items()})
    else:
        made = Provenance()
    if "simulated" in rest:
        simulated = _truth(row, "simulated", rest.pop("simulated"))
        made = replace(made, simulated=simulated or made.simulated)
    for column in rest:
        if column in made.extra:
            row.refuse(column, "it stands in provenance.extra too", "one of them")
        notes.add(row, f"column kept as extra: {column}")
    return replace(made, extra={**made.extra, **rest})


def _checked(row: Row, name: str, value: Any) -> Any:
    """A field of the provenance, of the type that its default has."""
    default = getattr(Provenance(), name)
    value = tuple(value) if isinstance(value, list) else value
    fine = type(value) is type(default) and (name != "source" or value in get_args(Source))
    if not fine or (name == "order" and any(type(i) is not int for i in value)):
        needed = str(get_args(Source)) if name == "source" else type(default).__name__
        row.refuse(f"provenance.{name}", f"{value!r} came", needed)
    return value


def _truth(row: Row, field: str, value: Any) -> bool:
    if not isinstance(value, int) or value not in (0, 1):  # true and false are ints too
        row.refuse(field, f"{describe(value)} came", "true or false (or 1 and 0)")
    return bool(value)


def _comparison(row: Row, notes: Notes) -> Comparison:
    margin = row.values.get("margin")
    if margin is not None:
        if type(margin) not in (int, float) or not math.isfinite(margin):
            row.refuse("margin", f"{describe(margin)} came", "a finite number")
        margin = float(margin)
    _check_probability(row)
    prompt, (chosen, rejected) = _texts(row, notes, _fields(row, "chosen", "rejected"))
    if chosen == rejected or (blank(chosen) and blank(rejected)):
        raise LeftOut("chosen equals rejected")
    provenance = _provenance(row, notes, "prompt", "chosen", "rejected", "margin")
    return Comparison(prompt, chosen, rejected, margin, provenance)


def _check_probability(row: Row) -> None:
    """Refuse a ``chosen_probability`` that says the other answer was chosen, or nothing at all."""
    told = row.values.get("chosen_probability")
    if told is None:
        return
    if type(told) not in (int, float) or not 0.5 <= told <= 1:
        needed = "a number from 0.5 (a tie) to 1, how probable it is that the chosen one wins"
        row.refuse("chosen_probability", f"{describe(told)} came", needed)


def _ranking(row: Row, notes: Notes) -> Ranking:
    _check_probability(row)
    given, ranks = row.values["completions"], row.values["ranks"]
    if not isinstance(given, list) or len(given) < 2:
        row.refuse("completions", f"{describe(given)} came", "a list of two or more answers")
    numbered = {f"completions[{i}]": a for i, a in enumerate(given)}
    prompt, answers = _texts(row, notes, numbered)
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(answers)
        or any(type(rank) is not int or rank < 0 for rank in ranks)
    ):
        needed = f"{len(answers)} whole numbers, one for each answer, the best 0"
        row.refuse("ranks", f"{json.dumps(ranks)} came", needed)
    if len(set(answers)) == 1:
        raise LeftOut("all answers equal")
    if len(set(answers)) < len(answers):
        notes.add(row, "some answers equal: kept")
    if min(ranks):
        notes.add(row, "ranks moved so that the best is 0")
    from_zero = tuple(rank - min(ranks) for rank in ranks)
    provenance = _provenance(row, notes, "prompt", "completions", "ranks")
    return Ranking(prompt, tuple(answers), from_zero, provenance)


def _two(row: Row, notes: Notes) -> Ranking:
    """A pair as a ranking of two, its margin kept in the provenance. Where either is as likely to
    win, it is a tie."""
    pair = _comparison(row, notes)
    margin = {} if pair.margin is None else {"margin": pair.margin}
    provenance = replace(pair.provenance, extra=pair.provenance.extra | margin)
    ranks = (0, 0) if provenance.extra.get("chosen_probability") == 0.5 else (0, 1)
    return Ranking(pair.prompt, (pair.chosen, pair.rejected), ranks, provenance)


def _label(row: Row, notes: Notes) -> Label:
    label = _truth(row, "label", row.values["label"])
    prompt, (completion,) = _texts(row, notes, _fields(row, "completion"))
    provenance = _provenance(row, notes, "prompt", "completion", "label")
    return Label(prompt, completion, label, provenance)


def _thumbs(row: Row, notes: Notes) -> Comparison:
    """A pair whose two answers are to become labels (`labels_of`)."""
    if row.values.get("chosen_probability") == 0.5:
        raise LeftOut("a tie, which no label can tell")
    pair = _comparison(row, notes)
    notes.add(row, "pair read as two labels: chosen true, rejected false")
    if pair.margin is not None:
        notes.add(row, "margin, which no label can hold: not used")
    return pair


def _two_of(told: object) -> TypeGuard[list[object]]:
    return isinstance(told, list) and len(told) == 2


def labels_of(pair: Comparison) -> list[Label]:
    """The chosen answer with a thumb up, the rejected with a thumb down."""
    made: list[Label] = []
    for i, answer in enumerate((pair.chosen, pair.rejected)):
        own = {
            name: told[i] if name in ABOUT_ANSWERS and _two_of(told) else told
            for name, told in pair.provenance.extra.items()
        }
        made.append(Label(pair.prompt, answer, i == 0, replace(pair.provenance, extra=own)))
    return made


def _steps(row: Row, notes: Notes) -> Steps:
    given, labels = row.values["completions"], row.values["labels"]
    if not isinstance(given, list) or not given or not all(isinstance(s, str) for s in given):
        row.refuse("completions", f"{describe(given)} came", "a list of steps, each a text")
    if not isinstance(labels, list) or len(labels) != len(given):
        row.refuse("labels", f"{describe(labels)} came", f"a list of {len(given)} labels")
    right = tuple(_truth(row, f"labels[{i}]", label) for i, label in enumerate(labels))
    prompt, texts = _texts(row, notes, {"completions[0]": given[0]})
    texts += given[1:]  # each goes on where the one before ends
    return Steps(
        prompt,
        tuple(texts),
        right,
        _provenance(row, notes, "prompt", "completions", "labels"),
    )


def _demonstration(row: Row, notes: Notes) -> Demonstration:
    if row.values.get("label") in (True, False):  # a label in words is a column like any other
        todo = "Keep the rows whose label is true and drop the column."
        row.refuse("label", "thumbs up and down came", "answers that are all to be imitated", todo)
    prompt, (completion,) = _texts(row, notes, _fields(row, "completion"))
    return Demonstration(prompt, completion, _provenance(row, notes, "prompt", "completion"))


def _turns(row: Row, notes: Notes) -> Turns:
    turns = text_of(row, "messages", row.values["messages"], notes)
    if isinstance(turns, str):
        row.refuse("messages", "text came", "a list of {role, content} messages")
    return turns


def _conversation(row: Row, notes: Notes) -> Demonstration:
    """The last assistant's turn is the answer, everything in front of it the prompt."""
    turns = _turns(row, notes)
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=0)
    if last == 0:
        row.refuse("messages", "it has no assistant's turn after another", "a turn to imitate")
    if last + 1 < len(turns):
        notes.add(row, "turns after the assistant's last: not used")
    return Demonstration(turns[:last], turns[last : last + 1], _provenance(row, notes, "messages"))


def _text(row: Row, notes: Notes) -> Demonstration:
    """Plain text to model: an answer to an empty prompt."""
    text = row.values["text"]
    if not isinstance(text, str):
        row.refuse("text", f"{describe(text)} came", "text")
    if blank(text):
        raise LeftOut("empty text")
    return Demonstration("", text, _provenance(row, notes, "text"))


def _best(read: Callable[[Row, Notes], Ranking]) -> Reader:
    """A reader of the best answer of what ``read`` ranks, the first of equals."""

    def best(row: Row, notes: Notes) -> Demonstration:
        ranking = read(row, notes)
        notes.add(row, "best answer read as demonstration, the others not used")
        best, provenance = ranking.ranks.index(0), ranking.provenance
        told = provenance.extra.get("finish_reason")
        if isinstance(told, list) and len(told) == len(ranking.ranks):
            own = {**provenance.extra, "finish_reason": told[best]}
            provenance = replace(provenance, extra=own)
        return Demonstration(ranking.prompt, ranking.completions[best], provenance)

    return best


def _prompt(row: Row, notes: Notes) -> Prompt:
    """The prompt of whatever the row is. Its key is a column, or else the row's index."""
    values, field = row.values, "prompt"
    if "chosen" in values and "rejected" in values:
        prompt = _texts(row, notes, _fields(row, "chosen", "rejected"))[0]
    elif "messages" in values:
        field, turns = "messages", _turns(row, notes)
        prompt = turns[:-1] if turns[-1].role == "assistant" else turns
    else:
        field = "prompt" if "prompt" in values else "text"
        prompt = open_prompt(text_of(row, field, values[field], notes))
    if blank(prompt):
        row.refuse(field, "an empty prompt came", "text")
    key = values.get("key")
    used = {field}
    if type(key) is int and key >= 0:
        used.add("key")
    else:
        key = row.index
    for column in sorted(values.keys() - used):
        notes.add(row, f"column not kept: {column}")
    return Prompt(prompt, key)


READERS: dict[type[Record], dict[Columns, Reader]] = {
    Demonstration: {
        ("prompt", "completion"): _demonstration,
        ("messages",): _conversation,
        ("chosen", "rejected"): _best(_two),
        ("completions", "ranks"): _best(_ranking),
        ("text",): _text,
    },
    Comparison: {("chosen", "rejected"): _comparison},
    Ranking: {("completions", "ranks"): _ranking, ("chosen", "rejected"): _two},
    Label: {("prompt", "completion", "label"): _label, ("chosen", "rejected"): _thumbs},
    Steps: {("prompt", "completions", "labels"): _steps},
    Prompt: {
        ("chosen", "rejected"): _prompt,
        ("messages",): _prompt,
        ("prompt",): _prompt,
        ("text",): _prompt,
    },
}
