"""Token ids to one `Layout` that every model call understands.

`flat`, `padded`, `packed` or `shared` place many `Tokens` into the rows of a model's input. What a
model returns for a layout is per *sequence* (B, T), so nothing above this file knows about rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Responses in a row that share its prompt where attention is masked, and so grows with the square
# of the row: on two CPUs, with prompts twice as long as responses, 4 was quicker than 2 or 8.
SHARERS = 4


class Tokens(NamedTuple):
    """A prompt and its response. Response tokens are scored, prompt tokens only condition."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Layout:
    """Token sequences placed into the rows of a model's input (R rows, C columns).

    ids, positions, documents, segments (R, C): token, its position in its own document, the
    (first) sequence of that document (-1 for filling), and 0 for prompt, 1 for response; the
    responses to a shared prompt count on, and a token sees its prompt and its own response.
    row, column, target, mask (B, T): for the t-th scored token of sequence b, the cell whose hidden
    state predicts it, its id, and whether it exists. last (B, 2): each sequence's final cell.
    saved: tokens of prompts that need not stand there again.
    """

    ids_RC: Tensor
    positions_RC: Tensor
    documents_RC: Tensor
    segments_RC: Tensor
    row_BT: Tensor
    column_BT: Tensor
    target_BT: Tensor
    mask_BT: Tensor
    last_B2: Tensor
    kind: Literal["padded", "packed", "shared", "flat"] = "padded"
    saved: int = 0

    def to(self, device: torch.device | str) -> "Layout":
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return int(self.mask_BT.sum())

    @property
    def tokens(self) -> int:
        """Number of cells that hold a token."""
        return int((self.documents_RC >= 0).sum())

    @property
    def cells(self) -> int:
        """Number of all cells."""
        return self.ids_RC.numel()


def padded(sequences: Sequence[Tokens], *, score_prompt: bool = False, fill: int = 0) -> Layout:
    """One sequence a row, filled on the right. Causal attention never looks at the filling."""
    return _place(sequences, [[[i]] for i in range(len(sequences))], "padded", score_prompt, fill)


def packed(
    sequences: Sequence[Tokens], *, capacity: int, score_prompt: bool = False, fill: int = 0
) -> Layout:
    """Several sequences a row of at most ``capacity`` tokens (first fit, longest first).

    Positions restart with each sequence, and attention stays within it: transformers derives the
    block-diagonal mask from the restarts. Raises ValueError for a sequence longer than a row.
    """
    rows: list[list[list[int]]] = []
    room: list[int] = []
    for i in sorted(range(len(sequences)), key=lambda i: -sequences[i].length):
        length = sequences[i].length
        if length > capacity:
            raise ValueError(f"a sequence of {length} tokens does not fit a row of {capacity}")
        fits = next((r for r, free in enumerate(room) if free >= length), None)
        if fits is None:
            rows.append([])
            room.append(capacity)
            fits = len(rows) - 1
        rows[fits].append([i])
        room[fits] -= length
    return _place(sequences, rows, "packed", score_prompt, fill)


def shared(sequences: Sequence[Tokens], *, fill: int = 0) -> Layout:
    """Neighbours with the same prompt share a row, up to `SHARERS` of them; it stands there once.

    The model needs a mask then: see `truing.models.model.Model.place`.
    """
    rows = [[document] for document in _documents(sequences, SHARERS)]
    return _place(sequences, rows, "shared", False, fill)


def flat(sequences: Sequence[Tokens], *, score_prompt: bool = False, fill: int = 0) -> Layout:
    """All sequences in one row, without filling; the prompt of neighbours that have the same one
    stands there once, unless it is scored.

    For models that read spans (`truing.models.attention`); others need a mask of the whole row.
    """
    documents = _documents(sequences, 1 if score_prompt else len(sequences))
    return _place(sequences, [documents], "flat", score_prompt, fill)


def _documents(sequences: Sequence[Tokens], most: int) -> list[list[int]]:
    """Sequences by number, neighbours with the same prompt together, ``most`` of them at most."""
    found: list[list[int]] = []
    for i, tokens in enumerate(sequences):
        room = found and len(found[-1]) < most
        if room and tokens.prompt and tokens.prompt == sequences[found[-1][0]].prompt:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _place(
    sequences: Sequence[Tokens],
    rows: list[list[list[int]]],
    kind: Literal["padded", "packed", "shared", "flat"],
    score_prompt: bool,
    fill: int,
) -> Layout:
    """``rows``: of each its documents, of each its sequences, which share a prompt."""
    if any(s.length == 0 for s in sequences):
        raise ValueError("a sequence of no tokens cannot be placed")
    # A prompt stands in front of the first response of a document.
    opened = {document[0] for row in rows for document in row}
    sizes = [s.length if i in opened else len(s.response) for i, s in enumerate(sequences)]
    width = max(sum(sizes[i] for document in row for i in document) for row in rows)
    cells = torch.zeros(4, len(rows), width, dtype=torch.long)
    cells[0], cells[2] = fill, -1
    alone = all(len(row) == len(row[0]) == 1 for row in rows)
    # Of each sequence the scored ids, and the cells in front of them, which predict them.
    scored: dict[int, tuple[int, list[int], list[int]]] = {}
    last = torch.zeros(len(sequences), 2, dtype=torch.long)
    for r, row in enumerate(rows):
        c = 0
        for document in row:
            top = c
            for order, i in enumerate(document):
                (prompt, response), n = sequences[i], sizes[i]
                ids, begin = [*prompt, *response], sequences[i].length - n
                cells[:, r, c : c + n] = torch.tensor(
                    [
                        ids[begin:],
                        list(range(begin, begin + n)),
                        [document[0]] * n,
                        [(1 + order) * (t >= len(prompt)) for t in range(begin, begin + n)],
                    ]
                )
                # The first token of a document has nothing that predicts it.
                first = max(1, 0 if score_prompt else len(prompt))
                # Of a shared prompt the last token does; it stands at the document's top.
                start = c - begin
                before = [t + (top if t < begin else start) for t in range(first - 1, len(ids) - 1)]
                scored[i] = (r, before, ids[first:])
                last[i] = torch.tensor([r, c + n - 1])
                c += n
        # Filled cells continue the count where each sequence has a row: no mask is needed then.
        # Else each is a document of its own, at position 0, which no context is too short for.
        cells[1, r, c:] = torch.arange(c, width) if alone else 0
    longest = max(1, max(len(ids) for _, _, ids in scored.values()))
    grid = torch.zeros(4, len(sequences), longest, dtype=torch.long)
    for i, (r, before, ids) in scored.items():
        n = len(ids)
        grid[:, i, :n] = torch.tensor([[r] * n, before, ids, [1] * n])
    row_BT, column_BT, target_BT, mask_BT = grid
    ids, positions, documents, segments = cells
    places = (ids, positions, documents, segments, row_BT, column_BT, target_BT, mask_BT.bool())
    saved = sum(tokens.length for tokens in sequences) - sum(sizes)
    return Layout(*places, last, "padded" if alone else kind, saved)
