"""Times until sick nodes are taken out; run by sick.sh."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rig import write

from cluster import HADAL, SAMPLE, Cluster, die_with_parent, wait_for

# word of the fault file, what it is, engine, tensor ranks, probe_interval_ms (30 s ships)
CASES = [("wrong", "answers wrongly", "mock", 1, 30000), ("wrong", "answers wrongly", "mock", 1, 2000),
         ("slow", "five times slower", "mock", 1, 30000), ("hang", "hangs", "mock", 1, 30000)]


class Ward(Cluster):
    """A coordinator and three replicas (of two tensor ranks: two), with a file per node for its ailment."""

    def __init__(self, folder, engine, tensor, **keys):
        self.folder, replicas = Path(folder), 3 if tensor == 1 else 2
        config = self.folder / "coordinator.yaml"
        keys = {"http": '"127.0.0.1:0"', "rpc": '"127.0.0.1:0"', "model": SAMPLE, "replicas": replicas,
                "tensor": tensor, **keys}
        config.write_text("".join(f"{k}: {v}\n" for k, v in keys.items()))
        self.log = open(self.folder / "log", "w")
        self.process = self.start("coordinator", "--config", config, stdout=subprocess.PIPE)
        self.url = self.line("http")
        rpc = self.line("rpc")
        more = ["--engine", "mock", "--mock-step-us", "50000"] if engine == "mock" else ["--threads", "1"]
        self.nodes = [self.start("node", "--name", str(i + 1), "--coordinator", rpc, "--fault-file",
                                 self.folder / f"f{i + 1}", *more) for i in range(replicas * tensor)]
        wait_for("replicas", lambda: self.json("/hadal/v1/status")["replicas_ready"] == replicas, 60)

    def start(self, *words, **more):
        return subprocess.Popen([HADAL, *map(str, words)], stderr=self.log, stdin=subprocess.DEVNULL,
                                preexec_fn=die_with_parent, **more)

    def line(self, word):
        got, value = self.process.stdout.readline().decode().split()
        assert got == word
        return value

    def end(self):
        for p in [*self.nodes, self.process]:
            p.kill()
            p.wait()


def one(case, seed):
    word, _, engine, tensor, interval = case
    with tempfile.TemporaryDirectory(prefix="sick-") as folder:
        w = Ward(folder, engine, tensor, probe_interval_ms=interval)
        try:
            load = subprocess.Popen([HADAL, "load", "--url", w.url, "--concurrency", "12", "--requests", "0", "--duration", "45",
                                     "--max-tokens", "60", "--quiet", "--json", "-", "--verify", "--distinct", "4", "--seed",
                                     str(seed)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                    preexec_fn=die_with_parent)
            time.sleep(3)
            (w.folder / "f2").write_text(word)
            begin = time.monotonic()
            out = wait_for("it is out", lambda: (n := w.node("2"))["faults"] and n, 90, 0.01)
            took = time.monotonic() - begin
            report = json.loads(load.communicate(timeout=120)[0])
            return took, out["fault"], report["streams"]
        finally:
            w.end()


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/sick.sh")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="words of a case")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    rows = []
    for case in [c for c in CASES if args.only in c[1]]:
        took, lost, changed, fault = [], 0, 0, ""
        for i in range(args.rounds):
            t, fault, streams = one(case, i + 1)
            took.append(t)
            lost += streams["lost"]
            changed += streams["changed"]
        rows.append({"node": case[1], "engine": case[2], "tensor": case[3], "probe_interval_ms": case[4],
                     "rounds": args.rounds, "out_after_s_median": round(statistics.median(took), 2),
                     "out_after_s_max": round(max(took), 2), "streams_lost": lost, "streams_changed": changed,
                     "named_with": fault})
        print(rows[-1], flush=True)
    write("sick.csv", rows, args.dry)
    return 1 if any(r["streams_lost"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
