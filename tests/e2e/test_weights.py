"""Nodes whose model folder is missing, or not to be used, take the weights from running nodes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cluster import HADAL, SAMPLE, die_with_parent, free_port, wait_for

QUESTION = "What is 4827 + 391?"
SLOW_MIB = 10  # the sample model has 27 MiB of weights: there is time to do something in the middle


class Nodes:
    """A coordinator, and nodes that are started one by one."""

    def __init__(self, folder, replicas, stages=1):
        self.folder, self.processes, self.log = Path(folder), {}, open(Path(folder) / "log", "w")
        self.http, self.rpc = free_port(), free_port()
        keys = {"http": f'"127.0.0.1:{self.http}"', "rpc": f'"127.0.0.1:{self.rpc}"', "model": SAMPLE,
                "replicas": replicas, "stages": stages}
        (self.folder / "c.yaml").write_text("".join(f"{k}: {v}\n" for k, v in keys.items()))
        (self.folder / "empty").mkdir()
        self.start("coordinator", "coordinator", "--config", str(self.folder / "c.yaml"))

    def start(self, name, *words):
        self.processes[name] = subprocess.Popen([HADAL, *words], stdout=subprocess.DEVNULL, stderr=self.log,
                                                stdin=subprocess.DEVNULL, preexec_fn=die_with_parent,
                                                env={**os.environ, "HADAL_LOG": "info"})

    def node(self, name, *words):
        self.start(name, "node", "--name", name, "--coordinator", f"127.0.0.1:{self.rpc}", "--threads", "1", *words)

    def bare(self, name, *words):
        """A node that has no model folder."""
        self.node(name, "--models-dir", str(self.folder / "empty"), *words)

    def get(self, path, body=None):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}",
                                         None if body is None else json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=30) as r:
                return json.loads(r.read())
        except (OSError, ValueError):
            return {}

    def ready(self):
        return sum(r["state"] == "ready" for r in self.get("/hadal/v1/replicas").get("replicas", []))

    def wait_ready(self, n):
        wait_for(f"{n} replicas\n", lambda: self.ready() == n, 60)

    def of(self, name):
        return next(n for n in self.get("/hadal/v1/nodes")["nodes"] if n["name"] == name)

    def ask(self):
        reply = self.get("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION}],
                                                  "model": self.get("/v1/models")["data"][0]["id"],
                                                  "temperature": 0, "max_tokens": 60})
        return reply["choices"][0]["message"]

    def text(self):
        return (self.folder / "log").read_text(errors="replace")

    def kill(self, name, sig=signal.SIGKILL):
        self.processes[name].send_signal(sig)

    def close(self):
        for p in self.processes.values():
            if p.poll() is None:
                p.kill()
        for p in self.processes.values():
            p.wait(15)
        self.log.close()


@pytest.fixture
def nodes(tmp_path):
    begun = []

    def begin(*args, **options):
        begun.append(Nodes(tmp_path, *args, **options))
        return begun[-1]

    yield begin
    for n in begun:
        n.close()


def only(cluster, name):
    """Serves with this node alone."""
    for other in cluster.get("/hadal/v1/nodes")["nodes"]:
        if other["name"] != name and other["state"] == "in-replica":
            cluster.kill(other["name"])
    wait_for("it serves alone", lambda: cluster.ready() == 1, 30)
    return cluster.ask()


def test_without_a_folder(nodes):
    """Another layout at the source: it has the whole folder, the others are stages of one replica each."""
    cluster = nodes(2, stages=2)
    cluster.node("a")
    cluster.node("b")
    cluster.wait_ready(1)
    before = cluster.ask()
    cluster.bare("c")
    cluster.bare("d")
    cluster.wait_ready(2)
    for name in "cd":
        figures = cluster.of(name)
        assert figures["weights_peer_bytes"] > 1 << 20 and figures["weights_disk_bytes"] == 0, figures
        assert not figures["weights_given"]
    assert cluster.of("a")["weights_given"]
    for name in "ab":
        cluster.kill(name)
    wait_for("the others serve", lambda: cluster.ready() == 1, 30)
    assert cluster.ask() == before
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    metrics = opener.open(f"http://127.0.0.1:{cluster.http}/metrics", timeout=10).read().decode()
    assert re.search(r'hadal_node_weights_peer_bytes\{node="c"\} [1-9]', metrics), metrics


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_a_source_is_lost_in_the_middle(nodes, sig):
    cluster = nodes(3)
    for name in "ab":
        cluster.node(name, "--serve-weights-mib", str(SLOW_MIB))
    cluster.wait_ready(2)
    before = cluster.ask()
    cluster.bare("c")
    wait_for("it pulls from both", lambda: cluster.text().count("pulling weights from node") == 2, 20)
    time.sleep(0.5)  # of more than one that it takes, so that it is in the middle
    cluster.kill("a", sig)
    wait_for("it has all", lambda: cluster.of("c")["weights_peer_bytes"] > 25 << 20, 40)
    cluster.wait_ready(2)
    assert only(cluster, "c") == before
    cluster.kill("a", signal.SIGKILL)


def test_all_sources_are_lost(nodes, tmp_path):
    """Then the disk gives the rest, and says so; without one the replica waits until there is a source again."""
    cluster = nodes(3)
    shutil.copytree(SAMPLE, tmp_path / "own" / Path(SAMPLE).name)
    cluster.node("a", "--serve-weights-mib", str(SLOW_MIB))
    cluster.wait_ready(1)
    before = cluster.ask()
    cluster.bare("bare")
    cluster.node("c", "--weights", "peer", "--models-dir", str(tmp_path / "own"))
    wait_for("both pull", lambda: cluster.text().count("pulling weights from node") == 2, 20)
    time.sleep(0.5)
    cluster.kill("a")
    wait_for("its disk gave the rest", lambda: cluster.of("c")["weights_disk_bytes"] > 0, 30)
    assert "weights: node a is not pulled from any more" in cluster.text()
    # c gives them now, to the one that could not start
    wait_for("the other one", lambda: cluster.of("bare")["weights_peer_bytes"] > 25 << 20, 40)
    cluster.wait_ready(2)
    assert cluster.ask() == before
