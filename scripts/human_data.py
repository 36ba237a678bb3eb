"""Human judgements through the public commands: HH-RLHF pairs and Open-Assistant rankings.

A model of 260 thousand parameters cannot read them; this shows the plumbing (what is imported, cut
and left out) and an honest table: the reward model beside judges that need none.
"""

import argparse
import json
from pathlib import Path
from typing import Any
from zlib import crc32

from scripts.real_input import command
from truing.data.formats import load, save
from truing.data.schema import Ranking
from truing.run import Run

SETS = {
    "hh": ("hh/harmless_base_test.original.jsonl.gz", "hh"),
    "oasst": ("oasst_sample/oasst_rankings.prompt_responses_ranks.jsonl.gz", "plain"),
}


def split(source: Path, train: Path, test: Path) -> dict[str, int]:
    """A fifth of the prompts for testing, by a hash of the prompt; what was noted on reading."""
    rows = load(source, Ranking)
    held = [crc32(repr(r.prompt).encode()) % 5 == 0 for r in rows.rows]
    save([r for r, h in zip(rows.rows, held, strict=True) if not h], train)
    save([r for r, h in zip(rows.rows, held, strict=True) if h], test)
    return {"rows": len(rows), **rows.notes}


def study(data: Path, out: Path, name: str) -> dict[str, Any]:
    """Import, train and test on one set: what was left out or cut each time, and the accuracies
    with the mark of a simulation."""
    source, template = SETS[name]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    noted = split(data / "preferences" / source, folder / "train.jsonl", folder / "test.jsonl")
    command(
        *("reward", "--output-dir", folder / "reward"),
        *("--model-name-or-path", data / "models" / "stories260K-hf"),
        *("--dataset-name", folder / "train.jsonl", "--eval-dataset-name", folder / "test.jsonl"),
        *("--chat-template", template, "--max-length", 512, "--learning-rate", 1e-3),
        *("--per-device-train-batch-size", 16, "--use-cpu"),
    )
    command(
        *("reward-bench", folder / "reward", "--dataset-name", folder / "test.jsonl"),
        *("--train-dataset-name", folder / "train.jsonl", "--use-cpu"),
        *("--output-file", folder / "accuracy.json"),
    )
    accuracy = json.loads((folder / "accuracy.json").read_text(encoding="utf-8"))
    return {"read": noted, "run": Run.open(folder / "reward").info["summary"], "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with models/ and preferences/")
    parser.add_argument("out", type=Path, help="folder for the runs")
    options = parser.parse_args()
    print(json.dumps({n: study(options.data, options.out, n) for n in SETS}, indent=2))


if __name__ == "__main__":
    main()
