"""A cluster whose processes share a key: it works as any other, and who has another key or none is no node, no
follower and no leader. Clients are not asked for it."""

import ctypes
import socket
import subprocess

import pytest
from cluster import HADAL, free_port, wait_for
from test_coordinators import MOCK, SAMPLE, judge, kills, pair, run_streams  # noqa: F401
from test_rpc_client import Error, lib, read, request  # noqa: F401

KEY = "dGhlIGtleSBvZiB0aGUgY2x1c3RlciBvZiB0aGUgdGVzdHM="


def key_file(folder, name, text=KEY):
    path = folder / name
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def cluster(pair, tmp_path):  # noqa: F811
    key = key_file(tmp_path, "key")
    return pair(f"file:{tmp_path}/lock", *MOCK, "--cluster-key", key, cluster_key=key)


def log(cluster):
    return (cluster.folder / "log").read_text()


def test_serves_and_fails_over(cluster, lib):  # noqa: F811
    want = run_streams(cluster, 150)
    assert all(s.text for s in want)
    judge(want, run_streams(cluster, 150, lambda: kills(cluster, 1, 0.4)), "with a key")
    # A client of the RPC has no key, and needs none.
    err = Error()
    c = lib.hadal_open(f"hadal://127.0.0.1:{cluster.rpc[cluster.ready()]}".encode(), None, ctypes.byref(err))
    assert c, err.text
    lib.hadal_close(c)


@pytest.mark.parametrize("key", ["another", "none"])
def test_strangers_do_not_join(cluster, tmp_path, key):
    leader = cluster.ready()
    words = ["--cluster-key", key_file(tmp_path, "other", KEY[::-1])] if key == "another" else []
    cluster.start("stranger", "node", "--name", "stranger", "--coordinator", f"127.0.0.1:{cluster.rpc[leader]}", *MOCK, *words)
    why = "has not our cluster_key" if words else "without the cluster_key"
    wait_for("the coordinator says why", lambda: why in log(cluster), 20)
    names = [n["name"] for n in cluster.get(leader, "/hadal/v1/nodes")[1]["nodes"]]
    assert sorted(names) == ["n0", "n1"]
    # Nor does one that says it is a follower: it would be told every prompt.
    other = "b" if leader == "a" else "a"
    cluster.kill(other)
    yaml = (cluster.folder / f"{other}.yaml").read_text()
    kept = [l for l in yaml.splitlines() if not l.startswith("cluster_key")]
    if words:
        kept.append(f"cluster_key: {words[1]}")
    (cluster.folder / f"{other}.yaml").write_text("\n".join(kept) + "\n")
    came, refused = log(cluster).count(f"follower {other} came"), log(cluster).count(why)
    cluster.begin(other)
    wait_for("it is refused", lambda: log(cluster).count(why) > refused, 20)
    assert log(cluster).count(f"follower {other} came") == came
    assert not [s.error for s in run_streams(cluster, 30) if s.error]


def test_clients_with_a_key_of_their_own(pair, tmp_path, lib):  # noqa: F811
    """Who has it is served, without it nobody is; and it makes nobody a node."""
    mine, cluster_key = key_file(tmp_path, "mine", "k" * 40), key_file(tmp_path, "cluster")
    p, err = pair(f"file:{tmp_path}/lock", *MOCK, "--cluster-key", cluster_key, cluster_key=cluster_key, client_key=mine), Error()
    both = ",".join(f"127.0.0.1:{p.rpc[n]}" for n in p.names)
    options = (ctypes.c_uint32 * 3)(2000, 1500, 0)  # tries for 1.5 s
    q = request("count as far as you can", 30)
    got = []
    for key in (mine, key_file(tmp_path, "wrong", "w" * 40), None):
        url = f"hadal://{both}" + (f"?key_file={key}" if key else "")
        c = ctypes.c_void_p(lib.hadal_open(url.encode(), ctypes.byref(options), ctypes.byref(err)))
        assert c.value, err.text
        s = lib.hadal_generate(c, ctypes.byref(q), ctypes.byref(err))
        try:
            got.append(read(lib, s)[2])
        except AssertionError as e:
            got.append(str(e))
        lib.hadal_close(c)
    assert got[0] == 30 and all(isinstance(g, str) for g in got[1:]), got
    assert "without the client_key" in log(p)
    p.start("stranger", "node", "--name", "stranger", "--coordinator", both, *MOCK, "--cluster-key", mine)
    wait_for("it is told why", lambda: "has not our cluster_key" in log(p), 20)


def test_open_to_others_without_a_key(tmp_path):
    (tmp_path / "c.yaml").write_text(f'model: {SAMPLE}\nhttp: "127.0.0.1:{free_port()}"\nrpc: "0.0.0.0:{free_port()}"\n')
    r = subprocess.run([HADAL, "coordinator", "--config", str(tmp_path / "c.yaml")], capture_output=True, text=True, timeout=20)
    assert r.returncode == 1 and "cluster_key" in r.stderr and "trust_network" in r.stderr, r


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x00\x05hello", b"\x16", b"\x16" * 70000], ids=["record", "byte", "long"])
def test_what_is_no_handshake(cluster, said):
    leader = cluster.ready()
    with socket.create_connection(("127.0.0.1", cluster.rpc[leader]), timeout=20) as s:
        try:
            s.sendall(said)
            s.shutdown(socket.SHUT_WR)
            while s.recv(4096):
                pass
        except OSError:
            pass  # closed with bytes of ours unread
    assert cluster.get(leader, "/readyz")[0] == 200


@pytest.mark.parametrize("text,mode,why", [("short", 0o600, "has 5 characters"), (KEY, 0o644, "chmod 600"), (None, 0, "No such file")])
def test_bad_keys_are_told(tmp_path, text, mode, why):
    path = tmp_path / "key"
    if text:
        path.write_text(text)
        path.chmod(mode)
    (tmp_path / "c.yaml").write_text(f'model: {SAMPLE}\nhttp: "127.0.0.1:{free_port()}"\nrpc: "127.0.0.1:0"\ncluster_key: {path}\n')
    for words in (["coordinator", "--config", str(tmp_path / "c.yaml")], ["node", "--engine", "mock", "--cluster-key", str(path)]):
        r = subprocess.run([HADAL, *words], capture_output=True, text=True, timeout=20)
        assert r.returncode == 1 and why in r.stderr and str(path) in r.stderr, r
