"""The kinds of judgement: what each asks in its form, and what is made of the answers.

A form speaks of places (0: the first that is shown), the ledger of responses: where a response
stood is not part of what was said about it. An item's ``expected`` answer, for practice, screening
and gold, speaks of responses by their places in the item's own order: ``{"preferred": 0}`` or
``{"outcome": "tie"}``, ``{"ranks": [0, 1, 1]}``, ``{"aspects": {"helpful": [4, 2]}}``,
``{"labels": [true]}`` for thumbs, ``{"labels": [1, 0, -1]}`` for steps, ``{}`` for texts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from truing.data.ledger import Answer, Item, Lease
from truing.feedback.rules import Rules

Form = Mapping[str, str]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICES = {"a2": (0, 2), "a1": (0, 1), "b1": (1, 1), "b2": (1, 2)}
STEP = {"right": 1, "neutral": 0, "wrong": -1}
SKIPS = {
    "cannot tell": "I cannot tell which is better",
    "knowledge": "I do not know enough about this",
    "unreadable": "Broken, empty or in another language",
    "upsetting": "I would rather not look at this",
    "other": "Something else",
}
FLAGS = {
    "personal data": "Personal data of real people",
    "harmful": "Harmful or illegal",
    "broken": "Broken or cut off",
    "identity": "It says which model wrote it",
    "other": "Something else",
}


class Kind(NamedTuple):
    """``ask``: what the page asks for; ``read``: a form -> the value (ValueError: what is missing);
    ``fill``: its inverse, for a decision that is opened again; ``right``: a value and an item's
    ``expected`` -> whether they agree."""

    ask: str
    read: Callable[[Form, Sequence[int], Item, Rules], dict[str, Any]]
    fill: Callable[[Mapping[str, Any], Sequence[int]], dict[str, str]]
    right: Callable[[Mapping[str, Any], Mapping[str, Any], Sequence[int]], bool]


def letter(place: int) -> str:
    """What a response is called on the page: A, B, ..., then 27, 28, ..."""
    return LETTERS[place] if place < len(LETTERS) else str(place + 1)


def _asked(form: Form, name: str, what: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """A field's choice. Raises ValueError for none, or one that the page does not offer."""
    value = form.get(name, "")
    if value not in known:
        came = "nothing was chosen" if not value else f"{value[:40]!r} came"
        raise ValueError(f"{what}: {came}; needed: one of {', '.join(known)}")
    return value


# --- comparison -----------------------------------------------------------------------------------


def _read_pair(form: Form, shown: Sequence[int], item: Item, rules: Rules) -> dict[str, Any]:
    known = [name for name in CHOICES if rules.strength or name.endswith("1")]
    known += ["tie"] * rules.ties + ["both_bad"] * rules.both_bad
    choice = _asked(form, "choice", "which response is better", known)
    if choice not in CHOICES:
        return {"outcome": choice, "preferred": None, "strength": None}
    place, strength = CHOICES[choice]
    strength = strength if rules.strength else None
    return {"outcome": "better", "preferred": shown[place], "strength": strength}


def _fill_pair(value: Mapping[str, Any], shown: Sequence[int]) -> dict[str, str]:
    if value["outcome"] != "better":
        return {"choice": value["outcome"]}
    side = "ab"[list(shown).index(value["preferred"])]
    return {"choice": f"{side}{value['strength'] or 1}"}


def _right_pair(value: Mapping[str, Any], expected: Mapping[str, Any], own: Sequence[int]) -> bool:
    """How much better is a matter of taste, which is better may not be."""
    place = expected.get("preferred")
    preferred = None if place is None else own[place]
    outcome = expected.get("outcome", "better")
    return value["outcome"] == outcome and value["preferred"] == preferred


# --- ranking --------------------------------------------------------------------------------------


def _read_ranking(form: Form, shown: Sequence[int], item: Item, rules: Rules) -> dict[str, Any]:
    known = [str(n + 1) for n in range(len(shown))]
    given = [
        _asked(form, f"rank-{i}", f"the rank of {letter(i)}", known) for i in range(len(shown))
    ]
    levels = sorted({int(rank) for rank in given})
    if not rules.ties and len(levels) < len(given):
        raise ValueError("two responses have the same rank; needed: each rank once")
    return {"responses": list(shown), "ranks": [levels.index(int(rank)) for rank in given]}


