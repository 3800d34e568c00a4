#!/usr/bin/env bash
# Bugs planted one at a time in a copy of the tree: the first seed of the simulator that finds each, in
# tools/bench/results/mutations.csv. Fails when one is not found within 500 seeds. Two minutes.
#   tools/bench/mutations.sh [--seeds N] [--only WORDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec tests/sim/mutations/run.py --csv tools/bench/results/mutations.csv "$@"
