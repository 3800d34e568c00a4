#!/usr/bin/env bash
# What the index of prefix caches is worth: multi-turn sessions over four replicas, with it and with the
# ring alone, with a session key and without. CSV rows in tools/bench/results/prefix.csv.
#   tools/bench/prefix.sh [--replicas N] [--sessions N] [--turns N] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/prefix.py "$@"