def _fill_ranking(value: Mapping[str, Any], shown: Sequence[int]) -> dict[str, str]:
    ranks = dict(zip(value["responses"], value["ranks"], strict=True))
    return {f"rank-{i}": str(ranks[r] + 1) for i, r in enumerate(shown)}


def _right_ranking(
    value: Mapping[str, Any], expected: Mapping[str, Any], own: Sequence[int]
) -> bool:
    ranks = dict(zip(value["responses"], value["ranks"], strict=True))
    return [ranks[r] for r in own] == list(expected["ranks"])


# --- rating ---------------------------------------------------------------------------------------


def _read_rating(form: Form, shown: Sequence[int], item: Item, rules: Rules) -> dict[str, Any]:
    known = [str(n + 1) for n in range(rules.scale)]
    scores = {
        aspect: [
            int(_asked(form, f"aspect-{a}-{i}", f"{aspect}, {letter(i)}", known))
            for i in range(len(shown))
        ]
        for a, aspect in enumerate(rules.aspects)
    }
    return {"responses": list(shown), "aspects": scores}


def _fill_rating(value: Mapping[str, Any], shown: Sequence[int]) -> dict[str, str]:
    places = [value["responses"].index(r) for r in shown]
    return {
        f"aspect-{a}-{i}": str(scores[place])
        for a, scores in enumerate(value["aspects"].values())
        for i, place in enumerate(places)
    }


def _right_rating(
    value: Mapping[str, Any], expected: Mapping[str, Any], own: Sequence[int]
) -> bool:
    """One step beside is as good: scales are not read alike by everybody."""
    places = [value["responses"].index(r) for r in own]
    return all(
        abs(value["aspects"][aspect][place] - score) <= 1
        for aspect, scores in expected["aspects"].items()
        for place, score in zip(places, scores, strict=True)
    )


# --- thumbs, steps, texts -------------------------------------------------------------------------


def _read_thumbs(form: Form, shown: Sequence[int], item: Item, rules: Rules) -> dict[str, Any]:
    known = {"up": True, "down": False}
    labels = [
        known[_asked(form, f"thumb-{i}", f"{letter(i)}, good or bad", known)]
        for i in range(len(shown))
    ]
    return {"responses": list(shown), "labels": labels}


def _fill_thumbs(value: Mapping[str, Any], shown: Sequence[int]) -> dict[str, str]:
    labels = dict(zip(value["responses"], value["labels"], strict=True))
    return {f"thumb-{i}": "up" if labels[r] else "down" for i, r in enumerate(shown)}


def _right_thumbs(
    value: Mapping[str, Any], expected: Mapping[str, Any], own: Sequence[int]
) -> bool:
    labels = dict(zip(value["responses"], value["labels"], strict=True))
    return [labels[r] for r in own] == list(expected["labels"])


def steps_of(item: Item, response: int) -> list[str]:
    """The steps of a response: its own, or its paragraphs."""
    content = next(r.content for r in item.responses if r.id == response)
    if isinstance(content, Mapping):
        return [str(step) for step in content.get("steps", ())]
    text = content if isinstance(content, str) else str(content[-1].get("content", ""))
    return [part.strip() for part in text.split("\n\n") if part.strip()] or [text]


def _read_steps(form: Form, shown: Sequence[int], item: Item, rules: Rules) -> dict[str, Any]:
    labels = list[int]()
    for i in range(len(steps_of(item, shown[0]))):
        # What follows from a wrong step need not be judged.
        if labels and -1 in labels and not form.get(f"step-{i}"):
            break
        labels.append(STEP[_asked(form, f"step-{i}", f"step {i + 1}", STEP)])
    return {"response": shown[0], "labels": labels}


def _fill_steps(value: Mapping[str, Any], shown: Sequence[int]) -> dict[str, str]:
    names = {label: name for name, label in STEP.items()}
    return {f"step-{i}": names[label] for i, label in enumerate(value["labels"])}


def _right_steps(value: Mapping[str, Any], expected: Mapping[str, Any], own: Sequence[int]) -> bool:
    """Up to the first wrong step: what comes after it may be judged or not."""
    wanted = list(expected["labels"])
    end = wanted.index(-1) + 1 if -1 in wanted else len(wanted)
    return list(value["labels"])[:end] == wanted[:end]


