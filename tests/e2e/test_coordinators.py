"""Two coordinators, one leads: the leader is killed again and again under streams, and every stream goes on at the
other one, at the next token. By a lock on a file, and by etcd."""

import ctypes
import http.client
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from cluster import HADAL, QUICK, SAMPLE, die_with_parent, free_port, wait_for
from test_rpc_client import Error, lib, read, request  # noqa: F401

KILLS = int(os.environ.get("HADAL_KILLS", "3" if QUICK else "6"))
STREAMS = 8


class Pair:
    """Coordinators `a` and `b`, and nodes that know both."""

    def __init__(self, folder, store, *node_args, nodes=2, **keys):
        self.folder, self.processes = Path(folder), {}
        self.log = open(self.folder / "log", "w")
        self.http = {n: free_port() for n in "ab"}
        self.rpc = {n: free_port() for n in "ab"}
        for n in "ab":
            lines = {"http": f'"127.0.0.1:{self.http[n]}"', "rpc": f'"127.0.0.1:{self.rpc[n]}"', "model": SAMPLE,
                     "replicas": nodes, "name": n, "store": f'"{store}"', "grace_ms": 10000, **keys}
            (self.folder / f"{n}.yaml").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
            self.begin(n)
        both = ",".join(f"127.0.0.1:{self.rpc[n]}" for n in "ab")
        for i in range(nodes):
            self.start(f"node{i}", "node", "--name", f"n{i}", "--coordinator", both, "--threads", "1", *node_args)
        wait_for("a leader with its replicas", lambda: self.ready() is not None, 40)
        wait_for("copies", self.copying, 20)

    def start(self, name, *words):
        self.processes[name] = subprocess.Popen([HADAL, *words], stdout=subprocess.DEVNULL, stderr=self.log,
                                                stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def begin(self, n):
        self.start(n, "coordinator", "--config", str(self.folder / f"{n}.yaml"))

    def get(self, n, path):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.http[n]}{path}", timeout=2) as r:
                return r.status, json.loads(r.read() or b"{}")
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}

    def ready(self):
        """The name of the leader once it serves."""
        for n in "ab":
            status, body = self.get(n, "/readyz")
            if status == 200 and body["replicas_ready"] == body["replicas"]:
                return n
        return None

    def copying(self):
        text = (self.folder / "log").read_text()
        return "standby a came" in text or "standby b came" in text

    def kill(self, name):
        p = self.processes[name]
        p.kill()
        p.wait()

    def end(self):
        for p in self.processes.values():
            p.kill()
            p.wait()


@pytest.fixture
def pair(tmp_path):
    started = []

    def begin(*args, **keys):
        started.append(Pair(tmp_path, *args, **keys))
        return started[-1]

    yield begin
    for p in started:
        p.end()


