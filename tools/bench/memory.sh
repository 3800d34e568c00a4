#!/usr/bin/env bash
# Resident memory of the coordinator and of each worker before and after 2,000 requests: one CSV row
# per process in tools/bench/results/memory.csv. The first 200 requests are warm-up.
#   tools/bench/memory.sh [--requests N] [--engine model|mock] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/memory.py "$@"
