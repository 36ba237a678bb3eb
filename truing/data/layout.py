"""Token ids to one `Layout` that every model call understands.

`flat`, `padded`, `packed` or `shared` place many `Tokens` into the rows of a model's input. What a
model returns for a layout is per *sequence* (B, T), so nothing above this file knows about rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Responses in a row that share its prompt where attention is masked, and so grows with the square
# of the row: on two CPUs, with prompts twice as long as responses, 4 was quicker than 2 or 8.
SHARERS = 4
# Cells read by spans are rounded up to a multiple of this: kernels are made, and kept, for each
# shape that occurs.
CELLS = 64
PICKED = "picked_4N"
KEPT = ("ends", "tails")
Numbers = NDArray[np.int64]


class Tokens(NamedTuple):
    """A prompt and its response. Response tokens are scored, prompt tokens only condition."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


class Kept(NamedTuple):
    """Cells of a layout whose final hidden states are read, so that the last layer need not go on
    with others: their numbers through all rows, ascending, then the first again up to a multiple
    of `CELLS` (M,); how many there are; and how far into each of the layout's spans the first one
    stands (S,), on the CPU."""

    cells_M: Tensor
    count: int
    late_S: Tensor

    @classmethod
    def of(cls, cells: Tensor, table: Tensor) -> "Kept":
        """``cells`` in any order and more than once; a span without any keeps its last."""
        kept = np.unique(cells.numpy())
        start, stop = table[0, 0, :, :2].numpy().T
        after = np.append(kept, stop[-1])[np.searchsorted(kept, start)]
        late = np.where(after < stop, after, stop - 1) - start
        filled = np.append(kept, np.repeat(kept[:1], -len(kept) % CELLS))
        return cls(torch.from_numpy(filled), len(kept), torch.from_numpy(late))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on ``device``. What goes to a GPU from memory that cannot be swapped out goes by
    itself; else whoever sends it would wait until the GPU has done all that it was told before."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def sent_into(place: Tensor, tensor: Tensor) -> None:
    """The same into a tensor that is there."""
    to_gpu = tensor.device.type == "cpu" and place.device.type == "cuda"
    place.copy_(tensor.pin_memory() if to_gpu else tensor, non_blocking=True)


