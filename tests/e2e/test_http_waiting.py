"""Requests that must wait, at a coordinator of its own that has no node: refusals with their reason,
the grace time of a client that left, the end of a kept answer."""

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path

import pytest
from cluster import HADAL, SAMPLE, Cluster, wait_for


class Lonely(Cluster):
    """`hadal coordinator` alone, configured by a file."""

    def __init__(self, folder, **keys):
        config = Path(folder) / "coordinator.yaml"
        lines = {"http": '"127.0.0.1:0"', "rpc": '"127.0.0.1:0"', "model": SAMPLE, **keys}
        config.write_text("".join(f"{k}: {v}\n" for k, v in lines.items()))
        self.log = open(Path(folder) / "log", "w")
        self.process = subprocess.Popen([HADAL, "coordinator", "--config", str(config)], stdout=subprocess.PIPE,
                                        stderr=self.log, stdin=subprocess.DEVNULL)
        self.url = self.line("http")
        self.rpc = self.line("rpc")

    def line(self, word):
        got, value = self.process.stdout.readline().decode().split()
        assert got == word
        return value

    def pids(self):
        return [self.process.pid]

    def with_node(self, step_us=500):
        """A node with the mock engine, to be killed by the caller."""
        node = subprocess.Popen([HADAL, "node", "--engine", "mock", "--mock-step-us", str(step_us), "--coordinator",
                                 self.rpc], stderr=self.log, stdin=subprocess.DEVNULL)
        wait_for("ready", lambda: self.json("/hadal/v1/status")["ready"])
        return node

    def waiting(self, **fields):
        """A connection with a stream that waits."""
        host, port = self.url.removeprefix("http://").split(":")
        s = socket.create_connection((host, int(port)), timeout=20)
        body = json.dumps(self.chat_body("hi", stream=True, **fields)).encode()
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return s

    def refused(self, **fields):
        """(status, headers, error) of a request"""
        host, port = self.url.removeprefix("http://").split(":")
        c = http.client.HTTPConnection(host, int(port), timeout=20)
        c.request("POST", "/v1/chat/completions", json.dumps(self.chat_body("hi", **fields)))
        r = c.getresponse()
        return r.status, r.headers, json.load(r)["error"]


@pytest.fixture
def lonely(tmp_path):
    started = []

    def begin(**keys):
        started.append(Lonely(tmp_path, **keys))
        return started[-1]

    yield begin
    for cluster in started:
        cluster.process.kill()
        cluster.process.wait()


def test_not_ready(lonely):
    c = lonely()
    with pytest.raises(Exception) as e:
        c.open("/readyz")
    assert e.value.code == 503
    assert c.open("/healthz").status == 200
    assert c.stop() == 0


def test_queue_full(lonely):
    c = lonely(queue_limit=3)
    first = [c.waiting() for _ in range(3)]
    wait_for("a queue", lambda: c.json("/hadal/v1/status")["queued"] == 3)
    status, headers, error = c.refused()
    assert (status, error["code"], error["type"]) == (429, "queue_full", "rate_limit_error")
    assert int(headers["retry-after"]) >= 1 and error["message"]
    data = first[2].recv(65536)
    assert b": queued position=3 eta_ms=" in data and b"id: 0\n" in data, data
    for s in first:
        s.close()
    assert c.stop() == 0


def test_deadline(lonely):
    c = lonely()
    before = time.monotonic()
    status, headers, error = c.refused(deadline_ms=400)
    assert 0.2 < time.monotonic() - before < 3
    assert (status, error["code"]) in ((503, "no_capacity"), (429, "deadline"))
    assert "retry-after" in headers
    s, data = c.waiting(deadline_ms=400), b""  # a stream has begun: it is told in an event
    while b"[DONE]" not in data:
        block = s.recv(65536)
        assert block, data
        data += block
    assert b'data: {"error":{' in data and error["code"].encode() in data
    assert c.stop() == 0


def test_grace(lonely):
    """A request whose client left is cancelled after the grace time, and forgotten after retention."""
    c = lonely(grace_ms=300, retention_ms=500)
    s = c.waiting()
    data = s.recv(4096).decode()
    stream = data.split('"id":"')[1].split('"')[0]
    s.close()
    wait_for("the end", lambda: not c.list("requests") or c.list("requests")[0]["state"] == "done", 5)
    wait_for("it to be forgotten", lambda: not c.list("requests"), 5)
    with pytest.raises(Exception) as e:
        c.open(f"/v1/streams/{stream}", headers={"Last-Event-ID": "0"})
    assert e.value.code == 404 and json.load(e.value)["error"]["code"] == "not_found"
    assert c.stop() == 0


