"""Where the inputs of docs/errors.md are made: an empty folder, and small commands in it."""

import json
import os
import resource
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_folder
from truing import cli
from truing.stages.sft import Imitation

# The only places that the commands of the cases write to.
RUN, OUT = "run", "out.jsonl"

ROWS: list[dict[str, Any]] = [{"prompt": f"p{i}", "completion": " on the inn"} for i in range(4)]
PAIRS: list[dict[str, Any]] = [
    {"prompt": f"p{i}", "chosen": " on the inn", "rejected": " a bell"} for i in range(4)
]


class Bench:
    """The folder of one case, which is also the current one. ``tiny``: a small model's folder."""

    def __init__(self, folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tiny, self.monkeypatch = folder, str(tiny), monkeypatch
        # What is to be undone after the command.
        self.after: list[Callable[[], object]] = []

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def rows(self, rows: Iterable[Any], name: str = "rows.jsonl") -> str:
        return self.file(name, "".join(json.dumps(row) + "\n" for row in rows))

    def model(self) -> Path:
        """A model of the case's own, to be spoilt."""
        return tiny_folder(self.folder / "model")

    def train(
        self, stage: str, data: str, *more: object, model: object = None, to: str = RUN
    ) -> list[str]:
        """The command of a small training that would take two steps."""
        words = [stage, "--output-dir", to, "--model-name-or-path", model or self.tiny]
        words += ["--dataset-name", data, "--use-cpu", "--per-device-train-batch-size", 2]
        for flag, value in (("--report-to", "none"), ("--max-steps", 2)):
            words += () if flag in more else (flag, value)
        return [str(word) for word in (*words, *more)]

    def sft(self, *more: object, model: object = None, to: str = RUN) -> list[str]:
        return self.train("sft", self.rows(ROWS), *more, model=model, to=to)

    def online(self, stage: str, *more: object, rows: Iterable[Any] = ROWS) -> list[str]:
        for flag, value in (("--reward", "tests.judges:vowels"), ("--response-length", 4)):
            more = more if flag in more else (flag, value, *more)
        return self.train(stage, self.rows(rows), *more)

    def sample(self, *more: object, prompts: Iterable[Any] = ROWS, to: str = OUT) -> list[str]:
        words = ["sample", "--model-name-or-path", self.tiny, "--use-cpu", "--output-file", to]
        words += ["--prompts", self.rows(prompts, "prompts.jsonl"), "--max-completion-length", 4]
        return [str(word) for word in (*words, *more)]

    def compare(self, reward: str, *more: str, to: str = OUT) -> list[str]:
        samples = [{"prompt": "p", "completion": answer} for answer in (" a", " a e", " the inn")]
        words = ["compare", "--samples", self.rows(samples, "samples.jsonl"), "--use-cpu"]
        return [*words, "--reward", reward, "--output-file", to, *more]

    def winrate(self, one: str, other: str, prompts: Iterable[Any] = ROWS) -> list[str]:
        words = ["winrate", one, other, "--prompts", self.rows(prompts), "--use-cpu"]
        return [*words, "--reward", "length", "--max-completion-length", "4"]

    def safety(self, model: str, limit: float, prompts: Iterable[Any] = ROWS) -> list[str]:
        words = ["safety", model, "--prompts", self.rows(prompts), "--use-cpu", "--output-file"]
        words += [OUT, "--max-completion-length", "4", "--cost", "length", "--limit", str(limit)]
        return words

    def ran(self, args: list[str], code: int = 0) -> None:
        """Run a command that comes before the one of the case."""
        assert cli.main(args) == code

    def interrupt(self, step: int) -> pytest.MonkeyPatch:
        """Ctrl-C in this step of sft; until the patch that is returned is undone."""
        loss, seen, patch = Imitation.loss, [0], pytest.MonkeyPatch()

        def interrupted(*given: Any) -> Any:
            seen[0] += 1
            if seen[0] == step:
                os.kill(os.getpid(), signal.SIGINT)
            return loss(*given)

        patch.setattr(Imitation, "loss", interrupted)
        self.after.append(patch.undo)
        return patch

    def stopped(self, *more: object) -> list[str]:
        """The command of a run that was stopped after its third step of four."""
        args = self.sft("--max-steps", 4, "--save-steps", 1, *more)
        patch = self.interrupt(3)
        self.ran(args, 130)
        patch.undo()
        return args

    def limit(self, size: int) -> None:
        """No file may become larger, which ends a write half-way, as a full disk does."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.after.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))


# From an empty folder to the words of the command that meets the case there.
Case = Callable[[Bench], list[str]]


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
