"""Another model is put into the folder of a running cluster: one model at a time, and no rank in the way."""

import os
import shutil
import signal
import struct

import pytest
from cluster import SAMPLE, wait_for

QUESTION = "What is 4827 + 391?"
WEIGHTS = "model-00001-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(SAMPLE, tmp_path / "sample")
    return tmp_path / "sample"


def replace(folder):
    """Other weights of the same shapes, renamed into place as careful people do."""
    data = bytearray((folder / WEIGHTS).read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    for i in range(begin, len(data), 2):
        data[i] ^= 1  # the lowest bit of bfloat16
    (folder / "new").write_bytes(data)
    (folder / "new").rename(folder / WEIGHTS)


def kill_of(cluster, replica):
    name = cluster.list("replicas")[replica]["nodes"][0]
    os.kill(cluster.node(name)["pid"], signal.SIGKILL)


def test_kept_weights_give_way(start, folder):
    """One rank is started anew with the new model, the other one still has the old: it loads again."""
    cluster = start(model=str(folder), replicas=1, stages=2)
    before = cluster.list("replicas")[0]["fingerprint"]
    replace(folder)
    kill_of(cluster, 0)
    wait_for("the new model", lambda: cluster.list("replicas")[0]["state"] == "ready" and
             cluster.list("replicas")[0]["fingerprint"] != before, 20)
    assert cluster.ask(QUESTION, max_tokens=20)[3] > 0
    assert cluster.stop() == 0


def test_weights_stay_while_the_folder_is_broken(start, folder):
    cluster = start(model=str(folder), replicas=1, stages=1)
    before = cluster.ask(QUESTION)
    os.truncate(folder / WEIGHTS, 1000)
    cluster.tool("ctl", "failover", "1")
    cluster.whole()
    assert cluster.ask(QUESTION) == before
    assert cluster.stop() == 0


def test_replicas_of_two_models_do_not_serve_together(start, folder):
    cluster = start(model=str(folder), replicas=2, stages=1)
    before = cluster.ask(QUESTION)
    replace(folder)
    kill_of(cluster, 1)
    wait_for("it is refused", lambda: any("has another model" in r["fault"] for r in cluster.list("replicas")), 20)
    assert [cluster.ask(QUESTION, prompt_cache_key=str(i)) for i in range(4)] == [before] * 4
    assert sum(r["state"] == "ready" for r in cluster.list("replicas")) == 1
    assert cluster.stop() == 0