def test_taken_up_within_grace(lonely):
    c = lonely(grace_ms=1500)
    s = c.waiting()
    stream = s.recv(4096).decode().split('"id":"')[1].split('"')[0]
    s.close()
    wait_for("it to be alone", lambda: c.list("requests")[0]["clients"] == 0, 5)
    with c.open(f"/v1/streams/{stream}", headers={"Last-Event-ID": "0"}) as reply:
        assert reply.readline().startswith(b": queued position=1")
        time.sleep(2)
        assert c.list("requests")[0]["state"] == "queued"
    assert c.stop() == 0


def test_last_event_id(lonely):
    c = lonely()
    s = c.waiting()
    stream = s.recv(4096).decode().split('"id":"')[1].split('"')[0]
    for bad in ("x", "-1", "1", "99999999999999999999999", ""):
        with pytest.raises(Exception) as e:
            c.open(f"/v1/streams/{stream}", headers={"Last-Event-ID": bad})
        assert e.value.code == 400, bad
    s.close()
    assert c.stop() == 0


def test_stop_ends_what_waits(lonely):
    """Nothing serves the request, so SIGTERM waits no longer than stop_ms for it."""
    c = lonely(stop_ms=500)
    s = c.waiting()
    assert s.recv(4096)
    before = time.monotonic()
    assert c.stop() == 0
    assert time.monotonic() - before < 3


def test_stalled_client(lonely):
    """A client that takes nothing at all for too long is closed; what it asked for is kept."""
    c = lonely(write_stall_ms=1000)
    node = c.with_node()
    try:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = c.url.removeprefix("http://").split(":")
        s.connect((host, int(port)))
        body = json.dumps(c.chat_body("hi", stream=True, max_tokens=3000)).encode()
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_for("it to be closed", lambda: "hadal_stalled_total 1\n" in c.open("/metrics").read().decode(), 20)
        wait_for("nobody to read", lambda: c.list("requests")[0]["clients"] == 0, 5)
        mine = wait_for("the answer", lambda: [r for r in c.list("requests") if r["state"] == "done"], 20)[0]
        assert mine["tokens"] == 3000
        with c.open(f"/v1/streams/{mine['id']}?from=2990") as reply:
            assert reply.read().decode().endswith("id: 3003\ndata: [DONE]\n\n")
        with c.open(f"/v1/streams/{mine['id']}?from=3003") as reply:
            assert reply.status == 204
        s.close()
    finally:
        node.kill()
        node.wait()
    assert c.stop() == 0


def test_many_long_prompts(lonely):
    """Prompts that are read on worker threads, and clients that leave meanwhile."""
    c = lonely()
    node = c.with_node()
    try:
        host, port = c.url.removeprefix("http://").split(":")
        long = json.dumps(c.chat_body("word " * 2500, max_tokens=2)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(long)
        some = []
        for i in range(40):
            s = socket.create_connection((host, int(port)), timeout=30)
            s.sendall(head + long)
            if i % 2:
                s.close()
            else:
                some.append(s)
        for s in some:
            reply = s.recv(65536)
            assert reply.startswith(b"HTTP/1.1 200 OK"), reply
            s.close()
    finally:
        node.kill()
        node.wait()
    assert c.stop() == 0


@pytest.mark.parametrize("text,words", [
    ("rcp: x\n", ["rcp", "line"]), ("stages: 0\n", ["stages", "0"]), ("http: 5 5\n", ["http"]),
    ("http: \"nowhere.invalid:1\"\n", ["http", "nowhere.invalid"]), ("rpc: \"127.0.0.1:99999\"\n", ["rpc", "99999"]),
    ("model: /nowhere\n", ["/nowhere"]), ("transport: pigeon\n", ["transport", "pigeon"]),
    ("heartbeat_timeout_ms: 50\n", ["heartbeat_timeout_ms"]), ("stages: [1]\n", ["stages"]), ("{{{", [])])
def test_bad_configuration(tmp_path, text, words):
    config = tmp_path / "c.yaml"
    config.write_text(text if "model" in text else f"model: {SAMPLE}\n" + text)
    r = subprocess.run([HADAL, "coordinator", "--config", str(config)], capture_output=True, text=True, timeout=20)
    assert r.returncode == 1 and r.stderr.startswith("hadal coordinator: "), r
    assert all(w in r.stderr for w in words), r.stderr
