"""Dialects of labelling tools: a task with what each annotator said of it, Argilla's and Label
Studio's. Each judgement becomes a row of its own, with who made it and the order of the answers.

A field named ``prompt`` (or as `PROMPTS`) is the prompt, fields named as `ANSWER` are the answers,
in the order in which they stand; other fields are kept as extra.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from truing.data.chats import OURS, Values, beside, reply, want
from truing.data.dialogue import Notes
from truing.data.schema import Comparison, Demonstration, Label, Prompt, Ranking, Record
from truing.data.sources import Row, describe, refuse

PROMPTS = ("prompt", "instruction", "question", "query", "input", "conversation", "chat", "text")
ANSWER = re.compile(
    r"(response|completion|answer|output|reply|generation|candidate|text(?=[-_ ]?\d))[-_ ]?\w{0,2}"
)
# What annotators are given to choose from for one answer alone.
UP = {"up", "good", "yes", "true", "positive", "thumbs up", "acceptable", "like"}
DOWN = {"down", "bad", "no", "false", "negative", "thumbs down", "unacceptable", "dislike"}
_FORM = "a prompt and answers, such as {prompt, response-1, response-2}"


class Task:
    """What was shown: the prompt, the answers by name, and everything else."""

    def __init__(self, row: Row, field: str, shown: Mapping[str, Any]) -> None:
        asked = next((name for name in PROMPTS if name in shown), None)
        answers = {name: shown[name] for name in shown if ANSWER.fullmatch(name.lower())}
        items = [n for n, v in shown.items() if isinstance(v, list) and n != asked and not answers]
        if items:  # of Label Studio's Ranker
            answers = dict(_item(row, items[0], each) for each in shown[items[0]])
        if asked is None or not answers:
            row.refuse(field, f"the fields {list(shown)} came", _FORM)
        self.prompt, self.answers = shown[asked], answers
        used = {asked, *answers, *items[:1]}
        self.rest = {name: value for name, value in shown.items() if name not in used}

    def chosen(self, name: str) -> Values | None:
        """The row that choosing one of two answers makes; None for a tie or another name."""
        if len(self.answers) != 2 or name not in self.answers:
            return None
        first, second = self.answers
        other, order = (second, [0, 1]) if name == first else (first, [1, 0])
        return {
            "chosen": self.answers[name],
            "rejected": self.answers[other],
            "provenance": {"order": order},
        }

    def ranked(self, ranks: Mapping[str, int]) -> Values | None:
        """The row that ranks (any numbers, the lowest best) of all answers make."""
        if ranks.keys() != self.answers.keys() or len(ranks) < 2:
            return None
        order = sorted(set(ranks.values()))
        return {
            "completions": list(self.answers.values()),
            "ranks": [order.index(ranks[name]) for name in self.answers],
        }

    def thumb(self, said: str) -> Values | None:
        """The row that a word about the only answer makes."""
        word = re.sub(r"[-_]", " ", said.strip().lower())
        if len(self.answers) != 1 or word not in UP | DOWN:
            return None
        return {"completion": next(iter(self.answers.values())), "label": word in UP}

    def corrected(self, text: str, kind: type[Record]) -> Values | None:
        """The row that a text written in place of the only answer makes: what to imitate, and where
        pairs are asked for, the better of two."""
        if len(self.answers) != 1:
            return None
        (before,) = self.answers.values()
        if kind is Demonstration:
            return {"completion": text}
        return {"chosen": text, "rejected": before} if text != before else None

    def row(self, row: Row, made: Values, who: Values, rest: Values) -> Row:
        """A judgement's row: ours where it was written by us, else by whom it was said."""
        told = {"source": "human", **who, **made.pop("provenance", {})}
        told = {name: value for name, value in told.items() if value not in ("", None)}
        return replace(
            row, values={"prompt": self.prompt, **made, "provenance": told, **self.rest, **rest}
        )


def _item(row: Row, field: str, value: Any) -> tuple[str, Any]:
    needed = "items {id, body}"
    value = want(row, field, value, dict, needed)
    body = next((value[name] for name in ("body", "html", "text", "title") if name in value), None)
    if body is None or "id" not in value:
        row.refuse(field, f"{describe(value)} came", needed)
    return str(value["id"]), body


def suits(made: Values | None, kind: type[Record]) -> bool:
    """Whether a judgement's row can become a record of ``kind``."""
    if made is None:
        return False
    if kind in (Label, Demonstration):
        return ("label" in made) == (kind is Label)
    return "chosen" in made or "ranks" in made


