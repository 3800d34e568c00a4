"""Several coordinators: all serve, one leads. The leader is killed again and again under streams, and every stream goes
on, at the next token: those of the others' clients without a new connection. By a lock on a file, and by etcd."""

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
    """Coordinators, `a` and `b` if not told otherwise, and nodes that know all of them."""

    def __init__(self, folder, store, *node_args, nodes=2, replicas=None, names="ab", **keys):
        self.folder, self.processes, self.names = Path(folder), {}, names
        self.log = open(self.folder / "log", "w")
        self.http = {n: free_port() for n in names}
        self.rpc = {n: free_port() for n in names}
        for n in names:
            lines = {"http": f'"127.0.0.1:{self.http[n]}"', "rpc": f'"127.0.0.1:{self.rpc[n]}"', "model": SAMPLE,
                     "replicas": replicas or nodes, "name": n, "store": f'"{store}"', "grace_ms": 10000, **keys}
            (self.folder / f"{n}.yaml").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
            self.begin(n)
        self.node_args = node_args
        for i in range(nodes):
            self.start_node(f"node{i}")
        wait_for("a leader with its replicas", lambda: self.ready() is not None, 40)
        wait_for("copies", self.copying, 20)

    def start(self, name, *words):
        self.processes[name] = subprocess.Popen([HADAL, *words], stdout=subprocess.DEVNULL, stderr=self.log,
                                                stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def start_node(self, name):
        known = ",".join(f"127.0.0.1:{self.rpc[n]}" for n in self.names)
        self.start(name, "node", "--name", name.replace("ode", ""), "--coordinator", known, "--threads", "1", *self.node_args)

    def begin(self, n):
        self.start(n, "coordinator", "--config", str(self.folder / f"{n}.yaml"))

    def get(self, n, path):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.host(n)}:{self.http[n]}{path}", timeout=2) as r:
                return r.status, json.loads(r.read() or b"{}")
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}

    def host(self, n):
        return "127.0.0.1"

    def ready(self):
        """The name of the leader once it serves."""
        for n in self.names:
            status, body = self.get(n, "/readyz")
            if status == 200 and body["leads"] and body["replicas_ready"] == body["replicas"]:
                return n
        return None

    def copying(self):
        """All others follow, with all there is."""
        leader = self.ready()
        known = self.get(leader, "/hadal/v1/coordinators")[1].get("coordinators", []) if leader else []
        return sum(k.get("synced", False) for k in known) == len(self.names) - 1

    def another(self, name):
        return next(n for n in self.names if n != name)

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
    """A client of server-sent events that goes on at any coordinator."""

    def __init__(self, pair, body, first=None):
        self.names = pair.names if first is None else first + pair.names.replace(first, "")
        self.pair, self.body = pair, json.dumps({**body, "stream": True}).encode()
        self.id, self.last, self.text, self.error = None, None, "", None
        self.pauses, self.heard, self.attaches, self.ended = [], None, 0, False

    def lines(self, n):
        c = http.client.HTTPConnection(self.pair.host(n), self.pair.http[n], timeout=3)
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
        names, end = self.names, time.monotonic() + 120
        while not self.ended and time.monotonic() < end:
            try:
                for line in self.lines(names[0]):
                    self.take(line)
                    if self.ended:
                        return
            except (OSError, http.client.HTTPException):
                pass
            self.attaches += self.id is not None
            names = names[1:] + names[0]
            time.sleep(0.02)
        self.error = self.error or (None if self.ended else "not ended in time")


def body_of(i, tokens):
    return {"model": "sample", "messages": [{"role": "user", "content": f"How much is {i} and {i + 7}? Tell it slowly."}],
            "temperature": 0.8, "seed": i + 1, "max_tokens": tokens}


def run_streams(pair, tokens, during=lambda: None):
    streams = [Stream(pair, body_of(i, tokens), pair.names[i % len(pair.names)]) for i in range(STREAMS)]
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
        wait_for("another one leads", lambda: pair.ready() not in (None, leader), 30)
        pair.begin(leader)
        wait_for("copies again", pair.copying, 20)


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
        assert sum(s.attaches for s in got) >= STREAMS // 2  # those of the leader's clients, each time
        judge(want, got, f"{copies}, round {i + 1} of {each} kills")


def test_the_sample_model(pair, tmp_path):
    p = pair(f"file:{tmp_path}/lock")
    want = run_streams(p, 400)
    got = run_streams(p, 400, lambda: kills(p, 1, 0.15))
    judge(want, got, "sample model")


def post(pair, n, path, body=None):
    c = http.client.HTTPConnection(pair.host(n), pair.http[n], timeout=20)
    c.request("POST", path, json.dumps(body or {}))
    r = c.getresponse()
    return r.status, r.headers, json.loads(r.read() or b"null")


def tool(pair, n, *words):
    return subprocess.run([HADAL, "ctl", "--url", f"http://{pair.host(n)}:{pair.http[n]}", *words], capture_output=True,
                          text=True, timeout=60)


