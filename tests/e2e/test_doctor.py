"""hadal ctl doctor over copies of sysfs as hosts with RDMA devices have them, sound and sick. A write
through a real verbs device is tested in tests/rdma-vm."""

import json
import subprocess

import pytest

from cluster import HADAL

GID_V4 = "0000:0000:0000:0000:0000:ffff:0a4d:0001"
GID_LINK_LOCAL = "fe80:0000:0000:0000:5054:00ff:fe12:3456"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


class Host:
    """/sys/class of a host with RoCE ports."""

    def __init__(self, root):
        self.root = root
        (root / "class/infiniband").mkdir(parents=True)

    def port(self, device, netdev, mtu=9000):
        d = self.root / "class/infiniband" / device
        p = d / "ports/1"
        put(p / "state", "4: ACTIVE")
        put(p / "phys_state", "5: LinkUp")
        put(p / "rate", "400 Gb/sec (4X NDR)")
        put(p / "link_layer", "Ethernet")
        for i, (gid, kind) in enumerate([(GID_LINK_LOCAL, "IB/RoCE v1"), (GID_LINK_LOCAL, "RoCE v2"),
                                         (GID_V4, "IB/RoCE v1"), (GID_V4, "RoCE v2")]):
            put(p / "gids" / str(i), gid)
            put(p / "gid_attrs/types" / str(i), kind)
            put(p / "gid_attrs/ndevs" / str(i), netdev)
        for name, value in [("numa_node", "1"), ("current_link_speed", "32.0 GT/s PCIe"),
                            ("max_link_speed", "32.0 GT/s PCIe"), ("current_link_width", "16"), ("max_link_width", "16")]:
            put(d / "device" / name, value)
        put(self.root / "class/net" / netdev / "mtu", str(mtu))
        return p

    def doctor(self):
        r = subprocess.run([HADAL, "ctl", "doctor", "--sysfs", str(self.root), "--json"], capture_output=True, text=True,
                           timeout=20)
        said = json.loads(r.stdout)
        levels = ["ok", "hint", "warn", "bad"]
        assert said["worst"] == max((f["level"] for f in said["findings"]), key=levels.index, default="ok")
        assert r.returncode == (said["worst"] == "bad"), r
        return said

    def findings(self, level):
        return [f"{f['check']}: {f['text']}" for f in self.doctor()["findings"] if f["level"] == level]


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_a_sound_host(host):
    host.port("mlx5_0", "eth2")
    host.port("mlx5_1", "eth3")
    assert host.doctor()["worst"] == "ok"
    assert host.findings("ok") == [
        f"mlx5_{i}/1: ACTIVE, 400 Gb/sec (4X NDR), RoCE on eth{i + 2}, GID 3 (10.77.0.1), NUMA node 1" for i in range(2)]


def test_no_devices(host):
    assert "no RDMA device" in host.findings("ok")[0]


def test_what_is_broken_and_what_is_named(host):
    p = host.port("mlx5_0", "eth2")
    put(p / "state", "1: DOWN")
    put(p / "phys_state", "3: Disabled")
    assert host.findings("bad") == ["mlx5_0/1: port is DOWN, physically Disabled: cable, switch port, or `ip link set eth2 up`",
                                    "devices: 1 ports, none can be used"]


def test_one_broken_port_of_two_is_bad_too(host):
    put(host.port("mlx5_0", "eth2") / "state", "1: DOWN")
    host.port("mlx5_1", "eth3")
    assert len(host.findings("bad")) == 1 and len(host.findings("ok")) == 1


def test_no_address(host):
    p = host.port("mlx5_0", "eth2")
    for i in (2, 3):
        put(p / "gids" / str(i), "0000:0000:0000:0000:0000:0000:0000:0000")
    assert "give eth2 an IP address" in host.findings("bad")[0]


def test_mtu(host):
    host.port("mlx5_0", "eth2", mtu=1500)
    host.port("mlx5_1", "eth3", mtu=4200)
    assert host.findings("hint") == ["mlx5_0/1: MTU 1500 of eth2 leaves packets of 1024 bytes; with 4200 or more on all "
                                     "hosts and switches they have 4096"]
    assert host.findings("warn") == ["mtu: eth2 has MTU 1500, eth3 has 4200: make them equal"]


@pytest.mark.parametrize("mtu,packets", [(4192, None), (4191, 2048), (352, 256), (351, 0)])
def test_packets_of_an_mtu(host, mtu, packets):
    host.port("mlx5_0", "eth2", mtu=mtu)
    hints, bad = host.findings("hint"), host.findings("bad")
    assert (not hints and not bad) if packets is None else (f"packets of {packets} bytes" in hints[0] if packets else
                                                            "too small" in bad[0])


def test_pcie(host):
    put(host.port("mlx5_0", "eth2").parents[1] / "device/current_link_width", "8")
    assert "runs at 32.0 GT/s PCIe x8, the device can do 32.0 GT/s PCIe x16" in host.findings("warn")[0]


def test_losses_and_ecn(host):
    p = host.port("mlx5_0", "eth2")
    put(p / "hw_counters/out_of_sequence", "17")
    put(p / "hw_counters/local_ack_timeout_err", "2")
    put(p / "counters/symbol_error", "5")
    for i in range(8):
        put(host.root / "class/net/eth2/ecn/roce_np/enable" / str(i), "1")
        put(host.root / "class/net/eth2/ecn/roce_rp/enable" / str(i), "0" if i == 3 else "1")
    warn = host.findings("warn")
    assert "17 out of sequence, 2 times no answer" in warn[0] and "5 symbol errors" in warn[1]
    assert "ECN is off on some priority" in host.findings("hint")[0]


def test_odd_files_are_no_crash(host):
    p = host.port("mlx5_0", "eth2")
    put(p / "rate", "\x1b[31mfast" + "x" * 500)
    put(p / "gids/3", "not a gid")
    put(p.parents[1] / "device/numa_node", "-7")
    put(host.root / "class/net/eth2/mtu", "-1")
    put(p / "state", "")
    text = json.dumps(host.doctor())
    assert "\\u001b" not in text and "port is unknown" in text


def test_the_cluster_is_asked(mock22):
    said = json.loads(mock22.tool("ctl", "doctor", "--json").stdout)
    checks = {f["check"]: f for f in said["findings"]}
    assert "4 of 4 nodes" in checks["nodes"]["text"] and "2 of 2 replicas are ready" in checks["replicas"]["text"]
    r = subprocess.run([HADAL, "ctl", "doctor", "--url", "http://127.0.0.1:1"], capture_output=True, text=True, timeout=20)
    assert r.returncode == 1 and "connect" in r.stdout
