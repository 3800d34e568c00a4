#!/usr/bin/env bash
# Nodes that are up and sick, under load, with the settings that ship: one that answers wrongly, one that
# is five times slower, one that hangs. How long until each is out, and whether it was named: tools/bench/results/sick.csv. Some minutes.
#   tools/bench/sick.sh [--rounds N] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/sick.py "$@"