def test_all_serve(pair, tmp_path):
    """Three coordinators: the same answers from each, a stream of one is taken up at another, operators are sent to
    the leader. What an operator decided and answers that are finished outlive two leaders."""
    p = pair(f"file:{tmp_path}/lock", *MOCK, names="abc", nodes=3, replicas=2)
    leader = p.ready()
    others = [n for n in p.names if n != leader]
    answers = [post(p, n, "/v1/chat/completions", body_of(3, 30))[2]["choices"][0]["message"] for n in p.names]
    assert answers[0] == answers[1] == answers[2]

    s = Stream(p, body_of(1, 60), others[0])
    s.run()
    assert not s.error and s.text
    again = Stream(p, body_of(1, 60), others[1])
    again.id, again.last = s.id, 10
    again.run()
    assert not again.error and s.text.endswith(again.text) and again.text

    status, headers, _ = post(p, others[0], "/hadal/v1/nodes/n2/drain")
    assert status == 307 and headers["location"].startswith(f"http://127.0.0.1:{p.http[leader]}/")
    drained = tool(p, others[0], "drain", "n2")  # follows
    assert drained.returncode == 0, drained.stderr
    table = tool(p, others[1], "coordinators")
    assert table.returncode == 0 and table.stdout.count("follower") == 2 and table.stdout.count("leader") == 1
    refused = post(p, others[0], "/v1/chat/completions", {**body_of(0, 5), "max_tokens": 1 << 20})
    assert refused[0] == 400 and refused[2]["error"]["param"] == "max_tokens"
    c = http.client.HTTPConnection("127.0.0.1", p.http[others[0]], timeout=5)
    c.request("GET", "/v1/streams/chatcmpl-00000000000000ff")
    assert c.getresponse().status == 404

    for _ in range(2):  # the second one has it from the first
        leader = wait_for("a leader", p.ready, 30)
        p.kill(leader)
        wait_for("another one leads", lambda: p.ready() not in (None, leader), 30)
        p.begin(leader)
        wait_for("copies again", p.copying, 20)
    again = Stream(p, body_of(1, 60), leader)
    again.id, again.last = s.id, 10
    again.run()
    assert not again.error and s.text.endswith(again.text) and again.text
    nodes = {n["name"]: n["state"] for n in p.get(p.ready(), "/hadal/v1/nodes")[1]["nodes"]}
    assert nodes["n2"] == "drained", nodes


def test_followers_clients_see_a_pause(pair, tmp_path):
    """Their connection stays while the leader is killed; a follower's death is its own clients' business alone."""
    p = pair(f"file:{tmp_path}/lock", *MOCK, names="abc")
    want = run_streams(p, 300)
    leader = p.ready()
    third, second = [n for n in p.names if n != leader]
    streams = [Stream(p, body_of(i, 300), second) for i in range(STREAMS)]
    threads = [threading.Thread(target=s.run) for s in streams]
    for t in threads:
        t.start()
    time.sleep(1)
    p.kill(third)
    time.sleep(0.3)
    p.kill(leader)
    for t in threads:
        t.join(100)
    judge(want, streams, "clients of a follower")
    assert not sum(s.attaches for s in streams)


def test_follower_stopped_under_streams(pair, tmp_path):
    """It holds its connection and acknowledges nothing: clients wait no longer than a heartbeat's time-out."""
    p = pair(f"file:{tmp_path}/lock", *MOCK, copies="sync")
    want = run_streams(p, 400)
    leader = p.ready()
    other = p.another(leader)

    def stop():
        time.sleep(1)
        p.processes[other].send_signal(signal.SIGSTOP)

    got = [Stream(p, body_of(i, 400), leader) for i in range(STREAMS)]
    threads = [threading.Thread(target=s.run) for s in got]
    for t in threads:
        t.start()
    stop()
    for t in threads:
        t.join(100)
    judge(want, got, "follower stopped")
    longest = max(max(s.pauses) for s in got)
    assert 0.9 < longest < 6, longest  # it did hold them, and not for long
    assert not sum(s.attaches for s in got)
    p.processes[other].send_signal(signal.SIGCONT)
    wait_for("copies again", p.copying, 20)


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


def healthy(port, host="127.0.0.1"):
    try:
        c = http.client.HTTPConnection(host, port, timeout=2)
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
    """It holds its connections and says nothing: its lease runs out, nodes leave it; woken, it follows."""
    p = pair(etcd[0], *MOCK, lease_ms=2000)
    want = run_streams(p, 500)
    leader = p.ready()
    other = "b" if leader == "a" else "a"

    def stop():
        time.sleep(1)
        p.processes[leader].send_signal(signal.SIGSTOP)
        wait_for("the other one leads", lambda: p.get(other, "/readyz")[1].get("leads"), 30)
        time.sleep(2)
        p.processes[leader].send_signal(signal.SIGCONT)

    got = run_streams(p, 500, stop)
    judge(want, got, "etcd, leader stopped")
    wait_for("it follows", lambda: p.ready() == other and p.copying(), 20)
    assert p.processes[leader].poll() is None


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