def shown_of(record: Any, number: int) -> tuple[Values, Any]:
    """The fields to show for a record, and what was said of them: the answers stand in the order
    that annotators saw, or that of the record."""
    prompt = record.prompt
    asked: Any = prompt if isinstance(prompt, str) else [dict(vars(m)) for m in prompt]
    if isinstance(record, Demonstration | Label):
        return {"prompt": asked, "response": reply(record.completion, number)}, None
    if isinstance(record, Comparison):
        texts, ranks = (record.chosen, record.rejected), (0, 1)
    else:
        texts, ranks = record.completions, record.ranks
    order = record.provenance.order if isinstance(record, Comparison) else ()
    order = order if sorted(order) == [0, 1] else range(len(texts))
    fields = {f"response-{n}": reply(texts[i], number) for n, i in enumerate(order, start=1)}
    return {"prompt": asked, **fields}, dict(zip(fields, (ranks[i] for i in order), strict=True))


# --- Argilla: records as `to_json` writes them, or flattened as on the hub ------------------------

_OWN = {"id", "status", "_server_id", "inserted_at", "updated_at", "vectors", "score"}


def argilla(rows: Iterable[Row], kind: type[Record], notes: Notes) -> Iterator[Row]:
    for row in rows:
        values = _nested(row) if "fields" not in row.values else row.values
        shown = want(row, "fields", values.get("fields"), dict, "an object of fields")
        said = want(row, "responses", values.get("responses") or {}, dict, "an object of lists")
        if values.get("suggestions"):
            notes.add(row, "suggestions, which no person made: not read")
        task, found = Task(row, "fields", shown), 0
        rest = {k: values[k] for k in OURS if k in values}
        if kind is Prompt:
            yield replace(row, values={"prompt": task.prompt})
            continue
        for question, responses in said.items():
            for response in want(row, question, responses, list, "a list of responses"):
                response = want(row, question, response, dict, "a response {value, user_id}")
                if response.get("status", "submitted") != "submitted":
                    notes.add(row, "responses discarded or in draft: left out")
                    continue
                made = _argilla_value(row, task, question, response.get("value"), kind)
                if made is None or not suits(made, kind):
                    notes.add(row, f"answers to {question!r} that make no {kind.__name__.lower()}")
                    continue
                found += 1
                who = {"author": str(response.get("user_id") or "")}
                yield task.row(row, made, who, rest)
        if not found:
            notes.add(row, "task without a judgement of this kind: left out")


def _nested(row: Row) -> Values:
    """A flattened record in the form of a whole one."""
    fields: Values = {}
    said: dict[str, list[Values]] = {}
    for column, value in row.values.items():
        question, dot, what = column.partition(".responses")
        if dot and not what:
            n = len(want(row, column, value, list, "a list of responses"))
            users = _beside(row, f"{column}.users", n, "")
            states = _beside(row, f"{column}.status", n, "submitted")
            said[question] = [
                {"value": v, "user_id": user, "status": state or "submitted"}
                for v, user, state in zip(value, users, states, strict=True)
            ]
        elif "." not in column and column not in _OWN and column not in OURS:
            fields[column] = value
    return {
        "fields": fields,
        "responses": said,
        **{k: row.values[k] for k in OURS if k in row.values},
    }


def _beside(row: Row, column: str, n: int, default: str) -> list[Any]:
    """A column that says something of each of ``n`` responses."""
    given = want(row, column, row.values.get(column, [default] * n), list, f"a list of {n}")
    if len(given) != n:
        row.refuse(column, f"{describe(given)} came", f"a list of {n}, one for each response")
    return given


def _argilla_value(
    row: Row, task: Task, question: str, value: Any, kind: type[Record]
) -> Values | None:
    """What an answer to a question makes of the task, by the form of its value."""
    if isinstance(value, list):
        return task.ranked(_argilla_ranks(row, question, value))
    if not isinstance(value, str):
        return None  # a rating: no record of ours
    return task.chosen(value) or task.thumb(value) or task.corrected(value, kind)


def _argilla_ranks(row: Row, question: str, value: list[Any]) -> dict[str, int]:
    """A list of names, the best first, or of {value, rank}, which may tie."""
    ranks: dict[str, int] = {}
    for place, item in enumerate(value):
        name, rank = (
            (item.get("value"), item.get("rank")) if isinstance(item, dict) else (item, place)
        )
        if not isinstance(name, str) or type(rank) is not int:
            row.refuse(question, f"a list with {describe(item)} came", "names, or {value, rank}")
        ranks[name] = rank
    return ranks


