"""The story that tools/demo tells, against a real cluster, through nothing but its public doors:
`hadal up`, the HTTP API, `hadal ctl`, `hadal load`. Python's standard library only."""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HADAL = os.environ.get("HADAL") or str(ROOT / "build" / "hadal")
COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
LONG_SUM = "What is 871432 + 659788?"
START = time.monotonic()


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def title(text):
    print("\n" + paint("1;36", f"== {text}"), f"({time.monotonic() - START:.1f} s)", flush=True)


def fact(text):
    print(paint("33", "   " + text), flush=True)


def fail(text):
    print(paint("1;31", "   " + text), flush=True)
    raise SystemExit(1)


class Cluster:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="hadal-demo-")
        words = [HADAL, "up", "--replicas", "2", "--stages", "2", "--http", "0", "--log", self.folder]
        self.log = open(f"{self.folder}/up.log", "wb")
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.log, stdin=subprocess.DEVNULL,
                                        start_new_session=True)
        ready = select.select([self.process.stdout], [], [], 60)[0]
        line = self.process.stdout.readline().decode() if ready else ""
        if not line.startswith("ready "):
            self.process.kill()
            fail(f"the cluster did not come up; its logs are in {self.folder}")
        self.url = line.split()[1]
        self.model = self.json("/v1/models")["data"][0]["id"]

    def open(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)

    def json(self, path):
        with self.open(path) as reply:
            return json.load(reply)

    def list(self, kind):
        return self.json(f"/hadal/v1/{kind}")[kind]

    def whole(self):
        end = time.monotonic() + 20
        while any(r["state"] != "ready" for r in self.list("replicas")):
            if time.monotonic() > end:
                fail(f"the replicas did not come back; logs are in {self.folder}")
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(15)


class Answer:
    """One streamed answer: shown as it comes, kept token by token."""

    def __init__(self):
        self.tokens, self.times, self.finish = [], [], None

    def stream(self, cluster, question, on_token=None):
        body = {"model": cluster.model, "stream": True, "temperature": 0,
                "messages": [{"role": "user", "content": question}]}
        begin, thinking = time.monotonic(), True
        with cluster.open("/v1/chat/completions", body) as reply:
            for raw in reply:
                if not raw.startswith(b"data: ") or raw.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(raw[6:])
                for choice in chunk["choices"]:
                    delta = choice["delta"]
                    self.finish = choice["finish_reason"] or self.finish
                    for kind in ("reasoning_content", "content"):
                        if not delta.get(kind):
                            continue
                        if kind == "content" and thinking:
                            thinking = False
                            print(flush=True)
                        print(paint("2" if kind == "reasoning_content" else "1", delta[kind]), end="", flush=True)
                        self.tokens.append((kind, delta[kind]))
                        self.times.append(time.monotonic() - begin)
                        if on_token:
                            on_token(self, chunk["id"])
        print(flush=True)
        return self

    def text(self):
        return "".join(t for _, t in self.tokens)

    def pause(self):
        gaps = [b - a for a, b in zip(self.times, self.times[1:])]
        return max(gaps, default=0)

    def line(self):
        span = self.times[-1] - self.times[0]
        rate = (len(self.tokens) - 1) / span if span > 0 else 0
        return f"{len(self.tokens)} pieces, first after {1e3 * self.times[0]:.0f} ms, {rate:.0f} a second"


