"""The packaged base model is what `make base` makes: a short run of it, twice."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "truing" / "worlds" / "base"


def make(target: Path) -> dict[str, bytes]:
    """A base of a few steps: its files."""
    few = ("--warm-steps", "5", "--steps", "10", "--batch", "16")
    command = [sys.executable, "scripts/make_base.py", *few, "--target", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return {file.name: file.read_bytes() for file in target.iterdir()}


def test_the_packaged_base_is_small() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 8e6


@pytest.mark.slow
def test_make_base_gives_the_same_bytes_again(tmp_path: Path) -> None:
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    assert first == second
    # Steps change the weights alone: the rest is that of the package.
    for name, content in first.items():
        assert (name == "model.safetensors") == (content != (BASE / name).read_bytes()), name
