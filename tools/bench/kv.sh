#!/usr/bin/env bash
# KV that moves between replicas; the last three with the sample model:
#   transfer      from pool to pool, beside writes of xport and memcpy in the same run
#   interference  p99 of the gap between tokens of 8 streams, with and without a prompt of 3,000 tokens beside
#                 them all the time; replicas that do both, and prefill and decode apart
#   drain         pause of a stream with 3,900 tokens of context whose node is drained: its KV moved along, or
#                 computed again
#   chaos         200 clients that leave and workers that are killed while KV is moved; then no block is held
# Rows in tools/bench/results/kv-*.csv.
#   tools/bench/kv.sh [transfer] [interference] [drain] [chaos] [--transport shm,tcp] [--rounds N] [--chaos-rounds N] [--dry]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/kv.py "$@"
