"""Figures of KV that moves between replicas; run by kv.sh."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rig import Cluster, write
from cluster import HADAL
from kv_streams import Chaos, Stream, ended, long_prompt, metrics

PROMPT, CONTEXT = 3000, 3900
SIZES = {"threads": 1, "kv_tokens": 32768}  # two cores: one for each of two nodes that compute


# ---- bytes from pool to pool

def transfer(rounds):
    """`hadal bench kv`: every figure beside its limit in the same run; medians over the runs."""
    figures = {}
    for _ in range(rounds):
        r = subprocess.run([HADAL, "bench", "kv", "--json"], capture_output=True, text=True, timeout=300, check=True)
        for line in r.stdout.splitlines():
            f = json.loads(line)
            figures.setdefault((f["case"], f["limit"]), []).append((f["value"], f["limit_value"], f["share"]))
    rows = []
    for (case, limit), seen in figures.items():
        mid = [statistics.median(x[k] for x in seen) for k in range(3)]
        rows.append({"case": case, "runs": rounds, "gb_per_s": round(mid[0], 2), "limit": limit,
                     "limit_gb_per_s": round(mid[1], 2), "share_median": round(mid[2], 3),
                     "share_max": round(max(x[2] for x in seen), 3)})
        print(f"{case}: {mid[0]:.2f} GB/s, x {mid[2]:.2f} of {limit}", flush=True)
    return rows


# ---- the tokens of eight streams beside long prompts

def streams(cluster, seconds, seed):
    """The report of eight streams over so many seconds."""
    r = subprocess.run([HADAL, "load", "--url", cluster.url, "--concurrency", "8", "--requests", "0", "--duration",
                        str(seconds), "--seed", str(seed), "--quiet", "--json", "-"],
                       capture_output=True, text=True, timeout=seconds + 120)
    report = json.loads(r.stdout)
    assert not report["streams"]["lost"] and not report["streams"]["refused"], report
    return report


def prompts(cluster, seed, stop, ttfts):
    """One long prompt after another, each with an answer of eight tokens."""
    while not stop.is_set():
        seed += 1
        s = Stream(cluster, long_prompt(PROMPT, seed), max_tokens=8)
        s.end()
        ttfts.append(s.times[0] - s.began)
        stop.wait(0.3)


def beside(cluster, seconds, seed):
    stop, ttfts = threading.Event(), []
    t = threading.Thread(target=prompts, args=(cluster, seed * 1000, stop, ttfts))
    t.start()
    report = streams(cluster, seconds, seed)
    stop.set()
    t.join()
    return report, ttfts


def interference(how, transport, options, rounds, seconds):
    cluster = Cluster(transport=transport, **SIZES, **options)
    cluster.whole()
    streams(cluster, 2, 99)  # warm
    rows = []
    for i in range(rounds):
        without = streams(cluster, seconds, i)
        with_prompts, ttfts = beside(cluster, seconds, i)
        a, b = without["gap_ms"]["p99"], with_prompts["gap_ms"]["p99"]
        rows.append((a, b, b / a, statistics.median(ttfts), len(ttfts), without["tokens_per_s"],
                     with_prompts["tokens_per_s"]))
        print(f"{how} {transport}: p99 gap {a:.1f} ms, beside {len(ttfts)} prompts {b:.1f} ms, x {b / a:.2f}; "
              f"ttft of the prompts {statistics.median(ttfts) * 1e3:.0f} ms", flush=True)
    moved = ended(cluster, "moved")
    assert cluster.stop() == 0
    mid = [statistics.median(r[k] for r in rows) for k in range(7)]
    return {"how": how, "transport": transport, "rounds": rounds, "seconds": seconds, "prompt_tokens": PROMPT,
            "prompts": sum(r[4] for r in rows), "moved": int(moved), "p99_gap_ms_without": round(mid[0], 1),
            "p99_gap_ms_beside": round(mid[1], 1), "ratio_median": round(mid[2], 2),
            "ratio_max": round(max(r[2] for r in rows), 2), "prompt_ttft_ms": round(mid[3] * 1e3),
            "tokens_per_s_without": round(mid[5]), "tokens_per_s_beside": round(mid[6])}


# ---- a drain

def config(folder, **keys):
    path = Path(folder) / "coordinator.yaml"
    path.write_text("".join(f"{k}: {v}\n" for k, v in keys.items()))
    return path


def drained_pause(cluster, seed):
    """Longest gap of a stream whose node is drained in the middle, and its usual gap."""
    s = Stream(cluster, long_prompt(CONTEXT, seed), max_tokens=120)
    s.has(20, 400)
    node = next(n for n in cluster.list("nodes") if n["running"])["name"]
    at = time.monotonic()
    cluster.tool("ctl", "drain", node, limit_s=300)
    s.end(400)
    cluster.tool("ctl", "undrain", node)
    cluster.whole()
    usual = statistics.median(b - a for a, b in zip(s.times, s.times[1:]))
    return s.longest_gap(at - 0.05), usual


def drain(way, transport, rounds):
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(replicas=2, transport=transport, **{**SIZES, "threads": 2},
                          config=config(folder, kv_move="true" if way == "kv" else "false"))
        cluster.whole()
        gaps = [drained_pause(cluster, 50 + i) for i in range(rounds)]
        m, moved = metrics(cluster), ended(cluster, "moved")
        assert cluster.stop() == 0
    pauses = [g[0] * 1e3 for g in gaps]
    print(f"drain by {way} over {transport}: pauses {' '.join(f'{p:.0f}' for p in pauses)} ms", flush=True)
    rate = m["hadal_kv_bytes_total"] / m["hadal_kv_microseconds_total"] if moved else 0
    return {"way": way, "transport": transport, "drains": rounds, "moved_with_kv": int(moved), "context_tokens": CONTEXT,
            "pause_ms_median": round(statistics.median(pauses), 1), "pause_ms_max": round(max(pauses), 1),
            "usual_gap_ms": round(statistics.median(g[1] for g in gaps) * 1e3, 1), "kv_mb_per_s": round(rate)}


# ---- aborts and kills

def chaos(transport, rounds, seed):
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(prefill=1, decode=2, transport=transport, **SIZES,
                          config=config(folder, grace_ms=0, long_prompt_tokens=256))
        cluster.whole()
        run, began = Chaos(cluster, seed), time.monotonic()
        for i in range(0, rounds, 20):
            run.run(min(20, rounds - i))  # and its books are right
            print(f"{transport}: {run.done}, {run.checked} answers checked", flush=True)
        assert cluster.stop() == 0
    return {"transport": transport, "rounds": rounds, "seed": seed, **{k.replace(" ", "_"): v for k, v in run.done.items()},
            "answers_checked": run.checked, "wrong": 0, "leaked_blocks": 0, "stuck_slots": 0,
            "seconds": round(time.monotonic() - began)}


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/kv.sh")
    parser.add_argument("what", nargs="*", default=["transfer", "interference", "drain", "chaos"])
    parser.add_argument("--transport", default="shm,tcp")
    parser.add_argument("--how", default="together,apart", help="of interference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--chaos-rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100000)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    transports = args.transport.split(",")
    if "transfer" in args.what:
        write("kv-transfer.csv", transfer(args.rounds), args.dry)
    if "interference" in args.what:
        rows = []
        if "together" in args.how:
            rows += [interference("together", "shm", {"replicas": 2}, args.rounds, args.seconds)]
        if "apart" in args.how:
            rows += [interference("apart", t, {"prefill": 1, "decode": 1}, args.rounds, args.seconds) for t in transports]
        write("kv-interference.csv", rows, args.dry)
    if "drain" in args.what:
        rows = [drain("again", "shm", args.rounds)] + [drain("kv", t, args.rounds) for t in transports]
        rows = [{**r, "share_of_again": round(r["pause_ms_median"] / rows[0]["pause_ms_median"], 3)} for r in rows]
        write("kv-drain.csv", rows, args.dry)
    if "chaos" in args.what:
        write("kv-chaos.csv", [chaos(t, args.chaos_rounds // len(transports), args.seed) for t in transports], args.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
