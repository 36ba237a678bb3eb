#!/bin/sh
# The peer that PPO is measured against, in an environment of its own: TRL 1.12.0, the last that has
# PPO, with the other versions of constraints-cpu.txt. The newest TRL is in .venv (the dev extra).
#
#   benchmarks/setup.sh [PYTHON]
set -e
cd "$(dirname "$0")/.."
place=.bench/trl-1.12.0
if [ -e "$place/.ready" ]; then exit 0; fi
"${1:-python3}" -m venv "$place"
grep -v '^trl=' constraints-cpu.txt > .bench/constraints.txt
"$place/bin/python" -m pip install --quiet -c .bench/constraints.txt \
    trl==1.12.0 torch transformers accelerate datasets
touch "$place/.ready"
