"""Pauses that clients see when any process of a cluster dies; run by survival.sh."""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rig import Cluster, write

from cluster import die_with_parent, free_port, wait_for  # noqa: E402  (rig found it)
from test_coordinators import Pair, Stream, body_of, healthy  # noqa: E402

STREAMS, TOKENS, STEP_US, EVERY_S = 16, 1500, 8000, 2.5
KINDS = ("leader kill", "follower kill", "node kill", "node hang", "etcd kill", "rolling restart")


class Etcd:
    def __init__(self, folder):
        self.folder, self.port, self.peer, self.process = folder, free_port(), free_port(), None
        self.url = f"etcd:http://127.0.0.1:{self.port}"

    def begin(self):
        at, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer}"
        self.process = subprocess.Popen(
            ["/usr/bin/etcd", "--data-dir", f"{self.folder}/etcd", "--listen-client-urls", at, "--advertise-client-urls", at,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
        wait_for("etcd", lambda: healthy(self.port), 20)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Timed(Stream):
    """Remembers when its pauses began."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gaps = []

    def take(self, line):
        n, before = len(self.pauses), self.heard
        super().take(line)
        if len(self.pauses) > n:
            self.gaps.append((before, self.pauses[-1]))


def answers():
    """Tokens of the mock engine depend on the prompt alone: a fast one tells them sooner."""
    c = Cluster("--engine", "mock", "--mock-step-us", "200", replicas=2)
    port = int(c.url.rsplit(":", 1)[1])
    one = type("One", (), {"names": "x", "http": {"x": port}, "host": lambda self, n: "127.0.0.1"})()
    streams = [Stream(one, body_of(i, TOKENS)) for i in range(STREAMS)]
    run(streams)
    c.stop()
    assert not [s.error for s in streams if s.error]
    return [s.text for s in streams]


def run(streams, during=lambda: None):
    threads = [threading.Thread(target=s.run) for s in streams]
    for t in threads:
        t.start()
    during()
    for t in threads:
        t.join(170)


class Killer:
    def __init__(self, p, etcd):
        self.p, self.etcd = p, etcd

    def whole(self):
        wait_for("a whole cluster", lambda: self.p.ready() is not None and self.p.copying(), 60)

    def again(self, name):
        if name in self.p.names:
            self.p.begin(name)
        else:
            self.p.start_node(name)

    def fault(self, kind):
        """Returns when it was done; the process is started again a little later, as a supervisor would."""
        leader = self.p.ready() or self.p.names[0]
        nodes = [n for n in self.p.processes if n not in self.p.names]
        at = time.monotonic()
        if kind == "etcd kill":
            self.etcd.kill()
            time.sleep(4)
            self.etcd.begin()
            return at
        name = leader if kind == "leader kill" else \
            random.choice([n for n in self.p.names if n != leader]) if kind == "follower kill" else random.choice(nodes)
        if kind == "node hang":
            self.p.processes[name].send_signal(signal.SIGSTOP)
            time.sleep(1.5)
        self.p.kill(name)
        time.sleep(0.2)
        self.again(name)
        return at

    def roll(self, times):
        for name in list(self.p.processes):
            times.append(time.monotonic())
            self.p.processes[name].send_signal(signal.SIGTERM)
            assert self.p.processes[name].wait(20) == 0, name
            self.again(name)
            self.whole()


def measure(p, etcd, want, kind, n):
    killer, left, times, streams = Killer(p, etcd), n, [], []
    while left > 0:
        killer.whole()
        got = [Timed(p, body_of(i, TOKENS), p.names[i % 3]) for i in range(STREAMS)]
        k = 1 if kind in ("rolling restart", "etcd kill") else min(left, 4)

        def during():
            for _ in range(k):
                time.sleep(EVERY_S * random.uniform(0.4, 1))
                if kind == "rolling restart":
                    killer.roll(times)
                else:
                    killer.whole()
                    times.append(killer.fault(kind))

        run(got, during)
        streams += got
        left -= k
        print(f"{kind}: {n - left} of {n}, lost {sum(bool(s.error) for s in got)}, longest pause "
              f"{max(max(s.pauses) for s in got):.2f} s", flush=True)
        for s in got:
            if s.error:
                print("  " + s.error)
    return row(kind, want, times, streams, n)


def row(kind, want, times, streams, n):
    worst, paused = [], 0
    for at in times:  # what each stream saw of this fault
        seen = [max((g for began, g in s.gaps if at - 0.1 <= began < at + EVERY_S), default=0) for s in streams]
        worst.append(max(seen))
        paused += sum(g > 0.1 for g in seen)
    longest = sorted(max(s.pauses) for s in streams)
    return {"kind": kind, "faults": n, "processes_ended": len(times), "streams": len(streams),
            "lost": sum(bool(s.error) for s in streams),
            "changed": sum(not s.error and s.text != want[i % STREAMS] for i, s in enumerate(streams)),
            "re_attached": sum(s.attaches for s in streams), "paused_over_100_ms": paused,
            "pause_ms_median": round(1000 * statistics.median(worst)), "pause_ms_max": round(1000 * max(worst)),
            "stream_longest_ms_p50": round(1000 * longest[len(longest) // 2]),
            "stream_longest_ms_max": round(1000 * longest[-1])}


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/survival.sh")
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--store", default="file", choices=["file", "etcd"])
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    want, rows = answers(), []
    for kind in [args.only] if args.only else KINDS:
        with tempfile.TemporaryDirectory(prefix="survival-") as folder:
            uses_etcd = args.store == "etcd" or kind == "etcd kill"
            if uses_etcd and not os.access("/usr/bin/etcd", os.X_OK):
                print(f"{kind}: etcd-server is not installed, left out")
                continue
            etcd = Etcd(folder)
            if uses_etcd:
                etcd.begin()
            p = Pair(Path(folder), etcd.url if uses_etcd else f"file:{folder}/lock", "--engine", "mock", "--mock-step-us",
                     str(STEP_US), names="abc", nodes=3, lease_ms=2000)
            times = 3 if kind == "rolling restart" else min(args.times, 5) if kind == "etcd kill" else args.times
            try:
                rows.append({"store": "etcd" if uses_etcd else "file", **measure(p, etcd, want, kind, times)})
            finally:
                p.end()
                if etcd.process:
                    etcd.kill()
    if rows:
        write("survival.csv", rows, args.dry)
    return 1 if any(r["lost"] or r["changed"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