def load(cluster, *words):
    """`hadal load` in the background; each of its streams is compared with an unloaded answer."""
    return subprocess.Popen([HADAL, "load", "--url", cluster.url, "--verify", "--quiet", "--json", "-", *words],
                            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


def outcome(process):
    try:
        report = json.loads(process.communicate(timeout=40)[0])
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        process.kill()
        fail("hadal load gave no report")
    s = report["streams"]
    fact(f"{s['finished']} streams, {report['tokens']} tokens: lost {s['lost']}, changed {s['changed']}, "
         f"repeated {s['repeated']}")
    if process.returncode or s["lost"] or s["changed"] or s["repeated"]:
        fail("a stream was lost or changed: " + "; ".join(report["errors"]))
    return report


def wait_for_load(cluster, running):
    end = time.monotonic() + 15
    while sum(r["running"] for r in cluster.list("replicas")) < running and time.monotonic() < end:
        time.sleep(0.02)


def kill_in_mid_stream(cluster, unbroken):
    title("kill -9 in mid-stream, 12 other streams beside it")
    others = load(cluster, "--concurrency", "12", "--requests", "80", "--distinct", "8", "--seed", "5")
    wait_for_load(cluster, 12)
    killed = {}

    def on_token(answer, stream):
        if killed or len(answer.tokens) < len(unbroken.tokens) // 3:
            return
        request = stream.removeprefix("chatcmpl-")
        replica = next(r["replica"] for r in cluster.list("requests") if int(r["id"], 16) == int(request, 16))
        node = next(n for n in cluster.list("nodes") if n.get("replica") == replica and n["stage"] == 1)
        os.kill(node["pid"], signal.SIGKILL)
        killed.update(node)
        print(paint("1;41;97", f" kill -9 {node['pid']} (node {node['name']}, stage 1 of replica {replica}) "), end="",
              flush=True)

    answer = Answer().stream(cluster, LONG_SUM, on_token)
    if not killed:
        fail("the answer was over before the kill")
    same = answer.text() == unbroken.text() and answer.finish == unbroken.finish
    fact(f"longest pause {1e3 * answer.pause():.0f} ms; the answer is "
         + ("the unbroken one, token by token" if same else "ANOTHER ONE"))
    if not same:
        fail(f"expected: {unbroken.text()!r}")
    report = outcome(others)
    cluster.whole()
    fact(f"node {killed['name']} was started again; both replicas serve")
    return answer, report


def drain_under_load(cluster):
    title("drain a node under 16 streams")
    streams = load(cluster, "--concurrency", "16", "--requests", "64", "--distinct", "8", "--seed", "9")
    wait_for_load(cluster, 16)
    begin = time.monotonic()
    subprocess.run([HADAL, "ctl", "--url", cluster.url, "drain", "1"], check=True, timeout=30)
    took = time.monotonic() - begin
    subprocess.run([HADAL, "ctl", "--url", cluster.url, "nodes"], check=True, timeout=10)
    subprocess.run([HADAL, "ctl", "--url", cluster.url, "undrain", "1"], check=True, timeout=30)
    outcome(streams)
    cluster.whole()
    return took


def summary(cluster, up_s, first, broken, report, drained_s):
    title("summary")
    fact(f"cluster up after                {up_s:6.2f} s   (1 coordinator, 2 replicas x 2 stages)")
    fact(f"first token, nothing else runs  {1e3 * first.times[0]:6.0f} ms")
    fact(f"pause of the killed stream      {1e3 * broken.pause():6.0f} ms")
    fact(f"tokens/s beside the kill        {report['tokens_per_s']:6.0f}")
    fact(f"drained under 16 streams in     {1e3 * drained_s:6.0f} ms")
    fact("streams lost, tokens repeated or changed: 0")


def keep(cluster):
    title("it stays up")
    print(f"""   curl {cluster.url}/v1/models
   curl -N {cluster.url}/v1/chat/completions -H 'Content-Type: application/json' \\
     -d '{{"model":"{cluster.model}","stream":true,"messages":[{{"role":"user","content":"What is 17 + 4?"}}]}}'
   {HADAL} chat --url {cluster.url}
   {HADAL} ctl --url {cluster.url} top
   kill -9 {cluster.list("nodes")[0]["pid"]}          # a worker; ask again at once
   kill {cluster.process.pid}             # the end of all of it
   logs: {cluster.folder}""")


def story(cluster, up_s):
    fact(f"serving at {cluster.url} after {up_s:.2f} s: 2 replicas x 2 stages, one process each")
    subprocess.run([HADAL, "ctl", "--url", cluster.url, "nodes"], check=True, timeout=10)
    title("How many r are in strawberry?")
    first = Answer().stream(cluster, "How many r are in strawberry?")
    fact(first.line())
    title(LONG_SUM)
    unbroken = Answer().stream(cluster, LONG_SUM)
    fact(unbroken.line())
    broken, report = kill_in_mid_stream(cluster, unbroken)
    drained_s = drain_under_load(cluster)
    summary(cluster, up_s, first, broken, report, drained_s)


def on_term(signum, frame):
    raise SystemExit(128 + signum)


def main():
    signal.signal(signal.SIGTERM, on_term)
    parser = argparse.ArgumentParser(prog="tools/demo", description="Builds Hadal and shows it at work.")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running, and say what to try")
    args = parser.parse_args()
    title("a cluster with the sample model")
    begin = time.monotonic()
    cluster = Cluster()
    try:
        story(cluster, time.monotonic() - begin)
    except BaseException:
        cluster.stop()
        raise
    if args.keep:
        keep(cluster)
        return 0
    code = cluster.stop()
    fact(f"everything stopped, exit code {code}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
