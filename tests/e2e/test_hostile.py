"""Clients that mean harm: what they may hold in memory is bounded, and others do not notice them."""

import json
import socket
import struct
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
from cluster import QUICK, wait_for
from test_http_readers import rss

MANY = 40 if QUICK else 80
MIB = 1 << 20


@pytest.fixture
def cluster(start):
    """Two replicas whose streams run beside the attack; none may be moved."""
    c = start(replicas=2, stages=2, engine="mock", mock_step_us=4000)
    expected, failed, stop = c.ask("hi", max_tokens=40), [], threading.Event()

    def beside():
        while not stop.is_set():
            try:
                failed.extend([got] for got in [c.ask("hi", max_tokens=40)] if got != expected)
            except OSError as e:
                failed.append(e)

    asking = threading.Thread(target=beside)
    asking.start()
    yield c
    stop.set()
    asking.join()
    assert not failed, failed
    assert all(r["state"] == "ready" and r["fences"] == 0 for r in c.list("replicas")), c.log_tail()
    assert c.stop() == 0


def connect(port):
    s = socket.create_connection(("127.0.0.1", port), timeout=10)
    s.settimeout(10)
    return s


def send_from_each(port, n, data):
    """n connections that send the bytes, all at once, and then nothing."""
    sockets = [connect(port) for _ in range(n)]

    def send(s):
        try:
            s.sendall(data)
        except OSError:
            pass  # closed by the other side: as it should be

    threads = [threading.Thread(target=send, args=(s,)) for s in sockets]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return sockets


def http_port(c):
    return urlparse(c.url).port


def rpc_port(c):
    for pid in c.pids()[1:]:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"--coordinator" in words:
            return int(words[words.index(b"--coordinator") + 1].split(b":")[1])
    raise AssertionError("no node process")


def test_bodies_that_never_end(cluster):
    """640 MB of them: whoever holds the most goes."""
    pid = cluster.coordinator_pid()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n"
    sockets = send_from_each(http_port(cluster), MANY, head + b"x" * 7999000)
    time.sleep(0.5)
    assert rss(pid) < 500 * MIB, rss(pid) // MIB
    for s in sockets:
        s.close()


def http2_frame(kind, flags, stream, body=b""):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def test_http2_bodies_that_never_end(cluster):
    """Hundreds of megabytes in the streams of one connection: it is closed."""
    pid = cluster.coordinator_pid()
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/v1/completions"), (b":authority", b"x")]
    head = b"".join(b"\0" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in fields)
    s = connect(http_port(cluster))
    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0))
    reader = threading.Thread(target=drain, args=(s,))
    reader.start()
    with pytest.raises(OSError):
        for stream in range(1, 121, 2):
            s.sendall(http2_frame(1, 4, stream, head))
            for _ in range(900):
                s.sendall(http2_frame(0, 0, stream, b"x" * 16000))
    reader.join()
    s.close()
    assert rss(pid) < 500 * MIB, rss(pid) // MIB


def drain(s):
    try:
        while s.recv(65536):
            pass
    except OSError:
        pass


def test_frames_that_never_end(cluster):
    """The control port: of nodes and of clients. Those who are nodes already stay."""
    pid = cluster.coordinator_pid()
    sockets = []
    for kind in (1, 64):  # HELLO, GENERATE
        data = b"HD\x01" + bytes([kind]) + struct.pack("<II", 16 << 20, 0) + bytes((16 << 20) - 10)
        sockets += send_from_each(rpc_port(cluster), 12, data)
    time.sleep(0.5)
    assert rss(pid) < 500 * MIB, rss(pid) // MIB
    for s in sockets:
        s.close()


def test_a_stranger_has_time_for_one_frame(cluster):
    """Dripping bytes of a first frame does not hold a connection for ever."""
    s = connect(rpc_port(cluster))
    s.sendall(b"HD\x01\x01" + struct.pack("<II", 1000, 0))

    def closed():
        try:
            s.sendall(b"x")
            return False
        except OSError:
            return True

    wait_for("it to be closed", closed, 14, 0.5)


@pytest.mark.parametrize("field", ["[" + "[]," * 2000000 + "1]", "[" + "{}," * 2000000 + "1]",
                                   "{" + '"a":1,' * 1000000 + '"b":1}'], ids=["arrays", "objects", "members"])
def test_json_that_swells(cluster, field):
    """6 MB that would become hundreds."""
    pid = cluster.coordinator_pid()
    body = json.dumps(cluster.chat_body("hi"))[:-1] + ', "metadata": ' + field + "}"
    s = connect(http_port(cluster))
    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body.encode())
    reply = s.recv(4096)
    assert reply.startswith(b"HTTP/1.1 400") and b"invalid_json" in reply
    s.close()
    assert rss(pid) < 100 * MIB, rss(pid) // MIB
