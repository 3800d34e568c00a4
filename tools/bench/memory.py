"""Does resident memory stay flat? Run by memory.sh."""

import argparse
import sys
import time
from pathlib import Path

from rig import Cluster, write


def rss_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"no VmRSS of {pid}")


def resident(cluster):
    pids = {"coordinator": cluster.coordinator_pid()}
    pids.update({f"node {n['name']}": n["pid"] for n in cluster.list("nodes")})
    return {name: rss_kib(pid) for name, pid in pids.items()}


def load(cluster, requests, seed):
    report = cluster.load("--concurrency", "16", "--requests", str(requests), "--distinct", "64", "--seed", str(seed),
                          limit_s=1200)
    assert report["streams"]["finished"] == requests and not report["streams"]["changed"], report["streams"]
    return report


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/memory.sh")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--warmup", type=int, default=2400)
    parser.add_argument("--engine", default="model", choices=["model", "mock"])
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    cluster = Cluster(replicas=1, stages=2, engine=args.engine)
    load(cluster, args.warmup, 1)
    before = resident(cluster)
    first = load(cluster, args.requests // 2, 2)
    half = resident(cluster)
    second = load(cluster, args.requests - args.requests // 2, 3)
    time.sleep(1)
    after = resident(cluster)
    code = cluster.stop()
    write("memory.csv", [{"engine": args.engine, "process": name, "requests": args.requests,
                          "tokens": first["tokens"] + second["tokens"],
                          "before_kib": before[name], "half_kib": half[name],
                          "after_kib": after[name]} for name in before],
          args.dry)
    return code


if __name__ == "__main__":
    sys.exit(main())
