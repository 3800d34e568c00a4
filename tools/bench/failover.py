"""Pauses that clients see when a worker dies or hangs; run by failover.sh."""

import argparse
import statistics
import sys
import time

from rig import Cluster, write


def rounds(cluster, action, n, every_s, seed):
    """(reports, problems) of n rounds, in loads of ten faults each."""
    reports = []
    while n > 0:
        k = min(n, 10)
        faults = [f"--fault=at {1 + i * every_s}s..{1 + (i + 0.5) * every_s}s {action} busy" for i in range(k)]
        cluster.whole()
        reports.append(cluster.load("--concurrency", "16", "--requests", "0", "--duration", str(k * every_s + 1),
                                    "--seed", str(seed + n), *faults, limit_s=k * every_s + 120))
        done = [f for f in reports[-1]["faults"] if not f["error"]]
        print(f"{action}: {len(done)} of {k}, max pauses "
              + " ".join(f"{f['gap_ms']['max']:.0f}" for f in done), reports[-1]["streams"], flush=True)
        for e in reports[-1]["errors"]:
            print("  " + e)
        n -= k
    return reports


def row(action, engine, reports):
    faults = [f for r in reports for f in r["faults"] if not f["error"]]
    worst = [f["gap_ms"]["max"] for f in faults if f["paused"]]
    total = {k: sum(r["streams"][k] for r in reports) for k in ("finished", "lost", "changed", "repeated")}
    return {"engine": engine, "action": action, "faults": len(faults), "that_paused_streams": len(worst),
            "streams_paused": sum(f["paused"] for f in faults), **total,
            "tokens": sum(r["tokens"] for r in reports),
            "pause_ms_median": round(statistics.median(worst)) if worst else "",
            "pause_ms_max": round(max(worst)) if worst else "",
            "tokens_per_s": round(statistics.mean(r["tokens_per_s"] for r in reports))}


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/failover.sh")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--hangs", type=int, default=50)
    parser.add_argument("--engine", default="model", choices=["model", "mock"])
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100000)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    more = {"mock_step_us": 5000} if args.engine == "mock" else {}
    cluster = Cluster(replicas=2, stages=2, engine=args.engine, **more)
    rows = []
    for action, n, every_s in (("kill", args.kills, 3), ("stop", args.hangs, 7)):
        if n:
            rows.append(row(action, args.engine, rounds(cluster, action, n, every_s, args.seed)))
    code = cluster.stop()
    write("failover.csv", rows, args.dry)
    return 1 if code or any(r["lost"] or r["changed"] or r["repeated"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
