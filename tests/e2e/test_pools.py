"""Several pools in one configuration: models by name and alias, and the fallback of one that has lost its
replicas, announced in header and body."""

import json
import tempfile
import urllib.request

import pytest
from cluster import SAMPLE, Cluster, wait_for

CONFIG = f"""
pools:
  - {{name: full, model: r1, dir: "{SAMPLE}", fallback: r1-distilled}}
  - {{name: small, model: r1-distilled, dir: "{SAMPLE}"}}
aliases:
  - {{name: gpt, model: r1}}
probe_interval_ms: 0
"""


@pytest.fixture(scope="module")
def cluster():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
        f.write(CONFIG)
        f.flush()
        c = Cluster(replicas=2, engine="mock", mock_step_us=2000, config=f.name)
        wait_for("both pools are ready", lambda: all(p["replicas_ready"] for p in status(c)["pools"]))
        yield c
        c.stop()


def get(c, path):
    with urllib.request.urlopen(c.url + path, timeout=20) as r:
        return json.load(r)


def status(c):
    return get(c, "/hadal/v1/status")


def ask(c, model, stream=False):
    """(header, model in the body, text)"""
    body = {"model": model, "prompt": "one two three", "max_tokens": 8, "temperature": 0, "stream": stream}
    r = urllib.request.Request(c.url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(r, timeout=30) as answer:
        header, raw = answer.headers["x-hadal-model"], answer.read().decode()
    if not stream:
        o = json.loads(raw)
        return header, o["model"], o["choices"][0]["text"]
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    models = {e["model"] for e in events}
    assert len(models) == 1
    return header, models.pop(), "".join(e["choices"][0]["text"] for e in events if e["choices"])


def admitted(c):
    return {p["name"]: p["admitted"] for p in status(c)["pools"]}


def test_models_by_name_and_alias(cluster):
    assert [m["id"] for m in get(cluster, "/v1/models")["data"]] == ["r1", "r1-distilled", "gpt"]
    assert get(cluster, "/v1/models/gpt")["id"] == "gpt"
    before = admitted(cluster)
    assert ask(cluster, "r1")[:2] == ("r1", "r1")
    assert ask(cluster, "gpt", stream=True)[:2] == ("r1", "r1")
    assert ask(cluster, "r1-distilled")[:2] == ("r1-distilled", "r1-distilled")
    after = admitted(cluster)
    assert after["full"] - before["full"] == 2 and after["small"] - before["small"] == 1
    with pytest.raises(urllib.error.HTTPError) as e:
        ask(cluster, "r2")
    assert e.value.code == 404


def test_fallback(cluster):
    def node_of(pool):
        return next(r["nodes"][0] for r in get(cluster, "/hadal/v1/replicas")["replicas"] if r["pool"] == pool)

    def order(node, what):
        r = urllib.request.Request(f"{cluster.url}/hadal/v1/nodes/{node}/{what}", b"")
        urllib.request.urlopen(r, timeout=20).read()

    def ready(pool):
        return next(p["replicas_ready"] for p in status(cluster)["pools"] if p["name"] == pool)

    text = ask(cluster, "r1")[2]
    node = node_of("full")
    order(node, "drain")
    wait_for("the pool has no replica", lambda: not ready("full"))
    for stream in (False, True):
        assert ask(cluster, "r1", stream) == ("r1-distilled", "r1-distilled", text)  # the same mock model
    order(node, "undrain")
    wait_for("the pool is back", lambda: ready("full"))
    assert ask(cluster, "r1")[:2] == ("r1", "r1")
