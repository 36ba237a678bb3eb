"""The product beside TRL on the same work (docs/performance.md).

python -m benchmarks WORKLOAD     one comparison, printed as JSON
python -m benchmarks all          the default set, into docs/performance.md
python -m benchmarks page         that page again, from the records alone
python -m benchmarks scaling      what a step costs against batch, length, K and pairs
python -m benchmarks roles        the memory of PPO's four roles, into docs/performance/roles.json
python -m benchmarks gpu          the comparisons of one GPU
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import page, roles, scaling
from benchmarks.goals import DEFAULT, GPU_DEFAULT, Key
from benchmarks.runner import compare
from benchmarks.side import Died
from benchmarks.work import SHAPES, WORKLOADS


def measured(key: Key, **more: Any) -> dict[str, Any]:
    """The record of a comparison; of one where a side died, why it did."""
    workload, shape, precision = key
    print(f"{workload}, {shape}, {precision} ...", file=sys.stderr, flush=True)
    try:
        return compare(workload, shape, precision=precision, **more)
    except (Died, ValueError) as error:
        print(error, file=sys.stderr, flush=True)
        told = {"workload": workload, "shape": shape, "precision": precision}
        told["device"] = "cpu" if more.get("cpu", True) else "gpu"
        return {**told, "failed": str(error)}


def every(keys: Sequence[Key], **more: Any) -> bool:
    """Measure a set and write the page; whether all of it could be measured."""
    page.RECORDS.mkdir(exist_ok=True)
    whole = True
    for key in keys:
        record = measured(key, **more)
        whole &= "failed" not in record
        page.file_of(key).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        page.PAGE.write_text(page.render(page.saved()), encoding="utf-8")
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", choices=[*WORKLOADS, "all", "page", "scaling", "roles", "gpu"])
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--pairs", type=int, default=5, help="timed segments of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", type=Path, help="where to write the record")
    given = parser.parse_args(arguments)
    more = {"pairs": given.pairs, "threads": given.threads}
    if given.workload == "page":
        page.PAGE.write_text(page.render(page.saved()), encoding="utf-8")
        return 0
    if given.workload == "scaling":
        return scaling.main()
    if given.workload == "roles":
        return roles.main(given.shape)
    if given.workload == "gpu":
        if not torch.cuda.is_available():
            raise SystemExit("no GPU was found: this measures what one takes")
        return int(not every(GPU_DEFAULT, cpu=False, **more))
    if given.workload == "all":
        return int(not every(DEFAULT, **more))
    record = measured((given.workload, given.shape, given.precision), **more)
    text = json.dumps(record, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    return int("failed" in record)


if __name__ == "__main__":
    sys.exit(main())
