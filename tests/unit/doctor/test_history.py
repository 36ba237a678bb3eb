"""What is read from a run folder, and how a noisy series is summed up."""

import json
import math
import random
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from tests.histories import last, made, ramp, wave
from truing.doctor.history import MEDIAN_GAP, SURE, Series, read


def series(values: list[float]) -> Series:
    return Series(tuple(range(1, len(values) + 1)), tuple(values))


def folder(place: Path, *, lines: str = "", config: str | None = None, **info: Any) -> Path:
    place.mkdir(exist_ok=True)
    record = {"stage": "sft", "status": "finished", "parents": []} | info
    (place / "run.json").write_text(json.dumps(record))
    (place / "metrics.jsonl").write_text(lines)
    if config is not None:
        (place / "config.yaml").write_text(config)
    return place


def test_a_folder_is_read(tmp_path: Path) -> None:
    lines = '{"step": 1, "loss": 2.0}\nnull\n{"step": 2, "loss": null}\n{"step": 3, "loss": 1.0}\n'
    place = folder(
        tmp_path / "run",
        lines=lines + '{"step": 4, "lo',  # it was killed while it wrote
        config="learning_rate: 1.0e-05\nmax_steps: 9\nreward: [a]\n",
        summary={"responses truncated": 3, "reward_reference": "some"},
    )
    history = read(place)
    assert (history.stage, history.outcome, history.error) == ("sft", "finished", "")
    assert history.series("loss") == Series((1, 3), (2.0, 1.0))
    assert math.isnan(history.rows[1]["loss"])
    assert len(history.series("no such")) == 0
    assert (history.last_step, history.total) == (3, 9)
    assert history.number("learning_rate") == 1e-5
    assert history.number("reward") is history.number("beta") is None
    assert history.count("responses truncated") == 3
    assert history.count("reward_reference") == history.count("nothing") == 0
    assert history.divergence == {}


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        ("failed", "Diverged: the loss is nan", "diverged"),
        ("failed", "OSError: disk full", "failed"),
        ("stopped", "", "stopped"),
        ("running", "", "running"),
    ],
)
def test_how_it_ended(tmp_path: Path, status: str, error: str, outcome: str) -> None:
    history = read(folder(tmp_path / "run", status=status, error=error))
    assert (history.outcome, history.error, history.config) == (outcome, error, {})


def test_what_diverged_is_read_on_any_process(tmp_path: Path) -> None:
    place = folder(tmp_path / "run", status="failed", error="Diverged: x")
    (place / "diverged-1.json").write_text('{"error": "x", "terms": [], "rows": [1]}')
    assert read(place).divergence["rows"] == [1]


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        read(tmp_path)


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
        read(folder(tmp_path / "run", config="a: [1"))


def test_head_and_tail_are_fifths() -> None:
    x = series([0.0, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 7.0, 9.0])
    assert (x.head, x.tail, x.change, x.end, x.span) == (1.0, 8.0, 7.0, (9, 10), (1, 10))
    one = series([3.0])
    assert (one.head, one.tail, one.error, one.end) == (3.0, 3.0, 0.0, (1, 1))
    assert series([1.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).best() == (9.0, (2, 3))


def test_the_median_of_a_gap_is_that_of_the_normal_distribution() -> None:
    assert pytest.approx(NormalDist(0, math.sqrt(2)).inv_cdf(0.75), abs=1e-4) == MEDIAN_GAP


def test_the_error_is_that_of_white_noise() -> None:
    """Over many series it is the true one, sqrt(2 / 8), and neither a trend nor a jump moves it."""
    draw = random.Random(0)
    noise = [[draw.gauss(0, 1) for _ in range(40)] for _ in range(400)]
    for added in ([0.0] * 40, ramp(0, 8, 40), [*[0.0] * 30, *[50.0] * 10]):
        found = [series([a + b for a, b in zip(x, added, strict=True)]).error for x in noise]
        # A mean over 400 has a standard error of 0.005 here, and the estimate a bias of 3 %.
        assert sum(found) / 400 == pytest.approx(0.5, rel=0.05)


def test_false_alarms_are_rare() -> None:
    """Of 1,000 series without a trend few are said to have one, even of the shortest."""
    draw = random.Random(1)
    for lines in (8, 18, 60):
        noise = [series([draw.gauss(0, 1) for _ in range(lines)]) for _ in range(1000)]
        assert sum(x.rose or x.fell for x in noise) < 50


def test_a_change_counts_where_it_stands_out() -> None:
    up = series(ramp(0, 1))
    assert up.rose
    assert not up.fell
    assert series(ramp(1, 0)).fell
    assert not series(wave(1, 0.1)).rose
    assert not series(ramp(0, 1, 7)).rose  # too few
    x = series(last(0.0, 1.0, 4))
    # Most neighbours are equal, so the noise is that of all gaps: one of 1 in 19.
    assert x.error == pytest.approx(math.sqrt(1 / 19 / 2) * math.sqrt(2 / 4))
    assert x.change > SURE * x.error


def test_since_when() -> None:
    x = series([3.0, 1.0, 3.0, 4.0])
    assert (x.since(2.0), x.since(0.0), x.since(4.0)) == (3, 1, None)
    assert x.above(2.0) == (1, 3, 4)


def test_steps_and_rows_that_the_lines_tell() -> None:
    half = made("sft", {"epoch": ramp(0.05, 1)}, num_train_epochs=3.0, max_steps=-1, every=5)
    assert half.total == 300
    assert made("sft", {"epoch": 1.0}).total is None
    assert made("sft", {"loss": 1.0}, num_train_epochs=3.0).total is None
    batch: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    history = made("dpo", {"epoch": ramp(0.05, 1)}, **batch)
    assert (history.rows_per_step, history.data_rows) == (8, 160)
    # Where episodes are counted they tell, whatever the devices.
    ppo = made("ppo", {"episode": ramp(16, 320), "epoch": ramp(0.1, 2)}, **batch)
    assert (ppo.rows_per_step, ppo.data_rows) == (16, 160)
