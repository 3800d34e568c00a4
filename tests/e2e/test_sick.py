"""Nodes that are up and sick: wrong answers, five times slower, stuck. Each is taken out and named, and what
they served goes on elsewhere."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from cluster import HADAL, wait_for
from test_http_waiting import Lonely


class Ward(Lonely):
    """A coordinator and three replicas of one node each; a file per node says what is wrong with it."""

    def __init__(self, folder, *node_args, nodes=3, replicas=3, **keys):
        super().__init__(folder, replicas=replicas, probe_interval_ms=500, probe_timeout_ms=1500, quarantine_ms=60000,
                         slow_ms=1000, **keys)
        self.folder, self.nodes = Path(folder), []
        for i in range(1, nodes + 1):
            self.nodes.append(subprocess.Popen(
                [HADAL, "node", "--name", str(i), "--coordinator", self.rpc, "--fault-file", str(self.folder / f"f{i}"),
                 *node_args], stderr=self.log, stdin=subprocess.DEVNULL))
        wait_for("the replicas", lambda: self.json("/hadal/v1/status")["replicas_ready"] == replicas, 40)

    def ail(self, node, word):
        (self.folder / f"f{node}").write_text(word)
        return time.monotonic()

    def end(self):
        for p in [*self.nodes, self.process]:
            p.kill()
            p.wait()


@pytest.fixture
def ward(tmp_path):
    started = []

    def begin(*args, **keys):
        started.append(Ward(tmp_path, *args, **keys))
        return started[-1]

    yield begin
    for w in started:
        w.end()


MOCK = ("--engine", "mock", "--mock-step-us", "5000")
MODEL = ("--threads", "1", "--max-seqs", "8")


@pytest.mark.parametrize("engine", [MOCK, MODEL], ids=["mock", "model"])
def test_wrong_answers(ward, engine):
    w = ward(*engine)
    begin = w.ail(2, "wrong")
    node = wait_for("the ejection", lambda: (n := w.node("2"))["state"] == "ejected" and n, 20)
    took = time.monotonic() - begin
    assert "golden probe wrongly" in node["fault"] and node["quarantine_ms"] > 50000, node
    assert took < 8, took
    assert w.json("/hadal/v1/status")["replicas_ready"] == 2
    w.ail(2, "fine")
    w.tool("ctl", "undrain", "2")
    wait_for("it back", lambda: w.json("/hadal/v1/status")["replicas_ready"] == 3, 20)
    print(f"wrong answers: ejected after {took:.2f} s")


def test_slow(ward):
    w = ward(*MOCK)
    load = subprocess.Popen([HADAL, "load", "--url", w.url, "--concurrency", "12", "--duration", "12", "--max-tokens", "100", "--quiet", "--json",
                             "-", "--verify"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    begin = w.ail(3, "slow")
    node = wait_for("the ejection", lambda: (n := w.node("3"))["state"] == "ejected" and n, 20)
    took = time.monotonic() - begin
    assert "slow" in node["fault"], node
    load.communicate(timeout=60)
    print(f"slow: ejected after {took:.2f} s")


def test_stuck(ward):
    w = ward(*MOCK)
    begin = w.ail(1, "hang")
    node = wait_for("the fence", lambda: (n := w.node("1"))["state"] in ("suspect", "ejected") and n, 20)
    took = time.monotonic() - begin
    assert node["faults"] >= 1, node
    assert "answer" in node["fault"] or "hangs" in node["fault"], node
    wait_for("two replicas", lambda: w.json("/hadal/v1/status")["replicas_ready"] == 2, 5)
    assert w.ask("hello", max_tokens=5)[3] == 5
    print(f"stuck: taken out after {took:.2f} s")


@pytest.mark.parametrize("rank", [0, 1])
def test_stuck_in_a_collective(ward, rank):
    """The others of its stage wait for the one that stands: it is named, not they."""
    w = ward(*MODEL, replicas=1, tensor=2, nodes=2)
    name = w.json("/hadal/v1/replicas")["replicas"][0]["nodes"][rank]
    load = subprocess.Popen([HADAL, "load", "--url", w.url, "--concurrency", "4", "--requests", "8", "--max-tokens", "100", "--quiet", "--json",
                             "-", "--verify"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_for("streams", lambda: w.json("/hadal/v1/status")["running"] == 4, 20)
    begin = w.ail(name, "hang")
    node = wait_for("the fence", lambda: (n := w.node(name))["faults"] and n, 20)
    took = time.monotonic() - begin
    assert f"hangs: it is stuck in a step (stage 0, tensor {rank};" in node["fault"], node
    other = w.node(next(n for n in "12" if n != name))
    assert other["faults"] == 0, other
    w.ail(name, "fine")
    report = json.loads(load.communicate(timeout=90)[0])
    assert report["streams"]["verified"] == 8, report["streams"]
    print(f"stuck in a collective, tensor rank {rank}: named after {took:.2f} s")
