#!/usr/bin/env bash
# The simulator's seeds over the whole policy, and its measured overload: tools/bench/results/seeds.csv
# and overload.csv. A minute.
#   tools/bench/sim.sh [--build DIR] [--seeds N] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/sim.py "$@"
