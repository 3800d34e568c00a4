#!/usr/bin/env bash
# What clients see while processes of a cluster of three coordinators and three replicas die: 16 streams
# of server-sent events all the time, spread over the coordinators; the leader is killed -9, a follower,
# a node; a node is stopped so that it hangs; etcd is killed and started again; everything is restarted
# in order, one by one. Every answer is compared with an undisturbed one. One CSV row per kind in
# tools/bench/results/survival.csv. Needs etcd-server for the last but one.
#   tools/bench/survival.sh [--times N] [--only KIND] [--store file|etcd] [--dry]   (--dry: no CSV)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec /usr/bin/python3 tools/bench/survival.py "$@"
