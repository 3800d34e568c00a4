#!/usr/bin/env bash
# The coordinators' cores at the size of 2,000 nodes, three datacenters and 100,000 streams, simulated
# for ten minutes in which nodes, a rack and a datacenter fail: tools/bench/results/scale.csv. Some
# minutes on one core.
#   tools/bench/scale.sh [--build DIR] [--dry] [options of sim --scale]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/scale.py "$@"