def write_argilla(record: Any, number: int) -> Values:
    shown, ranks = shown_of(record, number)
    if isinstance(record, Comparison):
        question, value = "preference", next(name for name, rank in ranks.items() if rank == 0)
    elif isinstance(record, Ranking):
        question = "ranking"
        value = [{"value": name, "rank": rank + 1} for name, rank in ranks.items()]
    elif isinstance(record, Label):
        question, value = "label", "up" if record.label else "down"
    else:
        question, value = "correction", shown["response"]
    said = {"value": value, "user_id": record.provenance.author, "status": "submitted"}
    return {"id": str(number), "fields": shown, "responses": {question: [said]}} | beside(record)


# --- Label Studio: tasks as its JSON export has them ----------------------------------------------


def label_studio(rows: Iterable[Row], kind: type[Record], notes: Notes) -> Iterator[Row]:
    for row in rows:
        shown, given = row.values.get("data"), row.values.get("annotations")
        task, found = Task(row, "data", want(row, "data", shown, dict, "an object of fields")), 0
        rest = {k: row.values[k] for k in OURS if k in row.values}
        if kind is Prompt:
            yield replace(row, values={"prompt": task.prompt})
            continue
        for annotation in want(row, "annotations", given, list, "a list of annotations"):
            annotation = want(row, "annotations", annotation, dict, "an annotation {result}")
            if annotation.get("was_cancelled"):
                notes.add(row, "annotations that were skipped: left out")
                continue
            who = {
                "author": _person(annotation.get("completed_by")),
                "time": str(annotation.get("created_at") or ""),
            }
            lead: Values = {}
            if type(annotation.get("lead_time")) in (int, float) and "provenance" not in rest:
                lead = {"lead_time": annotation["lead_time"]}
            for result in want(row, "result", annotation.get("result"), list, "a list of results"):
                result = want(row, "result", result, dict, "a result {type, value}")
                made = _studio_value(row, task, result, kind)
                if made is None or not suits(made, kind):
                    what = f"results of type {result.get('type')} that make no"
                    notes.add(row, f"{what} {kind.__name__.lower()}")
                    continue
                found += 1
                yield task.row(row, made, who, {**lead, **rest})
        if not found:
            notes.add(row, "task without a judgement of this kind: left out")


def _person(given: Any) -> str:
    """The number or the address of an annotator."""
    if isinstance(given, dict):
        given = given.get("email") or given.get("id")
    return "" if given is None else str(given)


def _studio_value(row: Row, task: Task, result: Values, kind: type[Record]) -> Values | None:
    form, value = result.get("type"), result.get("value")
    value = want(row, "value", value, dict, "an object")
    if form == "pairwise" and value.get("selected") in ("left", "right"):
        names = list(task.answers)
        return task.chosen(names[value["selected"] == "right"]) if len(names) == 2 else None
    if form == "ranker" and isinstance(value.get("ranker"), dict):
        # Each bucket is a list of names, the best first; one bucket is a ranking.
        buckets = [names for bucket, names in value["ranker"].items() if bucket != "_" or names]
        if len(buckets) == 1 and isinstance(buckets[0], list):
            return task.ranked({str(name): i for i, name in enumerate(buckets[0])})
        return None
    said = value.get("choices") or value.get("text")
    words = [said] if isinstance(said, str) else said
    if not isinstance(words, list) or len(words) != 1 or not isinstance(words[0], str):
        return None
    if form == "choices":
        return task.chosen(words[0]) or task.thumb(words[0])
    return task.corrected(words[0], kind) if form == "textarea" else None


def write_label_studio(record: Any, number: int) -> Values:
    shown, ranks = shown_of(record, number)
    if isinstance(record, Comparison):
        form, value = "pairwise", {"selected": ("left", "right")[ranks["response-2"] == 0]}
    elif isinstance(record, Ranking):
        order = sorted(ranks, key=ranks.__getitem__)
        if len(set(ranks.values())) < len(ranks):
            todo = "argilla can hold these."
            refuse(f"row {number}", "a ranking with ties", "an order without ties", todo)
        items = [{"id": name, "body": shown.pop(name)} for name in list(ranks)]
        shown["items"] = items
        form, value = "ranker", {"ranker": {"judgement": order}}
    elif isinstance(record, Label):
        form, value = "choices", {"choices": ["up" if record.label else "down"]}
    else:
        form, value = "textarea", {"text": [shown["response"]]}
    result = {"from_name": "judgement", "to_name": "response-1", "type": form, "value": value}
    who = {"completed_by": record.provenance.author, "was_cancelled": False, "result": [result]}
    return {"id": number, "data": shown, "annotations": [who]} | beside(record)
