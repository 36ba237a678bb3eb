"""What each kind of judgement may say, checked against what was shown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from truing.data.ledger.entries import Answer

TEXT = 200_000  # characters
NEEDS_TEXT = ("critique", "edit", "question", "answer", "demonstration")


def check(answer: Answer, shown: Sequence[int]) -> None:
    """Raise ValueError for a value that does not fit its kind, or that names a response which is
    none of the ``shown`` ones."""
    reader = READERS.get(answer.kind)
    if reader is None:
        raise ValueError(
            f"a judgement of kind {answer.kind!r} came; needed: one of {list(READERS)}"
        )
    reader(answer.value, list(shown))
    if answer.text is not None and len(answer.text) > TEXT:
        raise ValueError(f"a text of {len(answer.text)} characters came; needed: at most {TEXT}")
    if answer.kind in NEEDS_TEXT and not (answer.text or "").strip():
        raise ValueError(f"a judgement of kind {answer.kind} came without its text; write one")


def _no(what: str, value: object, needed: str) -> NoReturn:
    raise ValueError(f"{what}: {str(value)[:200]!r} came; needed: {needed}")


def _keys(value: Mapping[str, Any], *names: str) -> list[Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        _no("the judgement's value", value, "{" + ", ".join(names) + "}")
    return [value[name] for name in names]


def _each(what: str, given: Any, count: int, good: Callable[[Any], bool], needed: str) -> None:
    if not isinstance(given, list) or len(given) != count or not all(good(x) for x in given):
        _no(what, given, f"a list of {count}: {needed}")


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and low <= x <= high


def _one_of(response: Any, shown: list[int], none: bool = False) -> None:
    if not (none and response is None) and (type(response) is not int or response not in shown):
        _no("a response", response, f"one of the shown {shown}" + (", or none" if none else ""))


def _all(given: Any, shown: list[int]) -> None:
    if not isinstance(given, list) or any(type(x) is not int for x in given):
        _no("responses", given, f"the shown {shown}")
    if sorted(given) != sorted(shown):
        _no("responses", given, f"each of the shown {shown}, once")


def _pairwise(value: Any, shown: list[int]) -> None:
    outcome, preferred, strength = _keys(value, "outcome", "preferred", "strength")
    if outcome == "better":
        _one_of(preferred, shown)
        if strength not in (1, 2, None) or isinstance(strength, bool):
            _no("strength", strength, "1 (better), 2 (much better), or none where nobody asked")
    elif outcome not in ("tie", "both_bad"):
        _no("outcome", outcome, "better, tie or both_bad")
    elif preferred is not None or strength is not None:
        _no(f"a {outcome}", value, "no preferred response, and no strength")


def _ranking(value: Any, shown: list[int]) -> None:
    responses, ranks = _keys(value, "responses", "ranks")
    _all(responses, shown)
    _each("ranks", ranks, len(shown), _whole(0, len(shown) - 1), "whole numbers, 0 the best")
    if min(ranks) != 0:
        _no("ranks", ranks, "the best is 0")


def _rating(value: Any, shown: list[int]) -> None:
    responses, aspects = _keys(value, "responses", "aspects")
    _all(responses, shown)
    if not isinstance(aspects, dict) or not aspects:
        _no("aspects", aspects, "a list of scores of each named aspect")
    for name, scores in aspects.items():
        _each(f"the aspect {name}", scores, len(shown), _whole(-100, 100), "whole numbers")


def _thumbs(value: Any, shown: list[int]) -> None:
    responses, labels = _keys(value, "responses", "labels")
    _all(responses, shown)
    _each("labels", labels, len(shown), lambda x: isinstance(x, bool), "true or false")


def _steps(value: Any, shown: list[int]) -> None:
    response, labels = _keys(value, "response", "labels")
    _one_of(response, shown)
    count = len(labels) if isinstance(labels, list) else 1
    _each("labels", labels, max(1, count), _whole(-1, 1), "1 right, 0 neutral, -1 wrong")


def _spans(value: Any, shown: list[int]) -> None:
    (spans,) = _keys(value, "spans")
    if not isinstance(spans, list):
        _no("spans", spans, "a list")
    for span in spans:
        response, start, end, label, severity = _keys(
            span, "response", "start", "end", "label", "severity"
        )
        _one_of(response, shown)
        if type(start) is not int or type(end) is not int or not 0 <= start < end:
            _no("a span", [start, end], "the characters from start to before end")
        if not isinstance(label, str) or not label or not _whole(0, 10)(severity):
            _no("a span", span, "a label, and a severity from 0 to 10")


def _critique(value: Any, shown: list[int]) -> None:
    (response,) = _keys(value, "response")
    _one_of(response, shown, none=True)


def _edit(value: Any, shown: list[int]) -> None:
    (response,) = _keys(value, "response")
    _one_of(response, shown)


def _reason(value: Any, shown: list[int]) -> None:
    (reason,) = _keys(value, "reason")
    if not isinstance(reason, str) or not 0 < len(reason) <= 100:
        _no("reason", reason, "a word or two, at most 100 characters; more goes into the text")


def _reply(value: Any, shown: list[int]) -> None:
    (question,) = _keys(value, "question")
    if type(question) is not int:
        _no("question", question, "the number of a judgement")


def _nothing(value: Any, shown: list[int]) -> None:
    _keys(value)


READERS: dict[str, Callable[[Any, list[int]], None]] = {
    "pairwise": _pairwise,
    "ranking": _ranking,
    "rating": _rating,
    "thumbs": _thumbs,
    "steps": _steps,
    "spans": _spans,
    "critique": _critique,
    "edit": _edit,
    "demonstration": _nothing,
    "flag": _reason,
    "skip": _reason,
    "question": _nothing,
    "answer": _reply,
}