@dataclass(frozen=True)
class Layout:
    """Token sequences placed into the rows of a model's input (R rows, C columns).

    ids, positions, documents, segments (R, C): token, its position in its own document, the
    (first) sequence of that document (-1 for filling), and 0 for prompt, 1 for response; the
    responses to a shared prompt count on, and a token sees its prompt and its own response.
    row, column, target, mask (B, T): for the t-th scored token of sequence b, the cell whose hidden
    state predicts it, its id, and whether it exists. last (B, 2): each sequence's final cell.
    saved: tokens of prompts that need not stand there again.

    What follows from these is worked out once, where the layout was made: a GPU would be awaited.
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
        """There, in one piece: a GPU is not awaited, now or when what is known here is asked."""
        device, here = torch.device(device), self.ids_RC.device
        if device.type == here.type and device.index in (None, here.index):
            return self
        grids = {f.name: getattr(self, f.name) for f in fields(self)} | {PICKED: self.picked_4N}
        grids = {name: grid for name, grid in grids.items() if isinstance(grid, Tensor)}
        kept = {name: getattr(self, name) for name in KEPT} if self.by_spans else {}
        grids |= {name: each.cells_M for name, each in kept.items()}
        numbers = sent(torch.cat([grid.reshape(-1).long() for grid in grids.values()]), device)
        parts = numbers.split([grid.numel() for grid in grids.values()])
        there = {
            name: part.view(grid.shape).to(grid.dtype)
            for (name, grid), part in zip(grids.items(), parts, strict=True)
        }
        known: dict[str, Any] = {PICKED: there.pop(PICKED), "tokens": self.tokens}
        if self.by_spans:
            known["table"] = self.table
        known |= {name: each._replace(cells_M=there.pop(name)) for name, each in kept.items()}
        moved = replace(self, **there)
        vars(moved).update(known)
        return moved

    @cached_property
    def picked_4N(self) -> Tensor:
        """Of each scored token, one sequence behind the other: its place in a flat (B, T), the row
        and column of the cell that predicts it, and its id."""
        place_N = self.mask_BT.reshape(-1).nonzero().squeeze(-1)
        grids = (self.row_BT, self.column_BT, self.target_BT)
        return torch.stack([place_N, *(grid_BT.reshape(-1)[place_N] for grid_BT in grids)])

    def spread(self, found_N: Tensor) -> Tensor:
        """What each scored token has, one sequence behind the other, as (B, T) with zeros where
        there is none."""
        empty_BT = found_N.new_zeros(self.mask_BT.shape)
        return empty_BT.view(-1).index_copy(0, self.picked_4N[0], found_N).view_as(empty_BT)

    @cached_property
    def table(self) -> Tensor:
        """The `spans` of its rows, with filling up to a multiple of `CELLS`; on the CPU, wherever
        the layout is: every layer reads it there, and would else wait for a GPU."""
        return spans(self.documents_RC, self.segments_RC, -self.cells % CELLS)

    @cached_property
    def ends(self) -> Kept:
        """The final cells of sequences."""
        return Kept.of(self._numbers(self.last_B2.T), self.table)

    @cached_property
    def tails(self) -> Kept:
        """The cells that predict scored tokens, and the final ones."""
        numbers = map(self._numbers, (self.picked_4N[1:3], self.last_B2.T))
        return Kept.of(torch.cat(list(numbers)), self.table)

    def _numbers(self, places_2N: Tensor) -> Tensor:
        """The numbers of cells through all rows, from their rows and columns."""
        row_N, column_N = places_2N
        return row_N * self.ids_RC.shape[1] + column_N

    @property
    def by_spans(self) -> bool:
        """Whether several responses may stand in a row, told apart by `table`."""
        return self.kind in ("shared", "flat")

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return self.picked_4N.shape[1]

    @cached_property
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


class _Spots(NamedTuple):
    """Where sequences stand, one behind the other through all rows: of each its number, row,
    document and order in that, the tokens of its prompt and response, how many of them do not
    stand there again, its cells and how many are in front of them; its column and its document's.
    """

    number: Numbers
    row: Numbers
    document: Numbers
    order: Numbers
    prompt: Numbers
    response: Numbers
    begin: Numbers
    size: Numbers
    start: Numbers
    column: Numbers
    top: Numbers

    @classmethod
    def of(cls, sequences: Sequence[Tokens], rows: list[list[list[int]]]) -> "_Spots":
        told = np.array(
            [
                (i, r, document[0], order, *map(len, sequences[i]))
                for r, row in enumerate(rows)
                for document in row
                for order, i in enumerate(document)
            ],
            dtype=np.int64,
        )
        number, row, document, order, prompt, response = told.T
        # A prompt stands in front of the first response of a document.
        begin = np.where(order > 0, prompt, 0)
        size = prompt + response - begin
        start = np.cumsum(size) - size
        column = start - start[np.flatnonzero(np.diff(row, prepend=-1))][row]
        heads = np.maximum.accumulate(np.where(order == 0, np.arange(len(order)), 0))
        placed = begin, size, start, column, column[heads]
        return cls(number, row, document, order, prompt, response, *placed)


def _place(
    sequences: Sequence[Tokens],
    rows: list[list[list[int]]],
    kind: Literal["padded", "packed", "shared", "flat"],
    score_prompt: bool,
    fill: int,
) -> Layout:
    """``rows``: of each its documents, of each its sequences, which share a prompt."""
    # All tokens at once: in Python each would cost more than a GPU takes to learn from it.
    if any(s.length == 0 for s in sequences):
        raise ValueError("a sequence of no tokens cannot be placed")
    spots = _Spots.of(sequences, rows)
    which = zip(spots.number.tolist(), spots.order.tolist(), strict=True)
    parts = (sequences[i][1:] if order else sequences[i] for i, order in which)
    total, width = int(spots.size.sum()), int((spots.column + spots.size).max())
    flattened = chain.from_iterable(chain.from_iterable(parts))
    ids_N = np.fromiter(flattened, dtype=np.int64, count=total)
    # Of each cell its sequence's spot, and its position.
    spot_N = np.repeat(np.arange(len(spots.size)), spots.size)
    position_N = np.arange(total) - (spots.start - spots.begin)[spot_N]
    segment_N = np.where(position_N < spots.prompt[spot_N], 0, 1 + spots.order[spot_N])
    cells = np.zeros((4, len(rows) * width), dtype=np.int64)
    cells[0], cells[2] = fill, -1
    front = spots.row * width + spots.column - spots.start
    told_4N = np.stack([ids_N, position_N, spots.document[spot_N], segment_N])
    cells[:, np.arange(total) + front[spot_N]] = told_4N
    cells = cells.reshape(4, len(rows), width)
    # Filled cells continue the count where each sequence has a row: no mask is needed then.
    # Else each is a document of its own, at position 0, which no context is too short for.
    if alone := len(rows) == len(sequences):
        cells[1] = np.arange(width)
    ids, positions, documents, segments = torch.from_numpy(cells)
    row_BT, column_BT, target_BT, mask_BT = torch.from_numpy(_scored(spots, ids_N, score_prompt))
    last = np.stack([spots.row, spots.column + spots.size - 1], -1)[np.argsort(spots.number)]
    places = (ids, positions, documents, segments, row_BT, column_BT, target_BT, mask_BT.bool())
    saved = int(spots.begin.sum())
    return Layout(*places, torch.from_numpy(last), "padded" if alone else kind, saved)


def _scored(spots: _Spots, ids_N: Numbers, score_prompt: bool) -> Numbers:
    """Of each scored token (B, T) the row and column of the cell that predicts it, its id, and 1;
    (4, B, T)."""
    # The first token of a document has nothing that predicts it.
    first = np.maximum(1, spots.prompt * (not score_prompt))
    count = spots.prompt + spots.response - first
    back = np.argsort(spots.number)
    b_M = np.repeat(np.arange(len(back)), count[back])
    t_M = np.arange(len(b_M)) - (np.cumsum(count[back]) - count[back])[b_M]
    spot_M = back[b_M]
    before_M, begin_M = first[spot_M] - 1 + t_M, spots.begin[spot_M]
    # Of a shared prompt the last token predicts; it stands at the document's top.
    offset_M = np.where(before_M < begin_M, spots.top[spot_M], spots.column[spot_M] - begin_M)
    target_M = ids_N[spots.start[spot_M] - begin_M + before_M + 1]
    grid = np.zeros((4, len(back), max(1, count.max())), dtype=np.int64)
    grid[:, b_M, t_M] = spots.row[spot_M], before_M + offset_M, target_M, np.ones_like(t_M)
    return grid


def spans(documents_RC: Tensor, segments_RC: Tensor, more: int = 0) -> Tensor:
    """The table (1, 1, S, 4) of a layout's rows, one behind the other, and of ``more`` filling, as
    `truing.models.attention` reads it; on the CPU.

    documents, segments (R, C): as of `Layout`.
    """
    columns = documents_RC.shape[1]
    document_N, segment_N = (x.cpu().numpy().reshape(-1) for x in (documents_RC, segments_RC))
    ends_N = (np.diff(document_N) != 0) | (np.diff(segment_N) != 0)
    ends_N[columns - 1 :: columns] = True
    start = np.flatnonzero(np.concatenate([[True], ends_N]))
    stop = np.append(start[1:], len(document_N))
    document, segment, row = document_N[start], segment_N[start], start // columns
    known = (np.diff(document, prepend=-1) == 0) & (np.diff(row, prepend=-1) == 0)
    known &= document >= 0
    # The run that opens the document of each, and is its prompt, if it has one.
    opener = np.maximum.accumulate(np.where(known, 0, np.arange(len(start))))
    prompted = known & (segment[opener] == 0)
    prompt = np.stack([start, stop], -1)[opener] * prompted[:, None]
    # The first response stands right behind its prompt, and is one span with it.
    joined = prompted & (segment != 0) & (opener == np.arange(len(start)) - 1)
    stop[:-1] = np.where(joined[1:], stop[1:], stop[:-1])
    table = np.concatenate([start[:, None], stop[:, None], prompt], -1)[~joined]
    if more:
        end = len(document_N)
        table = np.concatenate([table, [[end, end + more, 0, 0]]])
    return torch.from_numpy(table)[None, None]
