#!/usr/bin/env bash
# Speed on CPU, in one run: the engine alone (hadal bench) beside its own limits, then the whole service
# over HTTP with 8 streams (hadal up, hadal load) held against the engine's figure with 8 sequences.
# One CSV row per figure in tools/bench/results/speed.csv.
#   tools/bench/speed.sh [--rounds N] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/speed.py "$@"
