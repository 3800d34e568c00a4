"""A node is drained under load: its work is handed over, nothing is lost, it is idle at once."""

import json
import time

from cluster import assert_nothing_lost, wait_for


def drain_under_streams(cluster, node):
    cluster.whole()
    report = cluster.load("--concurrency", "16", "--requests", "0", "--duration", "3", "--max-tokens", "120",
                          "--fault", f"at 0.7s drain node {node}", "--fault", f"at 1.8s undrain node {node}")
    assert_nothing_lost(report, cluster)
    assert [f["error"] for f in report["faults"]] == ["", ""], report["faults"]
    return report


def test_drain_under_streams_mock(mock22):
    report = drain_under_streams(mock22, "1")
    # Steps take 3 ms: the hand-over is two or three of them, not a wait for whole answers.
    assert report["faults"][0]["gap_ms"]["max"] < 1000, report["faults"]
    mock22.whole()


def test_drain_under_streams_sample(sample22):
    drain_under_streams(sample22, "3")
    sample22.whole()


def test_drained_node_is_idle_until_undrain(mock22):
    mock22.whole()
    start = time.monotonic()
    reply = json.loads(mock22.tool("ctl", "drain", "2", "--json").stdout)
    assert time.monotonic() - start < 3, reply
    assert mock22.node("2")["state"] == "drained"
    assert_nothing_lost(mock22.load("--concurrency", "4", "--requests", "8", "--max-tokens", "30"), mock22)
    assert mock22.node("2")["state"] == "drained"
    mock22.tool("ctl", "undrain", "2")
    wait_for("node 2 serves again", lambda: mock22.node("2")["state"] == "in-replica")


def test_eject_and_back(mock22):
    mock22.whole()
    mock22.tool("ctl", "eject", "3")
    assert mock22.node("3")["state"] == "ejected"
    assert_nothing_lost(mock22.load("--concurrency", "4", "--requests", "8", "--max-tokens", "30"), mock22)
    mock22.tool("ctl", "undrain", "3")
    mock22.whole()


def test_orders_to_nobody_fail(mock22):
    for order in (["drain", "nobody"], ["failover", "99"], ["undrain", "a/b"]):
        r = mock22.tool("ctl", *order, check=False)
        assert r.returncode == 1 and r.stderr.startswith("hadal ctl: "), (order, r)
        assert len(r.stderr.splitlines()) == 1
