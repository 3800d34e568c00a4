#!/usr/bin/env bash
# Resident memory of the coordinator and of each worker before and after 2,000 requests: one CSV row
# per process in tools/bench/results/memory.csv. 2,400 requests go before, as the coordinator keeps each
# answer for a minute and its memory grows until as many are forgotten as come.
#   tools/bench/memory.sh [--requests N] [--engine model|mock] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/memory.py "$@"
