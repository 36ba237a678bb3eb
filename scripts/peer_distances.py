"""Write the table of other libraries' distances in docs/conformance.md.

    python scripts/peer_distances.py [PEER]     PEER: trl by default; it must be installed

Every check of `truing conformance --peer PEER --quick`, with the version and the date.
"""

import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from truing.conformance.peers import PEERS
from truing.conformance.rows import Row, found

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conformance.md"
START, END = "<!-- peers -->\n", "<!-- /peers -->"


def line(row: Row) -> str:
    check = row.check
    verdict = "pass" if row.passed else "**fail**"
    return (
        f"| {check.algorithm} | {check.number} | {check.target.replace('|', chr(92) + '|')} "
        f"| {row.distance:.1e} | {check.bar:.0e} "
        f"| {row.nearest}: {row.nearest_distance:.1e} | {verdict} |"
    )


def main(peer: str = "trl") -> None:
    rows: list[Row] = []
    for check in PEERS[peer](quick=True):
        rows.append(found(check))
        print(line(rows[-1]), flush=True)
    lines = [
        "| function | level | target | distance | bar | nearest broken variant | |",
        "|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
        f"Measured {date.today()} by `python scripts/peer_distances.py {peer}`: {peer} "
        f"{version(peer)}, torch {version('torch')}, transformers {version('transformers')}.",
    ]
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    PAGE.write_text(before + START + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
