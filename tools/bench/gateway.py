"""The coordinator against haproxy, on the same cores, with the same bytes; run by gateway.sh."""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rig import ROOT, write

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from cluster import HADAL, die_with_parent, free_port, wait_for  # noqa: E402

GATEWAY_CORE, ENDS_CORE = "0", "1"
MODEL = ROOT / "models" / "sample"
STEP_US = 10000
# Above what else runs, where that is allowed.
BUSY = ["nice", "-n", "-15"] if os.geteuid() == 0 else []
URGENT = ["chrt", "-f", "5"] if os.geteuid() == 0 else []

HAPROXY = """
global
    nbthread 1
    maxconn 9000
defaults
    mode http
    timeout connect 5s
    timeout client 120s
    timeout server 120s
    option http-no-delay
    http-reuse always
frontend f
    bind 127.0.0.1:{front}
    maxconn 9000
    default_backend b
backend b
    server s 127.0.0.1:{back} maxconn 9000
"""

COORDINATOR = """
http: "127.0.0.1:{http}"
rpc: "127.0.0.1:{rpc}"
model: {model}
replicas: {nodes}
queue_limit: 100000
retain_limit: 256
"""

NODE = """
coordinator: "127.0.0.1:{rpc}"
engine: mock
max_seqs: 4096
max_rows: 65536
prefill_chunk: 16384
kv_tokens: 2000000
context: 512
mock_step_us: {step_us}
mock_row_us: 0
mock_vocab: 4096
"""


class Rig:
    """Processes that are pinned, and ended with this one."""

    def __init__(self, folder, first):
        self.dir, self.kids, self.first = Path(folder), [], first

    def start(self, core, *words):
        words = [*self.first, "taskset", "-c", core, *map(str, words)]
        kid = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               preexec_fn=die_with_parent, env={**os.environ, "HADAL_LOG": "error"})
        self.kids.append(kid)
        return kid

    def file(self, name, text):
        path = self.dir / name
        path.write_text(text)
        return path

    def stop(self):
        for kid in reversed(self.kids):
            kid.kill()
            kid.wait()
        self.kids = []


def used_us(pid):
    """Processor time of a process, all threads."""
    return sum(int(Path(t, "schedstat").read_text().split()[0]) for t in Path(f"/proc/{pid}/task").iterdir()) / 1e3


def resident_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


def ask(port, path, body=None, limit_s=10):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data,
                                     headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=limit_s) as reply:
        return reply.read()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def chat(tokens):
    return {"model": "sample", "messages": [{"role": "user", "content": "What is 12 plus 7? Answer in one word."}],
            "stream": True, "max_tokens": tokens, "temperature": 0}


class Hadal:
    name = "hadal"

    def __init__(self, rig, nodes=1, step_us=STEP_US):
        self.rig, self.port, rpc = rig, free_port(), free_port()
        config = rig.file("coordinator.yaml", COORDINATOR.format(http=self.port, rpc=rpc, model=MODEL, nodes=nodes))
        self.gateway = rig.start(GATEWAY_CORE, HADAL, "coordinator", "--config", config)
        node = rig.file("node.yaml", NODE.format(rpc=rpc, step_us=step_us))
        for _ in range(nodes):
            rig.start(ENDS_CORE, HADAL, "node", "--config", node)
        wait_for("replicas", lambda: self.ready(nodes), 30)

    def ready(self, nodes):
        try:
            replicas = json.loads(ask(self.port, "/hadal/v1/replicas"))["replicas"]
        except OSError:
            return False
        return sum(r["state"] == "ready" for r in replicas) == nodes


class Backend:
    """What haproxy is put in front of; alone, what both are compared with."""
    name = "no gateway"

    def __init__(self, rig, events, step_us=STEP_US):
        self.rig, self.port = rig, free_port()
        self.gateway = rig.start(ENDS_CORE, rig.dir / "gateway_rig", "serve", self.port, events, step_us)
        wait_for("the backend", lambda: listens(self.port))


class Haproxy:
    name = "haproxy"

    def __init__(self, rig, events, step_us=STEP_US):
        back = Backend(rig, events, step_us).port
        self.rig, self.port = rig, free_port()
        config = rig.file("haproxy.cfg", HAPROXY.format(front=self.port, back=back))
        self.gateway = rig.start(GATEWAY_CORE, "haproxy", "-f", config)
        wait_for("haproxy", lambda: listens(self.port))


def load(to, body, connections, seconds, rate=None):
    path = to.rig.file("body.json", json.dumps(body))
    words = [*to.rig.first, "taskset", "-c", ENDS_CORE, to.rig.dir / "gateway_rig", "load", to.port, path, connections, seconds]
    before = used_us(to.gateway.pid)
    r = subprocess.run([*map(str, words), *([str(rate)] if rate else [])], capture_output=True, text=True,
                       timeout=seconds + 30)
    assert r.stdout, (to.name, r.stderr)
    report = json.loads(r.stdout)
    report["cpu_us"] = (used_us(to.gateway.pid) - before) / max(1, report["requests"])
    return report


def record(hadal, tokens):
    """What a client of the coordinator is sent: the backend's part."""
    body = ask(hadal.port, "/v1/chat/completions", chat(tokens), 90).decode()
    events = "".join(e + "\n\n" for e in body.split("\n\n") if e and not e.startswith(":"))
    return hadal.rig.file(f"events-{tokens}", events)


