"""The number of replicas follows the load: nodes are started, and stopped once they are drained; and the hook."""

import threading

import pytest
from cluster import wait_for

CONFIG = """
elastic:
  up: [{wait_ms: 200, add: 1}]
  up_window_ms: 0
  down_window_ms: 2000
  hold_ms: 1000
"""


def ready(cluster):
    return [r for r in cluster.list("replicas") if r["state"] == "ready"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "coordinator.yaml"
    path.write_text(CONFIG)
    return path


def test_load_rises_and_falls(start, config):
    cluster = start("--config", str(config), elastic="1..3", engine="mock", mock_step_us=4000, max_seqs=4)
    assert len(cluster.list("replicas")) == 1
    lost, stop = [], threading.Event()

    def ask(i):
        k = 0
        while not stop.is_set():
            k += 1
            try:
                reply = cluster.json("/v1/completions", {"model": cluster.model(), "prompt": f"{i} {k}", "max_tokens": 150})
                if reply["usage"]["completion_tokens"] < 1:
                    lost.append(reply)
            except Exception as e:
                lost.append(repr(e))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    wait_for("replicas are added", lambda: len(ready(cluster)) == 3, 60)
    pids = {n["pid"] for n in cluster.list("nodes") if n["state"] != "lost"}
    assert len(pids) == 3
    long = threading.Thread(target=lambda: lost.extend(
        [] if cluster.json("/v1/completions", {"model": cluster.model(), "prompt": "long", "max_tokens": 900}) else ["long"]))
    stop.set()
    long.start()  # it is there when the others have gone: a drain may take it along
    for t in threads:
        t.join(60)
    wait_for("one is left", lambda: len(cluster.list("replicas")) == 1 and len(ready(cluster)) == 1, 60)
    long.join(60)
    wait_for("its process too", lambda: len([n for n in cluster.list("nodes") if n["state"] != "lost"]) == 1, 30)
    assert not lost, lost[:3]
    metrics = cluster.open("/metrics").read().decode()
    assert "hadal_nodes_wanted 1\n" in metrics and "hadal_pool_replicas_wanted" in metrics
    assert cluster.stop() == 0


def test_hook(start, tmp_path):
    told, hook = tmp_path / "told", tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho \"$@\" >>{told}\nif [ \"$2\" = 3 ]; then sleep 60; fi\n")
    hook.chmod(0o755)
    config = tmp_path / "c.yaml"
    config.write_text(f"elastic: {{hook: ['{hook}', 'first'], hook_timeout_ms: 300}}\n")
    cluster = start("--config", str(config), replicas=2, engine="mock")
    model = cluster.model()

    def lines():
        return told.read_text().splitlines() if told.exists() else []

    cluster.tool("ctl", "scale", model, "3")  # the hook hangs, and is ended; nothing waits for it
    wait_for("it is called for more", lambda: any(l.startswith("first 3 2") for l in lines()))
    cluster.ask("still there?", max_tokens=5)
    wait_for("it is ended", lambda: "took too long" in cluster.log_tail(200), 30)
    cluster.tool("ctl", "scale", model, "1")
    wait_for("it is told of the free node", lambda: any(l.startswith("first 1 2 ") and len(l.split()) == 4 for l in lines()), 30)
    assert cluster.stop() == 0