class Stream:
    """A client of server-sent events that goes on at either coordinator."""

    def __init__(self, pair, body):
        self.pair, self.body = pair, json.dumps({**body, "stream": True}).encode()
        self.id, self.last, self.text, self.error = None, None, "", None
        self.pauses, self.heard, self.attaches, self.ended = [], None, 0, False

    def lines(self, n):
        c = http.client.HTTPConnection("127.0.0.1", self.pair.http[n], timeout=3)
        if self.id is None:
            c.request("POST", "/v1/chat/completions", self.body)
        else:
            c.request("GET", f"/v1/streams/{self.id}", headers={"Last-Event-ID": str(self.last)})
        r = c.getresponse()
        if r.status != 200:
            if r.status == 404:
                self.error = f"lost: {self.id} at {self.last} on {n}: {r.read()}"
                self.ended = True
            raise ConnectionError(r.status)
        yield from r

    def take(self, line):
        line = line.decode().rstrip("\n")
        if line.startswith("id: "):
            self.event = int(line[4:])
        elif line == "data: [DONE]":
            self.ended = True
        elif line.startswith("data: "):
            now = time.monotonic()
            if self.heard:
                self.pauses.append(now - self.heard)
            self.heard = now
            data = json.loads(line[6:])
            if "error" in data:
                self.error = str(data["error"])
                return
            self.id = self.id or data["id"]
            if self.last is not None and self.event <= self.last:
                self.error = f"event {self.event} after {self.last}"
            self.last = self.event
            for choice in data["choices"]:
                self.text += (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")

    def run(self):
        names, end = "ab", time.monotonic() + 120
        while not self.ended and time.monotonic() < end:
            try:
                for line in self.lines(names[0]):
                    self.take(line)
                    if self.ended:
                        return
            except (OSError, http.client.HTTPException):
                pass
            self.attaches += self.id is not None
            names = names[::-1]
            time.sleep(0.02)
        self.error = self.error or (None if self.ended else "not ended in time")


def body_of(i, tokens):
    return {"model": "sample", "messages": [{"role": "user", "content": f"How much is {i} and {i + 7}? Tell it slowly."}],
            "temperature": 0.8, "seed": i + 1, "max_tokens": tokens}


def run_streams(pair, tokens, during=lambda: None):
    streams = [Stream(pair, body_of(i, tokens)) for i in range(STREAMS)]
    threads = [threading.Thread(target=s.run) for s in streams]
    for t in threads:
        t.start()
    during()
    for t in threads:
        t.join(150)
    return streams


def kills(pair, n, after_s=0.8):
    for _ in range(n):
        time.sleep(after_s)
        leader = wait_for("a leader", pair.ready, 30)
        pair.kill(leader)
        other = "b" if leader == "a" else "a"
        wait_for("the other one leads", lambda: pair.ready() == other, 30)
        came = f"standby {leader} came"
        since = (pair.folder / "log").read_text().count(came)
        pair.begin(leader)
        wait_for("copies again", lambda: (pair.folder / "log").read_text().count(came) > since, 20)


def judge(want, got, what):
    errors = [s.error for s in got if s.error]
    assert not errors, errors
    changed = [(w.text[-60:], g.text[-60:]) for w, g in zip(want, got) if w.text != g.text]
    assert not changed, changed
    pauses = sorted(max(s.pauses) for s in got)
    print(f"{what}: {len(got)} streams, {sum(s.attaches for s in got)} re-attached, longest pause "
          f"{pauses[len(pauses) // 2]:.2f} s median, {pauses[-1]:.2f} s worst")


MOCK = ("--engine", "mock", "--mock-step-us", "12000")


@pytest.mark.parametrize("copies", ["sync", "async"])
def test_leader_killed_under_streams(pair, tmp_path, copies):
    p = pair(f"file:{tmp_path}/lock", *MOCK, copies=copies)
    each = min(KILLS, 6)
    tokens = 250 + 150 * each
    want = run_streams(p, tokens)
    assert not [s.error for s in want if s.error] and all(s.text for s in want)
    for i in range(KILLS // each):
        got = run_streams(p, tokens, lambda: kills(p, each))
        assert sum(s.attaches for s in got) >= STREAMS
        judge(want, got, f"{copies}, round {i + 1} of {each} kills")


def test_the_sample_model(pair, tmp_path):
    p = pair(f"file:{tmp_path}/lock")
    want = run_streams(p, 400)
    got = run_streams(p, 400, lambda: kills(p, 1, 0.15))
    judge(want, got, "sample model")


def test_standby_refuses(pair, tmp_path):
    p = pair(f"file:{tmp_path}/lock", *MOCK)
    leader = p.ready()
    other = "b" if leader == "a" else "a"
    assert p.get(other, "/readyz")[0] == 503
    c = http.client.HTTPConnection("127.0.0.1", p.http[other], timeout=10)
    c.request("POST", "/v1/chat/completions", json.dumps(body_of(0, 5)))
    r = c.getresponse()
    assert r.status == 503 and r.headers["x-hadal-reason"] == "standby" and "retry-after" in r.headers
    assert r.headers["x-hadal-leader"] == f"http://127.0.0.1:{p.http[leader]}"
    assert json.load(r)["error"]["code"] == "standby"
    p.kill(other)  # a standby's death is nobody's business
    assert not [s.error for s in run_streams(p, 30) if s.error]


def test_standby_stopped_under_streams(pair, tmp_path):
    """It holds its connection and acknowledges nothing: clients wait no longer than a heartbeat's time-out."""
    p = pair(f"file:{tmp_path}/lock", *MOCK, copies="sync")
    want = run_streams(p, 400)
    other = "b" if p.ready() == "a" else "a"
    came = f"standby {other} came"

    def stop():
        time.sleep(1)
        p.processes[other].send_signal(signal.SIGSTOP)

    got = run_streams(p, 400, stop)
    judge(want, got, "standby stopped")
    longest = max(max(s.pauses) for s in got)
    assert 0.9 < longest < 3, longest  # it did hold them, and not for long
    assert not sum(s.attaches for s in got)
    since = (p.folder / "log").read_text().count(came)
    p.processes[other].send_signal(signal.SIGCONT)
    wait_for("copies again", lambda: (p.folder / "log").read_text().count(came) > since, 20)


def test_libhadal(pair, tmp_path, lib):  # noqa: F811
    p, err = pair(f"file:{tmp_path}/lock", *MOCK), Error()
    url = "hadal://" + ",".join(f"127.0.0.1:{p.rpc[n]}" for n in "ab")
    c = ctypes.c_void_p(lib.hadal_open(url.encode(), None, ctypes.byref(err)))
    q = request("count as far as you can", 400)
    want = read(lib, lib.hadal_generate(c, ctypes.byref(q), ctypes.byref(err)))
    killer = threading.Thread(target=lambda: (time.sleep(1), p.kill(p.ready())))
    killer.start()
    got = read(lib, lib.hadal_generate(c, ctypes.byref(q), ctypes.byref(err)))
    killer.join()
    assert got[:3] == want[:3] and got[2] == 400
    lib.hadal_close(c)


@pytest.fixture
def etcd(tmp_path):
    if not os.access("/usr/bin/etcd", os.X_OK):
        pytest.skip("etcd-server is not installed")
    port, peer, running = free_port(), free_port(), []
    log = open(tmp_path / "etcd.log", "w")

    def begin():
        running.append(subprocess.Popen(
            ["/usr/bin/etcd", "--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", f"http://127.0.0.1:{port}",
             "--advertise-client-urls", f"http://127.0.0.1:{port}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster",
             f"default=http://127.0.0.1:{peer}"], stdout=log, stderr=log, preexec_fn=die_with_parent))
        wait_for("etcd", lambda: healthy(port), 20)

    def kill():
        running[-1].kill()
        running[-1].wait()

    begin()
    yield f"etcd:http://127.0.0.1:{port}", kill, begin
    kill()


def healthy(port):
    try:
        c = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        c.request("GET", "/health")
        return c.getresponse().status == 200
    except OSError:
        return False


def test_etcd_leader_killed(pair, etcd):
    p = pair(etcd[0], *MOCK, lease_ms=2000)
    want = run_streams(p, 400)
    got = run_streams(p, 400, lambda: kills(p, 1))
    judge(want, got, "etcd")


def test_etcd_leader_stopped(pair, etcd):
    """It holds its connections and says nothing: its lease runs out, nodes leave it; woken, it ends by itself."""
    p = pair(etcd[0], *MOCK, lease_ms=2000)
    want = run_streams(p, 500)
    leader = p.ready()
    other = "b" if leader == "a" else "a"

    def stop():
        time.sleep(1)
        p.processes[leader].send_signal(signal.SIGSTOP)
        wait_for("the other one leads", lambda: p.get(other, "/readyz")[0] == 200, 30)
        time.sleep(2)
        p.processes[leader].send_signal(signal.SIGCONT)

    got = run_streams(p, 500, stop)
    judge(want, got, "etcd, leader stopped")
    assert p.processes[leader].wait(10) == 1  # "another coordinator leads"


def test_etcd_itself_killed(pair, etcd):
    """Serving goes on without etcd, and with it again."""
    url, kill, begin = etcd
    p = pair(url, *MOCK, lease_ms=2000)
    want = run_streams(p, 500)

    def away():
        time.sleep(0.5)
        kill()
        time.sleep(4)
        begin()

    leader = p.ready()
    got = run_streams(p, 500, away)
    judge(want, got, "etcd killed and started again")
    wait_for("one leader", lambda: p.ready() is not None, 20)
    assert p.ready() in (leader, "b" if leader == "a" else "a")