# name, tokens, connections, requests a second (None: as many as it takes)
CASES = [("16 tokens, 512 streams", 16, 512, None), ("1 token, 64 streams", 1, 64, None),
         ("16 tokens, 300 requests/s", 16, 1024, 300)]


def best(rounds):
    """Of repeated rounds the one that was disturbed least."""
    return {k: (max if k == "per_s" else min)(r[k] for r in rounds) for k in rounds[0]}


def compare(rig, case, args):
    name, tokens, connections, rate = case
    rig.first = URGENT if rate else BUSY  # a fixed rate takes little of the cores: nobody is starved
    rounds = {}
    for _ in range(args.rounds):
        hadal = Hadal(rig)
        events = record(hadal, tokens)
        rounds.setdefault("hadal", []).append(load(hadal, chat(tokens), connections, args.seconds, rate))
        rig.stop()
        for gateway in (Haproxy, Backend):
            to = gateway(rig, events)
            rounds.setdefault(to.name, []).append(load(to, chat(tokens), connections, args.seconds, rate))
            rig.stop()
    rows = []
    for who, all_of in rounds.items():
        b = best(all_of)
        rows.append({"case": name, "gateway": who, "requests_per_s": round(b["per_s"], 1), "cpu_us": round(b["cpu_us"], 1),
                     "per_core": round(1e6 / b["cpu_us"]), "ttft_p50_ms": round(b["ttft_p50_ms"], 2),
                     "ttft_p99_ms": round(b["ttft_p99_ms"], 2), "events_per_request": round(
                         min(r["events"] / max(1, r["requests"]) for r in all_of), 1), "errors": b["errors"]})
        print(rows[-1], flush=True)
    return rows


def row(case, gateway, **figures):
    empty = dict.fromkeys(("requests_per_s", "cpu_us", "per_core", "ttft_p50_ms", "ttft_p99_ms", "events_per_request",
                           "errors", "rss_mib", "share_of_core"), "")
    out = {"case": case, "gateway": gateway, **empty, **figures}
    print({k: v for k, v in out.items() if v != ""}, flush=True)
    return out


def hold(to, case, streams):
    """Resident size with so many open streams."""
    path = to.rig.file("body.json", json.dumps(chat(400)))
    before = resident_mib(to.gateway.pid)
    kid = subprocess.Popen([*map(str, (*to.rig.first, "taskset", "-c", ENDS_CORE, to.rig.dir / "gateway_rig", "hold", to.port, path, streams,
                                       60))], stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    to.rig.kids.append(kid)
    line = kid.stdout.readline()
    time.sleep(5)
    now = resident_mib(to.gateway.pid)
    print(f"{to.name}: {before:.1f} MiB before, {line.strip()}")
    return row(case, to.name, rss_mib=round(now, 1))


def memory(rig):
    hadal = Hadal(rig, nodes=2, step_us=100000)
    events = record(hadal, 400)
    rows = [hold(hadal, "5000 open streams", 5000)]
    rig.stop()
    rows.append(hold(Haproxy(rig, events, 100000), "5000 open streams", 5000))
    rig.stop()
    return rows


def idle(rig):
    hadal = Hadal(rig)
    time.sleep(2)
    before, seconds = used_us(hadal.gateway.pid), 10
    time.sleep(seconds)
    share = (used_us(hadal.gateway.pid) - before) / seconds / 1e6
    rig.stop()
    return [row("idle, one node connected", "hadal", share_of_core=round(share, 5))]


def texts(rig, args):
    """What of a request is the tokenizer's and the template's: the same chat with more words in it."""
    rows, cost, counts = [], [], []
    rig.first = BUSY
    for n in (10, 150):
        body = {**chat(1), "messages": [{"role": "user", "content": " ".join(["answer"] * n)}]}
        hadal = Hadal(rig)
        usage = json.loads(ask(hadal.port, "/v1/chat/completions", {**body, "stream": False}))["usage"]
        counts.append(usage["prompt_tokens"])
        cost.append(min(load(hadal, body, 64, args.seconds)["cpu_us"] for _ in range(args.rounds)))
        rows.append(row(f"1 token after {counts[-1]} of prompt", "hadal", cpu_us=round(cost[-1], 1)))
        rig.stop()
    each = (cost[1] - cost[0]) / (counts[1] - counts[0]) * 100
    rows.append(row("each 100 tokens of prompt: JSON, template, tokenizer", "hadal", cpu_us=round(each, 1)))
    return rows


def main():
    parser = argparse.ArgumentParser(prog="tools/bench/gateway.sh")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", default="")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if not shutil.which("haproxy"):
        print("gateway.sh: haproxy is not installed (apt install haproxy)", file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", f"{folder}/gateway_rig",
                        str(ROOT / "tools" / "bench" / "gateway_rig.c"), "-lm"], check=True)
        rig = Rig(folder, BUSY)
        try:
            for case in CASES:
                if args.only in case[0]:
                    rows += [row(r.pop("case"), r.pop("gateway"), **r) for r in compare(rig, case, args)]
            if args.only in "memory":
                rows += memory(rig)
            if args.only in "texts":
                rows += texts(rig, args)
            if args.only in "idle":
                rows += idle(rig)
        finally:
            rig.stop()
    write("gateway.csv", rows, args.dry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
