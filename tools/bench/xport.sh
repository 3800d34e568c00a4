#!/usr/bin/env bash
# The transport's speed against what the same machine does without it, in one run: shared memory beside
# memcpy and a cache line sent to and fro, TCP beside iperf3 with one stream, verbs beside perftest in the
# emulated machine (tests/rdma-vm). One CSV row per figure in tools/bench/results/xport.csv.
#   tools/bench/xport.sh [--no-vm] [--dry]   (--dry: no CSV)
# Needs iperf3; for verbs perftest and what tools/setup --rdma-vm installs. Other work on the cores makes
# the figures worthless: the load is noted in each row.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/xport.py "$@"
