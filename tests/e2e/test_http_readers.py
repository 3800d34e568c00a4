"""Clients that read slowly, or not at all, or go away: nothing grows, nobody else is held up."""

import json
import socket
import time
from pathlib import Path
from urllib.parse import urlparse

from cluster import QUICK, wait_for


def rss(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def raw(cluster, window=None):
    at = urlparse(cluster.url)
    s = socket.socket()
    if window:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    s.settimeout(30)
    s.connect((at.hostname, at.port))
    return s


def post(s, cluster, **fields):
    body = json.dumps(cluster.chat_body("count", **fields)).encode()
    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def read_all(s):
    """The bytes until the end of a chunked answer."""
    data = b""
    while not data.endswith(b"\r\n0\r\n\r\n"):
        block = s.recv(1 << 16)
        assert block, data[-200:]
        data += block
    return data


def dechunk(data):
    """The body of a chunked answer."""
    body, rest = b"", data.split(b"\r\n\r\n", 1)[1]
    while True:
        size, rest = rest.split(b"\r\n", 1)
        if not int(size, 16):
            return body.decode()
        body, rest = body + rest[:int(size, 16)], rest[int(size, 16) + 2:]


def request_of(cluster, found):
    return next((r for r in cluster.list("requests") if r["id"] == found), None)


def test_slow_reader_loses_nothing(start):
    """A client that does not read for a while gets the whole answer, in fewer and larger events."""
    cluster = start(engine="mock", mock_step_us=500)
    with raw(cluster, 4096) as s:
        post(s, cluster, stream=True, max_tokens=3000)
        wait_for("the answer to be finished",
                 lambda: any(r["state"] == "done" and r["tokens"] == 3000 for r in cluster.list("requests")), 60)
        body = dechunk(read_all(s))
    events = [e.split("\n") for e in body.split("\n\n") if e and not e.startswith(":")]
    assert events[-1] == ["id: 3003", "data: [DONE]"]
    thoughts = content = ""
    for event in events[:-1]:
        choice = json.loads(event[1].removeprefix("data: "))["choices"][0]
        thoughts += choice["delta"].get("reasoning_content") or ""
        content += choice["delta"].get("content") or ""
    assert (thoughts or None, content, choice["finish_reason"], 3000) == cluster.ask("count", max_tokens=3000)
    assert len(events) < 1000
    assert cluster.stop() == 0


def test_many_who_do_not_read(start):
    """Memory is the answers, not copies for each reader, and others are served meanwhile."""
    cluster = start(engine="mock", mock_step_us=500)
    pid = cluster.coordinator_pid()
    at_first = rss(pid)
    readers = [raw(cluster, 4096) for _ in range(24)]
    for s in readers:
        post(s, cluster, stream=True, max_tokens=3000, logprobs=True, top_logprobs=5)
    before = time.monotonic()
    assert cluster.ask("hi", max_tokens=3)[3] == 3
    assert time.monotonic() - before < 20
    wait_for("the answers to be finished",
             lambda: sum(r["state"] == "done" for r in cluster.list("requests")) >= 25, 90)
    # 24 answers of 3,000 tokens with 5 alternatives each are 4.2 MB; their events would be 50 MB.
    assert rss(pid) - at_first < 32 << 20, (at_first, rss(pid))
    for s in readers:
        s.close()
    assert cluster.stop() == 0


def test_idle_connections(start):
    cluster = start(engine="mock", mock_step_us=1000)
    pid, many = cluster.coordinator_pid(), 200 if QUICK else 2000
    before = rss(pid)
    idle = [raw(cluster) for _ in range(many)]
    wait_for("them to be accepted",
             lambda: f"hadal_http_connections {many}" in cluster.open("/metrics").read().decode() or
             any(int(line.split()[1]) >= many for line in cluster.open("/metrics").read().decode().splitlines()
                 if line.startswith("hadal_http_connections ")))
    start_s = time.monotonic()
    assert cluster.ask("hi", max_tokens=5)[3] == 5
    assert time.monotonic() - start_s < 5
    each = (rss(pid) - before) / many
    print(f"{each:.0f} bytes of memory per idle connection")
    assert each < 20000
    for s in idle:
        s.close()
    assert cluster.stop() == 0


def test_client_goes_away(mock22):
    """Streaming or not, hanging up is noticed at once: the request has no client any more."""
    for stream in (True, False):
        known = {r["id"] for r in mock22.list("requests")}
        s = raw(mock22)
        post(s, mock22, stream=stream, max_tokens=2000)
        mine = wait_for("the request", lambda: [r for r in mock22.list("requests")
                                                if r["id"] not in known and r["tokens"] > 3])[0]
        assert mine["clients"] == 1
        s.close()
        wait_for("nobody to read it", lambda: request_of(mock22, mine["id"])["clients"] == 0, 2)
        with mock22.open(f"/v1/streams/{mine['id']}", method="DELETE") as reply:
            assert reply.status == 204
        wait_for("it to be cancelled", lambda: request_of(mock22, mine["id"])["finish"] == "cancelled"
                 if "finish" in request_of(mock22, mine["id"]) else False, 5)


def test_queue_comments(start):
    """A stream that waits is told its place."""
    cluster = start(engine="mock", mock_step_us=20000)
    busy = [raw(cluster) for _ in range(40)]  # more than it runs at once
    for s in busy:
        post(s, cluster, stream=True, max_tokens=60)
    wait_for("a queue", lambda: cluster.json("/hadal/v1/status")["queued"] > 0)
    with raw(cluster) as s:
        post(s, cluster, stream=True, max_tokens=2)
        data = dechunk(read_all(s))
    assert ": queued position=" in data and " eta_ms=" in data and "[DONE]" in data
    for s in busy:
        s.close()
    assert cluster.stop() == 0


def test_orderly_end(start):
    """SIGTERM ends a coordinator with open streams and idle connections in time."""
    cluster = start(engine="mock", mock_step_us=20000)
    idle = [raw(cluster) for _ in range(20)]
    post(idle[0], cluster, stream=True, max_tokens=2000)
    assert idle[0].recv(4096)
    before = time.monotonic()
    assert cluster.stop() == 0
    assert time.monotonic() - before < 10