def _read_edit(form: Form, shown: Sequence[int], item: Item, rules: Rules) -> dict[str, Any]:
    return {"response": shown[0]}


def _read_nothing(form: Form, shown: Sequence[int], item: Item, rules: Rules) -> dict[str, Any]:
    return {}


def _fill_nothing(value: Mapping[str, Any], shown: Sequence[int]) -> dict[str, str]:
    return {}


def _any(value: Mapping[str, Any], expected: Mapping[str, Any], own: Sequence[int]) -> bool:
    """A text that somebody wrote is not compared with another's."""
    return True


KINDS: dict[str, Kind] = {
    "pairwise": Kind("Which response is better?", _read_pair, _fill_pair, _right_pair),
    "ranking": Kind("Rank the responses", _read_ranking, _fill_ranking, _right_ranking),
    "rating": Kind("Rate each response", _read_rating, _fill_rating, _right_rating),
    "thumbs": Kind("Is it a good response?", _read_thumbs, _fill_thumbs, _right_thumbs),
    "steps": Kind("Is each step right?", _read_steps, _fill_steps, _right_steps),
    "edit": Kind("Improve the response", _read_edit, _fill_nothing, _any),
    "demonstration": Kind("Write the response", _read_nothing, _fill_nothing, _any),
}
TEXTS = ("edit", "demonstration")  # kinds whose answer is a text


# --- what goes with any of them -------------------------------------------------------------------


def original(item: Item, response: int) -> str | None:
    """A response's text as one can edit it; None for steps and for several messages."""
    content = next(r.content for r in item.responses if r.id == response)
    if isinstance(content, list) and len(content) == 1:
        content = content[0].get("content")
    return content if isinstance(content, str) else None


def answers_of(
    form: Form,
    lease: Lease,
    item: Item,
    rules: Rules,
    texts: Sequence[str | None],
    restore: Callable[[int, str], str],
) -> list[Answer]:
    """What a judgement's form says, the item's own kind first.

    ``texts``: the responses as they stood to be edited; ``restore(place, text)`` gives an edited
    one the names back that were blanked. Raises ValueError for what is missing, in words for the
    person who sent it.
    """
    kind, text = KINDS[item.kind], None
    if item.kind == "edit":
        text = _clean(form.get("edit-0", ""))
        if text == texts[0]:
            raise ValueError("the response is as it was: change it, or skip")
        text = restore(0, text)
    if item.kind == "demonstration":
        text = _clean(form.get("text", ""))
    said = [Answer(item.kind, kind.read(form, lease.shown, item, rules), text)]  # type: ignore[arg-type]
    if item.kind in TEXTS:
        return said
    critique = _clean(form.get("critique", "")).strip()
    if critique and rules.critique != "off":
        said.append(Answer("critique", {"response": None}, critique))
    elif rules.critique == "required":
        raise ValueError("reasons are asked for here: say in a few words why")
    for place, response in enumerate(lease.shown if rules.edit else ()):
        edited, before = _clean(form.get(f"edit-{place}", "")), texts[place]
        if before is not None and edited.strip() and edited != before:
            said.append(Answer("edit", {"response": response}, restore(place, edited)))
    return said


def _clean(text: str) -> str:
    """A browser sends line ends as CR LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def reason_of(form: Form, kind: str) -> list[Answer]:
    """A skip or a flag."""
    known = SKIPS if kind == "skip" else FLAGS
    reason = _asked(form, "reason", f"why you {kind} it", known)
    text = _clean(form.get("text", "")).strip() or None
    return [Answer(kind, {"reason": reason}, text)]  # type: ignore[arg-type]


def filled(kind: str, said: Sequence[Any], shown: Sequence[int]) -> dict[str, str]:
    """The form of a decision: its judgements, as the fields that they came from."""
    form: dict[str, str] = {}
    for judgement in said:
        if judgement.kind == kind:
            form |= KINDS[kind].fill(judgement.value, shown)
            if kind == "edit":
                form["edit-0"] = judgement.text or ""
            elif kind == "demonstration":
                form["text"] = judgement.text or ""
        elif judgement.kind == "critique":
            form["critique"] = judgement.text or ""
        elif judgement.kind == "edit":
            form[f"edit-{list(shown).index(judgement.value['response'])}"] = judgement.text or ""
    return form
