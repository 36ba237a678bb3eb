"""Judgements out of one tool's format into another's: `truing convert`."""

from pathlib import Path

from truing import console
from truing.data.formats import load, save
from truing.data.profile import lines, profile
from truing.data.schema import KINDS
from truing.settings_judging import ConvertConfig
from truing.writing import check_output


def run(config: ConvertConfig) -> Path:
    """Read rows as records of ``kind`` and write them as ``to``; say what was noted on the way.

    Raises DataError for a row that cannot be read, or that the format cannot hold: nothing is
    written then.
    """
    check_output(config.output_file, (".jsonl", ".jsonl.gz", ".json"))
    rows = load(config.dataset_name, KINDS[config.kind], split=config.dataset_train_split)
    console.say(console.plain(rows.summary()))
    save(rows, config.output_file, config.to)
    told = {**lines(profile(rows.rows)), "format": config.to, "file": config.output_file}
    console.table("Converted", told)
    return Path(config.output_file)
