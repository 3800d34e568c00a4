"""hadal bench xport between two processes that know of each other only an address, as between hosts."""

import json
import subprocess

import pytest

from cluster import HADAL


def connect(address):
    return subprocess.run([HADAL, "bench", "xport", "--connect", address, "--json"], capture_output=True, text=True, timeout=90)


@pytest.fixture(params=["shm", "tcp"])
def listener(request):
    p = subprocess.Popen([HADAL, "bench", "xport", "--listen", "--kind", request.param], stdout=subprocess.PIPE, text=True)
    yield request.param, p
    p.terminate()
    assert p.wait(10) == 0


def test_measures_against_a_listener(listener):
    kind, p = listener
    address = p.stdout.readline().strip()
    assert address.startswith(kind + ":")
    r = connect(address)
    assert r.returncode == 0, r
    figures = [json.loads(line) for line in r.stdout.splitlines()]
    assert [f["metric"] for f in figures] == ["bandwidth"] * 3 + ["round_trip"] * 3
    assert all(f["value"] > 0 and kind in f["case"] for f in figures)
    wrong = connect(address[:-1] + ("0" if address[-1] != "0" else "1"))  # a token that was not given out
    assert wrong.returncode == 1 and "refused" in wrong.stderr


def test_nobody_there_and_bad_arguments():
    assert connect("tcp:127.0.0.1:1#0000000000000001").returncode == 1
    assert connect("nonsense").returncode == 2
    assert subprocess.run([HADAL, "bench", "xport", "--listen"], capture_output=True, timeout=20).returncode == 2
