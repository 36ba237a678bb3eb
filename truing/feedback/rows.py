"""What was judged -> rows in TRL's columns, with provenance; what is left out is counted."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from truing.data.ledger.entries import Item, Response
from truing.data.ledger.reading import Said

# Which judgements make which rows.
MAKES: Mapping[str, tuple[str, ...]] = {
    "comparison": ("pairwise", "edit"),
    "ranking": ("ranking", "rating"),
    "label": ("thumbs",),
    "steps": ("steps",),
    "demonstration": ("demonstration", "edit"),
}
TIES = "ties and both bad: left out"
ERASED = "texts that were erased"
ALONE = "critiques of judgements that make no row"
Row = dict[str, Any]


@dataclass
class Maker:
    """Makes the rows of one ``kind``. ``authors``: annotator -> pseudonym; ``guidelines``: document
    -> version; ``left_out`` counts judgements that make no row, by reason."""

    kind: str
    campaign: str
    authors: Mapping[int, str]
    guidelines: Mapping[int, int]
    ties: str = "leave_out"
    aspect: str | None = None
    left_out: Counter[str] = field(default_factory=Counter[str])
    _critiques: dict[Any, list[str]] = field(default_factory=dict[Any, list[str]])
    _carried: set[Any] = field(default_factory=set[Any])

    def usable(self, item: Item, said: Sequence[Said]) -> list[Said]:
        """The judgements of an item that count for this kind: a lead's decision in place of all."""
        found = [each for each in said if each.kind in MAKES[self.kind]]
        if len(found) < len(said):
            self._beside([each for each in said if each.kind not in MAKES[self.kind]])
        work = [each for each in found if each.purpose == "work" and not each.retest]
        self.left_out["second passes of re-tests"] += sum(each.retest > 0 for each in found)
        decided = [each for each in found if each.purpose == "adjudication"]
        if decided:
            self.left_out["overruled by a lead's decision"] += len(work)
            return decided[-1:]
        others = len(found) - len(work) - sum(each.retest > 0 for each in found)
        self.left_out["of gold, practice and screening items"] += others
        return work

    def _beside(self, said: Iterable[Said]) -> None:
        """Count what makes no row; critiques wait for the row of what they came with."""
        self._critiques.clear()
        self._carried.clear()
        for each in said:
            if each.kind != "critique":
                self.left_out[f"of kind {each.kind}, which makes no {self.kind}"] += 1
            elif each.text is None:
                self.left_out[ERASED] += 1
            else:
                self._critiques.setdefault(_pass(each), []).append(each.text)
                self.left_out[ALONE] += 1

    def _critique(self, each: Said) -> str | None:
        """The critique that came with a judgement which makes a row: several as paragraphs."""
        if not self._critiques:
            return None
        texts = self._critiques.get(key := _pass(each), ())
        if texts and key not in self._carried:
            self._carried.add(key)
            self.left_out[ALONE] -= len(texts)
        return "\n\n".join(texts) or None

    def rows(self, item: Item, said: Sequence[Said]) -> Iterator[tuple[Row, Said]]:
        """A row for each judgement, with the judgement."""
        there = {response.id: response for response in item.responses}
        for each in said:
            if made := getattr(self, f"_{each.kind}")(item, each, there):
                columns, answers, more = made
                own = self._provenance(item, [each], answers, more)
                yield {"prompt": item.prompt, **columns, **own}, each

    def votes(self, item: Item, said: Sequence[Said]) -> Iterator[tuple[Row, list[Said]]]:
        """A row for all judgements of an item by one kind of judge, with the share of votes."""
        groups = defaultdict[tuple[str, bool], list[Said]](list)
        for each in said:
            if each.kind == "edit":
                self.left_out["edits, which are no votes"] += 1
            else:
                groups[each.source, each.simulated].append(each)
        for group in groups.values():
            for first in item.responses[:1] if self.kind == "comparison" else item.responses:
                share = sum(_vote(each, first.id) for each in group) / len(group)
                if self.kind == "label":
                    if share == 0.5:
                        self.left_out["labels with as many thumbs up as down"] += len(group)
                        continue
                    columns = {"completion": reply(item, first), "label": share > 0.5}
                    answers, more = [first], {"share": max(share, 1 - share)}
                elif share == 0.5 and self.ties == "leave_out":
                    self.left_out["votes of items without a better response: left out"] += len(
                        group
                    )
                    continue
                else:
                    answers = list(item.responses[:: 1 if share >= 0.5 else -1])
                    columns = {"chosen": reply(item, answers[0])}
                    columns |= {"rejected": reply(item, answers[1])}
                    more = {"chosen_probability": max(share, 1 - share)}
                yield (
                    {
                        "prompt": item.prompt,
                        **columns,
                        **self._provenance(item, group, answers, {**more, "votes": len(group)}),
                    },
                    group,
                )

    # --- by kind: the columns, the responses in their order, and what else to tell ---------------

    def _pairwise(self, item: Item, each: Said, there: Mapping[int, Response]) -> Any:
        value, more = each.value, {}
        better = value["preferred"]
        if better is None:
            if self.ties == "leave_out":
                self.left_out[TIES] += 1
                return None
            better, more = item.responses[0].id, {"chosen_probability": 0.5}
        elif value["strength"] is not None:
            more = {"strength": value["strength"]}
        (worse,) = (number for number in there if number != better)
        answers = [there[better], there[worse]]
        columns = {"chosen": reply(item, answers[0]), "rejected": reply(item, answers[1])}
        return columns, answers, more

    def _edit(self, item: Item, each: Said, there: Mapping[int, Response]) -> Any:
        before = there[each.value["response"]]
        if each.text is None:
            self.left_out[ERASED] += 1
            return None
        after = said_reply(item, each.text)
        if self.kind == "demonstration":
            return {"completion": after}, [before], {"edited": True}
        if after == reply(item, before):
            self.left_out["edits that changed nothing"] += 1
            return None
        return {"chosen": after, "rejected": reply(item, before)}, [before], {"edited": True}

    def _demonstration(self, item: Item, each: Said, there: Mapping[int, Response]) -> Any:
        if each.text is None:
            self.left_out[ERASED] += 1
            return None
        return {"completion": said_reply(item, each.text)}, [], {}

    def _ranking(self, item: Item, each: Said, there: Mapping[int, Response]) -> Any:
        ranks = dict(zip(each.value["responses"], each.value["ranks"], strict=True))
        answers = list(item.responses)
        return _ranked(item, answers, [ranks[answer.id] for answer in answers]), answers, {}

    def _rating(self, item: Item, each: Said, there: Mapping[int, Response]) -> Any:
        scores = each.value["aspects"].get(self.aspect)
        if scores is None:
            self.left_out[f"ratings without the aspect {self.aspect}"] += 1
            return None
        if len(item.responses) < 2:
            self.left_out["ratings of one response alone"] += 1
            return None
        given = dict(zip(each.value["responses"], scores, strict=True))
        answers = list(item.responses)
        own = [given[answer.id] for answer in answers]
        order = sorted(set(own), reverse=True)
        columns = _ranked(item, answers, [order.index(score) for score in own])
        return columns, answers, {"scores": own, "aspect": self.aspect}

    def _thumbs(self, item: Item, each: Said, there: Mapping[int, Response]) -> Any:
        labels = dict(zip(each.value["responses"], each.value["labels"], strict=True))
        if len(labels) != 1:
            self.left_out["thumbs of several responses at once: ask for one at a time"] += 1
            return None
        ((number, label),) = labels.items()
        return {"completion": reply(item, there[number]), "label": label}, [there[number]], {}

    def _steps(self, item: Item, each: Said, there: Mapping[int, Response]) -> Any:
        answer, labels = there[each.value["response"]], each.value["labels"]
        steps = answer.content["steps"] if isinstance(answer.content, dict) else [answer.content]
        # A neutral step is not wrong, which is what the label of a step tells.
        right = [label >= 0 for label in labels[: len(steps)]]
        return {"completions": steps[: len(right)], "labels": right}, [answer], {}

    def _provenance(
        self, item: Item, said: Sequence[Said], answers: Sequence[Response], more: Mapping[str, Any]
    ) -> Row:
        """The column ``provenance``, of judgements that share source and simulated or not."""
        first = said[0]
        extra: Row = {"campaign": self.campaign, "item": item.id}
        told: Row = {"source": first.source, "extra": extra}
        if len(said) == 1:
            self._alone(first, answers, told)
        else:
            extra["judgements"] = [each.id for each in said]
            extra["authors"] = [self.authors[each.annotator_id] for each in said]
            critiques = [self._critique(each) for each in said]
            if any(critiques):
                extra["critiques"] = critiques
        if first.simulated:
            told["simulated"] = True
        if first.round:
            told["round"] = first.round
        if first.purpose == "adjudication":
            extra["decided"] = True
        if item.domain:
            extra["domain"] = item.domain
        if answers:
            extra["models"] = [answer.model for answer in answers]
            extra["runs"] = [answer.run for answer in answers]
            if self.kind != "steps":
                extra |= _finish(answers)
        extra |= {k: v for k, v in more.items() if k != "chosen_probability" and v is not None}
        made: Row = {"provenance": told}
        if first.simulated:
            made["simulated"] = True
        if "chosen_probability" in more:
            made["chosen_probability"] = more["chosen_probability"]
        return made

    def _alone(self, said: Said, answers: Sequence[Response], told: Row) -> None:
        """What is told of one judgement, and not of votes."""
        extra = told["extra"]
        extra["judgement"], extra["active_ms"] = said.id, said.active_ms
        if said.arm:
            extra["arm"] = said.arm
        if said.late:
            extra["late"] = True
        if critique := self._critique(said):
            extra["critique"] = critique
        told["author"], told["time"] = self.authors[said.annotator_id], _time(said.at)
        if version := self.guidelines.get(said.guideline_id or 0):
            told["guideline"] = f"v{version}"
        place = [answer.id for answer in answers]
        if order := [place.index(n) for n in said.shown if n in place]:
            told["order"] = order


