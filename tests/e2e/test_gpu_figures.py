"""What a node with a GPU tells of it, in ctl and metrics; and that a suspect GPU is out at once. There
is no GPU here: the node is made by hand."""

import re
import socket
import struct
import threading
import time

import pytest
from cluster import wait_for

HELLO, HEARTBEAT = 1, 2


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def frame(kind, body):
    return struct.pack("<2sBBII", b"HD", 1, kind, len(body), 0) + body


def hello(name):
    incarnation = varint(3 << 3 | 1) + struct.pack("<Q", 7)
    return frame(HELLO, field(1, 1) + field(2, name) + incarnation + field(5, "far") + field(6, "cuda"))


def heartbeat(**gpu):
    names = ["name", "utilization", "used", "total", "celsius", "mw", "mhz", "corrected", "uncorrected", "xid",
             "xids", "suspect", "reason"]
    body = b"".join(field(i + 1, gpu[n]) for i, n in enumerate(names) if gpu.get(n))
    return frame(HEARTBEAT, field(12, body))


class Node:
    """Says the same again and again, as the heartbeat thread does."""

    def __init__(self, port, name):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(hello(name))
        self.beat, self.stop = heartbeat(name="Fake 100"), threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stop.wait(0.1):
            try:
                self.socket.sendall(self.beat)
            except OSError:
                return

    def close(self):
        self.stop.set()
        self.thread.join()
        self.socket.close()


@pytest.fixture
def cluster(start):
    c = start(replicas=1, engine="mock")
    yield c
    assert c.stop() == 0


@pytest.fixture
def node(cluster):
    n = Node(cluster.rpc, "gpu1")
    wait_for("it to join", lambda: cluster.node("gpu1") is not None)
    yield n
    n.close()


def test_figures(cluster, node):
    node.beat = heartbeat(name="Fake 100", utilization=97, used=20 << 30, total=80 << 30, celsius=61, mw=512345,
                          mhz=1755, corrected=3)
    wait_for("the figures", lambda: (cluster.node("gpu1").get("gpu") or {}).get("utilization_percent") == 97)
    gpu = cluster.node("gpu1")["gpu"]
    assert gpu["power_w"] == 512 and gpu["temperature_c"] == 61 and not gpu["suspect"] and gpu["reason"] is None
    assert "gpu" not in cluster.node("1"), "a node that computes on no GPU"
    table = cluster.tool("ctl", "--url", cluster.url, "nodes").stdout
    row = next(line for line in table.splitlines() if line.startswith("gpu1"))
    assert re.search(r"97 +20\.0 GiB +61 +512 +1755", row), table
    with cluster.open("/metrics") as reply:
        metrics = reply.read().decode()
    assert 'hadal_gpu_memory_total_bytes{node="gpu1"} %d' % (80 << 30) in metrics
    assert 'hadal_gpu_suspect{node="gpu1"} 0' in metrics


def test_no_columns_without_gpus(cluster):
    table = cluster.tool("ctl", "--url", cluster.url, "nodes").stdout
    assert "GPU" not in table and "MHZ" not in table


def test_a_suspect_gpu_is_out_until_an_operator_says_otherwise(cluster, node):
    wait_for("the node", lambda: cluster.node("gpu1")["state"] == "free")
    node.beat = heartbeat(name="Fake 100", xid=31, xids=1)  # some program's fault
    time.sleep(0.5)
    assert cluster.node("gpu1")["state"] == "free"
    node.beat = heartbeat(name="Fake 100", xid=79, xids=2, suspect=1, reason="XID 79, fell off the bus")
    wait_for("the node to be out", lambda: cluster.node("gpu1")["state"] == "ejected")
    assert "XID 79, fell off the bus" in cluster.node("gpu1")["fault"]
    table = cluster.tool("ctl", "--url", cluster.url, "nodes").stdout
    assert "XID 79, fell off the bus" in table
    cluster.tool("ctl", "--url", cluster.url, "undrain", "gpu1")
    time.sleep(0.5)
    assert cluster.node("gpu1")["state"] == "free", "it still says so, but that is known"
