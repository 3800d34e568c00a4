#!/usr/bin/env bash
# The failover figures: 16 streams all the time, a worker of the busiest replica is killed -9
# (50 times), then stopped so that it hangs (50 times), at random moments; every answer is compared
# with an unloaded one. One CSV row per kind in tools/bench/results/failover.csv.
#   tools/bench/failover.sh [--kills N] [--hangs N] [--engine model|mock] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/failover.py "$@"
