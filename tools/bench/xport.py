"""xport beside memcpy, iperf3 and perftest. Run by xport.sh."""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time

from rig import ROOT, write
from cluster import HADAL

VM = ROOT / "tests" / "rdma-vm"


def bench(kind):
    out = subprocess.run([HADAL, "bench", "xport", "--kind", kind, "--json"], capture_output=True, text=True, check=True,
                         timeout=300)
    return [json.loads(line) for line in out.stdout.splitlines()]


def iperf3(seconds=3):
    """GB/s of one stream over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = str(s.getsockname()[1])
    server = subprocess.Popen(["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port], stdout=subprocess.DEVNULL)
    for _ in range(50):
        time.sleep(0.1)
        out = subprocess.run(["iperf3", "-c", "127.0.0.1", "-p", port, "-t", str(seconds), "-J"], capture_output=True,
                             text=True, timeout=60)
        if out.returncode == 0:
            break
    else:
        sys.exit(f"iperf3: {out.stdout[-300:]}")
    server.wait(10)
    return json.loads(out.stdout)["end"]["sum_received"]["bits_per_second"] / 8e9


def row(case, metric, unit, values, limit, limits, less_is_better=False):
    """Medians of what was measured in turns; share: of the limit reached (for times, how many times it)."""
    value, bound = statistics.median(values), statistics.median(limits) if limits else 0
    share = statistics.median(v / l for v, l in zip(values, limits)) if limits else ""
    return {"case": case, "metric": metric, "unit": unit, "value": f"{value:.4g}",
            "best": f"{min(values) if less_is_better else max(values):.4g}", "limit": limit,
            "limit_value": f"{bound:.4g}" if limits else "", "share": f"{share:.3f}" if limits else "",
            "load": f"{os.getloadavg()[0]:.1f}"}


def on_this_host(rounds):
    seen = {}
    for _ in range(rounds):
        for kind in ("shm", "tcp"):
            for f in bench(kind):
                case = seen.setdefault(f["case"], {"f": f, "values": [], "limits": [], "iperf3": []})
                case["values"].append(f["value"])
                if "limit" in f:
                    case["limits"].append(f["limit_value"])
                if f["case"] == "xport tcp write 1024 KiB":
                    case["iperf3"].append(iperf3())
    rows = []
    for case, s in seen.items():
        f = s["f"]
        rows.append(row(case, f["metric"], f["unit"], s["values"], f.get("limit", ""), s["limits"], f["unit"] == "us"))
        if s["iperf3"]:
            rows.append(row(case, f["metric"], f["unit"], s["values"], "iperf3, one stream", s["iperf3"]))
    return rows


def in_the_vm():
    """Rows of tests/rdma-vm/speed: xport and perftest in turns on one pair of devices."""
    folder = os.path.join(os.path.dirname(HADAL), "tests", "xport")
    out = subprocess.run([VM / "run", "-t", "500", VM / "speed", folder], capture_output=True, text=True, timeout=600)
    if out.returncode != 0:
        print(f"no figures of verbs: exit {out.returncode}: {out.stderr[-300:]}", file=sys.stderr)
        return []
    numbers = {"lat": [], "bw": [], "perf_lat": [], "perf_bw": []}
    after = ""
    for line in out.stdout.splitlines():
        if m := re.match(r"latency 4096 B: typical ([\d.]+)", line):
            numbers["lat"].append(float(m[1]))
        elif m := re.match(r"bandwidth 1 MiB: ([\d.]+)", line):
            numbers["bw"].append(float(m[1]))
        elif line.startswith("ib_write"):
            after = line.split(":")[0]
        elif re.match(r"\s*\d+\s+\d+\s", line) and after:
            n = line.split()
            if after == "ib_write_lat":
                numbers["perf_lat"].append(float(n[4]))
            else:
                numbers["perf_bw"].append(float(n[3]) * 1.048576)
    rows = []
    if numbers["lat"] and numbers["perf_lat"]:
        rows.append(row("xport verbs 4 KiB with notice, emulated", "half_round_trip", "us", numbers["lat"], "ib_write_lat",
                        numbers["perf_lat"], True))
    if numbers["bw"] and numbers["perf_bw"]:
        rows.append(row("xport verbs write 1 MiB, emulated", "bandwidth", "MB/s", numbers["bw"], "ib_write_bw",
                        numbers["perf_bw"]))
    return rows


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/xport.sh")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-vm", action="store_true", help="without verbs in the emulated machine")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if not shutil.which("iperf3"):
        sys.exit("tools/bench/xport.sh: iperf3 is missing (apt-get install iperf3)")
    rows = on_this_host(args.rounds)
    if not args.no_vm:
        rows += in_the_vm()
    write("xport.csv", rows, args.dry)


if __name__ == "__main__":
    main()
