"""How a step is cut, ordered and laid out changes neither its gradient nor its figures, in any
stage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cases import CASES, COUNT, EOS, MIXED, PAD, home
from tests.invariance import Layouts, Stage, double, moved
from truing.data.layout import padded

TOLERANCE = 1e-9
# Ways to cut a step of eight rows: micro-batches of so many, in this order of the rows. 8, 4, 2
# and 1 are 1, 2, 4 and 8 accumulations; 3 leaves a smaller one at the end.
CUTS: dict[str, dict[str, Any]] = {
    "2 x 4": {"size": 4},
    "4 x 2": {"size": 2},
    "8 x 1": {"size": 1},
    "3 + 3 + 2": {"size": 3, "order": MIXED},
    "backwards": {"size": 8, "order": range(COUNT)[::-1]},
}


def laid(*, left: bool, more: int, fill: tuple[int, ...]) -> Layouts:
    return lambda layout: moved(layout, left=left, more=more, fill=fill)


# Ways to fill up the rows of a batch: with other ids, with EOS, on either side.
FILLINGS: dict[str, Layouts] = {
    "right": laid(left=False, more=5, fill=(PAD,)),
    "right, words": laid(left=False, more=3, fill=(11, 200, EOS, 35)),
    "left": laid(left=True, more=4, fill=(PAD,)),
    "left, EOS": laid(left=True, more=0, fill=(EOS,)),
    "left, words": laid(left=True, more=7, fill=(11, 200, EOS, 35)),
}


@pytest.fixture(scope="module", autouse=True)
def _double() -> Iterator[None]:
    with double():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return home(tmp_path_factory.mktemp("invariance"))


@pytest.mark.parametrize("name", CASES)
def test_no_cut_order_or_filling_changes_a_step(name: str, folder: Path) -> None:
    stage = Stage(name, folder)
    whole = stage.step(size=COUNT)
    assert max(float(grad.abs().max()) for grad in whole.grads.values()) > 1e-3
    for cut, how in CUTS.items():
        assert not whole.differs(stage.step(**how), TOLERANCE), cut
    for filling, layouts in FILLINGS.items():
        found = stage.step(size=3 if "words" in filling else COUNT, layouts=layouts)
        assert not whole.differs(found, TOLERANCE), filling
    for budget in (60, 45):
        assert not whole.differs(stage.step(size=COUNT, tokens_per_batch=budget), TOLERANCE), budget
    # A row for each response, in place of a prompt that is read once, or of several in one row.
    for objective, rows in stage.parts:
        together = objective.collate(rows).layout
        vars(objective).update(place=padded)
        if name.startswith(("sft", "reward", "dpo", "kto")):
            assert together.kind != objective.collate(rows).layout.kind
    assert not whole.differs(stage.step(size=COUNT), TOLERANCE)
    # Bite: each micro-batch divided by its own count.
    assert whole.differs(stage.step(size=2, own=True), 1e-4)
