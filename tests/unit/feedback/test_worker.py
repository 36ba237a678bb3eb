"""Models' answers in a campaign's queue."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing.cli import main
from truing.config import check
from truing.data.ledger import Ledger
from truing.feedback import worker
from truing.settings_web import WorkerConfig

Write = Callable[..., str]


def config(place: Path, models: list[str], prompts: str, **more: Any) -> WorkerConfig:
    told = {"ledger": str(place), "campaign": "c", "models": models, "prompts": prompts}
    return check(WorkerConfig, {**told, "max_completion_length": 6, "use_cpu": True, **more})


def test_a_queue_is_filled_once(
    tiny: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    place, prompts = tmp_path / "l.sqlite", jsonl("p", [{"prompt": p} for p in ("One", "Two")])
    with Ledger.open(place) as ledger:
        ledger.create_campaign("c", "pairwise", config={"overlap": 2})
    same = [str(tiny), f"{tiny}/"]  # equal models, by two names
    worker.run(config(place, same, prompts))
    with Ledger.open(place) as ledger:
        items = ledger.items(list(ledger.item_numbers(1).values()))
        assert [item.prompt for item in items] == ["One", "Two"]
        for item in items:
            assert item.wanted == 2
            assert [r.model for r in item.responses] == same
            assert len({r.content for r in item.responses}) == 2
            assert item.responses[0].origin["seed"] == 0
            assert item.responses[0].origin["finish_reason"] in ("stop", "length")
    worker.run(config(place, same, prompts))
    with Ledger.open(place) as ledger:
        assert len(ledger.item_numbers(1)) == 2
    assert "there already" in capsys.readouterr().out


def test_answers_that_are_all_the_same_are_left_out(
    tiny: Path, tmp_path: Path, jsonl: Write
) -> None:
    place, prompts = tmp_path / "l.sqlite", jsonl("p", [{"prompt": "One"}])
    with Ledger.open(place) as ledger:
        ledger.create_campaign("c", "pairwise")
    worker.run(config(place, [str(tiny), f"{tiny}/"], prompts, temperature=0.0))
    with Ledger.open(place) as ledger:
        assert not ledger.item_numbers(1)


def test_what_cannot_be_filled_is_refused(
    tiny: Path, tmp_path: Path, jsonl: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    place, prompts = tmp_path / "l.sqlite", jsonl("p", [{"prompt": "One"}])
    with Ledger.open(place) as ledger:
        ledger.create_campaign("c", "pairwise")
    with pytest.raises(ValueError, match="needed: 2"):
        worker.run(config(place, [str(tiny)], prompts))
    assert main(["demo-campaign", str(place), "--run-dir", str(tmp_path)]) == 1
    assert "run `truing quickstart` first" in capsys.readouterr().err