def _pass(each: Said) -> Any:
    """What a judgement and a critique of it share: the assignment, or where there was none (an
    import, a lead's decision) the submission."""
    return each.assignment_id or (each.annotator_id, each.token)


def reply(item: Item, response: Response) -> Any:
    """A response in the form of its prompt: text after text, a message after messages."""
    content = response.content
    if isinstance(content, dict):
        content = "".join(content["steps"])
    return said_reply(item, content) if isinstance(content, str) else content


def said_reply(item: Item, text: str) -> Any:
    return text if isinstance(item.prompt, str) else [{"role": "assistant", "content": text}]


def _ranked(item: Item, answers: Sequence[Response], ranks: list[int]) -> Row:
    return {"completions": [reply(item, answer) for answer in answers], "ranks": ranks}


def _vote(each: Said, first: int) -> float:
    """1 for the response, 0 for the other (or thumbs down), a half for neither."""
    if each.kind == "thumbs":
        return float(
            dict(zip(*(each.value[k] for k in ("responses", "labels")), strict=True))[first]
        )
    better = each.value["preferred"]
    return 0.5 if better is None else float(better == first)


def _finish(answers: Sequence[Response]) -> Row:
    """Which responses were cut, where it is known of all."""
    reasons = [answer.origin.get("finish_reason") for answer in answers]
    if not reasons or any(reason is None for reason in reasons):
        return {}
    return {"finish_reason": reasons if len(reasons) > 1 else reasons[0]}


def _time(ms: int) -> str:
    """As ISO 8601 has it, to the second."""
    day, second = divmod(ms // 1000, 86_400)
    return f"{_day(day)}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}+00:00"


@cache
def _day(number: int) -> str:
    return datetime.fromtimestamp(86_400 * number, UTC).date().isoformat()
