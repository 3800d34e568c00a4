"""Versions of a model side by side: rolled out under load, taken back when bad, switched back, scaled."""

import os
import shutil
import signal
import struct
import threading

import pytest
from cluster import SAMPLE, wait_for

WEIGHTS = "model-00001-of-00003.safetensors"
QUESTIONS = ["What is 4827 + 391?", "What is 12 + 7?", "What is 905 + 86?", "What is 3 + 4444?"]


def version(tmp_path, name, bits=0, broken=False):
    """Other weights of the same shapes: low bits make another good model, high ones a bad one."""
    folder = tmp_path / name
    shutil.copytree(SAMPLE, folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    for i in range(begin, len(data), 2):
        data[i] ^= bits
    (folder / WEIGHTS).write_bytes(data[:1000] if broken else data)
    return str(folder)


def answer(cluster, question):
    """Sampled from a seed: the same every time, and another one when a logit is a little different."""
    return cluster.ask(question, temperature=1, seed=7)[:3]


def answers(cluster):
    return {q: answer(cluster, q) for q in QUESTIONS}


def wanted(cluster):
    try:
        return cluster.json("/hadal/v1/versions")["versions"][0]["replicas"]
    except OSError:
        return None


def rollout(cluster):
    return cluster.json("/hadal/v1/rollout")


class Streams:
    """16 clients that ask one question after the other, and keep what they were answered."""

    def __init__(self, cluster, n=16):
        self.cluster, self.got, self.failed, self.stop = cluster, [], [], threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(n)]
        for t in self.threads:
            t.start()

    def run(self, i):
        k = i
        while not self.stop.is_set():
            question = QUESTIONS[k % len(QUESTIONS)]
            k += 1
            try:
                self.got.append((question, answer(self.cluster, question)))
            except Exception as e:  # whatever it is, a client lost its answer
                self.failed.append(f"{question}: {e!r}")

    def end(self):
        self.stop.set()
        for t in self.threads:
            t.join(120)
            assert not t.is_alive()
        assert not self.failed, self.failed[:5]
        return self.got


def test_under_streams(start, tmp_path):
    """A good version, with a node killed on the way; no process is started anew by the rollout itself; then back."""
    cluster = start(replicas=2, stages=1)
    old = answers(cluster)
    folder = version(tmp_path, "two", bits=0x18)
    streams = Streams(cluster)
    cluster.tool("ctl", "rollout", "start", "--to", folder, "--steps", "30,100", "--dwell", "0.5", "--min-agree", "0",
                 "--max-ttft", "0", "--max-tpot", "0")
    wait_for("both serve", lambda: rollout(cluster)["percent"] > 0, 60)
    name = next(r for r in cluster.list("replicas") if r["state"] == "ready")["nodes"][0]
    os.kill(cluster.node(name)["pid"], signal.SIGKILL)
    wait_for("it is done", lambda: rollout(cluster)["state"] == "idle", 120)
    got = streams.end()
    assert rollout(cluster)["why"] == "done", rollout(cluster)
    pids = {n["pid"] for n in cluster.list("nodes")}
    new = answers(cluster)
    assert new != old
    mixed = [(q, a) for q, a in got if a not in (old[q], new[q])]
    assert not mixed, mixed[:2]
    assert any(a == new[q] for q, a in got) and any(a == old[q] for q, a in got)
    cluster.tool("ctl", "rollout", "switch", cluster.model(), "1")
    wait_for("the old one is back", lambda: rollout(cluster)["state"] == "idle", 60)
    assert answers(cluster) == old
    assert {n["pid"] for n in cluster.list("nodes")} == pids
    assert "done" in cluster.tool("ctl", "rollout").stdout
    assert cluster.stop() == 0


@pytest.mark.parametrize("bad", ["wrong", "broken"])
def test_bad_one_goes_back(start, tmp_path, bad):
    cluster = start(replicas=2, stages=1)
    old = answers(cluster)
    folder = version(tmp_path, bad, bits=0x40 if bad == "wrong" else 0, broken=bad == "broken")
    streams = Streams(cluster, 4)
    cluster.tool("ctl", "rollout", "start", "--to", folder, "--canary", "1%", "--dwell", "60")
    wait_for("it is taken back", lambda: rollout(cluster)["state"] == "idle", 90)
    got = streams.end()
    why = rollout(cluster)["why"]
    assert ("golden answer" if bad == "wrong" else "could not be formed") in why, why
    lost = [(q, a) for q, a in got if a != old[q]]
    assert not lost or bad == "wrong", lost[:2]
    cluster.whole()
    assert answers(cluster) == old
    assert all(r["state"] == "ready" for r in cluster.list("replicas"))
    assert cluster.stop() == 0


def test_what_makes_no_sense_is_refused(start, tmp_path):
    config = tmp_path / "coordinator.yaml"
    config.write_text(f"state: {tmp_path}/state\n")
    cluster = start("--config", str(config), replicas=1, engine="mock")
    model = cluster.model()
    other = tmp_path / "other"
    shutil.copytree(SAMPLE, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    for args, text in ((["start", "--to", str(tmp_path / "none")], "no tokenizer.json"),
                       (["start", "--to", str(other)], "another tokenizer"),
                       (["start", "--to", SAMPLE], "serves"), (["start", "nobody", "--to", SAMPLE], "no such model"),
                       (["start", "--to", SAMPLE, "--steps", "50,5"], "steps"), (["pause"], "idle"),
                       (["switch", model, "7"], "no such version")):
        r = cluster.tool("ctl", "rollout", *args, check=False)
        assert r.returncode and text in r.stderr, (args, r)
    assert cluster.tool("ctl", "scale", model, "0", check=False).returncode == 2
    cluster.tool("ctl", "scale", model, "3")
    os.kill(cluster.coordinator_pid(), signal.SIGKILL)  # what it was told is kept in a file
    wait_for("another one knows", lambda: wanted(cluster) == 3)
    cluster.tool("ctl", "scale", model, "1")
    wait_for("one is left", lambda: len(cluster.list("replicas")) == 1)
    assert cluster.stop() == 0
