"""Micro-batches by what a model reads and what memory holds."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from truing.data.layout import Layout


class Read(Protocol):
    """A micro-batch: its layout, and its rows."""

    @property
    def layout(self) -> Layout: ...

    @property
    def rows(self) -> Sequence[Any]: ...


def by_tokens(
    rows: Sequence[Any], cells: Callable[[Sequence[Any]], int], budget: int
) -> list[Sequence[Any]]:
    """The rows in turn, as many in each part as ``budget`` allows; ``cells``: what a model would
    read of a part, prompts that are shared once, filling counted.

    Raises ValueError for a row that is larger by itself.
    """
    parts: list[Sequence[Any]] = []
    start = 0
    while start < len(rows):
        # Each row has a token at least, so that no more than so many can fit.
        most = range(1, min(len(rows) - start, budget) + 1)
        fits = bisect_right(most, budget, key=lambda n: cells(rows[start : start + n]))
        if not fits:
            raise too_long(cells(rows[start : start + 1]), budget, "a row of this step")
        parts.append(rows[start : start + fits])
        start += fits
    return parts


def too_long(tokens: int, budget: int, which: str) -> ValueError:
    return ValueError(
        f"{which} has {tokens} tokens, above tokens_per_batch ({budget}): raise tokens_per_batch "
        f"to {tokens}, lower max_length, or leave tokens_per_batch out"
    )


@contextmanager
def enough_memory(batch: Read) -> Iterator[None]:
    """Inside: an accelerator without memory left is told as MemoryError, with what to set."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        rows, cells = len(batch.rows), batch.layout.cells
        said = str(error).partition(". ")[0]
        more = (
            f"per_device_train_batch_size to {rows // 2} with gradient_accumulation_steps doubled"
        )
        raise MemoryError(
            f"a micro-batch of {rows} rows, {cells} tokens, does not fit ({said}): set "
            f"{f'{more}, or ' if rows > 1 else ''}tokens_per_batch to {max(2, cells // 2)} or "
            "less, or gradient_checkpointing: true; the loss stays the same"
        ) from error
