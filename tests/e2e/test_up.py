"""hadal up: comes up, keeps its processes running, leaves nothing behind; says clearly what is wrong."""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from cluster import HADAL, SAMPLE, alive, wait_for

MOCK = {"engine": "mock", "mock_step_us": 2000}


def test_stops_in_order_and_leaves_nothing(start):
    for sig in (signal.SIGINT, signal.SIGTERM):
        cluster = start(replicas=1, stages=2, **MOCK)
        assert len(cluster.pids()) == 4
        assert cluster.stop(sig) == 0, cluster.log_tail()


def test_stops_with_a_hung_node_and_open_streams(start):
    cluster = start(replicas=1, stages=1, engine="mock", mock_step_us=20000)
    load = subprocess.Popen([HADAL, "load", "--url", cluster.url, "--quiet", "--requests", "8"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("streams run", lambda: cluster.list("replicas")[0]["running"] > 0)
        os.kill(cluster.node("1")["pid"], signal.SIGSTOP)
        begin = time.monotonic()
        assert cluster.stop() == 0
        assert time.monotonic() - begin < 6
        assert load.wait(30) == 1, "its streams were cut, and it says so"
    finally:
        load.kill()
        load.wait()


def test_nothing_outlives_a_killed_up(start):
    cluster = start(replicas=2, stages=2, **MOCK)
    pids = cluster.pids()
    assert len(pids) == 6
    cluster.process.kill()
    cluster.process.wait(5)
    wait_for("all are gone", lambda: not any(alive(p) for p in pids), 5)


def test_a_dead_coordinator_is_started_again(start):
    cluster = start(replicas=1, stages=2, **MOCK)
    before = cluster.ask("Who are you?", max_tokens=20)
    old = cluster.coordinator_pid()
    os.kill(old, signal.SIGKILL)

    def back():
        try:
            return cluster.coordinator_pid() != old and cluster.open("/readyz", timeout=2).status == 200
        except (OSError, AssertionError):
            return False

    wait_for("it serves again", back, 20)
    assert cluster.ask("Who are you?", max_tokens=20) == before
    assert cluster.stop() == 0


def test_two_clusters_side_by_side(start):
    one, two = start(**MOCK), start(**MOCK)
    assert one.url != two.url
    assert one.ask("a", max_tokens=5) == two.ask("a", max_tokens=5)
    assert one.stop() == 0 and two.stop() == 0


def fails(*args, limit_s=30):
    """Standard error of a `hadal up` that cannot start."""
    r = subprocess.run([HADAL, "up", *args], capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    assert r.returncode in (1, 2) and r.stdout == "", r
    return r.stderr


def test_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        assert "in use" in fails("--http", port) and port in fails("--http", port)


@pytest.mark.parametrize("args, words", [
    (["--replicas", "0"], "--replicas 0"),
    (["--stages", "x"], "--stages wants a number"),
    (["--engine", "gpu"], "model|mock"),
    (["--nonsense"], "no option '--nonsense'"),
    (["surplus"], "unexpected argument"),
    (["--model", "/nonexistent"], "/nonexistent"),
    (["--replicas", "512", "--stages", "64"], "nodes"),
    (["--log", "/dev/null/x"], "/dev/null/x"),
])
def test_bad_command_lines(args, words):
    assert words in fails(*args)


def damaged(tmp_path, name, change):
    model = tmp_path / "model"
    shutil.copytree(SAMPLE, model)
    path = model / name
    data = path.read_bytes()
    path.unlink()
    if change(data) is not None:
        path.write_bytes(change(data))
    return str(model)


@pytest.mark.parametrize("name, change", [
    ("config.json", lambda d: d[: len(d) // 2]),
    ("config.json", lambda d: d.replace(b"DeepseekV3ForCausalLM", b"UnheardOfForCausalLM")),
    ("tokenizer.json", lambda d: d[:1000]),
    ("tokenizer.json", lambda d: None),
    ("model-00002-of-00003.safetensors", lambda d: d[:-1000]),
    ("model-00001-of-00003.safetensors", lambda d: None),
])
def test_damaged_models_are_refused_by_name(tmp_path, name, change):
    model = damaged(tmp_path, name, change)
    begin = time.monotonic()
    error = fails("--http", "0", "--model", model)
    assert time.monotonic() - begin < 10, error
    assert name.split(".")[0] in error or "UnheardOf" in error, error


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json",
                                  "model-00001-of-00003.safetensors"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused_by_name(tmp_path, name, make):
    model = tmp_path / "model"
    shutil.copytree(SAMPLE, model)
    (model / name).unlink()
    make(model / name)
    error = fails("--http", "0", "--model", str(model), "--ready-timeout", "10")
    assert name in error and "not ready after" not in error, error


@pytest.mark.parametrize("command", ["up", "coordinator", "node", "chat", "ctl", "load", "tokenize", "logits", "eval",
                                     "bench"])
def test_help_everywhere(command):
    r = subprocess.run([HADAL, command, "--help"], capture_output=True, text=True, timeout=10)
    assert r.returncode == 0 and r.stdout.startswith("usage: hadal " + command) and r.stderr == ""


def test_unknown_command():
    r = subprocess.run([HADAL, "nonsense"], capture_output=True, text=True, timeout=10)
    assert r.returncode == 2 and "nonsense" in r.stderr
