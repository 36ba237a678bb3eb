"""OpenAssistant's conversation trees: whole trees, or their messages in any order, one a row.

A ranking is a turn of the prompter with ranked replies, its prompt the way down to it. A
demonstration is the best reply to each turn, or the only one. What reviewers rejected or deleted
is left out, with what hangs below it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from truing.data.chats import OURS, Values, beside, reply, turn, turns_of, want
from truing.data.dialogue import Notes
from truing.data.schema import Comparison, Ranking, Record
from truing.data.sources import Row, refuse

_ROLES = {"prompter": "user", "assistant": "assistant"}
DEEPEST = 200  # turns of a conversation; a file that says more is broken


def read(rows: Iterable[Row], kind: type[Record], notes: Notes) -> Iterator[Row]:
    """Our rows of each tree: rankings where ``kind`` wants them, demonstrations otherwise."""
    for row in _planted(list(rows), notes):
        rest = {k: row.values[k] for k in OURS if k in row.values}
        ranked = kind in (Ranking, Comparison)
        for values in _walk(row, row.values["prompt"], [], ranked, notes):
            yield replace(row, values={**values, **rest})


def _planted(rows: list[Row], notes: Notes) -> Iterator[Row]:
    """Rows of whole trees; loose messages are hung below their parents first."""
    below: defaultdict[str, list[Values]] = defaultdict(list)
    loose: dict[str, Row] = {}
    for row in rows:
        if "prompt" in row.values:
            yield row
            continue
        name = want(row, "message_id", row.values.get("message_id"), str, "text")
        needed = "the id of its parent, or nothing for a root"
        parent = want(row, "parent_id", row.values.get("parent_id", ""), str, needed)
        if name in loose:
            row.refuse("message_id", f"row {loose[name].number} has the same", "an id of its own")
        loose[name] = row
        below[parent].append(row.values)
    hung: set[str] = set()
    for row in loose.values():
        if not row.values.get("parent_id"):
            yield replace(row, values={"prompt": _grown(row, row.values, below, hung)})
    for name in loose.keys() - hung:
        notes.add(loose[name], "message that hangs below no root in the file: left out")


def _grown(row: Row, node: Values, below: dict[str, list[Values]], hung: set[str]) -> Values:
    """A message with its replies below it; ``hung`` gathers the names of all that were reached."""
    root = dict(node)
    waiting = [(root, 0)]
    while waiting:
        each, depth = waiting.pop()
        if depth > DEEPEST:
            row.refuse("parent_id", "a conversation without end", f"at most {DEEPEST} turns")
        hung.add(each["message_id"])
        each["replies"] = [dict(reply) for reply in below.get(each["message_id"], ())]
        waiting += [(reply, depth + 1) for reply in each["replies"]]
    return root


def _walk(
    row: Row, node: Any, before: list[Values], ranked: bool, notes: Notes
) -> Iterator[Values]:
    node = want(row, "prompt", node, dict, "a message {text, role, replies}")
    text = want(row, "text", node.get("text"), str, "text")
    role = node.get("role")
    if not isinstance(role, str) or role not in _ROLES or len(before) > DEEPEST:
        row.refuse("role", f"{role!r} came", f"one of {list(_ROLES)}")
    replies = [
        want(row, "replies", r, dict, "a message {text, role, replies}")
        for r in want(row, "replies", node.get("replies") or [], list, "a list of messages")
    ]
    kept = [r for r in replies if not r.get("deleted") and r.get("review_result") is not False]
    if len(kept) < len(replies):
        notes.add(row, "replies that reviewers rejected or deleted: left out")
    path = [*before, turn(_ROLES[role], text)]
    if role == "prompter" and kept:
        yield from _judged(row, path, kept, ranked, notes)
    for each in kept:
        yield from _walk(row, each, path, ranked, notes)


def _judged(
    row: Row, path: list[Values], replies: list[Values], ranked: bool, notes: Notes
) -> Iterator[Values]:
    """The one row that the replies to a turn make, if any."""
    said = [
        ([turn("assistant", want(row, "text", r.get("text"), str, "text"))], r.get("rank"))
        for r in replies
    ]
    placed = [(answer, rank) for answer, rank in said if type(rank) is int]
    if ranked and len(placed) > 1:
        answers, ranks = zip(*placed, strict=True)
        yield {"prompt": path, "completions": list(answers), "ranks": list(ranks)}
        if len(placed) < len(said):
            notes.add(row, "replies without a rank beside ranked ones: not used")
    elif ranked:
        notes.add(row, "turns without ranked replies: no judgement")
    elif len(said) == 1 or placed:
        best = said[0] if len(said) == 1 else min(placed, key=lambda each: each[1])
        yield {"prompt": path, "completion": best[0]}
    else:
        notes.add(row, "turns with several replies and no ranks: left out")


def write(record: Ranking | Comparison, number: int) -> Values:
    """One tree: the prompt as a chain of messages, the answers below its last."""
    turns = turns_of(record)
    names = {ours: theirs for theirs, ours in _ROLES.items()}
    if [m.role for m in turns] != (["user", "assistant"] * len(turns))[: len(turns)] or (
        turns[-1].role != "user"
    ):
        came = f"a prompt of the turns {[m.role for m in turns]}"
        refuse(f"row {number}", came, "user and assistant by turns", "Choose another format.")
    # No demonstration: of a tree, every turn of the assistant is read as one.
    answers, ranks = (
        (record.completions, record.ranks)
        if isinstance(record, Ranking)
        else (
            (record.chosen, record.rejected),
            (0, 1),
        )
    )
    chain = hashlib.sha256(repr(turns).encode()).hexdigest()[:32]
    nodes = [
        _message(f"{number}-{chain}-{i}", reply(text, number), "assistant", rank=rank)
        for i, (text, rank) in enumerate(zip(answers, ranks, strict=True))
    ]
    for depth in reversed(range(len(turns))):
        said = turns[depth]
        nodes = [_message(f"{number}-{chain}/{depth}", said.content, names[said.role], nodes)]
    root = nodes[0]
    return {
        "message_tree_id": root["message_id"],
        "tree_state": "ready_for_export",
        "prompt": root,
    } | beside(record)


def _message(
    name: str, text: str, role: str, replies: list[Values] | None = None, rank: int | None = None
) -> Values:
    place = {} if rank is None else {"rank": rank}
    return {"message_id": name, "text": text, "role": role, **place, "replies": replies or []}
