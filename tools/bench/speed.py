"""Engine alone, then the service on top of it, in one run. Run by speed.sh."""

import argparse
import json
import statistics
import subprocess
import sys

from rig import Cluster, write
from cluster import HADAL  # the path that rig put first

CASES = {
    "decode, 1 sequence": ["decode", "--steps", "256"],
    "decode, 1 sequence after 900 tokens": ["decode", "--context", "964", "--steps", "128"],
    "decode, 8 sequences": ["decode", "--batch", "8", "--steps", "256"],
    "prefill of 900 tokens": ["prefill"],
}
SERVICE = "service over HTTP, 8 streams"


def engine(words):
    out = subprocess.run([HADAL, "bench", *words, "--json"], capture_output=True, text=True, check=True, timeout=120)
    figures = [json.loads(line) for line in out.stdout.splitlines()]
    return next(f for f in figures if f["metric"] == "throughput")


def service():
    cluster = Cluster(replicas=1, stages=1)
    try:
        cluster.load("--concurrency", "8", "--requests", "40", limit_s=60)  # warm-up
        report = cluster.load("--concurrency", "8", "--requests", "200", limit_s=120)
    finally:
        cluster.stop()
    assert report["streams"]["finished"] == 200, report["streams"]
    return report["tokens_per_s"]


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/speed.sh")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    seen = {case: [] for case in [*CASES, SERVICE]}
    limits, ratios = {}, []
    for _ in range(args.rounds):
        for case, words in CASES.items():
            figure = engine(words)
            seen[case].append(figure["value"])
            limits.setdefault(case, (figure["limit"], []))[1].append(figure["limit_value"])
        seen[SERVICE].append(service())
        ratios.append(seen[SERVICE][-1] / seen["decode, 8 sequences"][-1])
    rows = []
    for case, values in seen.items():
        value = statistics.median(values)
        name, bounds = limits.get(case, ("decode, 8 sequences, in the same round", seen["decode, 8 sequences"]))
        bound = statistics.median(bounds)
        share = statistics.median(ratios) if case == SERVICE else value / bound
        rows.append({"case": case, "tokens_per_s": round(value), "least": round(min(values)),
                     "most": round(max(values)), "limit": name, "limit_value": round(bound), "share": round(share, 3)})
    write("speed.csv", rows, args.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
