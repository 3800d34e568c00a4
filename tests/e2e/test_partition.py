"""Parts of the network go: the leader is cut off from etcd, from a follower, from all nodes. Hosts are network
namespaces. Every stream ends with the tokens it has without a failure, and one coordinator leads in the end."""

import os
import subprocess
import threading
import time

import pytest
from cluster import HADAL, SAMPLE, Cluster, die_with_parent, wait_for
from namespaces import Network
from test_coordinators import Pair, Stream, body_of, healthy, judge, tool

STREAMS, TOKENS, STEP_US = 9, 700, 12000
KEYS = {"lease_ms": 2000, "grace_ms": 30000, "model": SAMPLE, "replicas": 2, "cluster": "partition"}


class Hosts(Pair):
    """Coordinators a, b and c, nodes and etcd, each on a host of its own."""

    def __init__(self, folder):
        self.folder, self.processes, self.names = folder, {}, "abc"
        self.net = Network(["a", "b", "c", "etcd", "n0", "n1"])
        self.log = open(folder / "log", "w")
        self.http, self.rpc = {n: 8000 for n in "abc"}, {n: 7070 for n in "abc"}
        self.key = folder / "key"
        self.key.write_text("dGhlIGtleSBvZiB0aGUgY2x1c3RlciBvZiB0aGUgdGVzdHM=\n")
        self.key.chmod(0o600)
        at = self.net.address["etcd"]
        self.start_on("etcd", "etcd", ["/usr/bin/etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls",
                                       f"http://{at}:2379", "--advertise-client-urls", f"http://{at}:2379"])
        wait_for("etcd", lambda: healthy(2379, at), 20)
        for n in "abc":
            keys = {**KEYS, "name": n, "http": f'"{self.host(n)}:8000"', "rpc": f'"{self.host(n)}:7070"',
                    "store": f'"etcd:http://{at}:2379"', "cluster_key": self.key}
            (folder / f"{n}.yaml").write_text("".join(f"{k}: {v}\n" for k, v in keys.items()))
            self.start_on(n, n, [HADAL, "coordinator", "--config", str(folder / f"{n}.yaml")])
        all_rpc = ",".join(f"{self.host(n)}:7070" for n in "abc")
        for n in ("n0", "n1"):
            self.start_on(n, n, [HADAL, "node", "--name", n, "--coordinator", all_rpc, "--engine", "mock", "--mock-step-us",
                                 str(STEP_US), "--threads", "1", "--cluster-key", str(self.key)])
        wait_for("a leader with its replicas", lambda: self.ready() is not None, 40)
        wait_for("copies", self.copying, 20)

    def host(self, n):
        return self.net.address[n]

    def start_on(self, host, name, words):
        self.processes[name] = subprocess.Popen(self.net.words(host) + words, stdout=subprocess.DEVNULL, stderr=self.log,
                                                stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def end(self):
        super().end()
        self.net.end()


@pytest.fixture(scope="module")
def want():
    """Tokens of the mock engine depend on the prompt alone: a fast one tells them sooner."""
    c = Cluster("--engine", "mock", "--mock-step-us", "300", replicas=2)
    port = int(c.url.rsplit(":", 1)[1])
    one = type("One", (), {"names": "x", "http": {"x": port}, "host": lambda self, n: "127.0.0.1"})()
    streams = [Stream(one, body_of(i, TOKENS)) for i in range(STREAMS)]
    run(streams)
    c.stop()
    assert not [s.error for s in streams if s.error]
    return streams


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if os.geteuid():
        pytest.skip("only root may make network namespaces")
    if not os.access("/usr/bin/etcd", os.X_OK):
        pytest.skip("etcd-server is not installed")
    h = Hosts(tmp_path_factory.mktemp("hosts"))
    yield h
    h.end()


def run(streams, during=lambda: None):
    threads = [threading.Thread(target=s.run) for s in streams]
    for t in threads:
        t.start()
    during()
    for t in threads:
        t.join(150)


def cut_off(hosts, cut, until):
    """Streams of clients of all three while `cut(leader)` holds."""
    leader = hosts.ready()

    def during():
        time.sleep(1)
        cut(leader)
        wait_for("what must become of it", lambda: until(leader), 40)
        time.sleep(1)
        hosts.net.heal()

    streams = [Stream(hosts, body_of(i, TOKENS), hosts.names[i % 3]) for i in range(STREAMS)]
    run(streams, during)
    wait_for("all follow one", lambda: hosts.ready() and hosts.copying(), 40)
    return streams


def another_leads(hosts):
    return lambda leader: hosts.ready() not in (None, leader) and not hosts.get(leader, "/readyz")[1].get("leads", True)


def test_leader_without_etcd(hosts, want):
    """It may not know who leads: it gives way once its lease is over, and before anything comes of two leaders."""
    got = cut_off(hosts, lambda leader: hosts.net.cut(leader, "etcd"), another_leads(hosts))
    judge(want, got, "leader cut off from etcd")


def test_leader_without_nodes(hosts, want):
    """Its nodes knock at the others, and it resigns."""
    got = cut_off(hosts, lambda leader: [hosts.net.cut(leader, n) for n in ("n0", "n1")], another_leads(hosts))
    judge(want, got, "leader cut off from its nodes")


def test_leader_without_a_follower(hosts, want):
    """Clients wait for the follower no longer than a heartbeat's time-out; those of the follower are sent elsewhere."""
    def lost(leader):
        table = tool(hosts, leader, "coordinators").stdout
        return table.count("follower") == 1 and hosts.get(hosts.another(leader), "/readyz")[0] == 503

    got = cut_off(hosts, lambda leader: hosts.net.cut(leader, hosts.another(leader)), lost)
    judge(want, got, "leader cut off from a follower")
