"""The product beside TRL on the same work (docs/performance.md).

python -m benchmarks WORKLOAD ...     comparisons, printed as JSON; --keep: into docs/performance.md
python -m benchmarks all              the default set, into docs/performance.md
python -m benchmarks page             that page again, from the records alone
python -m benchmarks products         float32 products by torch and by our own C, side by side
python -m benchmarks scaling          what a step costs against batch, length, K and pairs
python -m benchmarks where            where a step's time goes, into docs/performance/where.json;
                                      with --gpu by kernels, into where-gpu-SHAPE.json
python -m benchmarks roles            what PPO's four roles take, into docs/performance/roles.json

With --gpu the comparisons are those of one GPU, in bfloat16.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import page, products, roles, scaling, where, where_gpu
from benchmarks.goals import DEFAULT, GPU_DEFAULT, Key
from benchmarks.runner import compare
from benchmarks.side import Died
from benchmarks.work import SHAPES, WORKLOADS

# What is asked for by itself.
ALONE = ("all", "page", "products", "scaling", "where", "roles")


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
        place = page.file_of(key)
        if "failed" not in record or not place.exists():  # what was measured stays
            place.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        page.write()
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", nargs="+", choices=[*WORKLOADS, *ALONE])
    parser.add_argument("--shape", choices=list(SHAPES), help="default: small; on a GPU 0.5b")
    parser.add_argument("--pairs", type=int, default=5, help="timed segments of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="default: fp32; on a GPU bf16"
    )
    parser.add_argument("--gpu", action="store_true", help="on the GPU that there is")
    parser.add_argument("--keep", action="store_true", help="write the records and the page")
    parser.add_argument("--json", type=Path, help="where to write the record of one comparison")
    given = parser.parse_args(arguments)
    first, *others = given.workload
    if others and (given.json or not set(given.workload).isdisjoint(ALONE)):
        parser.error(f"{', '.join(ALONE)}, and --json, are for one word by itself")
    if given.gpu and not torch.cuda.is_available():
        parser.error("no GPU was found: --gpu measures what one takes")
    shape = given.shape or ("0.5b" if given.gpu else "small")
    precision = given.precision or ("bf16" if given.gpu else "fp32")
    if first == "page":
        page.write()
        return 0
    if first == "products":
        return products.main(given.threads)
    if first == "scaling":
        return scaling.main()
    if first == "where":
        return (where_gpu if given.gpu else where).main(shape, given.threads)
    if first == "roles":
        return roles.main(shape)
    more = {"pairs": given.pairs, "threads": given.threads, "cpu": not given.gpu}
    keys = [(name, shape, precision) for name in given.workload]
    if first == "all" or given.keep:
        wanted = (GPU_DEFAULT if given.gpu else DEFAULT) if first == "all" else keys
        return int(not every(wanted, **more))
    records = [measured(key, **more) for key in keys]
    for record in records:
        print(json.dumps(record, indent=1))
    if given.json:
        given.json.write_text(json.dumps(records[0], indent=1) + "\n", encoding="utf-8")
    return int(any("failed" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
