"""What fills up a batch changes nothing: models as transformers has them, padding that is EOS, and
the mistakes that would be noticed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cases import CASES, COUNT, EOS, PAD, home
from tests.invariance import Stage, double, moved
from truing.data.layout import Layout

ONE_EACH = ["sft whole", "reward bradley_terry", "dpo sigmoid", "online ppo"]
# The other cases do what one of these does: they are for `make slow`.
ALL = [pytest.param(name, marks=[] if name in ONE_EACH else pytest.mark.slow) for name in CASES]
# Positions that are learnt, norms of another kind; and queries with biases.
STOCK = [(name, "gpt2") for name in ONE_EACH] + [
    pytest.param(name, "qwen2", marks=pytest.mark.slow) for name in CASES
]
Folders = pytest.TempPathFactory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Folders) -> Path:
    return home(tmp_path_factory.mktemp("padding"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: Folders) -> Path:
    """The same model, whose padding token is EOS."""
    return home(tmp_path_factory.mktemp("ended"), pad_token_id=EOS)


@pytest.fixture
def _double() -> Iterator[None]:
    with double():
        yield


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("name", ALL)
def test_padding_that_is_eos_changes_nothing(name: str, folder: Path, ended: Path) -> None:
    """transformers gives no gradient to the embedding of padding, and EOS is to be learnt."""
    one, other = Stage(name, folder), Stage(name, ended)
    ids = [stage.model.core.config.pad_token_id for stage in (one, other)]
    assert ids == [PAD, EOS]
    assert not one.step(size=3).differs(other.step(size=3), 1e-9)
    # Bite: as transformers would have it, where embeddings are learnt.
    tables = [core.get_input_embeddings() for core in other.model.cores]
    for table in tables:
        table.padding_idx = EOS
    if all(table.weight.requires_grad for table in tables):
        assert one.step(size=3).differs(other.step(size=3), 1e-4)


@pytest.mark.parametrize(("name", "family"), STOCK)
def test_stock_models_agree_as_far_as_they_go(
    name: str, family: str, tmp_path_factory: Folders
) -> None:
    """Scores, lessons and norms pass through float32 here, as in a run."""
    stage = Stage(name, home(tmp_path_factory.mktemp("stock"), family), stock=True)
    whole = stage.step(size=COUNT)
    for left in (False, True):
        for fill in ((EOS,), (11, 200, EOS, 35)):
            laid = lambda layout: moved(layout, left=left, more=4, fill=fill)  # noqa: B023, E731
            assert not whole.differs(stage.step(size=3, layouts=laid), 1e-6), (left, fill)


def run_on(layout: Layout) -> Layout:
    """The mistake of positions that count the filling in front, so that it is read as text."""
    filled = moved(layout, left=True, more=4, fill=(11, 200))
    columns = torch.arange(filled.ids_RC.shape[1])
    return replace(filled, positions_RC=columns.expand(len(filled.ids_RC), -1), kind="padded")


def at_the_end(layout: Layout) -> Layout:
    """The mistake of reading the last column, whatever stands there."""
    last_B2 = layout.last_B2.clone()
    last_B2[:, 1] = layout.ids_RC.shape[1] - 1
    return replace(layout, last_B2=last_B2)


def scored(layout: Layout) -> Layout:
    """The mistake of scoring the filling."""
    return replace(layout, mask_BT=torch.ones_like(layout.mask_BT))


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("name", ONE_EACH)
def test_filling_that_is_read_is_noticed(name: str, folder: Path) -> None:
    stage = Stage(name, folder)
    whole = stage.step(size=COUNT)
    other = at_the_end if name.startswith("reward") else scored
    for mistake in (run_on, other):
        assert whole.differs(stage.step(size=COUNT, layouts=mistake), 1e-4), mistake.__name__
