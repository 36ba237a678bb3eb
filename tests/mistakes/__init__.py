"""Inputs that docs/errors.md tells of, made anew: a file for each group of its tables."""

from tests.mistakes import files, models, online, runs, settings
from tests.mistakes.bench import OUT, RUN, Bench, Case

__all__ = ["CASES", "OUT", "RUN", "Bench", "Case"]

CASES: dict[str, Case] = files.CASES | settings.CASES | models.CASES | online.CASES | runs.CASES
