"""Two datacenters: requests go to the other one when the wait here is longer than its distance; a stream of one is read
at the other; when one is lost, its streams go on in the other; when both come together again each is served once.
The mock engine's tokens depend on the prompt alone: what is the same text was lost nowhere."""

import os
import subprocess
import threading
import time

import pytest
from cluster import HADAL, SAMPLE, Cluster, die_with_parent, free_port, wait_for
from namespaces import Network
from test_coordinators import Pair, Stream, body_of, judge

TOKENS, LONG = 500, 1300


class Datacenters(Pair):
    """Coordinators e (east) and w (west), of one datacenter each, with nodes."""

    def __init__(self, folder, net=None, seqs=32, distance=40):
        self.folder, self.processes, self.names, self.net = folder, {}, "ew", net
        self.log = open(folder / "log", "w")
        self.key = folder / "key"
        self.key.write_text("dGhlIGtleSBvZiB0aGUgY2x1c3RlciBvZiB0aGUgdGVzdHM=\n")
        self.key.chmod(0o600)
        ports = {n: (8000, 7070) if net else (free_port(), free_port()) for n in "ew"}
        self.http, self.rpc = {n: ports[n][0] for n in "ew"}, {n: ports[n][1] for n in "ew"}
        known = ", ".join(f"{{name: {long}, rpc: '{self.host(n)}:{self.rpc[n]}', distance_ms: {distance}}}"
                          for n, long in (("e", "east"), ("w", "west")))
        for n, long in (("e", "east"), ("w", "west")):
            keys = {"http": f'"{self.host(n)}:{self.http[n]}"', "rpc": f'"{self.host(n)}:{self.rpc[n]}"', "model": SAMPLE,
                    "replicas": 1, "name": n, "cluster_key": self.key, "datacenter": long, "datacenters": f"[{known}]", "grace_ms": 30000}
            (folder / f"{n}.yaml").write_text("".join(f"{k}: {v}\n" for k, v in keys.items()))
            self.run_on(n, n, [HADAL, "coordinator", "--config", str(folder / f"{n}.yaml")])
            self.run_on(n, f"node-{n}", [HADAL, "node", "--name", f"n{n}", "--coordinator", f"{self.host(n)}:{self.rpc[n]}",
                                         "--engine", "mock", "--mock-step-us", "12000", "--threads", "1",
                                         "--cluster-key", str(self.key), "--max-seqs", str(seqs if n == "e" else 32)])
        wait_for("both serve and know each other", lambda: all(self.knows(n) for n in "ew"), 40)

    def host(self, n):
        return self.net.address[n] if self.net else "127.0.0.1"

    def run_on(self, host, name, words):
        before = self.net.words(host) if self.net else []
        self.processes[name] = subprocess.Popen(before + words, stdout=subprocess.DEVNULL, stderr=self.log,
                                                stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def other(self, n):
        """What `n` knows of the other datacenter."""
        known = self.get(n, "/hadal/v1/coordinators")[1].get("datacenters", [{}])
        return known[0] if known else {}

    def knows(self, n):
        return self.get(n, "/readyz")[0] == 200 and self.other(n).get("reachable") and self.other(n)["replicas_ready"] == 1

    def unfinished(self, n):
        return [r["id"] for r in self.get(n, "/hadal/v1/requests")[1]["requests"] if not r.get("finish")]


@pytest.fixture(scope="module")
def want():
    c = Cluster("--engine", "mock", "--mock-step-us", "300")
    one = type("One", (), {"names": "x", "http": {"x": int(c.url.rsplit(":", 1)[1])}, "host": lambda self, n: "127.0.0.1"})()
    streams = [Stream(one, body_of(i, TOKENS)) for i in range(8)] + [Stream(one, body_of(8, LONG))]
    run(streams)
    c.stop()
    assert not [s.error for s in streams if s.error]
    return streams


def run(streams, during=lambda: None):
    threads = [threading.Thread(target=s.run) for s in streams]
    for t in threads:
        t.start()
    during()
    for t in threads:
        t.join(120)


def test_spills_over_and_outlives_a_datacenter(tmp_path, want):
    """East has two places: the others of eight streams go west. Then east dies with all it has."""
    d = Datacenters(tmp_path, seqs=2, distance=1)
    try:
        def during():
            time.sleep(1.5)
            passed = d.other("e")
            assert 1 <= passed["passed_on"] <= 6, passed
            for name in ("e", "node-e"):
                d.kill(name)
            wait_for("east is lost", lambda: d.other("w").get("lost"), 20)

        got = [Stream(d, body_of(i, TOKENS), "e") for i in range(8)]
        run(got, during)
        judge(want[:8], got, "datacenter lost")
        assert sum(s.attaches for s in got) >= 8
        d.run_on("e", "e", [HADAL, "coordinator", "--config", str(tmp_path / "e.yaml")])  # it comes back, empty
        wait_for("they know each other", lambda: d.other("w").get("reachable") and d.other("e").get("reachable"), 30)
    finally:
        d.end()


def test_read_at_the_other(tmp_path, want):
    d = Datacenters(tmp_path)
    try:
        first = Stream(d, body_of(0, TOKENS), "e")
        second = Stream(d, body_of(0, TOKENS), "w")

        def during():
            wait_for("it has begun", lambda: first.last and first.last > 20)
            wait_for("it is copied", lambda: d.other("w")["copied"] == 1)
            second.id, second.last = first.id, 0
            second.run()

        run([first], during)
        assert not first.error and not second.error
        assert first.text == second.text == want[0].text and not second.attaches > 1
    finally:
        d.end()


def test_split_brain_ends(tmp_path, want):
    """The two are cut off from each other; the client of a stream of east goes on at west. Afterwards west has it, alone,
    and whoever reads it at east gets west's tokens."""
    if os.geteuid():
        pytest.skip("only root may make network namespaces")
    net = Network(["e", "w"])
    d = None
    try:
        d = Datacenters(tmp_path, net)
        moved, stays = Dropping(d, body_of(8, LONG), "e"), Stream(d, body_of(8, LONG), "e")

        def during():
            wait_for("it has begun", lambda: moved.last and moved.last > 20)
            wait_for("it is copied", lambda: d.other("w")["copied"] == 1)
            stays.id, stays.last = moved.id, 0
            stays.names = "ee"  # east is all that it can reach
            threading.Thread(target=stays.run).start()
            net.cut("e", "w")
            moved.names = "ww"
            d.http["e"], port = 1, d.http["e"]  # and west is all that the other one can
            moved.pair = type("West", (), {"http": dict(d.http), "host": d.host})()
            d.http["e"] = port
            moved.drop()
            wait_for("it goes on at west", lambda: moved.id and d.unfinished("w"), 30)
            net.heal()

        run([moved], during)
        wait_for("the other reader ends", lambda: stays.ended, 60)
        judge([want[8], want[8]], [moved, stays], "split brain")
        assert "goes on in datacenter west only" in (tmp_path / "log").read_text()
        assert not d.unfinished("e") and not d.unfinished("w")
    finally:
        if d:
            d.end()
        net.end()


class Dropping(Stream):
    """Its connection can be made to break."""
    dropped = False

    def drop(self):
        self.dropped = True

    def lines(self, n):
        for line in super().lines(n):
            if self.dropped:
                self.dropped = False
                raise ConnectionError("dropped")
            yield line
