#!/usr/bin/env bash
# What the coordinator costs as a gateway, beside haproxy (Debian's package, 2.6) in front of a backend
# that streams the same bytes: tools/bench/results/gateway.csv. Needs two cores; about two minutes.
#   tools/bench/gateway.sh [--rounds N] [--dry] [--only CASE]   (--dry: no CSV)
#
# The gateway under test has core 0 for itself, both ends share core 1. In front of the coordinator's
# tokens there is much that haproxy does not do (it reads JSON, applies the template, tokenizes, keeps a
# journal, places the request, makes text of tokens and events of text), and one thing less: bytes pass
# haproxy twice, the backend's events in and out, while a coordinator gets a step's tokens in one frame.
# `cpu_us` is what the gateway's process used per request: on a busy machine the figure to trust, because
# it does not depend on who else runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 tools/bench/gateway.py "$@"
