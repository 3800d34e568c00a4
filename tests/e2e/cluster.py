"""A real cluster for a test: `hadal up` on free ports. Everything is bounded in time, and only
processes started here are ever signalled."""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HADAL = os.environ.get("HADAL") or str(ROOT / "build" / "hadal")
SAMPLE = str(ROOT / "models" / "sample")
QUICK = bool(os.environ.get("HADAL_TEST_QUICK"))
READY_S = 60
STOP_S = 15
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


def die_with_parent():
    """For a child between fork and exec: tests that are ended from outside leave no cluster."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def alive(pid):
    """True while the process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(what, condition, limit_s=20, step_s=0.05):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(step_s)
    raise AssertionError(f"not within {limit_s} s: {what}")


class Cluster:
    def __init__(self, *args, model=SAMPLE, **options):
        self.rpc = free_port()
        words = [HADAL, "up", "--http", "0", "--rpc", str(self.rpc), "--model", model, *args]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        self.words = words
        self.log = tempfile.NamedTemporaryFile(prefix="hadal-e2e-", suffix=".log", delete=False)
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.log, stdin=subprocess.DEVNULL,
                                        start_new_session=True, preexec_fn=die_with_parent,
                                        env={**os.environ, "HADAL_LOG": "info"})
        try:
            self.url = self._ready()
        except BaseException:
            self.kill()
            raise

    def _ready(self):
        out, line, end = self.process.stdout.fileno(), b"", time.monotonic() + READY_S
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise AssertionError(f"not ready within {READY_S} s: {' '.join(self.words)}\n{self.log_tail()}")
            block = os.read(out, 4096)
            if not block:
                raise AssertionError(f"{' '.join(self.words)} ended: {self.process.wait(STOP_S)}\n{self.log_tail()}")
            line += block
        word, url = line.decode().split()
        assert word == "ready" and url.startswith("http://127.0.0.1:"), line
        return url

    def log_tail(self, lines=60):
        return "\n".join(Path(self.log.name).read_text(errors="replace").splitlines()[-lines:])

    def pids(self):
        """Every process of the cluster, `up` included."""
        kids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid] + [int(k) for k in kids]

    def coordinator_pid(self):
        for pid in self.pids()[1:]:
            if b"\0coordinator\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError("no coordinator process")

    # ---- HTTP

    def open(self, path, body=None, method=None, headers=None, timeout=60):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method,
                                         headers={"Content-Type": "application/json", **(headers or {})})
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)

    def json(self, path, body=None, method=None):
        with self.open(path, body, method) as reply:
            return json.load(reply)

    def list(self, kind):
        return self.json(f"/hadal/v1/{kind}")[kind]

    def node(self, name):
        return next((n for n in self.list("nodes") if n["name"] == name), None)

    def model(self):
        return self.json("/v1/models")["data"][0]["id"]

    def chat_body(self, prompt, **options):
        return {"model": self.model(), "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                "max_tokens": 260, **options}

    def ask(self, prompt, **options):
        """(reasoning, content, finish reason, completion tokens)"""
        reply = self.json("/v1/chat/completions", self.chat_body(prompt, **options))
        choice = reply["choices"][0]
        message = choice["message"]
        return (message.get("reasoning_content"), message["content"], choice["finish_reason"],
                reply["usage"]["completion_tokens"])

    # ---- tools

    def tool(self, *args, limit_s=90, check=True):
        r = subprocess.run([HADAL, *args], capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL,
                           env={**os.environ, "HADAL_URL": self.url})
        assert not check or r.returncode == 0, f"{args}: {r.returncode}\n{r.stdout}\n{r.stderr}\n{self.log_tail()}"
        return r

    def load(self, *args, limit_s=120):
        """The report of `hadal load --verify`; the caller looks at what was lost."""
        r = self.tool("load", "--verify", "--quiet", "--json", "-", "--distinct", "6", *args, limit_s=limit_s,
                      check=False)
        assert r.stdout, f"load {args}: {r.returncode}\n{r.stderr}\n{self.log_tail()}"
        return json.loads(r.stdout)

    def whole(self):
        """All replicas ready again."""
        def ready():
            replicas = self.list("replicas")
            return replicas and all(r["state"] == "ready" for r in replicas)
        return wait_for("all replicas ready", ready, 30)

    # ---- the end

    def stop(self, sig=signal.SIGINT):
        """Stops it in order; returns the exit code. Nothing of it may be left."""
        if self.process.poll() is not None:
            return self.process.returncode
        pids = self.pids()
        self.process.send_signal(sig)
        code = self.process.wait(STOP_S)
        self.process.stdout.close()
        left = [p for p in pids if alive(p)]
        assert not left, f"left running: {left}"
        return code

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()  # its children die with it
            self.process.wait(STOP_S)
        self.process.stdout.close()


def assert_nothing_lost(report, cluster=None):
    streams = report["streams"]
    bad = {k: streams[k] for k in ("lost", "changed", "repeated", "refused") if streams[k]}
    tail = cluster.log_tail(30) if cluster and bad else ""
    assert not bad and streams["finished"] == streams["started"] == streams["verified"] > 0, \
        f"{streams}\n{report['errors']}\n{report['faults']}\n{tail}"
