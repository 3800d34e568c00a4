#!/usr/bin/env bash
# A shard of some gigabytes (random weights, written to DIR) loaded from a cold disk, from the page
# cache, and from one or two processes that have it, over shared memory and TCP: weights.csv. Then
# what 8 streams of a replica feel while another node pulls from it: weights-beside.csv.
#   tools/bench/weights.sh [--dir DIR] [--steps N] [--only load|beside] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/weights.py "$@"
